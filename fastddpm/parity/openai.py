"""Ours beside OpenAI's improved- or guided-diffusion, if one can be imported.

They are on no package index: PYTHONPATH has to name a checkout.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastddpm.checkpoint import from_pretrained, to_openai
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.evaluation import bits_per_dim
from fastddpm.integrations import accelerate
from fastddpm.parity.networks import add, image, randomised
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.selfcheck.outcome import Bits, Check, Errors, Outcome, largest_difference, not_run

PACKAGES = ("improved_diffusion", "guided_diffusion")
SIZE = 16
SMALL: dict[str, Any] = {
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2),
    "num_heads": 2,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "scale and shift": {"use_scale_shift_norm": True},
    "learned variance": {"out_channels": 6},
    "classes": {"num_classes": 5},
}
MEANS = {"EPSILON": "epsilon", "START_X": "sample", "PREVIOUS_X": "previous_sample"}
VARIANCES = {
    "FIXED_SMALL": "fixed_small",
    "FIXED_LARGE": "fixed_large",
    "LEARNED": "learned",
    "LEARNED_RANGE": "learned_range",
}
LONG, SHORT = NoiseSchedule.linear(1000), NoiseSchedule.linear(20, 1e-4, 0.3)
SEED = 0
# Of a whole chain in a range of 2: an eighth of a grey level.
CHAIN = 1e-3
# Of the largest term: their decoder's tails are float32.
BOUND = 1e-5


def checks() -> list[Check]:
    """All comparisons with the first of PACKAGES that is there."""
    package = next((name for name in PACKAGES if importlib.util.find_spec(name)), None)
    compared: dict[str, Callable[[str], Outcome]] = {
        "UNetModel, OpenAI": networks,
        "p_mean_variance, OpenAI": p_mean_variance,
        "p_sample_loop, OpenAI": chain,
        "calc_bpd_loop, OpenAI": bound,
        "checkpoint there and back, OpenAI": checkpoint,
    }
    if package is None:
        why = f"neither {' nor '.join(PACKAGES)} can be imported"
        return [not_run(name, why) for name in compared]
    return [Check(name, partial(compare, package)) for name, compare in compared.items()]


def networks(package: str) -> Outcome:
    """UNetModel with random weights and its drop-in."""
    errors = Errors()
    x, t = image(3, SIZE), torch.tensor([3, 900])
    for name, switches in NETWORKS.items():
        model = _unet(package, switches)
        labels = (torch.tensor([4, 0]),) if "num_classes" in switches else ()
        with torch.no_grad():
            expected = model(x, t, *labels)
        add(errors, name, accelerate(model)(x, t, *labels), expected)
    return errors.outcome("UNetModel, OpenAI", "networks")


def p_mean_variance(package: str) -> Outcome:
    """Mean, log-variance and x_0 of every kind of output and of variance."""
    errors = Errors()
    x = image(3, SIZE)
    for (mean, prediction), (variance, own) in itertools.product(MEANS.items(), VARIANCES.items()):
        theirs = _process(package, mean, variance, LONG)
        ours = GaussianDiffusion(LONG, prediction, own)
        output = image(6 if "LEARNED" in variance else 3, SIZE, 1)
        for t in (0, 1, 500, 999):
            steps = torch.full((len(x),), t)
            expected = theirs.p_mean_variance(lambda x, t, y=output: y, x, steps)
            found = ours.p_mean_variance(output, x, steps)
            pairs = {"mean": found.mean, "log_variance": found.log_variance}
            for name, value in {**pairs, "pred_xstart": found.x_0}.items():
                add(errors, f"{prediction} {own} t = {t} {name}", value, expected[name])
    return errors.outcome("p_mean_variance, OpenAI", "steps")


def chain(package: str) -> Outcome:
    """A whole chain of a random network, by p_sample_loop and by our sampler with its noise."""
    errors = Errors()
    model, shape = _unet(package, {}), (2, 3, SIZE, SIZE)
    for variance in ("FIXED_SMALL", "FIXED_LARGE"):
        theirs = _process(package, "EPSILON", variance, SHORT)
        with torch.random.fork_rng(devices=[]):
            # It draws from torch's own generator.
            torch.manual_seed(SEED)
            expected = theirs.p_sample_loop(model, shape, device="cpu")
        diffusion = GaussianDiffusion(SHORT, variance=VARIANCES[variance])
        generator = torch.Generator().manual_seed(SEED)
        sampler = Sampler(accelerate(model), diffusion, shape=shape[1:])
        found = sampler.sample(len(expected), noise=partial(_draw, generator))
        errors.add(VARIANCES[variance], largest_difference(found, expected), CHAIN)
    return errors.outcome("p_sample_loop, OpenAI", f"{len(SHORT)} steps of a random network")


def bound(package: str) -> Outcome:
    """Every term of calc_bpd_loop, and our bound with its noise."""
    errors = Errors()
    x_0 = image(3, SIZE).clamp(-1, 1)
    for variance, own in VARIANCES.items():
        theirs = _process(package, "EPSILON", variance, SHORT)
        model = _unet(package, NETWORKS["learned variance"] if "LEARNED" in variance else {})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            expected = theirs.calc_bpd_loop(model, x_0)
        generator = torch.Generator().manual_seed(SEED)
        noise = partial(_draw, generator)
        found = bits_per_dim(model, GaussianDiffusion(SHORT, variance=own), x_0, noise=noise)
        ours = found.openai_order()
        names = {"total": "total_bpd", "prior": "prior_bpd", "vb": "vb", "mse": "xstart_mse"}
        for name, their_name in names.items():
            other = expected[their_name]
            within = BOUND * float(other.abs().max())
            errors.add(f"{own} {name}", largest_difference(getattr(ours, name), other), within)
    return errors.outcome("calc_bpd_loop, OpenAI", "columns")


def checkpoint(package: str) -> Outcome:
    """A .pt of its own, read by us and given back under its names: the same bits."""
    bits = Bits()
    for name in ("as it comes", "learned variance"):
        switches = NETWORKS[name]
        state = _unet(package, switches).state_dict()
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / "model.pt"
            torch.save(state, file)
            kwargs = SMALL | switches | {"image_size": SIZE}
            unet, _ = from_pretrained(file, kwargs=kwargs)
        again = to_openai(unet.state_dict(), unet.config)
        for key, tensor in state.items():
            bits.add(f"{name} {key}", again[key], tensor)
    return bits.outcome("checkpoint there and back, OpenAI")


def _unet(package: str, switches: dict[str, Any]) -> Any:
    kind = importlib.import_module(f"{package}.unet").UNetModel
    # guided-diffusion's has the size first.
    size = {"image_size": SIZE} if "image_size" in inspect.signature(kind).parameters else {}
    return randomised(kind(**size, **SMALL | switches))


def _process(package: str, mean: str, variance: str, schedule: NoiseSchedule) -> Any:
    gaussian = importlib.import_module(f"{package}.gaussian_diffusion")
    return gaussian.GaussianDiffusion(
        betas=schedule.betas.numpy(),
        model_mean_type=gaussian.ModelMeanType[mean],
        model_var_type=gaussian.ModelVarType[variance],
        loss_type=gaussian.LossType.MSE,
    )


def _draw(generator: torch.Generator, step: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator)
