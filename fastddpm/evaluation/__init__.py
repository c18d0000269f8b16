"""What the papers claim, measured: the bound in bits per dimension, rate against distortion, and
the distance of samples from data."""

from fastddpm.evaluation.bits import BitsPerDim
from fastddpm.evaluation.bound import Bound
from fastddpm.evaluation.data_set import DataSetBound, bound_of_data
from fastddpm.evaluation.likelihood import bits_per_dim
from fastddpm.evaluation.rate_distortion import RateDistortion, rate_distortion

__all__ = [
    "BitsPerDim",
    "Bound",
    "DataSetBound",
    "RateDistortion",
    "bits_per_dim",
    "bound_of_data",
    "rate_distortion",
]
