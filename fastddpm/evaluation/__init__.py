"""What the papers claim, measured: the bound in bits per dimension, rate against distortion, and
the distance of samples from data."""

from fastddpm.evaluation.bits import BitsPerDim
from fastddpm.evaluation.bound import Bound
from fastddpm.evaluation.likelihood import bits_per_dim

__all__ = ["BitsPerDim", "Bound", "bits_per_dim"]
