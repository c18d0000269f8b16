"""The PTX executor's wgmma: products of swizzled matrices in shared memory, and every fault."""

from __future__ import annotations

import pytest
import torch
from ptx import Fault, Unsupported
from ptx.handwritten import run_ptx

# A warp group brings 2,048 bytes at a time into shared memory.
COPY = """
    shl.b32 %r2, %r0, 4; mov.b32 %r3, global_smem; add.u32 %r3, %r3, %r2;
    cvt.u64.u32 %rd17, %r2; add.u64 %rd20, %rd0, %rd17;
    add.u64 %rd21, %rd1, %rd17; ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd21];
"""
BRING = "cp.async.cg.shared.global [%r3+{0}], [%rd20+{0}], 16;\n"
ARRIVE, PROXY, FENCE = "cp.async.wait_all; bar.sync 0;", "fence.proxy.async;", "wgmma.fence{};"
PRODUCT = """
    mov.pred %p1, {keep}; mov.b64 %rd2, {a}; mov.b64 %rd3, {b};
    wgmma.mma_async.sync.aligned.m64n8k16.f32.KIND.KIND {{%r4, %r5, %r6, %r7}}, %rd2, %rd3, %p1,
        1, 1, 0, 0;
"""
COMMIT, WAIT = "wgmma.commit_group{};", "wgmma.wait_group{} 0;"
STORE = "st.global.v4.b32 [%rd21], {%r4, %r5, %r6, %r7};"
# Where shared memory begins, as the executor has it.
BASE = 1024


def descriptor(start: int, pitch: int) -> int:
    """Of a matrix of rows, eight of them a tile: see the PTX ISA, "Matrix descriptor format"."""
    return (BASE + start) >> 4 | 8 * pitch >> 4 << 32 | {128: 1, 64: 2, 32: 3}[pitch] << 62


