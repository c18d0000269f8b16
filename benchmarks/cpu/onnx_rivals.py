"""ONNX Runtime, OpenVINO and MNN, each on a network that torch has exported for one batch size.

A package is imported where it is used: each of them is optional. MNN's wheel has no AVX-512
instructions. The variable MNN_AVX512 in the environment names a folder with another build of it
(cmake -DMNN_AVX512=ON), which is then a rival of its own; the wheel still converts for both.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cpu.contenders import SOURCES, Call, Contender, Setup, networks_of

MNN_AVX512 = "MNN_AVX512"
HINTS = ("LATENCY", "THROUGHPUT")
# MNN's own command installs packages by itself; its function, in a process of its own, does not.
MNN_CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv[1:])"


def contenders() -> list[Contender]:
    """Every setting of all three."""
    paths = {"MNN": ""}
    if other := mnn_avx512():
        paths["MNN with AVX-512"] = other
    found = []
    for source in SOURCES:
        graph, given = f"graph of {source}", {"source": source}
        found.append(Contender("ONNX Runtime", graph, onnx_runtime, given, ("onnxruntime",)))
        for hint in HINTS:
            options = {**given, "hint": hint}
            found.append(
                Contender("OpenVINO", f"{graph}, {hint}", openvino, options, ("openvino",))
            )
        found += [
            Contender(name, f"{graph}, precision high", mnn, given, ("MNN",), path=path)
            for name, path in paths.items()
        ]
    return found


def mnn_avx512() -> str:
    """The folder of MNN's other build; empty without one."""
    return os.environ.get(MNN_AVX512, "")


def mnn_avx512_version() -> str | None:
    """Of MNN's other build."""
    paths = [path for path in (mnn_avx512(),) if path]
    return next((one.version for one in metadata.distributions(name="MNN", path=paths)), None)


def exported(setup: Setup, source: str) -> Path:
    """The ONNX file of diffusers' network or of ours, with all sizes fixed; written once.

    Raises ImportError without onnx and onnxscript.
    """
    file = setup.folder / f"{source}_{setup.batch}.onnx"
    if file.is_file():
        return file
    import onnx  # noqa: F401
    import onnxscript  # noqa: F401

    network: Any = networks_of(setup)[source]()
    config = network.unet.config if source == "diffusers" else network.config
    x = torch.zeros(setup.batch, config.in_channels, *[config.sample_size] * 2)
    t = torch.zeros(setup.batch, dtype=torch.int64)
    part = file.with_suffix(".part")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            network,
            (x, t),
            str(part),
            input_names=["x", "t"],
            output_names=["y"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return part.rename(file)


def onnx_runtime(setup: Setup, source: str) -> Call:
    """Its CPU provider with all graph optimisations (the default, named here)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setup.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(
        exported(setup, source), options, providers=["CPUExecutionProvider"]
    )

    def call(x: Tensor, t: Tensor) -> np.ndarray:
        y: np.ndarray = session.run(None, {"x": x.numpy(), "t": t.numpy()})[0]
        return y

    return call


def openvino(setup: Setup, source: str, hint: str) -> Call:
    """Compiled in float32, one request at a time."""
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": hint,
        "PERFORMANCE_HINT_NUM_REQUESTS": 1,
        "INFERENCE_NUM_THREADS": setup.threads,
    }
    compiled = core.compile_model(core.read_model(exported(setup, source)), "CPU", settings)
    request = compiled.create_infer_request()

    def call(x: Tensor, t: Tensor) -> np.ndarray:
        request.infer([x.numpy(), t.numpy()], share_inputs=True)
        y: np.ndarray = request.get_output_tensor(0).data
        return y

    return call


def mnn(setup: Setup, source: str) -> Call:
    """A session of full precision. Winograd, where it is faster, is MNN's default."""
    import MNN

    interpreter = MNN.Interpreter(str(_mnn_file(setup, source)))
    config = {"backend": "CPU", "numThread": setup.threads, "precision": "high"}
    session = interpreter.createSession(config)
    given, written = interpreter.getSessionInputAll(session), interpreter.getSessionOutput(session)
    shape = tuple(written.getShape())
    planes = MNN.Tensor_DimensionType_Caffe
    y = np.zeros(shape, np.float32)
    output = MNN.Tensor(shape, MNN.Halide_Type_Float, y, planes)

    def call(x: Tensor, t: Tensor) -> np.ndarray:
        sizes, times = tuple(x.shape), t.to(torch.int32).numpy()
        given["x"].copyFrom(MNN.Tensor(sizes, MNN.Halide_Type_Float, x.numpy(), planes))
        given["t"].copyFrom(MNN.Tensor((len(t),), MNN.Halide_Type_Int, times, planes))
        interpreter.runSession(session)
        written.copyToHostTensor(output)
        numbers: np.ndarray = output.getNumpyData()
        return numbers

    return call


def _mnn_file(setup: Setup, source: str) -> Path:
    file = setup.folder / f"{source}_{setup.batch}.mnn"
    if not file.is_file():
        onnx_file = exported(setup, source)
        arguments = ["mnnconvert", "-f", "ONNX", "--modelFile", str(onnx_file)]
        arguments += ["--MNNModel", str(file), "--bizCode", "benchmark"]
        command = [sys.executable, "-c", MNN_CONVERT, *arguments]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if not file.is_file():
            raise RuntimeError(f"MNN converts nothing: {made.stdout[-500:]}{made.stderr[-500:]}")
    return file
