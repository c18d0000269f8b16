"""model-N.pt of lucidrains' denoising-diffusion-pytorch.

Its Trainer saves a diffusion with its tables and, inside, the network that it was given.

Its own Unet, in every release from the first (September 2020) to 2.3, normalises behind each
convolution instead of before it, attends linearly on the larger maps and has no SiLU in the time
embedding. None is a network that `fastddpm.UNet` can be, so all are refused, with what differs in
the one at hand. Another network trained with it is read by its own names; then the process is that
of the stored tables.

Source: denoising_diffusion_pytorch.py at releases 0.1 to 2.3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fastddpm.checkpoint.limits import check_steps
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule

Shape = tuple[int, ...]
PREDICTIONS = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}


def _any(shape: Shape) -> bool:
    return True


def _kernel(size: int) -> Callable[[Shape], bool]:
    return lambda shape: len(shape) == 4 and shape[-1] == size


# (keys, shapes, what they mean and what stands there in fastddpm.UNet)
DIFFERENCES: tuple[tuple[str, Callable[[Shape], bool], str], ...] = (
    (
        r".*\.block1?\.(proj|block\.0)\.weight",
        _any,
        "normalisation behind each convolution (here before it)",
    ),
    (r".*\.block1\.norm\.g", _any, "RMSNorm in the residual blocks (here GroupNorm)"),
    (
        r".*\.block1\.norm\.weight",
        _any,
        "convolutions whose weights are standardised in some releases, which keys cannot tell",
    ),
    (r".*\.ds_conv\.weight", _any, "ConvNeXt blocks (here residual blocks of two convolutions)"),
    (
        r"downs\.0\.\d\.(fn\.)*to_qkv\.weight",
        _any,
        "linear attention, or attention without biases and of another inner width (here softmax "
        "attention with biases)",
    ),
    (r".*mem_kv", _any, "learned keys and values beside those of the map (here none)"),
    (r".*\.fn\.fn\.g|.*\.fn\.g", lambda shape: shape == (1,), "ReZero gates (here none)"),
    (r"init_conv\.weight", _kernel(7), "a first convolution of 7 × 7 (here 3 × 3)"),
    (
        r"(time_)?mlp\.[123]\.weight|time_mlp\.0\.weights",
        _any,
        "GELU or Mish in the time embedding (here SiLU)",
    ),
    (
        r"downs\.\d+\.3\.1\.weight",
        _kernel(1),
        "halving by pixel-unshuffle (here a 3 × 3 convolution)",
    ),
    (r"downs\.\d+\.\d\.weight", _kernel(4), "halving by 4 × 4 convolutions (here 3 × 3)"),
    (
        r"ups\.\d+\.\d(\.conv)?\.weight",
        _kernel(4),
        "doubling by transposed convolutions (here nearest neighbour and a convolution)",
    ),
    (
        r"final_res_block\..*",
        _any,
        "a last residual block that the first map enters again (here none)",
    ),
)


def is_lucidrains(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of lucidrains' Unet."""
    return any(re.match(r"downs\.0\.\d\.", key) for key in state) and any(
        key.startswith("final_conv.") for key in state
    )


def refuse_lucidrains(state: Mapping[str, Tensor], source: str) -> None:
    """Raise ValueError with all that keeps this Unet from being a `fastddpm.UNet`."""
    found = [
        text
        for pattern, fits, text in DIFFERENCES
        if any(re.fullmatch(pattern, key) and fits(tuple(v.shape)) for key, v in state.items())
    ]
    lines = "\n".join(f"  {text}" for text in found)
    raise ValueError(
        f"{source} is a Unet of lucidrains' denoising-diffusion-pytorch, which is another network "
        f"than fastddpm.UNet:\n{lines}\nBuild it with its own code and sample it with "
        "fastddpm.Sampler(network, diffusion, shape=...), which takes any callable (x, t)."
    )


def lucidrains_process(
    tables: Mapping[str, Tensor], objective: str | None, source: str
) -> GaussianDiffusion:
    """The process that lucidrains' GaussianDiffusion stored around a network.

    objective: pred_noise, pred_x0 or pred_v; None: what the stored weight of the loss shows.

    Raises:
        ValueError: the tables are damaged, or do not show the objective.
    """
    betas = tables["betas"].double()
    if betas.ndim != 1:
        raise ValueError(f"{source}: betas: expected [T], found {list(betas.shape)}")
    check_steps(len(betas), source)
    try:
        schedule = NoiseSchedule.from_betas(betas)
    except ValueError as error:
        raise ValueError(f"{source}: betas: {error}") from error
    shown = _objective(tables, schedule) if objective is None else objective
    if not isinstance(shown, str) or shown not in PREDICTIONS:
        known = ", ".join(PREDICTIONS)
        raise ValueError(
            f"{source}: expected kwargs={{'objective': ...}} with one of {known}, which its tables "
            f"do not show; got {objective!r}"
        )
    return GaussianDiffusion(schedule, prediction=PREDICTIONS[shown], variance="fixed_small")


def _objective(tables: Mapping[str, Tensor], schedule: NoiseSchedule) -> str:
    """The objective whose weight of the loss is stored; "" if none is.

    With SNR = ᾱ/(1−ᾱ) the weights are 1, SNR and SNR/(SNR+1), and where SNR < 1 no γ clips them.
    """
    weight = tables.get("loss_weight")
    if weight is None:
        # Before there were objectives there were no weights either.
        return "" if "p2_loss_weight" in tables else "pred_noise"
    noisy = schedule.snr < 1
    if weight.shape != noisy.shape or not noisy.any():
        return ""
    snr, weight = schedule.snr[noisy], weight.double()[noisy]
    weights = {"pred_noise": torch.ones_like(snr), "pred_x0": snr, "pred_v": snr / (snr + 1)}
    # Stored as float32, from betas that were not.
    return next((o for o, w in weights.items() if torch.allclose(weight, w, rtol=1e-3)), "")
