"""A CUDA graph's capture and replay on a machine without a GPU; see device.py."""

from capture.device import Device, Graph, emulated
from capture.launches import launches

__all__ = ["Device", "Graph", "emulated", "launches"]
