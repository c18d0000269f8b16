"""fastddpm: exact DDPM sampling and training (Ho, Jain, Abbeel 2020).

    unet, diffusion = fastddpm.from_pretrained("mnist")
    images = fastddpm.Sampler(unet, diffusion).sample(64, seed=0)     # float32 [64, 1, 28, 28]

The public names, nothing else.
"""

from fastddpm._installation import require_installation

require_installation()

# The guard comes first: what follows needs the kernels.
from fastddpm import codec, evaluation, ops  # noqa: E402
from fastddpm.checkpoint import from_pretrained, save_pretrained  # noqa: E402
from fastddpm.diffusion import GaussianDiffusion, Prediction  # noqa: E402
from fastddpm.integrations import accelerate  # noqa: E402
from fastddpm.sampler import Sampler, Step  # noqa: E402
from fastddpm.schedule import NoiseSchedule  # noqa: E402
from fastddpm.unet import UNet, UNetConfig  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "GaussianDiffusion",
    "NoiseSchedule",
    "Prediction",
    "Sampler",
    "Step",
    "UNet",
    "UNetConfig",
    "accelerate",
    "codec",
    "evaluation",
    "from_pretrained",
    "ops",
    "save_pretrained",
]
