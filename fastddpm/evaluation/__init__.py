"""What the papers claim, measured: the bound in bits per dimension, rate against distortion, and
the distance of samples from data."""

from fastddpm.evaluation.bits import BitsPerDim
from fastddpm.evaluation.bound import Bound
from fastddpm.evaluation.data_set import DataSetBound, bound_of_data
from fastddpm.evaluation.fidelity import inception_metrics
from fastddpm.evaluation.frechet import FeatureStatistics, frechet_distance, statistics_of
from fastddpm.evaluation.image_file import ImageFile
from fastddpm.evaluation.kernel_distance import KernelDistance, kernel_distance
from fastddpm.evaluation.likelihood import bits_per_dim
from fastddpm.evaluation.mnist_features import MnistFeatures
from fastddpm.evaluation.rate_distortion import RateDistortion, rate_distortion

__all__ = [
    "BitsPerDim",
    "Bound",
    "DataSetBound",
    "FeatureStatistics",
    "ImageFile",
    "KernelDistance",
    "MnistFeatures",
    "RateDistortion",
    "bits_per_dim",
    "bound_of_data",
    "frechet_distance",
    "inception_metrics",
    "kernel_distance",
    "rate_distortion",
    "statistics_of",
]
