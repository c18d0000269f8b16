"""Weights that change after the CPU engine has packed them are never ignored."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cpu_program.steps import (
    LIBRARY,
    call_step,
    needs_library,
    plan_of,
    sampler,
)
from torch import nn
from unet_networks import VARIANTS, images, network

from fastddpm.engine import CpuOptions
from fastddpm.engine.cpu.packed import PackedWeights
from fastddpm.engine.cpu.rules.convolution import as_it_is
from fastddpm.engine.cpu_program import CpuPrograms
from fastddpm.unet import UNet

pytestmark = needs_library
ISAS = LIBRARY.isas if LIBRARY.handle is not None else ()


class TestWeightsThatChange:
    def changes(self) -> dict[str, Any]:
        def write(unet: UNet) -> None:
            unet.down_blocks[0].resnets[0].conv2.weight.mul_(-1)

        def write_data(unet: UNet) -> None:
            unet.down_blocks[0].resnets[0].conv2.weight.data.mul_(-1)

        def attention(unet: UNet) -> None:
            unet.mid_block.attentions[0].to_k.weight.mul_(-2)

        def attention_bias(unet: UNet) -> None:
            unet.mid_block.attentions[0].to_v.bias.data.add_(2)

        def norm(unet: UNet) -> None:
            unet.conv_norm_out.weight.data.mul_(-1)

        def time(unet: UNet) -> None:
            unet.down_blocks[0].resnets[0].time_emb_proj.weight.data.mul_(-1)

        def replace(unet: UNet) -> None:
            layer = unet.up_blocks[0].resnets[0].conv1
            layer.weight = nn.Parameter(-layer.weight)

        def move(unet: UNet) -> None:
            bias = unet.conv_out.bias
            bias.data = bias.data.clone() + 1

        changes = (write, write_data, attention, attention_bias, norm, time, replace, move)
        return {change.__name__: change for change in changes}

    @pytest.mark.parametrize("name", ["small", "ho", "conditional"])
    def test_are_those_of_the_next_chain(self, name: str) -> None:
        unet = network(**VARIANTS[name])
        labels = 3 if unet.config.is_conditional else None
        chain = sampler(unet)
        before = chain.sample(2, labels=labels)
        for change, apply in self.changes().items():
            with torch.no_grad():
                apply(unet)
            after = chain.sample(2, labels=labels)
            fresh = sampler(copy.deepcopy(unet)).sample(2, labels=labels)
            assert torch.equal(after, fresh), change
            assert not torch.equal(after, before), change
            before = after

    def test_are_those_of_the_next_run_of_a_program(self) -> None:
        """Writes that torch counts, with nobody asking for it."""
        unet = network()
        x, t = images(unet), torch.tensor([3, 700])
        rows, step = unet.time_rows(t), call_step(unet, x, t, None)
        runner = CpuPrograms().prepare(step, plan_of(x))
        with torch.no_grad():
            for parameter in (unet.conv_in.weight, unet.conv_in.bias, unet.conv_norm_out.bias):
                parameter.add_(0.5)
                runner(x)
                torch.testing.assert_close(step.output, unet.denoise(x, rows, t.float()))
            unet.conv_in.bias.data = unet.conv_in.bias.data * 2
            runner(x)
            torch.testing.assert_close(step.output, unet.denoise(x, rows, t.float()))

    def test_a_tensor_that_lies_where_another_lay_is_told_from_it(self) -> None:
        weights = PackedWeights(CpuOptions())
        first, second = torch.randn(16, 16, 3, 3), torch.randn(16, 16, 3, 3)
        kept = weights.of("vector", [first], as_it_is)
        place = first.data
        first.data = torch.zeros(16, 16, 3, 3)
        place.copy_(second)
        other = weights.of("vector", [place], as_it_is)
        assert other is not kept and other is weights.of("vector", [place], as_it_is)
        assert torch.equal(other.memory.view(torch.float32), second.flatten())

    def test_another_instruction_set_is_not_mixed_in(self) -> None:
        if len(ISAS) < 2:
            pytest.skip("one instruction set")
        unet, before = network(), LIBRARY.isa
        chain = sampler(unet)
        chain.sample(1)
        try:
            LIBRARY.use_isa(next(isa for isa in ISAS if isa != before))
            with pytest.raises(RuntimeError, match=f"packed weights for {before}"):
                chain.sample(1)
        finally:
            LIBRARY.use_isa(before)
        chain.sample(1)
