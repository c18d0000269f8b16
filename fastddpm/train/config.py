"""TrainConfig: every setting of a training run, once.

The same fields are the keys of the TOML file and the flags of `fastddpm train` (see settings.py).
Defaults are those of Ho, Jain and Abbeel 2020, section 4 and appendix B, where the paper gives
them.
"""

from dataclasses import dataclass, field
from typing import Any

from fastddpm.diffusion import PREDICTIONS, VARIANCES
from fastddpm.train.loss import LossKind
from fastddpm.train.settings import convert_fields
from fastddpm.unet import UNetConfig


def _setting(default: Any, help: str, group: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, "group": group, **metadata})


DATA, PROCESS, OPTIMISER, MACHINE, OUTPUT = "Data", "Process", "Optimiser", "Machine", "Output"

# What a resumed run may change: none of it enters the mathematics of a step.
FREE_ON_RESUME = frozenset(
    {
        *("data", "out", "device", "threads", "compile", "max_minutes", "tensorboard"),
        *("log_every", "checkpoint_every", "keep_checkpoints", "export_every", "validate_every"),
        *("sample_every", "sample_count", "sample_steps"),
    }
)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; the metadata of each field holds its meaning, unit and range.

    Raises ValueError for a value of another type or out of range, and for settings that
    contradict each other.
    """

    data: str = _setting("", "MNIST IDX file or folder, folder of images, or .npz", DATA)
    image_size: int = _setting(
        0,
        "resize the shorter side of files in an image folder to this and crop the centre; 0: as is",
        DATA,
        unit="pixels",
        low=0,
    )
    pad_to: int = _setting(
        0,
        "pad images to this height and width with black; 0: no padding",
        DATA,
        unit="pixels",
        low=0,
    )
    flip: bool = _setting(False, "mirror half of the images left to right", DATA)
    label_dropout: float = _setting(
        0.0, "share of labels replaced by the last class (the null class)", DATA, low=0.0, high=1.0
    )
    validation_images: int = _setting(
        0, "images held out from the end of the data", DATA, unit="images", low=0
    )

    schedule: str = _setting("linear", "noise schedule by name: linear, cosine, ...", PROCESS)
    timesteps: int = _setting(1000, "length of the chain", PROCESS, unit="steps", low=1)
    beta_start: float | None = _setting(
        None, "first beta, where the schedule has one", PROCESS, low=0.0, high=1.0
    )
    beta_end: float | None = _setting(
        None, "last beta, where the schedule has one", PROCESS, low=0.0, high=1.0
    )
    prediction: str = _setting(
        "epsilon",
        "what the network predicts",
        PROCESS,
        choices=PREDICTIONS,
    )
    variance: str = _setting(
        "fixed_small",
        "variance of the reverse step",
        PROCESS,
        choices=VARIANCES,
    )
    loss: LossKind = _setting(  # noqa: RUF009 (not shared state: _setting makes a field)
        "simple",
        "training loss; hybrid is simple where the variance is fixed, and a learned one needs "
        "hybrid, vlb or rescaled_vlb",
        PROCESS,
    )
    vlb_weight: float | None = _setting(
        None, "weight of the bound in the hybrid loss; none: timesteps / 1000", PROCESS, low=0.0
    )

    steps: int = _setting(800_000, "optimisation steps", OPTIMISER, unit="steps", low=1)
    batch_size: int = _setting(
        128, "images in one optimisation step", OPTIMISER, unit="images", low=1
    )
    accumulate: int = _setting(
        1, "micro-batches that one step is computed in, to save memory", OPTIMISER, low=1
    )
    optimizer: str = _setting("adam", "optimiser", OPTIMISER, choices=("adam", "adamw"))
    learning_rate: float = _setting(2e-4, "peak learning rate", OPTIMISER, low=0.0)
    betas: tuple[float, float] = _setting(
        (0.9, 0.999), "Adam's decay rates of the two moments", OPTIMISER, low=0.0, high=1.0
    )
    eps: float = _setting(1e-8, "Adam's denominator offset", OPTIMISER, low=0.0)
    weight_decay: float = _setting(0.0, "weight decay", OPTIMISER, low=0.0)
    warmup_steps: int = _setting(
        5000, "linear rise of the learning rate", OPTIMISER, unit="steps", low=0
    )
    lr_schedule: str = _setting(
        "constant", "learning rate after the warm-up", OPTIMISER, choices=("constant", "cosine")
    )
    clip_norm: float = _setting(
        1.0, "largest norm of the gradient; 0: no clipping", OPTIMISER, low=0.0
    )
    ema_decay: float = _setting(
        0.9999, "decay of the parameters' moving average", OPTIMISER, low=0.0, high=1.0
    )
    ema_warmup: bool = _setting(
        True, "decay min(ema_decay, (1 + k) / (10 + k)) at step k", OPTIMISER
    )

    seed: int = _setting(
        0, "seed of weights, noise, timesteps and data order", MACHINE, low=0, high=2**64 - 1
    )
    device: str = _setting("auto", "torch device; auto: a GPU if there is one", MACHINE)
    precision: str = _setting(
        "float32",
        "arithmetic of the network (bfloat16: autocast; the weights stay float32)",
        MACHINE,
        choices=("float32", "bfloat16"),
    )
    channels_last: bool = _setting(False, "NHWC memory layout in the network", MACHINE)
    compile: bool = _setting(False, "torch.compile the network", MACHINE)
    threads: int = _setting(0, "CPU threads; 0: torch's choice", MACHINE, unit="threads", low=0)
    max_minutes: float = _setting(
        0.0, "stop and save after this long; 0: no limit", MACHINE, unit="minutes", low=0.0
    )

    out: str = _setting("runs/train", "folder of the run: log, checkpoints, samples, model", OUTPUT)
    log_every: int = _setting(100, "one line of the log", OUTPUT, unit="steps", low=1)
    checkpoint_every: int = _setting(1000, "one checkpoint", OUTPUT, unit="steps", low=1)
    keep_checkpoints: int = _setting(2, "newest checkpoints kept", OUTPUT, low=1)
    export_every: int = _setting(
        0,
        "export the averaged model (also done at the end); 0: only then",
        OUTPUT,
        unit="steps",
        low=0,
    )
    sample_every: int = _setting(0, "one grid of samples; 0: never", OUTPUT, unit="steps", low=0)
    sample_count: int = _setting(36, "images in the grid", OUTPUT, unit="images", low=1)
    sample_steps: int = _setting(
        100, "reverse steps of the grid's short chain", OUTPUT, unit="steps", low=1
    )
    validate_every: int = _setting(
        0, "one loss on the held-out images; 0: never", OUTPUT, unit="steps", low=0
    )
    tensorboard: bool = _setting(False, "write TensorBoard events too", OUTPUT)

    unet: UNetConfig = field(default_factory=UNetConfig)

    def __post_init__(self) -> None:
        convert_fields(self)
        if not self.data:
            raise ValueError("data: expected a path (MNIST IDX, image folder or .npz), got none")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate: expected at most batch_size = {self.batch_size}, "
                f"got {self.accumulate}"
            )
        if self.sample_every and self.sample_steps > self.timesteps:
            raise ValueError(
                f"sample_steps: expected at most timesteps = {self.timesteps}, "
                f"got {self.sample_steps}"
            )
        if self.validate_every and not self.validation_images:
            raise ValueError("validate_every: expected validation_images > 0 beside it, got 0")
        if self.label_dropout and self.unet.num_class_embeds is None:
            raise ValueError("label_dropout: expected unet.num_class_embeds beside it, got none")
        self._check_variance()

    def _check_variance(self) -> None:
        learns = self.variance.startswith("learned")
        # "learned" variances double the output; the U-Net's own checks know nothing of that.
        channels = self.unet.in_channels * (2 if learns else 1)
        if self.unet.out_channels != channels:
            raise ValueError(
                f"unet.out_channels: expected {channels} for unet.in_channels = "
                f"{self.unet.in_channels} and variance = {self.variance}, "
                f"got {self.unet.out_channels}"
            )
        if learns and self.loss not in ("vlb", "rescaled_vlb", "hybrid"):
            raise ValueError(
                f"loss: expected vlb, rescaled_vlb or hybrid for variance = {self.variance}, got "
                f"{self.loss}, which does not train the variance"
            )
