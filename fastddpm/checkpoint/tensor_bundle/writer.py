"""A TensorBundle as tf.train.Saver leaves it: data, index, and the file that names the latest.

    NAME.data-00000-of-00001    the tensors' bytes, in the order of their names
    NAME.index                  the header, then under each name BundleEntryProto (`bundle`)
    checkpoint                  CheckpointState in text form

Source: tensorflow/core/util/tensor_bundle/tensor_bundle.cc; checkpoint_state.proto.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastddpm.checkpoint.tensor_bundle.bundle import DTYPES
from fastddpm.checkpoint.tensor_bundle.crc32c import crc32c, mask
from fastddpm.checkpoint.tensor_bundle.protobuf import field, fixed32
from fastddpm.checkpoint.tensor_bundle.table import write_table

LATEST = "checkpoint"
_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


def bundle_files(name: str, tensors: Mapping[str, Tensor]) -> dict[str, str | bytes]:
    """The files of a bundle called `name`, by their names; without the last, the index, it is none.

    tensors: by variable name, in a dtype of `bundle.DTYPES`; their values are copied.
    """
    data = bytearray()
    pairs = [(b"", header())]
    for variable in sorted(tensors, key=str.encode):
        value = tensors[variable].detach().cpu().contiguous()
        content = value.flatten().view(torch.uint8).numpy().tobytes()
        number = _NUMBERS[value.dtype]
        pairs.append((variable.encode(), entry(value.shape, len(data), content, number)))
        data += content
    latest = f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'
    return {
        LATEST: latest,
        f"{name}.data-00000-of-00001": bytes(data),
        f"{name}.index": write_table(pairs),
    }


def header(shards: int = 1) -> bytes:
    """BundleHeaderProto: little-endian (0, which is not written), version 1."""
    return field(1, shards) + field(3, field(1, 1))


def entry(
    shape: tuple[int, ...], offset: int, data: bytes, dtype: int = 1, shard: int = 0
) -> bytes:
    """BundleEntryProto of a tensor whose bytes are `data`."""
    sizes = b"".join(field(2, _unless_zero(1, size)) for size in shape)
    message = field(1, dtype) + field(2, sizes) + _unless_zero(3, shard) + _unless_zero(4, offset)
    return message + _unless_zero(5, len(data)) + fixed32(6, mask(crc32c(data)))


def _unless_zero(number: int, value: int) -> bytes:
    """Zero is what a number is that no field gives."""
    return field(number, value) if value else b""
