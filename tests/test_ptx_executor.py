"""The PTX executor: every kind of fault is found, and Triton's own code runs right in it."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ptx import SMS, Fault, Unsupported, compile, compile_all, execute, resources
from ptx import machine as machine_module
from ptx import sample_kernels as kernels
from ptx.handwritten import run_ptx

from fastddpm.kernels.common.launch import Launch

# The address of a thread's own element of the first, second or third tensor of float32.
OWN = """
    mad.lo.u32 %r2, %r1, {block}, %r0;
    mul.wide.u32 %rd17, %r2, 4;
    add.u64 %rd20, %rd0, %rd17;
    add.u64 %rd21, %rd1, %rd17;
"""
COPY = OWN.format(block=32) + "ld.global.f32 %r3, [%rd20];\n st.global.f32 [%rd21], %r3;"
OUT = {"out": torch.empty(32)}


def copied(**changes: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Run COPY with some arguments changed."""
    x, y = torch.randn(64), torch.full((64,), float("nan"))
    arguments = {"body": COPY, "tensors": {"x": x, "y": y}, "writes": ["y"], "grid": 2} | changes
    run_ptx(**arguments)  # type: ignore[arg-type]
    return x, y


def test_a_right_program_runs_and_is_counted() -> None:
    x, y = torch.randn(64), torch.empty(64)
    run = run_ptx(COPY, {"x": x, "y": y}, writes=["y"], grid=2)
    assert torch.equal(x, y)
    assert run.bytes_moved == 2 * 64 * 4
    assert run.traffic["x"].widths == {("load", 32): 64}
    assert run.instructions["ld"] == 64 * 3  # two parameters, one element


def faults(body: str, match: str, **arguments: object) -> None:
    """The body must fail with this reason."""
    with pytest.raises(Fault, match=match):
        run_ptx(body, **arguments)  # type: ignore[arg-type]


def test_a_fault_names_instruction_program_thread_and_address() -> None:
    with pytest.raises(Fault) as raised:
        copied(tensors={"x": torch.randn(40), "y": torch.empty(64)})
    message = str(raised.value)
    assert "ld.global.f32 %r3, [%rd20]" in message
    assert "program (1, 0, 0), thread 8, address 0x" in message
    assert "outside x: byte 160 of 160" in message


def test_reading_before_the_start() -> None:
    copied(body=COPY.replace("[%rd20]", "[%rd20+0]"))
    with pytest.raises(Fault, match="outside"):
        copied(body=COPY.replace("[%rd20]", "[%rd20+-4]"))


def test_elements_between_the_rows_of_a_view_are_not_the_tensors() -> None:
    view = torch.randn(8, 12)[:, :8]
    with pytest.raises(Fault, match="outside the elements of x"):
        copied(tensors={"x": view, "y": torch.empty(64)})
    with pytest.raises(Fault, match="outside"):
        copied(tensors={"x": torch.randn(128)[:40], "y": torch.empty(64)})


def test_a_part_of_an_element() -> None:
    faults("ld.global.b16 %rs1, [%rd0];", "part of an element", tensors={"x": torch.randn(4)})


def test_misaligned_accesses() -> None:
    x = {"x": torch.randn(64)}
    faults("ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd0+8];", "misaligned", tensors=x)
    faults("ld.global.v2.b64 {%rd2, %rd3}, [%rd0+8];", "misaligned", tensors=x)
    faults("ld.shared.b64 %rd2, [global_smem+4];", "misaligned", tensors={}, shared=64)
    run_ptx("ld.global.v2.b32 {%r2, %r3}, [%rd0+8];", x)


def test_uninitialised_reads() -> None:
    body = "ld.global.b32 %r2, [%rd0];"
    out = {"out": torch.zeros(4)}
    faults(body, "nobody has written", tensors=out, writes=["out"])
    run_ptx(body, out, writes=["out"], in_place=["out"], partial=["out"])
    faults("ld.shared.b32 %r2, [global_smem];", "nobody has written", tensors={}, shared=64)


def test_unwritten_elements() -> None:
    with pytest.raises(Fault, match="32 of 64 elements of y are never written"):
        copied(grid=1)


def test_a_store_that_the_launch_does_not_declare() -> None:
    with pytest.raises(Fault, match="not among the launch's writes"):
        copied(writes=[])


@pytest.mark.parametrize("value", ["%r1", "7"])
def test_two_programs_write_one_element(value: str) -> None:
    body = f"mov.b32 %r3, {value}; st.global.b32 [%rd0], %r3;"
    faults(
        body,
        "race: (two|writes what another) program",
        tensors={"out": torch.empty(1)},
        writes=["out"],
        grid=2,
    )