def swizzled(matrix: torch.Tensor, pitch: int, part: int) -> torch.Tensor:
    """Rows of 16 numbers as rows of ``pitch`` bytes, from byte 32 part on: parts of 16 bytes are
    exchanged by the number of the row, so that eight rows lie in different banks."""
    image = torch.randn(len(matrix), pitch // 16, 8).to(matrix.dtype)
    turn = 128 // pitch
    for row, numbers in enumerate(matrix):
        for half in (0, 1):
            place = 2 * part + half ^ row // turn % (pitch // 16)
            image[row, place] = numbers[8 * half : 8 * half + 8]
    return image.ravel()


class Multiplied:
    """D = C + A B by one warp group, from matrices in rows of ``pitch`` bytes."""

    def __init__(self, pitch: int = 32, part: int = 0, kind: str = "bf16") -> None:
        torch.manual_seed(0)
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[kind]
        self.a, self.b = torch.randn(64, 16).to(dtype), torch.randn(8, 16).to(dtype)
        self.c = torch.randn(64, 8)
        image = torch.cat([swizzled(self.a, pitch, part), swizzled(self.b, pitch, part)])
        self.image = torch.cat([image, image.new_zeros(-len(image) % 1024)])
        size = 2 * len(self.image)
        bring = "".join(BRING.format(2048 * i) for i in range(size // 2048))
        starts = {"a": descriptor(32 * part, pitch), "b": descriptor(64 * pitch + 32 * part, pitch)}
        product = PRODUCT.replace("KIND", kind).format(keep="{keep}", **starts)
        self.parts = [COPY, bring, ARRIVE, PROXY, FENCE, product, COMMIT, WAIT, STORE]

    def run(self, keep: int = 1, block: int = 128, **changes: str) -> torch.Tensor:
        """D [64, 8]; ``changes`` replace text in the program."""
        lanes = torch.arange(128)
        row = 16 * (lanes // 32) + lanes % 32 // 4
        rows = torch.stack([row, row, row + 8, row + 8], dim=1)
        columns = (2 * (lanes % 4))[:, None] + torch.tensor([0, 1, 0, 1])
        d = self.c[rows, columns].contiguous()
        body = "\n".join(self.parts).replace("{keep}", str(keep)).replace("{}", ".sync.aligned")
        for old, new in changes.items():
            body = body.replace(globals()[old].replace("{}", ".sync.aligned"), new)
        tensors = {"image": self.image, "d": d}
        shared = 2 * len(self.image)
        run_ptx(body, tensors, writes=["d"], in_place=["d"], block=block, shared=shared)
        result = torch.empty(64, 8)
        result[rows, columns] = d
        return result

    def bound(self) -> torch.Tensor:
        """Of the error of 16 sums in any order."""
        size = self.c.abs().double() + self.a.abs().double() @ self.b.abs().double().T
        return 16 * 2**-24 * size


@pytest.mark.parametrize("kind", ["bf16", "f16"])
@pytest.mark.parametrize(("pitch", "part"), [(32, 0), (64, 0), (64, 1), (128, 0), (128, 3)])
def test_products_of_swizzled_matrices(pitch: int, part: int, kind: str) -> None:
    given = Multiplied(pitch, part, kind)
    product = given.a.double() @ given.b.double().T
    assert ((given.run() - given.c - product).abs() <= given.bound()).all()
    assert ((given.run(keep=0) - product).abs() <= given.bound()).all()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ARRIVE": "bar.sync 0;"}, "reads what a copy, not waited for, writes"),
        ({"ARRIVE": "cp.async.wait_all;"}, "reads what another thread's copy"),
        ({"PROXY": ""}, "no barrier and fence.proxy.async since"),
        ({"ARRIVE": "fence.proxy.async;" + ARRIVE, "PROXY": ""}, "fence.proxy.async since"),
        ({"FENCE": ""}, "with no wgmma.fence since"),
        ({"FENCE": "wgmma.fence.sync.aligned; mov.b32 %r5, 0;"}, "%r5 is written with no wgmma.f"),
        ({"COMMIT": ""}, "reads %r4, a product's, not waited for"),
        ({"WAIT": ""}, "reads %r4, a product's, not waited for"),
        ({"WAIT": "wgmma.wait_group.sync.aligned 1;"}, "reads %r4, a product's, not waited for"),
        ({"WAIT": "mov.b32 %r6, 0;"}, "writes %r6, a product's, not waited for"),
        ({"WAIT": "bar.sync 0; st.shared.b32 [%r3], %r0;"}, "writes what a product, not waited"),
        ({"WAIT": "bar.sync 0;" + BRING.format(0)}, "writes what a product, not waited"),
        ({"STORE": "st.shared.b32 [%r3], %r0;"}, "writes what another warp reads"),
    ],
)
def test_faults(changes: dict[str, str], match: str) -> None:
    with pytest.raises(Fault, match=match):
        Multiplied().run(**changes)


def test_after_the_wait_and_a_barrier_the_factors_may_change() -> None:
    given = Multiplied()
    changed = given.run(STORE=STORE + "bar.sync 0; st.shared.b32 [%r3], %r0;")
    assert torch.equal(changed, given.run())


def test_a_product_needs_its_whole_warp_group() -> None:
    for name in ("FENCE", "COMMIT"):
        text = globals()[name].format(".sync.aligned")
        some = "setp.lt.u32 %p2, %r0, 96; @%p2 " + text
        with pytest.raises(Fault, match="only some lanes of a warp group"):
            Multiplied().run(**{name: some})
    with pytest.raises(Unsupported, match="a part of a warp group"):
        run_ptx("wgmma.fence.sync.aligned;", {}, block=64)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("cvt.u64.u32 %rd2, %r0", "thread 1: lanes give other descriptors"),
        (f"mov.b64 %rd2, {descriptor(2064, 32)}", "outside the 4096 bytes"),
    ],
)
def test_descriptors_are_one_and_in_bounds(given: str, match: str) -> None:
    multiplied = Multiplied()
    parts = multiplied.parts
    multiplied.parts = [p.replace("mov.b64 %rd2, ", given + "; mov.b64 %rd4, ") for p in parts]
    with pytest.raises(Fault, match=match):
        multiplied.run()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1, 1, 0, 0;", "1, 1, 0, 1;"),
        ("1, 1, 0, 0;", "-1, 1, 0, 0;"),
        ("m64n8k16", "m64n16k16"),
        ("m64n8k16.f32.bf16.bf16", "m64n8k8.f32.tf32.tf32"),
        ("%rd2, %rd3, %p1", "{%r8, %r9, %r10, %r11}, %rd3, %p1"),
        # Rows that are not swizzled.
        ("mov.b64 %rd2, ", "mov.b64 %rd2, 64; mov.b64 %rd4, "),
    ],
)
def test_what_is_unknown_is_refused(old: str, new: str) -> None:
    given = Multiplied()
    given.parts = [part.replace(old, new) for part in given.parts]
    with pytest.raises(Unsupported):
        given.run()
