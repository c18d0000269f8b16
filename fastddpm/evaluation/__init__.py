"""What the papers claim, measured: the bound in bits per dimension, rate against distortion, and
the distance of samples from data."""

from fastddpm.evaluation.fidelity import inception_metrics
from fastddpm.evaluation.frechet import FeatureStatistics, frechet_distance, statistics_of
from fastddpm.evaluation.image_file import ImageFile
from fastddpm.evaluation.kernel_distance import KernelDistance, kernel_distance
from fastddpm.evaluation.mnist_features import MnistFeatures

__all__ = [
    "FeatureStatistics",
    "ImageFile",
    "KernelDistance",
    "MnistFeatures",
    "frechet_distance",
    "inception_metrics",
    "kernel_distance",
    "statistics_of",
]