def test_a_program_reads_what_another_writes() -> None:
    # Program 0 writes its element; program 1 reads that of program 0, later or earlier.
    late = """
        mul.wide.u32 %rd17, %r1, 4; add.u64 %rd20, %rd0, %rd17;
        setp.eq.b32 %p1, %r1, 0;
        {first} ld.global.b32 %r3, [%rd0];
        @%p1 st.global.b32 [%rd0], %r1;
        {second} ld.global.b32 %r3, [%rd0];
    """
    arguments = {"tensors": {"x": torch.zeros(2)}, "writes": ["x"], "in_place": ["x"], "grid": 2}
    faults(
        late.format(first="@!%p1", second="@%p1"), "writes what another program reads", **arguments
    )
    faults(
        late.format(first="@%p1", second="@!%p1"), "reads what another program writes", **arguments
    )


# Each thread writes its own word of shared memory and reads that of the thread 32 before it.
EXCHANGE = """
    shl.b32 %r2, %r0, 2;
    mov.b32 %r3, global_smem; add.u32 %r3, %r3, %r2;
    xor.b32 %r4, %r2, 128; mov.b32 %r5, global_smem; add.u32 %r5, %r5, %r4;
    st.shared.b32 [%r3], %r0;
    {barrier}
    ld.shared.b32 %r6, [%r5];
    {second}
    st.shared.b32 [%r3], %r6;
"""
BARRIER = "bar.sync 0;"


def test_warps_exchange_through_shared_memory_between_barriers() -> None:
    def exchange(barrier: str, second: str) -> None:
        run_ptx(EXCHANGE.format(barrier=barrier, second=second), {}, block=64, shared=256)

    exchange(BARRIER, BARRIER)
    with pytest.raises(Fault, match="reads what another warp, with no barrier between, writes"):
        exchange("", BARRIER)
    with pytest.raises(Fault, match="writes what another warp reads, with no barrier between"):
        exchange(BARRIER, "")


def test_warps_exchange_through_global_memory_between_barriers() -> None:
    body = """
        shl.b64 %rd17, %rd16, 2; add.u64 %rd20, %rd0, %rd17;
        xor.b64 %rd18, %rd17, 128; add.u64 %rd21, %rd0, %rd18;
        st.global.b32 [%rd20], %r0;
        {barrier}
        {access}
    """
    out = {"tensors": {"out": torch.empty(64, dtype=torch.int32)}, "writes": ["out"], "block": 64}
    read, write = "ld.global.b32 %r3, [%rd21];", "st.global.b32 [%rd21], %r0;"
    run_ptx(body.format(barrier=BARRIER, access=read), **out)
    run_ptx(body.format(barrier=BARRIER, access=write), **out)
    faults(body.format(barrier="", access=read), "reads what another warp", **out)
    faults(body.format(barrier="", access=write), "writes what another warp", **out)


def test_who_reads_together_with_others_may_not_write() -> None:
    body = """
        ld.global.b32 %r3, [%rd0];
        {barrier}
        setp.eq.b32 %p1, {mine}, 1;
        @%p1 st.global.b32 [%rd0], %r3;
    """
    x = {"x": torch.zeros(1)}
    arguments = {"tensors": x, "writes": ["x"], "in_place": ["x"], "block": 64}
    body = "shr.u32 %r2, %r0, 5;" + body
    run_ptx(body.format(mine="%r2", barrier=BARRIER), **arguments)
    faults(body.format(mine="%r2", barrier=""), "another warp reads", **arguments)
    faults(body.format(mine="%r1", barrier=BARRIER), "another program reads", grid=2, **arguments)


def test_copies_may_store_the_same_value_but_not_two() -> None:
    body = "mov.b32 %r3, 7; st.global.b32 [%rd0], {}; st.global.b32 [%rd0], %r3;"
    out = {"tensors": {"out": torch.empty(1)}, "writes": ["out"], "block": 64}
    run_ptx(body.format("%r3"), **out)
    faults(body.format("%r0"), "two threads write different values", **out)


def test_shared_memory_has_an_end() -> None:
    faults("st.shared.b32 [global_smem+64], %r0;", "outside the 64 bytes", tensors={}, shared=64)
    faults("mov.b32 %r2, 0; st.shared.b32 [%r2], %r0;", "outside", tensors={}, shared=64)


