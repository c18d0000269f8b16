"""lucidrains' model-N.pt: its own Unet is refused with what differs, another's network is read.

The keys of its releases are those that its code gives (Unet(dim=32, dim_mults=(1, 2))); of repeated
blocks one stands for all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from port_references import pesser_state
from torch import Tensor

from fastddpm import NoiseSchedule, from_pretrained
from fastddpm.diffusion import GaussianDiffusion

# (date, {key: shape}, what is named)
RELEASES: dict[str, tuple[dict[str, list[int]], list[str]]] = {
    "0.1, September 2020": (
        {
            "time_mlp.1.weight": [128, 32],
            "mlp.0.weight": [128, 32],
            "downs.0.0.mlp.1.weight": [32, 128],
            "downs.0.0.block1.block.0.weight": [32, 3, 3, 3],
            "downs.0.0.block1.block.1.weight": [32],
            "downs.0.2.fn.fn.to_qkv.weight": [768, 32, 1, 1],
            "downs.0.2.fn.g": [1],
            "downs.0.3.conv.weight": [32, 32, 3, 3],
            "ups.0.3.conv.weight": [32, 32, 4, 4],
            "final_conv.0.block.0.weight": [32, 32, 3, 3],
            "final_conv.1.weight": [3, 32, 1, 1],
        },
        ["behind each convolution", "ReZero", "Mish", "transposed convolutions", "attention"],
    ),
    "0.10, January 2022": (
        {
            "time_mlp.1.weight": [128, 32],
            "downs.0.0.ds_conv.weight": [3, 1, 7, 7],
            "downs.0.2.fn.fn.to_qkv.weight": [384, 32, 1, 1],
            "downs.0.3.weight": [32, 32, 4, 4],
            "ups.0.3.weight": [32, 32, 4, 4],
            "final_conv.1.weight": [3, 32, 1, 1],
        },
        ["ConvNeXt", "4 × 4", "transposed convolutions", "GELU", "attention"],
    ),
    "1.0, November 2022": (
        {
            "init_conv.weight": [32, 3, 7, 7],
            "time_mlp.1.weight": [128, 32],
            "downs.0.0.mlp.1.weight": [64, 128],
            "downs.0.0.block1.proj.weight": [32, 32, 3, 3],
            "downs.0.0.block1.norm.weight": [32],
            "downs.0.2.fn.fn.to_qkv.weight": [384, 32, 1, 1],
            "downs.0.2.fn.norm.g": [1, 32, 1, 1],
            "downs.0.3.1.weight": [32, 128, 1, 1],
            "ups.0.3.1.weight": [32, 64, 3, 3],
            "final_res_block.mlp.1.weight": [64, 128],
            "final_conv.weight": [3, 32, 1, 1],
        },
        ["7 × 7", "standardised", "pixel-unshuffle", "last residual block", "attention"],
    ),
    "2.0, May 2024": (
        {
            "init_conv.weight": [32, 3, 7, 7],
            "time_mlp.1.weight": [128, 32],
            "downs.0.0.block1.proj.weight": [32, 32, 3, 3],
            "downs.0.0.block1.norm.g": [1, 32, 1, 1],
            "downs.0.2.mem_kv": [2, 4, 32, 4],
            "downs.0.2.to_qkv.weight": [384, 32, 1, 1],
            "downs.0.3.1.weight": [32, 128, 1, 1],
            "final_res_block.mlp.1.weight": [64, 128],
            "final_conv.weight": [3, 32, 1, 1],
        },
        ["RMSNorm", "learned keys and values", "7 × 7", "pixel-unshuffle", "attention"],
    ),
}


def tables(schedule: NoiseSchedule, objective: str | None) -> dict[str, Tensor]:
    """The buffers of its GaussianDiffusion that matter, as float32."""
    weights = {
        "pred_noise": torch.ones(len(schedule)),
        "pred_x0": schedule.snr.clamp(max=5),
        "pred_v": schedule.snr.clamp(max=5) / (schedule.snr + 1),
    }
    buffers = {"betas": schedule.betas, "alphas_cumprod": schedule.alphas_cumprod}
    if objective is not None:
        buffers["loss_weight"] = weights[objective]
    return {name: value.float() for name, value in buffers.items()}


def write(path: Path, network: dict[str, Tensor], diffusion: dict[str, Tensor]) -> None:
    """Trainer.save of release 2: the diffusion's state dict, and ema_pytorch's with both copies."""
    model = diffusion | {f"model.{key}": value for key, value in network.items()}
    averages = {k: v + 0.01 if k.startswith("model.") else v for k, v in model.items()}
    ema = {f"online_model.{key}": value for key, value in model.items()}
    ema |= {f"ema_model.{key}": value for key, value in averages.items()}
    ema |= {"initted": torch.tensor(True), "step": torch.tensor(1000)}
    contents = {"step": 1000, "model": model, "opt": {"state": {}}, "ema": ema}
    torch.save(contents | {"scaler": None, "version": "2.2.5"}, path)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("whole", [True, False], ids=["trainer", "state dict"])
def test_its_own_network_is_refused(release: str, whole: bool, tmp_path: Path) -> None:
    shapes, named = RELEASES[release]
    network = {key: torch.zeros(shape) for key, shape in shapes.items()}
    path = tmp_path / "model-10.pt"
    if whole:
        write(path, network, tables(NoiseSchedule.cosine(100), "pred_v"))
    else:
        torch.save(network, path)
    with pytest.raises(ValueError, match="lucidrains") as error:
        from_pretrained(path)
    message = str(error.value)
    assert str(path) in message and "takes any callable (x, t)" in message
    assert [name for name in named if name not in message] == []


SCHEDULES = {
    "linear": NoiseSchedule.openai_linear(1000),
    "cosine": NoiseSchedule.cosine(250),
    "sigmoid": NoiseSchedule.sigmoid_alpha_bar(1000),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("objective", "prediction"),
    [("pred_noise", "epsilon"), ("pred_x0", "sample"), ("pred_v", "v_prediction")],
)
def test_another_network_in_its_trainer(
    objective: str, prediction: str, name: str, tmp_path: Path
) -> None:
    schedule, network = SCHEDULES[name], pesser_state()
    write(tmp_path / "model-3.pt", network, tables(schedule, objective))
    for ema, offset in ((True, 0.01), (False, 0.0)):
        unet, diffusion = from_pretrained(tmp_path / "model-3.pt", ema=ema)
        assert torch.equal(unet.conv_in.weight, network["conv_in.weight"] + offset)
        assert (diffusion.prediction, diffusion.variance) == (prediction, "fixed_small")
        assert torch.equal(diffusion.schedule.betas, schedule.betas.float().double())


def process(path: Path, **kwargs: Any) -> GaussianDiffusion:
    return from_pretrained(path, **kwargs)[1]


def test_an_objective_that_the_tables_do_not_show(tmp_path: Path) -> None:
    path, schedule = tmp_path / "model-3.pt", NoiseSchedule.cosine(100)
    write(path, pesser_state(), tables(schedule, None))
    assert process(path).prediction == "epsilon"
    older = tables(schedule, None) | {"p2_loss_weight": torch.ones(100)}
    write(path, pesser_state(), older)
    with pytest.raises(ValueError, match="pred_noise, pred_x0, pred_v, which its tables do not"):
        process(path)
    assert process(path, kwargs={"objective": "pred_v"}).prediction == "v_prediction"
    with pytest.raises(ValueError, match="got 'v'"):
        process(path, kwargs={"objective": "v"})
    with pytest.raises(ValueError, match="unknown settings steps"):
        process(path, kwargs={"objective": "pred_v", "steps": 3})


@pytest.mark.parametrize(
    ("betas", "words"),
    [
        (torch.zeros(10), "expected every beta"),
        (torch.full((10,), torch.nan), "expected every beta"),
        (torch.ones(2, 2), r"betas: expected \[T\]"),
        (torch.zeros(0), "diffusion steps, found 0"),
    ],
)
def test_damaged_tables(betas: Tensor, words: str, tmp_path: Path) -> None:
    write(tmp_path / "model-3.pt", pesser_state(), {"betas": betas})
    with pytest.raises(ValueError, match=words):
        process(tmp_path / "model-3.pt")
