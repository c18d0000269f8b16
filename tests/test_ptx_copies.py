"""The PTX executor's cp.async: what a copy brings, when it may be touched, and every fault."""

from __future__ import annotations

import pytest
import torch
from ptx import Fault, Unsupported
from ptx.handwritten import run_ptx

# Each thread copies 16 bytes of x to its place in shared memory, and puts 16 of it into y.
PLACES = """
    shl.b32 %r2, %r0, 4; mov.b32 %r3, global_smem; add.u32 %r3, %r3, %r2;
    cvt.u64.u32 %rd17, %r2; add.u64 %rd20, %rd0, %rd17; add.u64 %rd21, %rd1, %rd17;
    xor.b32 %r4, %r3, 16; xor.b32 %r5, %r3, 512;
"""
COPY = "cp.async.cg.shared.global [%r3], [%rd20], 16;"
COMMIT, WAIT, BARRIER = "cp.async.commit_group;", "cp.async.wait_group 0;", "bar.sync 0;"
READ = """
    ld.shared.v4.b32 {%r8, %r9, %r10, %r11}, [%r3];
    st.global.v4.b32 [%rd21], {%r8, %r9, %r10, %r11};
"""
# Of the other thread of a pair, and of the thread a warp on.
NEIGHBOUR, OTHER_WARP = READ.replace("%r3", "%r4"), READ.replace("%r3", "%r5")
THREADS = 64