def test_atomics_add_up_and_do_not_race() -> None:
    count = torch.tensor([5], dtype=torch.int32)
    arguments = {"tensors": {"count": count}, "writes": ["count"], "in_place": ["count"], "grid": 3}
    run_ptx("red.global.add.u32 [%rd0], 2;", **arguments)
    assert count.item() == 5 + 3 * 32 * 2
    run_ptx("atom.global.gpu.relaxed.max.s32 %r3, [%rd0], %r0;", **arguments)
    assert count.item() == 5 + 3 * 32 * 2
    faults(
        "atom.global.add.u32 %r3, [%rd0], 1; ld.global.b32 %r4, [%rd0];",
        "reads what another program writes",
        **arguments,
    )


def test_diverged_lanes_meet_again() -> None:
    # Odd threads loop as often as their number says, even ones do not; then all write.
    body = """
        mov.b32 %r2, 0;
        and.b32 %r3, %r0, 1; setp.eq.b32 %p1, %r3, 0;
        @%p1 bra $after;
    $loop:
        add.u32 %r2, %r2, 2;
        setp.lt.u32 %p2, %r2, %r0;
        @%p2 bra $loop;
    $after:
        bar.sync 0;
        shfl.sync.bfly.b32 %r4, %r2, 1, 31, -1;
        add.u32 %r2, %r2, %r4;
        shl.b64 %rd17, %rd16, 2; add.u64 %rd20, %rd0, %rd17;
        st.global.b32 [%rd20], %r2;
    """
    out = torch.empty(64, dtype=torch.int32)
    run_ptx(body, {"out": out}, writes=["out"], block=64)
    assert torch.equal(out, (torch.arange(64, dtype=torch.int32) | 1) + 1)


def test_barriers_need_every_thread() -> None:
    parted = "setp.lt.u32 %p1, %r0, 32; @%p1 bra $there; bar.sync 0; $there: {}"
    faults(parted.format(""), "threads of the block never reach", tensors={}, block=64)
    faults(parted.format("bar.sync 1;"), "threads of the block never reach", tensors={}, block=64)
    faults("setp.lt.u32 %p1, %r0, 3; @%p1 bar.sync 0;", "only some lanes", tensors={})


def test_warp_instructions_need_the_lanes_they_name() -> None:
    half = "setp.lt.u32 %p1, %r0, 16; @%p1 shfl.sync.{}.b32 %r3, %r0, {}, 31, {};"
    run_ptx(half.format("bfly", 1, "0xffff"), {})
    faults(half.format("bfly", 1, -1), "the mask names other lanes", tensors={})
    faults(half.format("bfly", 16, "0xffff"), "shuffle from an inactive lane", tensors={})


def test_other_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    faults("@%p1 mov.b32 %r3, 0;", "predicate %p1 is read before", tensors={})
    monkeypatch.setattr(machine_module, "LIMIT", 1000)
    faults("$loop: add.u32 %r2, %r2, 1; bra $loop;", "does not end", tensors={})


@pytest.mark.parametrize(
    "body",
    [
        "tcgen05.fence::after_thread_sync;",
        "add.rz.f32 %r2, %r3, %r4;",
        "ld.global.L1::unheard_of.b32 %r2, [%rd0];",
        "cvt.rz.f32.f64 %r2, %rd2;",
        "mov.b32 %r2, %clock;",
        "bar.sync 0, 16;",
        "setp.lt.b32 %p1, %r2, %r3;",
        ".local .b8 depot[16];",
        "fma.rn.f64 %rd2, %rd3, %rd4, %rd5;",
    ],
)
def test_what_is_unknown_is_refused(body: str) -> None:
    with pytest.raises(Unsupported):
        run_ptx(body, {"x": torch.randn(4)})


# Triton's own code


def launches() -> dict[str, tuple[Launch, Callable[[], torch.Tensor], torch.Tensor]]:
    """Each sample kernel with what it should write, in float64, and where."""
    torch.manual_seed(0)
    x, y = torch.randn(1024), torch.randn(1024)
    wide = torch.randn(6, 1000)
    tall = torch.randn(100, 64)
    tile = torch.randn(96, 80).bfloat16()
    cases = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a, b, out = x.to(dtype), y.to(dtype), torch.empty(1000, dtype=dtype)
        arguments = {"x": a, "y": b, "out": out, "n": 1000}
        launch = Launch(
            kernels.add_vectors, (2,), arguments, {"BLOCK": 512}, exact=True, writes=("out",)
        )
        cases[f"add {dtype}"] = launch, (a.double() + b.double())[:1000].to(dtype).double(), out
    out = torch.empty_like(wide)
    arguments = {"x": wide, "out": out, "columns": 1000}
    launch = Launch(kernels.softmax_rows, (6,), arguments, {"BLOCK": 1024}, writes=("out",))
    cases["softmax"] = launch, wide.double().softmax(1), out
    out = torch.empty(64)
    arguments = {"x": tall, "out": out, "rows": 100, "columns": 64}
    blocks = {"BLOCK_R": 32, "BLOCK_C": 32}
    launch = Launch(kernels.sum_columns, (2,), arguments, blocks, writes=("out",))
    cases["sum"] = launch, tall.double().sum(0), out
    out = torch.empty(80, 96).bfloat16()
    arguments = {"x": tile, "out": out, "rows": 96, "columns": 80}
    launch = Launch(kernels.transpose, (2, 2), arguments, {"BLOCK": 64}, writes=("out",))
    cases["transpose"] = launch, tile.t().double(), out
    return cases


