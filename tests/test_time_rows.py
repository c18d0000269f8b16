"""The time rows of calls: the U-Net's own; embeddings are kept while its weights stay the same."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from unet_networks import VARIANTS, network

from fastddpm.sampler import time_rows
from fastddpm.sampler.time_rows import TimeRows
from fastddpm.unet import PackedUNet, UNet


def rows_of(rows: TimeRows, t: Tensor, labels: Tensor | None = None) -> Tensor:
    return rows.of(rows.embedded(t, labels))


NAMES = ("small", "scale_shift", "fourier", "learned_times", "conditional")


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_are_those_of_the_unet(name: str) -> None:
    unet = network(**VARIANTS[name])
    rows, batch = TimeRows(unet), 3
    labels = torch.tensor([0, 4, 9]) if unet.config.is_conditional else None
    times = torch.tensor([1, 400, 999]), torch.tensor(400).expand(batch), torch.tensor([7] * 3)
    for t in times * 2:
        got = rows_of(rows, t, labels).expand(batch, -1)
        torch.testing.assert_close(got, unet.time_rows(t, labels), rtol=1e-5, atol=1e-6)
    nothing = torch.empty(0, dtype=torch.int64)
    none = rows_of(rows, nothing, None if labels is None else labels[:0])
    assert none.shape == (0, unet.row_channels)


@torch.no_grad()
def test_labels_are_asked_for_at_every_call() -> None:
    rows = TimeRows(network(**VARIANTS["conditional"]))
    for _ in range(2):
        with pytest.raises(ValueError, match="needs labels"):
            rows.embedded(torch.tensor([3]), None)
    plain = TimeRows(network())
    plain.embedded(torch.tensor([3]), None)
    with pytest.raises(ValueError, match="takes no labels"):
        plain.embedded(torch.tensor([3]), torch.tensor([1]))


@torch.no_grad()
def test_a_timestep_seen_before_is_not_computed_again() -> None:
    unet = network()
    rows, t = TimeRows(unet), torch.tensor([400])
    first = rows.embedded(t, None)
    with mock.patch.object(UNet, "embedded_times", side_effect=AssertionError):
        assert torch.equal(rows.embedded(t.expand(5), None), first)
        rows.refresh()
        assert torch.equal(rows.embedded(t, None), first)


@pytest.mark.parametrize(
    "part", ["time_emb_proj.weight", "time_emb_proj.bias", "linear_1.weight", "linear_2.bias"]
)
@torch.no_grad()
def test_other_weights_give_other_rows(part: str) -> None:
    unet = network()
    rows, t = TimeRows(unet), torch.tensor([400])
    before = rows_of(rows, t).clone()
    next(p for name, p in unet.named_parameters() if name.endswith(part)).data.mul_(-2).add_(0.1)
    assert torch.equal(rows_of(rows, t), before)  # Until it is told.
    rows.refresh()
    after = rows_of(rows, t)
    torch.testing.assert_close(after, unet.time_rows(t), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(after, before)


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_the_projection_is_written_where_it_lies(packed: bool) -> None:
    unet, other = network(), network()
    for parameter in other.parameters():
        parameter.add_(1)
    kept = tuple(tensor.clone() for tensor in unet.row_projection())
    source = PackedUNet(other, "cpu", torch.float32) if packed else other
    written = source.row_projection(out=kept)
    assert all(a is b for a, b in zip(written, kept, strict=True))
    assert all(map(torch.equal, kept, other.row_projection()))
    TimeRows(source).refresh()  # A packed U-Net's, into itself.
    assert all(map(torch.equal, kept, source.row_projection()))


@torch.no_grad()
def test_no_more_is_kept_than_a_chain_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_rows, "KEPT", 3)
    unet = network()
    rows = TimeRows(unet)
    for step in range(8):
        t: Tensor = torch.tensor([step])
        torch.testing.assert_close(rows_of(rows, t), unet.time_rows(t), rtol=1e-5, atol=1e-6)
        assert len(rows._kept) <= 3


def test_embedded_fourier_features_depend_on_their_frequencies() -> None:
    unet = network(**VARIANTS["fourier"])
    rows, t = TimeRows(unet), torch.tensor([400.0])
    with torch.no_grad():
        before = rows_of(rows, t).clone()
        frequencies = unet.time_proj.weight
        assert isinstance(frequencies, nn.Parameter)
        frequencies.mul_(1.5)
        rows.refresh()
        assert not torch.allclose(rows_of(rows, t), before)
