"""Images as bytes of which any beginning decodes to the model's best estimate so far.

The sender (algorithm 3) draws x_T ~ q(x_T | x_0), then x_{t-1} ~ q(x_{t-1} | x_t, x_0) down a
respaced chain, each as numbers of shared candidates (channel.py), and last the pixels under
p(x_0 | x_1) with a range coder. The receiver (algorithm 4) reads x_T, x_{t-1}, ... and has at every
moment the estimate x̂_0(x_t). All images of a file go one step together, so a cut file has every
image as far as its bytes reach.

    ideal bits   KL(q(x_T|x_0) ‖ p) + Σ KL(q(x_{t-1}|x_t,x_0) ‖ p) - log2 p(x_0|x_1)   (equation 5)
    real bytes   more by some three bits a block (index_code.py), one or two bits a step and image
                 for its level (levels.py), 16 bits an image and every 8 steps to check the
                 contents, and a header

What the file says of the states does not depend on the network's last bits, so these decode on any
machine, up to its rounding. The pixels need the very numbers: the same engine on the same kind of
machine. Engine "cpu" has them for every batch and number of threads. A mismatch is found by the
image's check and never passes for pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastddpm.checkpoint.digest import diffusion_digest, weights_digest
from fastddpm.codec import arguments, container, receiver, sender
from fastddpm.codec.channel import MOST as MOST_CANDIDATES
from fastddpm.codec.container import DIGEST_BYTES, Header
from fastddpm.codec.damage import DamagedError, ExhaustedError
from fastddpm.codec.entropy import Reader, range_coding
from fastddpm.codec.journal import Journal
from fastddpm.codec.process import Process, cubic
from fastddpm.codec.sender import Encoded as Encoded
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.engine import CpuOptions
from fastddpm.gaussian import CDFS
from fastddpm.sampler import from_uint8, to_uint8
from fastddpm.sampler.call import NetworkCall
from fastddpm.sampler.model import Model, sample_shape, unet_of
from fastddpm.sampler.place import Place
from fastddpm.sampler.runs import Progress

STEPS, TARGET = 40, 6.0


@dataclass(frozen=True)
class Decoded:
    """images: uint8 [N, H, W, C]. stage: steps that were read, of ``stages``: 1 is x_T, ``stages``
    the pixels. checked: the last one that a check in the file confirms (there is one every 8
    stages); later ones are what the bytes say. lossless: bool [N], which images are the encoder's
    to the last bit. x_t: float32 [N, C, H, W], the state that the others are estimated from."""

    images: Tensor
    stage: int
    stages: int
    checked: int
    lossless: Tensor
    x_t: Tensor


class Codec:
    """An encoder and decoder that share ``model`` and ``diffusion``; arguments as Sampler's. The
    model is unconditional.

    Raises ImportError without the package constriction, ValueError as Sampler does.
    """

    def __init__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        tf32: bool = False,
        threads: int | None = None,
        weights: str = "float32",
        memory: str = "small",
    ) -> None:
        range_coding()
        cpu = CpuOptions(threads, weights, memory)
        unet = unet_of(model)
        if unet is not None and unet.config.is_conditional:
            raise ValueError("expected an unconditional model, this one takes labels")
        place = Place.of(model, diffusion, engine, device, dtype, cpu, tf32)
        self.model = model
        self.diffusion = diffusion
        self._device = place.device
        self._network = NetworkCall(model, place)

    def encode(
        self,
        images: Tensor,
        steps: int | Sequence[int] | None = None,
        seed: int = 0,
        *,
        target: float = TARGET,
        decoder: str = "erf",
        tolerance: float = sender.TOLERANCE,
        most: int = sender.MOST,
        progress: Progress | None = None,
        journal: Journal | None = None,
    ) -> Encoded:
        """The file of some images.

        Args:
            images: uint8 [N, H, W, C], of the model's size.
            steps: how many of the diffusion's T, cubically spaced (40 by default, or T), or which:
                positions from 0 to T-1.
            seed: of the shared randomness and the sender's own.
            target: bits of a block, 1 to 16 in halves: each more saves bytes and doubles the
                sender's work, or more.
            decoder: of the pixels, "erf" or "tanh" (``gaussian``).
            tolerance: how far the law of a block may be from q's in total variation.
            most: candidates of a block to look at, where the tolerance is not met before.
            progress: called with (image-steps done, in all).
            journal: where to keep what has been found, so that the same call goes on if stopped.

        Raises:
            ValueError: arguments that do not fit, or a chain whose steps are too large.
            FloatingPointError: NaN or Inf from the network.
        """
        if decoder not in CDFS:
            raise ValueError(f"decoder is erf or tanh, got {decoder!r}")
        most = arguments.whole("most", most)
        if not 0 < tolerance < 1 or not 1 <= most <= MOST_CANDIDATES:
            raise ValueError(
                f"expected a tolerance between 0 and 1 and 1 to {MOST_CANDIDATES} candidates, "
                f"got {tolerance} and {most}"
            )
        x_0 = from_uint8(arguments.pictures(images))
        shape = (x_0.shape[1], x_0.shape[2], x_0.shape[3])
        self._check_shape(shape)
        T = self.diffusion.num_steps
        count, listed = arguments.chain(min(STEPS, T) if steps is None else steps, T)
        header = Header(
            *self._identity(),
            seed=arguments.whole("seed", seed),
            images=len(images),
            shape=shape,
            steps=count,
            timesteps=listed,
            target=arguments.block_bits(target),
            decoder=decoder,
        )
        process = self._process(header)
        search = sender.Search(tolerance, most, self._device, journal)
        return sender.send(process, header, images, x_0, search, progress or _silent)

    def decode(
        self,
        data: bytes,
        until: int | None = None,
        *,
        partial: bool = False,
        progress: Progress | None = None,
    ) -> Decoded:
        """The images of a file, or what its beginning tells of them.

        until: the stage to end at, 1 (x_T alone) to K + 1 (the pixels); by default all.
        partial: take a file that was cut off or changed as far as it goes.

        Raises DamagedError (a ValueError) for bytes that are not a whole file, or with ``partial``
        not even its beginning; ValueError for a file of another model or diffusion.
        """
        shown = deque(self.stages(data, until, partial=partial, progress=progress), maxlen=1)
        if not shown:
            raise DamagedError("the file ends before the first step of its images")
        return shown[-1]

    def stages(
        self,
        data: bytes,
        until: int | None = None,
        *,
        partial: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[Decoded]:
        """What ``decode`` has after every stage. Where a check shows that stages before were read
        from changed bytes, the last that is sound comes once more, as the end."""
        header, stream, whole = container.unpack(arguments.content(data))
        self._check_header(header)
        if not whole and not partial:
            raise DamagedError(
                "the file was cut off or changed: its checksum fails (its beginning may decode: "
                "partial=True, --partial)"
            )
        until = None if until is None else arguments.whole("until", until)
        if until is not None and not 1 <= until <= header.steps + 1:
            raise ValueError(f"until is a stage from 1 to {header.steps + 1}, got {until}")
        reader = Reader(stream, whole=whole)
        process, end = self._process(header), until or header.steps + 1
        read = receiver.receive(process, header, reader, end, progress or _silent)
        return self._shown(read, header, strict=whole and not partial)

    def _shown(
        self, read: Iterator[receiver.State], header: Header, *, strict: bool
    ) -> Iterator[Decoded]:
        sound, last = None, 0
        while True:
            try:
                state = next(read, None)
            except ExhaustedError:
                return
            except DamagedError:
                if strict or sound is None:
                    raise
                yield sound
                return
            if state is None:
                return
            last = state.stage if state.checked else last
            shown = _decoded(state, header, last)
            sound = shown if state.checked else sound
            yield shown

    def _process(self, header: Header) -> Process:
        T = self.diffusion.num_steps
        kept = cubic(T, header.steps) if header.timesteps is None else list(header.timesteps)
        if len(kept) == T:
            return Process(self._network, self.diffusion)
        respaced = self.diffusion.respace(self.diffusion.schedule.timesteps[kept])
        return Process(self._network, respaced)

    def _identity(self) -> tuple[bytes, bytes]:
        """The first bytes of the digests of weights (none for a plain function) and diffusion."""
        held = self.model if isinstance(self.model, torch.nn.Module) else torch.nn.Module()
        digests = weights_digest(held), diffusion_digest(self.diffusion)
        weights, diffusion = (bytes.fromhex(digest)[:DIGEST_BYTES] for digest in digests)
        return weights, diffusion

    def _check_header(self, header: Header) -> None:
        """ValueError for a file that this model cannot decode."""
        weights, diffusion = self._identity()
        for what, here, there in (
            ("model", weights, header.weights),
            ("diffusion", diffusion, header.diffusion),
        ):
            if here != there:
                raise ValueError(
                    f"the file was made with another {what}: its digest begins with {there.hex()}, "
                    f"this one's with {here.hex()}"
                )
        self._check_shape(header.shape)
        T, last = self.diffusion.num_steps, (header.timesteps or (header.steps - 1,))[-1]
        if last >= T:
            raise DamagedError(f"the file's chain has a step {last}, the diffusion's has {T}")

    def _check_shape(self, shape: tuple[int, int, int]) -> None:
        known = sample_shape(self.model)
        if known is not None and known != shape:
            raise ValueError(
                f"expected images of the model's size, (C, H, W) = {known}, got {shape}"
            )


def _decoded(state: receiver.State, header: Header, checked: int) -> Decoded:
    images = to_uint8(state.estimate)
    for j, pixels in enumerate(state.pixels):
        images[j] = torch.from_numpy(np.moveaxis(pixels.reshape(header.shape), 0, -1).copy())
    lossless = torch.arange(header.images) < len(state.pixels)
    return Decoded(images, state.stage, header.steps + 1, checked, lossless, state.x_t)


def _silent(done: int, total: int) -> None:
    """No progress shown."""
