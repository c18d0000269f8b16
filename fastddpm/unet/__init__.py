"""One configurable U-Net for the Ho/diffusers and the OpenAI families."""

from fastddpm.unet.config import UNetConfig
from fastddpm.unet.packed import PackedUNet
from fastddpm.unet.unet import UNet

__all__ = ["PackedUNet", "UNet", "UNetConfig"]
