"""A progressive lossy-to-lossless image codec made of a diffusion model (Ho et al. 2020, section
4.3: algorithms 3 and 4), whose files can be cut anywhere:

    codec = fastddpm.codec.Codec(unet, diffusion)
    data = codec.encode(images).data              # uint8 [N, H, W, C] -> bytes
    codec.decode(data).images                     # the same images
    codec.decode(data[:900], partial=True)        # what 900 bytes tell of them

It needs the range coder of the package constriction (the extra ``codec``).
"""

from fastddpm.codec.codec import Codec, Decoded, Encoded
from fastddpm.codec.damage import DamagedError
from fastddpm.codec.journal import Journal

__all__ = ["Codec", "DamagedError", "Decoded", "Encoded", "Journal"]