def copied(*parts: str, **changes: object) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y [THREADS, 4] after this body."""
    x, y = torch.randn(THREADS, 4), torch.full((THREADS, 4), float("nan"))
    arguments = {"tensors": {"x": x, "y": y}, "writes": ["y"], "block": THREADS, "shared": 1024}
    run_ptx(PLACES + "\n".join(parts), **(arguments | changes))  # type: ignore[arg-type]
    return x, y


def faults(match: str, *parts: str, **changes: object) -> None:
    """The body must fail with this reason; nothing need be written."""
    with pytest.raises(Fault, match=match):
        copied(*parts, partial=["y"], **changes)


@pytest.mark.parametrize("wait", [COMMIT + WAIT, "cp.async.wait_all;", COMMIT + COMMIT + WAIT])
def test_a_copy_that_is_waited_for_arrives(wait: str) -> None:
    x, y = copied(COPY, wait, READ)
    assert torch.equal(x, y)


def test_others_see_it_after_a_barrier() -> None:
    x, y = copied(COPY, COMMIT, WAIT, BARRIER, OTHER_WARP)
    assert torch.equal(x.roll(32, 0), y)
    x, y = copied(COPY, COMMIT, WAIT, "bar.warp.sync -1;", NEIGHBOUR)
    assert torch.equal(x.view(-1, 2, 4).flip(1).view(-1, 4), y)


NOT_WAITED = "what a copy, not waited for, writes"


@pytest.mark.parametrize(
    "before", ["", COMMIT, COMMIT + BARRIER, WAIT + COMMIT, WAIT, "cp.async.wait_group 1;" + COMMIT]
)
def test_a_copy_that_is_not_waited_for(before: str) -> None:
    faults("reads " + NOT_WAITED, COPY, before, READ)
    faults("writes " + NOT_WAITED, COPY, before, "st.shared.b32 [%r3], %r0;")
    faults("updates " + NOT_WAITED, COPY, before, "red.shared.add.u32 [%r3], 1;")
    faults("writes " + NOT_WAITED, COPY, before, COPY)


def test_a_matrix_row_that_is_not_waited_for() -> None:
    load = "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r8, %r9}, [%r3];"
    faults("reads " + NOT_WAITED, COPY, COMMIT, load)
    copied(COPY, COMMIT, WAIT, BARRIER, load, partial=["y"])


NO_BARRIER = "reads what another thread's copy, with no barrier between, writes"


@pytest.mark.parametrize("order", [COMMIT + WAIT, COMMIT + BARRIER + WAIT])
def test_another_threads_copy_needs_a_barrier_after_the_wait(order: str) -> None:
    faults(NO_BARRIER, COPY, order, NEIGHBOUR)
    faults(NO_BARRIER, COPY, order, OTHER_WARP)
    # A barrier of the warp is one for the warp only.
    faults("reads what another", COPY, order, "bar.warp.sync -1;", OTHER_WARP)


def test_a_wait_is_the_waiting_threads_own() -> None:
    first = "setp.eq.b32 %p1, %r0, 0; @%p1 " + WAIT
    faults("thread 1, .*reads " + NOT_WAITED, COPY, COMMIT, first, READ)


def test_the_last_groups_may_stay_under_way() -> None:
    second = COPY.replace("%r3]", "%r3+1024]")
    early = (COPY, COMMIT, second, COMMIT, "cp.async.wait_group 1;")
    x, y = copied(*early, READ, shared=2048)
    assert torch.equal(x, y)
    faults("reads " + NOT_WAITED, *early, READ.replace("%r3]", "%r3+1024]"), shared=2048)


def test_a_copy_may_not_overtake_reads_and_writes() -> None:
    write, read = "st.shared.b32 [%r5], %r0;", "ld.shared.b32 %r8, [%r5];"
    faults("writes what another warp, with no barrier between, writes", write, COPY)
    faults("writes what another warp reads", write, BARRIER, read, COPY)
    copied(write, BARRIER, read, BARRIER, COPY, COMMIT, WAIT, READ)


def test_two_copies_of_the_same_bytes() -> None:
    faults("two copies write the same bytes", "and.b32 %r3, %r3, 0xfff0fdff;", COPY)


@pytest.mark.parametrize("sizes", ["16, %r6", "16, %p1"])
def test_what_is_not_read_is_zero(sizes: str) -> None:
    """Wherever the address points: outside of x it is not looked at."""
    odd = """
        and.b32 %r6, %r0, 1; setp.eq.b32 %p1, %r6, 1; selp.b32 %r6, 0, 16, %p1;
        selp.b64 %rd18, 1048576, 0, %p1; add.u64 %rd20, %rd20, %rd18;
    """
    x, y = copied(odd, COPY.replace("16", sizes), COMMIT, WAIT, READ)
    assert torch.equal(y[::2], x[::2]) and not y[1::2].any()
    faults("thread 1, .*outside", odd, COPY)


@pytest.mark.parametrize(("size", "bits"), [(4, "b32"), (8, "v2.b32")])
def test_copies_of_fewer_bytes(size: int, bits: str) -> None:
    copy = f"cp.async.ca.shared.global.L2::128B [%r3], [%rd20], {size};"
    loaded = "%r8" if size == 4 else "{%r8, %r9}"
    read = f"ld.shared.{bits} {loaded}, [%r3]; st.global.{bits} [%rd21], {loaded};"
    x, y = copied(copy, COMMIT, WAIT, read, partial=["y"])
    words = size // 4
    assert torch.equal(x[:, :words], y[:, :words]) and y[:, words:].isnan().all()


def test_misaligned_copies() -> None:
    faults("misaligned", COPY.replace("%rd20", "%rd20+8"))
    faults("misaligned", COPY.replace("%r3", "%r3+8"), shared=2048)
    faults("misaligned", COPY.replace("%rd20", "%rd20+8").replace("16;", "16, 0;"))


def test_copies_out_of_bounds() -> None:
    faults("thread 63, .*outside x: byte 1024 of 1024", COPY.replace("%rd20", "%rd20+16"))
    faults("thread 63, .*outside the 1024 bytes", COPY.replace("%r3", "%r3+16"))
    faults("reads more than the 16 bytes", COPY.replace("16;", "16, 32;"))


@pytest.mark.parametrize(
    "copy",
    [
        COPY.replace("16;", "16, 8;"),
        COPY.replace("16;", "8;"),
        COPY.replace("shared", "shared::cluster"),
        COPY.replace("%rd20", "%rd21"),
        "cp.async.mbarrier.arrive.shared.b64 [%r3];",
        "cp.async.bulk.commit_group;",
    ],
)
def test_what_is_unknown_is_refused(copy: str) -> None:
    with pytest.raises(Unsupported):
        copied(copy, in_place=["y"])
