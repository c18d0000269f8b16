"""The state of a run and one optimisation step of it.

    draws k·B ... k·B + B − 1 ─► x_0, t, ε ─► loss ─► gradient ─► clip ─► Adam ─► moving average

Data order, timesteps and noise are functions of (seed, draw); dropout uses torch's generator,
whose state is saved. So the state after step k is a function of the state before it alone, and a
resumed run equals an uninterrupted one: bit for bit on one CPU with the same number of threads.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule
from fastddpm.train.config import FREE_ON_RESUME, TrainConfig
from fastddpm.train.data import ImageData, load_images
from fastddpm.train.log import Meter
from fastddpm.train.loss import Batch, Network, draw_batch, held_out_batch, losses
from fastddpm.train.order import DataOrder, Epoch
from fastddpm.train.settings import as_dict, differences
from fastddpm.train.update import Update
from fastddpm.unet import UNet, UNetConfig


class Trainer:
    """Everything a run holds in memory; `step()` is one optimisation step.

    Building one seeds torch's global generator with `config.seed`, for weights and dropout.
    Raises ValueError for data that the settings do not fit, OSError for data that cannot be read.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.device = _device(config.device)
        data = load_images(config.data, image_size=config.image_size, pad_to=config.pad_to)
        _check_fit(config, data)
        self.fingerprint = data.fingerprint
        self.data, self.held_out = data.split(config.validation_images)
        self.order = DataOrder(config.seed, len(self.data), config.flip, config.label_dropout)
        self.diffusion = build_diffusion(config)
        torch.manual_seed(config.seed)
        self.model = UNet(_sized(config.unet, data)).to(self.device)
        # The fused kernels of a GPU read channels last.
        self._channels_last = config.channels_last or self.device.type == "cuda"
        if self._channels_last:
            # torch's hints leave out Module.to with a memory format alone.
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.update = Update(config, self.model)
        self.meter = Meter(self.device)
        self.completed = 0
        self._forward = torch.compile(self.model) if config.compile else self.model

    @property
    def averaged(self) -> UNet:
        """The moving average of the network, in evaluation mode."""
        return self.update.ema.model

    def step(self) -> None:
        """One optimisation step: afterwards `completed` has grown by one."""
        config = self.config
        total = torch.zeros((), device=self.device)
        for batch in self._next_batch().split(config.accumulate):
            loss = self._losses(self._network, batch)
            # A share of the whole batch's mean, so that the parts' gradients add up to its own.
            part = loss.sum() / config.batch_size
            part.backward()  # type: ignore[no-untyped-call]  # torch has no hints here
            total += part.detach()
        norm = self.update.apply(self.completed)
        self.completed += 1
        self.meter.add(total, norm, self.completed)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """The averaged model's mean loss on the held-out images, with fixed timesteps and noise."""
        total = 0.0
        count, size = len(self.held_out), self.config.batch_size
        for first in range(0, count, size):
            index = torch.arange(first, min(first + size, count))
            never = torch.zeros(len(index), dtype=torch.bool)
            x_0, labels = self._load(self.held_out, Epoch(index, never, never))
            batch = held_out_batch(self.config.seed, first, count, x_0, labels, self.diffusion)
            total += float(self._losses(self.averaged, batch).sum())
        return total / count

    def _losses(self, network: Network, batch: Batch) -> Tensor:
        config = self.config
        return losses(network, self.diffusion, batch, config.loss, config.vlb_weight)

    def _next_batch(self) -> Batch:
        size, seed = self.config.batch_size, self.config.seed
        first = self.completed * size
        x_0, labels = self._load(self.data, self.order.draws(first, size))
        return draw_batch(seed, first, x_0, labels, self.diffusion)

    def _load(self, data: ImageData, draws: Epoch) -> tuple[Tensor, Tensor | None]:
        """A batch on the device; labels if the network takes them, a dropped one as its last."""
        x_0, labels = data.batch(draws)
        classes = self.config.unet.num_class_embeds
        if classes is None or labels is None:
            return x_0.to(self.device), None
        labels = torch.where(labels < 0, classes - 1, labels)
        return x_0.to(self.device), labels.to(self.device)

    def _network(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The network in the asked precision and memory layout, float32 outside."""
        if self._channels_last:
            x_t = x_t.contiguous(memory_format=torch.channels_last)
        half = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            output: Tensor = self._forward(x_t, t, labels)
        return output.float()

    def tensors(self) -> dict[str, Tensor]:
        """The run's state: weights, averages, moments, running means, random generators."""
        found = self.update.tensors()
        found["meter/totals"] = self.meter.totals
        found["rng/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            found["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    def record(self) -> dict[str, Any]:
        """What is not a tensor in the run's state: step, settings, which data."""
        return {
            "step": self.completed,
            "settings": as_dict(self.config),
            "data_sha256": self.fingerprint,
        }

    def restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Takes over a state that `tensors` and `record` gave.

        Raises ValueError, naming the fields, if the settings or the data differ where it matters.
        """
        _check_resume(self.config, record["settings"])
        if record["data_sha256"] != self.fingerprint:
            raise ValueError(
                f"cannot resume: the images at {self.config.data} are not those of the checkpoint"
            )
        self.update.restore(tensors)
        self.meter.totals.copy_(tensors["meter/totals"])
        torch.set_rng_state(tensors["rng/cpu"])
        if self.device.type == "cuda" and "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng/cuda"], self.device)
        self.completed = record["step"]


def build_diffusion(config: TrainConfig) -> GaussianDiffusion:
    """The diffusion process of the settings.

    Raises ValueError for an unknown schedule, a beta where the schedule has none, or a process
    that could be trained and then not be sampled.
    """
    ends = {"beta_start": config.beta_start, "beta_end": config.beta_end}
    given = {name: value for name, value in ends.items() if value is not None}
    schedule = NoiseSchedule.named(config.schedule, config.timesteps, **given)
    diffusion = GaussianDiffusion(schedule, config.prediction, config.variance)
    try:
        diffusion.step_table()
    except ValueError as error:
        raise ValueError(
            f"schedule {config.schedule} with prediction {config.prediction} cannot be sampled: "
            f"{error}"
        ) from error
    if config.loss == "min_snr":
        # Raises for a prediction without such weights.
        diffusion.min_snr_weight()
    return diffusion


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {name!r}, but this torch sees no CUDA device")
    return device


def _sized(unet: UNetConfig, data: ImageData) -> UNetConfig:
    """The architecture with the images' size filled in, where the settings leave it open."""
    height, width = data.images.shape[2:]
    if unet.sample_size is not None:
        return unet
    size = height if height == width else (height, width)
    return dataclasses.replace(unet, sample_size=size)


def _check_fit(config: TrainConfig, data: ImageData) -> None:
    _, channels, height, width = data.images.shape
    unet = config.unet
    if unet.in_channels != channels:
        raise ValueError(
            f"unet.in_channels: expected {channels}, as the images have, got {unet.in_channels}"
        )
    if unet.size is not None and unet.size != (height, width):
        raise ValueError(
            f"unet.sample_size: expected the images' {height}x{width} (see pad_to, image_size), "
            f"got {unet.sample_size}"
        )
    if unet.num_class_embeds is None:
        return
    if data.labels is None:
        raise ValueError(f"unet.num_class_embeds: the images at {config.data} have no labels")
    if int(data.labels.min()) < 0:
        raise ValueError(
            f"{config.data}: expected labels of 0 or more, got {int(data.labels.min())}"
        )
    needed = int(data.labels.max()) + 1 + (config.label_dropout > 0)
    if unet.num_class_embeds < needed:
        raise ValueError(
            f"unet.num_class_embeds: expected at least {needed} (one per class, and one more with "
            f"label_dropout), got {unet.num_class_embeds}"
        )


def _check_resume(config: TrainConfig, saved: Mapping[str, Any]) -> None:
    free = set(FREE_ON_RESUME)
    if config.lr_schedule == "constant":
        free.add("steps")
    changed = [name for name in differences(saved, as_dict(config)) if name not in free]
    if changed:
        raise ValueError(
            f"cannot resume: changed since the checkpoint in {config.out}: {', '.join(changed)} "
            "(restore them, or choose another out)"
        )
