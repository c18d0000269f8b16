"""compile(launch, sm): what Triton's JIT would build for a Launch, on a machine without a GPU.

Compilation happens in worker processes (compile_worker.py), one for each processor: the process of
the tests interprets the kernels and cannot compile them.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from .compile_worker import Compiled as Compiled
from .compile_worker import Request, TensorArgument

if TYPE_CHECKING:
    from fastddpm.kernels.common.launch import Launch

# Compute capabilities 8.0 (A100), 9.0 (H100) and 10.0 (B200).
SMS = (80, 90, 100)

# Compilation is most of a test's time, and all of a worker's: no more of them than processors.
_pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
_local = threading.local()
_builds: dict[bytes, Future[Compiled]] = {}


def compile(launch: Launch, sm: int) -> Compiled:
    """The kernel as a GPU of compute capability sm / 10 would run it with these arguments."""
    return _build(_request(launch, sm)).result()


def compile_all(launches: Sequence[Launch], sms: Iterable[int] = SMS) -> list[Compiled]:
    """Every launch for every sm, launches outermost; they are compiled side by side."""
    pairs = [(launch, sm) for sms in [tuple(sms)] for launch in launches for sm in sms]
    return [build.result() for build in [_build(_request(*pair)) for pair in pairs]]


def _request(launch: Launch, sm: int) -> Request:
    function = getattr(launch.kernel, "fn", launch.kernel)
    arguments = {name: _argument(value) for name, value in launch.arguments.items()}
    return Request(
        module=function.__module__,
        kernel=function.__name__,
        arguments=arguments | launch.constants,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        exact=launch.exact,
        sm=sm,
    )


def _argument(value: object) -> object:
    # Of an address, only the alignment counts.
    if isinstance(value, torch.Tensor):
        return TensorArgument(value.dtype, 0 if value.is_meta else value.data_ptr() % 16)
    return value


def _build(request: Request) -> Future[Compiled]:
    """The compilation of a request, begun now unless it has been before."""
    key = pickle.dumps(request)
    if key not in _builds:
        _builds[key] = _pool.submit(_ask_worker, request, key)
    return _builds[key]


def _ask_worker(request: Request, key: bytes) -> Compiled:
    if not hasattr(_local, "worker"):
        _local.worker = _start_worker()
    stdin, stdout = _local.worker.stdin, _local.worker.stdout
    stdin.write(key)
    stdin.flush()
    answer = pickle.load(stdout)
    if isinstance(answer, str):
        raise RuntimeError(f"{request.kernel} does not compile for sm_{request.sm}:\n{answer}")
    assert isinstance(answer, Compiled)
    return answer


def _start_worker() -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # What this process can import, the worker can: kernels come by the name of their module.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    worker = subprocess.Popen(
        [sys.executable, "-c", f"from {__package__}.compile_worker import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert worker.stdin is not None
    # The end of its input ends it.
    atexit.register(worker.stdin.close)
    return worker
