"""TensorFlow's checkpoint format, the TensorBundle, read and written without TensorFlow.

    PREFIX.index                  a sorted table of names and places (`table`, `protobuf`)
    PREFIX.data-00000-of-00001    the tensors' bytes, with a checksum for each (`crc32c`)

Nothing in a file is believed: every offset, size and checksum is compared with what is there.
Source: tensorflow/core/util/tensor_bundle, and LevelDB's doc/table_format.md.
"""

from fastddpm.checkpoint.tensor_bundle.bundle import TensorBundle, find_prefix
from fastddpm.checkpoint.tensor_bundle.writer import bundle_files

__all__ = ["TensorBundle", "bundle_files", "find_prefix"]