@pytest.mark.usefixtures("casts_round_to_nearest")
@pytest.mark.parametrize("sm", SMS)
def test_tritons_code_agrees_with_float64_and_the_interpreter(sm: int) -> None:
    cases = launches()
    compile_all([launch for launch, _, _ in cases.values()], [sm])
    for name, (launch, expected, out) in cases.items():
        execute(launch, sm)
        executed = out.clone()
        launch.run()
        tolerance = 4e-6 if name in ("softmax", "sum") else 0.0
        for result in (executed, out):
            assert (result.double() - expected).abs().max() <= tolerance, name


@pytest.mark.parametrize("sm", SMS)
def test_atomics_of_tritons_code(sm: int) -> None:
    x = torch.randn(1000)
    count, largest = torch.zeros(1, dtype=torch.int32), torch.full((1,), -1)
    arguments = {"x": x, "count": count, "largest": largest, "n": 1000}
    launch = Launch(
        kernels.count_positive, (2,), arguments, {"BLOCK": 512}, writes=("count", "largest")
    )
    execute(launch, sm, in_place=("count", "largest"))
    assert count.item() == (x > 0).sum()
    assert largest.item() == (x > 0).nonzero().max()


def test_the_jits_specialisation() -> None:
    def ptx(n: int, x: torch.Tensor) -> str:
        arguments = {"x": x, "y": x, "out": torch.empty(4096), "n": n}
        return compile(Launch(kernels.add_vectors, (1,), arguments, {"BLOCK": 1024}), 90).ptx

    def parameters(n: int) -> int:
        return len(re.findall(r"\.param \.", ptx(n, aligned)))

    aligned, shifted = torch.randn(1024), torch.randn(1025)[1:]
    assert "ld.global.v4.b32" in ptx(1024, aligned)
    assert "ld.global.v4.b32" not in ptx(1023, aligned)
    assert "ld.global.v4.b32" not in ptx(1024, shifted)
    # A one is a constant. Two more are Triton's own, for scratch memory.
    assert (parameters(1024), parameters(1)) == (4 + 2, 3 + 2)


def test_beyond_32_bits() -> None:
    count = 3 << 30
    x, out = (torch.empty(count, device="meta") for _ in "12")
    last = count // 1024 - 1

    def fill(start: int, length: int) -> np.ndarray:
        return (np.arange(start, start + length) % 1021).astype(np.float32)

    arguments = {"x": x, "y": x, "out": out, "n": count}
    right = Launch(kernels.add_vectors, (last + 1,), arguments, {"BLOCK": 1024}, writes=("out",))
    run = execute(right, 90, programs=[(0,), (last,)], fill={"x": fill, "y": fill})
    for start in (0, last * 1024):
        bits, stored = run.read("out", start, 1024)
        assert stored.all()
        assert np.array_equal(bits.view(np.float32), 2 * fill(start, 1024))
    assert not run.read("out", 1024, 1024)[1].any()

    del arguments["y"]
    wrong = Launch(kernels.double_narrow, (last + 1,), arguments, {"BLOCK": 1024}, writes=("out",))
    execute(wrong, 90, programs=[(0,)], fill={"x": fill})
    with pytest.raises(Fault, match="outside x"):
        execute(wrong, 90, programs=[(last,)], fill={"x": fill})


@pytest.mark.parametrize("sm", SMS)
def test_machine_code_is_read(sm: int) -> None:
    launch, _, _ = launches()["transpose"]
    read = resources(compile(launch, sm))
    # 64 x 64 of bf16 by 128 threads of 8 numbers: 4 loads and 4 stores each, no loop.
    assert (read.loads, read.stores) == ({128: 4}, {128: 4})
    assert (read.stack, read.spills, read.special, read.loops) == (0, 0, 0, 0)
    assert read.shared == 8192
    assert 16 < read.registers < 128 and 50 < read.instructions < 400
    loop, _, _ = launches()["sum"]
    assert resources(compile(loop, sm)).loops >= 1
    softmax, _, _ = launches()["softmax"]
    assert resources(compile(softmax, sm)).special >= 8
