"""The PTX executor's integers, comparisons, shuffles and matrices, against plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from ptx import Fault, Unsupported
from ptx.handwritten import LANES, apply, random_bits, run_ptx


def signed(bits: int, size: int) -> int:
    """Two's complement."""
    return bits - (1 << size) if bits >> (size - 1) else bits


def bits_extracted(a: int, position: int, length: int) -> int:
    """bfe.s32 by the PTX ISA's own words."""
    position, length = position & 255, length & 255
    sign = a >> min(position + length - 1, 31) & 1 if length else 0
    return sum(
        (a >> position + i & 1 if i < length and position + i < 32 else sign) << i
        for i in range(32)
    )


def bits_inserted(a: int, b: int, position: int, length: int) -> int:
    """bfi.b32 by the PTX ISA's own words."""
    for i in range(min(length & 255, 32)):
        place = (position & 255) + i
        if place < 32:
            b = b & ~(1 << place) | (a >> i & 1) << place
    return b


def bytes_permuted(a: int, b: int, selector: int) -> int:
    """prmt.b32 by the PTX ISA's own words."""
    result = 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = (b << 32 | a) >> 8 * (nibble & 7) & 255
        result |= (255 * (byte >> 7) if nibble & 8 else byte) << 8 * i
    return result


def toward_zero(a: int, b: int) -> int:
    """Integer division; all ones where the divisor is 0."""
    return int(Fraction(a, b)) if b else -1


def two(function: Callable[[int, int], int], size: int) -> Callable[[int, int], int]:
    """A function of two signed numbers as one of bits."""
    return lambda a, b: function(signed(a, size), signed(b, size))


def in_halves(function: Callable[[int, int], int]) -> Callable[[int, int], int]:
    """A function of 16 bits as one of both halves of 32."""
    low = 0xFFFF
    return lambda a, b: function(a & low, b & low) & low | (function(a >> 16, b >> 16) & low) << 16


