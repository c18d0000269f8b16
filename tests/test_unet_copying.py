"""Many tensors copied at once."""

from __future__ import annotations

import pytest
import torch

from fastddpm.unet.copying import copy_into


def test_dtypes_and_strides_may_differ() -> None:
    values = [
        torch.randn(3),
        torch.randn(2, 8, 3, 3),
        torch.randn(4, dtype=torch.float64),
        torch.tensor([5]),
    ]
    places = [
        torch.zeros(3, dtype=torch.bfloat16),
        torch.zeros(2, 8, 3, 3).contiguous(memory_format=torch.channels_last),
        torch.zeros(4, requires_grad=True),
        torch.zeros(1, dtype=torch.int64),
    ]
    addresses = [place.data_ptr() for place in places]
    versions = [place._version for place in places]
    copy_into(places, values)
    for place, value in zip(places, values, strict=True):
        assert torch.equal(place, value.to(place.dtype))
    assert [place.data_ptr() for place in places] == addresses
    # A fingerprint of the weights sees the write.
    assert all(place._version > old for place, old in zip(places, versions, strict=True))


def test_nothing_to_copy_and_one_too_many() -> None:
    copy_into([], [])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        copy_into([torch.zeros(1)], [])
