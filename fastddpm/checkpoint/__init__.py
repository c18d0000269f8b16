"""Networks and processes from files and to files, whichever family wrote them.

    built-in name, diffusers folder          config.json, diffusion_pytorch_model.safetensors
    (flat, or a pipeline with unet/)         and scheduler_config.json if there is one
    OpenAI state dict (.pt, .safetensors)    with kwargs.json beside it, or kwargs=
                         │
                         ▼
    from_pretrained -> (UNet, GaussianDiffusion) -> save_pretrained -> diffusers folder (flat)

Files are recognised by their names and keys. Nothing is unpickled (`files`), and a state dict that
does not fit its settings is refused whole (`fit`).
"""

from fastddpm.checkpoint.openai import save_openai
from fastddpm.checkpoint.openai_names import from_openai, to_openai
from fastddpm.checkpoint.pretrained import builtin_names, from_pretrained, save_pretrained

__all__ = [
    "builtin_names",
    "from_openai",
    "from_pretrained",
    "save_openai",
    "save_pretrained",
    "to_openai",
]