INTEGERS: dict[str, tuple[Sequence[int], Callable[..., int]]] = {
    "add.s32 {d}, {0}, {1}": ([32] * 3, lambda a, b: a + b),
    "sub.s64 {d}, {0}, {1}": ([64] * 3, lambda a, b: a - b),
    "mul.lo.s32 {d}, {0}, {1}": ([32] * 3, lambda a, b: a * b),
    "mul.lo.u64 {d}, {0}, {1}": ([64] * 3, lambda a, b: a * b),
    "mul.hi.u32 {d}, {0}, {1}": ([32] * 3, lambda a, b: a * b >> 32),
    "mul.hi.s32 {d}, {0}, {1}": ([32] * 3, two(lambda a, b: a * b >> 32, 32)),
    "mul.hi.u64 {d}, {0}, {1}": ([64] * 3, lambda a, b: a * b >> 64),
    "mul.hi.s64 {d}, {0}, {1}": ([64] * 3, two(lambda a, b: a * b >> 64, 64)),
    "mul.wide.u32 {d}, {0}, {1}": ([64, 32, 32], lambda a, b: a * b),
    "mul.wide.s32 {d}, {0}, {1}": ([64, 32, 32], two(lambda a, b: a * b, 32)),
    "mul.wide.s16 {d}, {0}, {1}": ([32, 16, 16], two(lambda a, b: a * b, 16)),
    "mad.lo.s32 {d}, {0}, {1}, {2}": ([32] * 4, lambda a, b, c: a * b + c),
    "mad.wide.s16 {d}, {0}, {1}, {2}": (
        [32, 16, 16, 32],
        lambda a, b, c: signed(a, 16) * signed(b, 16) + c,
    ),
    "mad.wide.u32 {d}, {0}, {1}, {2}": ([64, 32, 32, 64], lambda a, b, c: a * b + c),
    "mad.wide.s32 {d}, {0}, {1}, {2}": (
        [64, 32, 32, 64],
        lambda a, b, c: signed(a, 32) * signed(b, 32) + c,
    ),
    "div.s32 {d}, {0}, {1}": ([32] * 3, two(toward_zero, 32)),
    "div.u32 {d}, {0}, {1}": ([32] * 3, toward_zero),
    "rem.s64 {d}, {0}, {1}": ([64] * 3, two(lambda a, b: a - b * toward_zero(a, b), 64)),
    "min.s32 {d}, {0}, {1}": ([32] * 3, two(min, 32)),
    "max.u64 {d}, {0}, {1}": ([64] * 3, max),
    "add.s16x2 {d}, {0}, {1}": ([32] * 3, in_halves(lambda a, b: a + b)),
    "min.s16x2 {d}, {0}, {1}": ([32] * 3, in_halves(two(min, 16))),
    "max.u16x2 {d}, {0}, {1}": ([32] * 3, in_halves(max)),
    "neg.s32 {d}, {0}": ([32] * 2, lambda a: -a),
    "abs.s32 {d}, {0}": ([32] * 2, lambda a: abs(signed(a, 32))),
    "and.b32 {d}, {0}, {1}": ([32] * 3, lambda a, b: a & b),
    "not.b64 {d}, {0}": ([64] * 2, lambda a: ~a),
    "xor.b16 {d}, {0}, {1}": ([16] * 3, lambda a, b: a ^ b),
    "lop3.b32 {d}, {0}, {1}, {2}, 0xCA": ([32] * 4, lambda a, b, c: a & b | ~a & c),
    "shl.b32 {d}, {0}, {1}": ([32] * 3, lambda a, n: a << n if n < 32 else 0),
    "shr.u64 {d}, {0}, {1}": ([64, 64, 32], lambda a, n: a >> n),
    "shr.s32 {d}, {0}, {1}": ([32] * 3, lambda a, n: signed(a, 32) >> min(n, 31)),
    "shf.l.wrap.b32 {d}, {0}, {1}, {2}": (
        [32] * 4,
        lambda a, b, n: (b << 32 | a) << (n & 31) >> 32,
    ),
    "shf.r.clamp.b32 {d}, {0}, {1}, {2}": ([32] * 4, lambda a, b, n: (b << 32 | a) >> min(n, 32)),
    "bfe.s32 {d}, {0}, {1}, {2}": ([32] * 4, bits_extracted),
    "bfi.b32 {d}, {0}, {1}, {2}, {3}": ([32] * 5, bits_inserted),
    "prmt.b32 {d}, {0}, {1}, {2}": ([32] * 4, bytes_permuted),
    "popc.b64 {d}, {0}": ([32, 64], lambda a: bin(a).count("1")),
    "clz.b32 {d}, {0}": ([32, 32], lambda a: 32 - a.bit_length()),
    "clz.b64 {d}, {0}": ([32, 64], lambda a: 64 - a.bit_length()),
    "cvt.s64.s32 {d}, {0}": ([64, 32], lambda a: signed(a, 32)),
    "cvt.u64.u32 {d}, {0}": ([64, 32], lambda a: a),
    "cvt.u32.u64 {d}, {0}": ([32, 64], lambda a: a),
    "cvt.s32.s8 {d}, {0}": ([32, 32], lambda a: signed(a & 255, 8)),
    "cvt.sat.s16.s32 {d}, {0}": ([16, 32], lambda a: max(-32768, min(32767, signed(a, 32)))),
    "cvt.sat.u32.s32 {d}, {0}": ([32, 32], lambda a: max(0, signed(a, 32))),
}


@pytest.mark.parametrize("instruction", INTEGERS)
def test_integers_are_exact(instruction: str) -> None:
    sizes, function = INTEGERS[instruction]
    operands = [random_bits(size, seed) for seed, size in enumerate(sizes[1:])]
    if instruction.startswith(("shl", "shr", "shf", "bfe", "bfi")):
        # Small numbers of bits, mostly.
        count = 2 if instruction.startswith("bf") else 1
        for i in range(len(operands) - count, len(operands)):
            small = random_bits(32, 77 + i) % np.uint32(48)
            operands[i] = np.where(np.arange(LANES) % 8 == 0, operands[i], small)
    bits = apply(instruction, sizes, *operands)
    for result, *given in zip(bits, *operands, strict=True):
        expected = function(*(int(g) for g in given)) & ((1 << sizes[0]) - 1)
        assert int(result) == expected, [hex(int(g)) for g in given]


def test_comparisons_combine_with_a_predicate() -> None:
    a = np.arange(LANES)
    body = """setp.lt.u32 %p1, {0}, 8;
        setp.gt.and.s32 %p2|%p3, {0}, 3, %p1;
        selp.b32 {d}, 1, 0, %p2; @%p3 mov.b32 {d}, 2"""
    expected = [2 if i <= 3 else 1 if i < 8 else 0 for i in range(LANES)]
    assert apply(body, [32, 32], a).tolist() == expected


