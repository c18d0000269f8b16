"""Networks and processes from files and to files, whichever family wrote them.

    built-in name, diffusers folder          config.json, diffusion_pytorch_model.* and
    (flat, or a pipeline with unet/)         scheduler_config.json if there is one
    OpenAI state dict (.pt, .safetensors)    with kwargs.json beside it, or kwargs=
    Ho's TensorFlow checkpoint               .index and .data files, kwargs.json if there is one
    pesser, ermongroup, pytorch-ddpm         torch files, alone
    lucidrains' Trainer                      torch files of such a network; its own is refused
                         │
                         ▼
    from_pretrained -> (UNet, GaussianDiffusion) -> save_pretrained  diffusers folder (flat)
                                                    save_openai      state dict and kwargs.json
                                                    save_ho          pesser's state dict
                                                    save_ho_bundle   Ho's TensorFlow checkpoint
                                                    save_pytorch_ddpm  ckpt.pt and flagfile.txt

Files are recognised by their names and keys. Nothing in them is run (`pickles`), and a state dict
that does not fit its settings is refused whole (`fit`). A folder holds one layout: to save another
there is refused (`folders`).
"""

from fastddpm.checkpoint.ho_export import save_ho, save_ho_bundle
from fastddpm.checkpoint.openai import save_openai
from fastddpm.checkpoint.openai_names import from_openai, to_openai
from fastddpm.checkpoint.pretrained import builtin_names, from_pretrained, save_pretrained
from fastddpm.checkpoint.pytorch_ddpm_export import save_pytorch_ddpm

__all__ = [
    "builtin_names",
    "from_openai",
    "from_pretrained",
    "save_ho",
    "save_ho_bundle",
    "save_openai",
    "save_pretrained",
    "save_pytorch_ddpm",
    "to_openai",
]
