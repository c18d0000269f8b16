"""torch_normal: torch's own draws, bit for bit, and the state that they leave in the generator."""

from __future__ import annotations

import pytest
import torch
from op_backends import ISAS, LIBRARY, instruction_set, needs_library, same_bits

from fastddpm.kernels.torch_normal.cases import CASES, Case
from fastddpm.ops import torch_normal

pytestmark = [needs_library, pytest.mark.usefixtures("fresh_memory_is_nan")]
# What this torch draws by the arithmetic that the kernel repeats: where it has AVX2.
FAST = [isa for isa in ISAS if isa != "baseline"]
needs_avx2 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="torch draws other normals without AVX2",
)


def generators(case: Case) -> tuple[torch.Generator, torch.Generator]:
    both = tuple(torch.Generator().manual_seed(case.seed) for _ in range(2))
    for generator in both:
        torch.rand(case.before, generator=generator)
    return both


@needs_avx2
@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_torchs_draw_bit_for_bit(case: Case, isa: str) -> None:
    own, theirs = generators(case)
    with instruction_set(isa):
        assert torch_normal.unsupported() == []
        # Several draws of one generator, with torch's own between them.
        for _ in range(3):
            found = torch_normal.randn(case.shape, own)
            assert same_bits(found, torch.randn(case.shape, generator=theirs))
            assert torch.equal(own.get_state(), theirs.get_state())
            assert torch.equal(torch.rand(7, generator=own), torch.rand(7, generator=theirs))


@needs_avx2
def test_it_is_the_library_that_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_normal.unsupported() == []
    monkeypatch.setattr(torch, "randn", lambda *a, **k: pytest.fail("torch has drawn"))
    torch_normal.randn((16,), torch.Generator())


@pytest.mark.parametrize("shape", [(), (0,), (3,), (3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("isa", ISAS)
def test_what_the_kernel_cannot_draw_is_torchs(shape: tuple[int, ...], isa: str) -> None:
    own, theirs = (torch.Generator().manual_seed(9) for _ in range(2))
    with instruction_set(isa):
        found = torch_normal.randn(shape, own)
    assert same_bits(found, torch.randn(shape, generator=theirs))
    assert torch.equal(own.get_state(), theirs.get_state())


@needs_avx2
def test_a_torch_that_draws_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.randn

    def rounded_otherwise(*shape: object, **settings: object) -> torch.Tensor:
        drawn = own(*shape, **settings)
        drawn.view(-1).view(torch.int32)[-1] += 1
        return drawn

    monkeypatch.setattr(torch, "randn", rounded_otherwise)
    trial = torch_normal._differences.__wrapped__
    assert trial(LIBRARY.isa) == [f"this torch draws other normals than the {LIBRARY.isa} kernel"]
    monkeypatch.setattr(torch_normal, "_differences", trial)
    # And torch draws.
    same = (torch.Generator().manual_seed(2) for _ in range(2))
    a, b = (
        draw((32,), generator=g)
        for draw, g in zip((torch_normal.randn, torch.randn), same, strict=True)
    )
    assert same_bits(a, b)


def test_the_default_dtype_changes_nothing(other_default_dtype: torch.dtype) -> None:
    a, b = (torch.Generator().manual_seed(1) for _ in range(2))
    found = torch_normal.randn((64,), a)
    assert same_bits(found, torch.randn(64, generator=b, dtype=torch.float32))


def test_a_state_that_cannot_be_is_refused() -> None:
    state, out = torch.zeros(5056, dtype=torch.uint8), torch.empty(16)
    with pytest.raises(RuntimeError, match="invalid argument"):
        LIBRARY.call("fastddpm_torch_normal", out.data_ptr(), 16, state.data_ptr())
    good = torch.Generator().get_state()
    for count in (-1, 0, 15):
        with pytest.raises(RuntimeError, match="invalid argument"):
            LIBRARY.call("fastddpm_torch_normal", out.data_ptr(), count, good.data_ptr())