@pytest.mark.parametrize(
    ("mode", "source"),
    [
        ("bfly", lambda i: i ^ 3),
        ("down", lambda i: min(i + 3, i if i > 28 else 99)),
        ("up", lambda i: i - 3 if i >= 3 else i),
        ("idx", lambda i: 3),
    ],
)
def test_shuffles(mode: str, source: Callable[[int], int]) -> None:
    clamp = 0 if mode == "up" else 31
    values = random_bits(32, 2)
    result = apply(f"shfl.sync.{mode}.b32 {{d}}, {{0}}, 3, {clamp}, -1", [32, 32], values)
    assert result.tolist() == [values[i - i % 32 + source(i % 32)] for i in range(LANES)]
    # Segments of eight lanes: nothing comes from another segment.
    clamp |= 0b11000 << 8
    clamp = clamp & ~31 | (0 if mode == "up" else 7) if mode != "bfly" else clamp
    body = f"shfl.sync.{mode}.b32 {{d}}, {{0}}, 3, {clamp}, -1"
    lanes = apply(body, [32, 32], np.arange(LANES))
    assert (lanes // 8 == np.arange(LANES) // 8).all()


def test_votes_and_reductions() -> None:
    values = random_bits(32, 4)
    warps = values.reshape(-1, 32)
    odd = (warps & 1).astype(bool)
    ballot = apply(
        """and.b32 %r3, {0}, 1; setp.eq.b32 %p1, %r3, 1;
        vote.sync.ballot.b32 {d}, %p1, -1""",
        [32, 32],
        values,
    )
    assert ballot[::32].tolist() == [sum(int(o) << i for i, o in enumerate(row)) for row in odd]
    total = apply("redux.sync.add.s32 {d}, {0}, -1", [32, 32], values)
    assert total[::32].tolist() == [int(row.sum()) & 0xFFFFFFFF for row in warps.astype(object)]
    largest = apply("redux.sync.max.s32 {d}, {0}, -1", [32, 32], values)
    assert largest[::32].tolist() == warps.view(np.int32).max(1).view(np.uint32).tolist()
    same = apply("match.any.sync.b32 {d}, {0}, -1", [32, 32], values & 3)
    assert same[5] == sum(1 << i for i in range(32) if (values[i] & 3) == (values[5] & 3))


MATRICES = """
    and.b32 %r2, %r0, 31; shl.b32 %r3, %r0, 2; mov.b32 %r4, global_smem;
    add.u32 %r5, %r4, %r3;
    setp.lt.u32 %p1, %r0, 128;
    @%p1 st.shared.b32 [%r5], {0};
    bar.sync 0;
    shl.b32 %r6, %r2, 4; add.u32 %r7, %r4, %r6;
    ldmatrix.sync.aligned.m8n8.x4TRANS.shared.b16 {%r8, %r9, %r10, %r11}, [%r7];
    bar.sync 0;
    setp.lt.u32 %p2, %r0, 32;
    @!%p2 bra $skip;
    stmatrix.sync.aligned.m8n8.x4TRANS.shared.b16 [%r7], {%r8, %r9, %r10, %r11};
$skip:
    bar.sync 0;
    mov.b32 %r12, 0; @%p1 ld.shared.b32 %r12, [%r5];
    mov.b32 {d}, RESULT"""


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_matrices_through_shared_memory(trans: str) -> None:
    # Row r of tile i lies at byte 128 i + 16 r; a lane gets two numbers of each tile.
    tiles = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    words = tiles.view(np.uint32).ravel()

    def run(result: str) -> list[int]:
        body = MATRICES.replace("TRANS", trans).replace("RESULT", result)
        bits: list[int] = apply(body, [32, 32], np.resize(words, LANES), shared=512).tolist()
        return bits

    for tile, register in zip(tiles, ("%r8", "%r9", "%r10", "%r11"), strict=True):
        expected = np.ascontiguousarray(tile.T if trans else tile).view(np.uint32).ravel()
        assert run(register)[:32] == expected.tolist()
    assert run("%r12")[:128] == words.tolist()


def test_a_matrix_has_rows_of_16_bytes_in_shared_memory() -> None:
    def load(shift: int, register: str = "{%r8, %r9}", count: int = 2) -> None:
        """Lanes 0 to 15 give the rows; where the others point does not count."""
        body = f"""
            shl.b32 %r2, %r0, 4; mov.b32 %r3, global_smem; add.u32 %r3, %r3, %r2;
            mov.b64 %rd2, 0; st.shared.v2.b64 [%r3], {{%rd2, %rd2}}; bar.warp.sync -1;
            setp.lt.u32 %p1, %r0, 16; selp.b32 %r4, {shift}, 65536, %p1; add.u32 %r3, %r3, %r4;
            ldmatrix.sync.aligned.m8n8.x{count}.shared.b16 {register}, [%r3];
        """
        run_ptx(body, {}, shared=512)

    load(0)
    load(256)
    with pytest.raises(Fault, match="misaligned: no multiple of 16 bytes"):
        load(8)
    with pytest.raises(Fault, match="outside the 512 bytes"):
        load(272)
    with pytest.raises(Fault, match="outside the 512 bytes"):
        load(0, "{%r8, %r9, %r10, %r11}", 4)


# The operands' registers lie lane after lane; the result goes where C came from.
PRODUCT = """
    shl.b32 %r2, %r0, 4; cvt.u64.u32 %rd17, %r2; shr.u64 %rd18, %rd17, 1;
    add.u64 %rd20, %rd0, %rd17; add.u64 %rd21, %rd1, %rd18; add.u64 %rd22, %rd2, %rd17;
    ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd20];
    ld.global.v2.b32 {%r8, %r9}, [%rd21];
    ld.global.v4.b32 {%r12, %r13, %r14, %r15}, [%rd22];
    mma.sync.aligned.m16n8k16.row.col.f32.KIND.KIND.f32
        {%r12, %r13, %r14, %r15}, {%r4, %r5, %r6, %r7}, {%r8, %r9}, {%r12, %r13, %r14, %r15};
    st.global.v4.b32 [%rd22], {%r12, %r13, %r14, %r15};
"""


def by_lanes(matrix: torch.Tensor, rows: Sequence[int], columns: Sequence[int]) -> torch.Tensor:
    """What each lane of each warp holds: its n-th number is at row rows[n] + lane / 4 and column
    columns[n] + 2 (lane % 4)."""
    lanes = range(32)
    at = [
        [(r + i // 4, c + 2 * (i % 4)) for r, c in zip(rows, columns, strict=True)] for i in lanes
    ]
    row, column = torch.tensor(at).unbind(-1)
    return matrix[:, row, column].contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_of_matrices(dtype: torch.dtype) -> None:
    """Each warp has its own; 16 sums may round, in any order."""
    torch.manual_seed(0)
    a, b, c = torch.randn(2, 16, 16), torch.randn(2, 16, 8), torch.randn(2, 16, 8)
    a, b = a.to(dtype), b.to(dtype)
    expected = c.double() + a.double() @ b.double()
    of_c = ([0, 0, 8, 8], [0, 1, 0, 1])
    tensors = {
        "a": by_lanes(a, [0, 0, 8, 8] * 2, [0, 1, 0, 1, 8, 9, 8, 9]),
        "b": by_lanes(b.mT, [0] * 4, [0, 1, 8, 9]),
        "d": by_lanes(c, *of_c),
    }
    name = {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    body = PRODUCT.replace("KIND", name)
    run_ptx(body, tensors, writes=["d"], in_place=["d"], block=64)
    size = c.abs().double() + a.abs().double() @ b.abs().double()
    error = (tensors["d"].double() - by_lanes(expected, *of_c)).abs()
    assert (error <= 16 * 2**-24 * by_lanes(size, *of_c)).all()


def test_a_product_needs_its_whole_warp_and_known_types() -> None:
    product = PRODUCT.split("[%rd22];")[1].split(";")[0] + ";"
    with pytest.raises(Fault, match="only some lanes"):
        half = "setp.lt.u32 %p1, %r0, 16; @%p1 " + product.strip()
        run_ptx(half.replace("KIND", "bf16"), {})
    for kind in ("tf32", "e4m3"):
        with pytest.raises(Unsupported):
            run_ptx(product.replace("KIND", kind), {})
    with pytest.raises(Unsupported):
        run_ptx(product.replace("KIND", "f16").replace("k16", "k8"), {})


def test_packing_and_signed_loads() -> None:
    values = random_bits(64, 6)
    body = """mov.b64 {%r2, %r3}, {0}; mov.b32 {%rs1, %rs2}, %r2;
        mov.b32 %r2, {%rs2, %rs1}; mov.b64 {d}, {%r3, %r2}"""
    low = values & np.uint64(0xFFFFFFFF)
    swapped = (low >> np.uint64(16)) | ((low & np.uint64(0xFFFF)) << np.uint64(16))
    expected = values >> np.uint64(32) | swapped << np.uint64(32)
    assert np.array_equal(apply(body, [64, 64], values), expected)
    narrow = random_bits(32, 6)
    body = "mov.b64 %rd3, %rd17; ld.global.s32 {d}, [%rd3]; add.u32 {0}, {0}, 0"
    extended = apply(body, [64, 32], narrow)
    assert np.array_equal(extended, narrow.view(np.int32).astype(np.int64).view(np.uint64))
