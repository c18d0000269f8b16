"""The arena of a program: everything inside, apart where it must be, and used again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
from cpu_program.interpreter import Memory, run
from cpu_program.steps import MORE, NETWORKS, call_step, lowered, needs_library
from torch import Tensor
from unet_networks import conditions, images, network

from fastddpm.engine.cpu.arena import Arena, _Piece, pointers
from fastddpm.ops.program_abi import ALIGN_BYTES, Output, Pointwise

pytestmark = needs_library


class TestArena:
    def test_floats_lie_inside_aligned_and_are_used_again(self) -> None:
        unet = network(**MORE["three_levels"])
        program = lowered(call_step(unet, images(unet), *conditions(unet)), images(unet))
        begin = program.arena.data_ptr()
        end = begin + program.arena.numel()
        maps = [a.y.data for a in program.code if hasattr(a, "y")]
        assert all(begin <= data < end and data % ALIGN_BYTES == 0 for data in maps)
        assert len(set(maps)) < len(maps) / 2
        every = [pointer.value for a in program.code for pointer in pointers(a)]
        assert max(every) < 1 << 48

    @pytest.mark.parametrize("name", ["openai", "conditional", "groups_straddle_the_join"])
    def test_an_instruction_stays_within_the_floats_it_names(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arenas: list[Arena] = []
        place = Arena.place
        # So that all pieces lie apart.
        monkeypatch.setattr(_Piece, "meets", lambda self, other: True)
        monkeypatch.setattr(Arena, "place", lambda self, c: (arenas.append(self), place(self, c)))
        unet = network(**NETWORKS[name])
        step = call_step(unet, images(unet), *conditions(unet))
        program = lowered(step, state := images(unet))
        memory = Fenced(program, state, step.output)
        memory.pieces = arenas[0].pieces
        run(program, memory, 0)
        assert memory.looks > 100

    def test_what_lives_at_the_same_time_lies_apart(self) -> None:
        arena = Arena()
        names = [arena.reserve(floats) for floats in (40, 10, 30, 20, 5)]
        # 0 and 1 meet, 1 and 2, 2 and 3; 4 nobody names.
        code = [writing(names[0], None), writing(names[1], names[0])]
        code += [writing(names[2], names[1]), writing(names[3], names[2])]
        arena.place(code)
        begins = [a.y.data - arena.memory.data_ptr() for a in code]
        spans = list(zip(begins, SIZES, strict=True))
        for (first, size), (second, other) in pairwise(spans):
            assert first + size <= second or second + other <= first
        assert len(arena.memory) == 192 + 64

    def test_a_sum_takes_the_place_of_a_residual_that_nobody_reads_later(self) -> None:
        arena = Arena()
        residual, kept, first, second = (arena.reserve(64) for _ in range(4))
        code = [writing(residual, None), writing(kept, None)]
        code += [writing(first, kept, residual), writing(second, first, kept)]
        arena.place(code)
        assert code[2].y.data == code[0].y.data
        # The last one reads its residual nowhere else; the third reads what it would overwrite.
        assert code[3].y.data == code[1].y.data
        arena = Arena()
        residual, out = arena.reserve(64), arena.reserve(64)
        code = [writing(residual, None), writing(out, residual, residual)]
        arena.place(code)
        assert code[1].y.data != code[0].y.data


class Fenced(Memory):
    """Every access to the arena lies within one piece of it."""

    pieces: list[tuple[int, int]]
    looks = 0

    def at(self, address: int, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
        last = address + 4 * sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        begin = min(begin for begin, _ in self.pieces)
        end = max(begin + size for begin, size in self.pieces)
        if begin <= address < end:
            self.looks += 1
            assert any(begin <= address and last < begin + size for begin, size in self.pieces)
        return super().at(address, shape, strides)


SIZES = [math.ceil(floats * 4 / ALIGN_BYTES) * ALIGN_BYTES for floats in (40, 10, 30, 20)]


def writing(to: int, source: int | None, residual: int | None = None) -> Pointwise:
    y = Output(data=to, stride=16, residual=residual, residual_stride=16)
    made = Pointwise(y=y)
    made.x.data[0] = source
    return made
