"""accelerate: the same numbers as the model it stands for, whoever wrote that model."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastddpm
from fastddpm.checkpoint import to_openai
from fastddpm.checkpoint.openai_kwargs import UNetModel as Arguments
from fastddpm.checkpoint.openai_kwargs import unet_config
from fastddpm.integrations.openai import OpenAIReader, is_openai_model

diffusers = pytest.importorskip("diffusers")

SMALL = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
}


def foreign(**switches: Any) -> nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**{**SMALL, **switches}).eval()


def inputs(model: nn.Module, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, model.config.in_channels, 8, 8)
    return torch.randn(shape, generator=generator), torch.tensor([0, 400, 999])[:batch]


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 1e-5 * b.norm()) and bool(b.norm() > 0)


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"in_channels": 1, "out_channels": 2},
        {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet"},
        {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0},
        {"mid_block_scale_factor": 1.4, "center_input_sample": True},
    ],
    ids=lambda switches: ",".join(switches) or "default",
)
def test_a_unet2dmodel_answers_with_the_same_numbers(switches: dict[str, Any]) -> None:
    model = foreign(**switches)
    fast = fastddpm.accelerate(model)
    x, t = inputs(model)
    assert "as a fastddpm.UNet" in fast.explain()
    with torch.no_grad():
        expected = model(x, t).sample
        assert close(fast(x, t).sample, expected)
        assert close(fast(x, 400).sample, model(x, 400).sample)
        assert close(fast(x, t, return_dict=False)[0], expected)
    assert fast.config.sample_size == 8


def test_class_labels_reach_the_network() -> None:
    model = foreign(num_class_embeds=4)
    x, t = inputs(model)
    labels = torch.tensor([0, 3, 1])
    with torch.no_grad():
        expected = model(x, t, class_labels=labels).sample
        answer = fastddpm.accelerate(model)(x, t, class_labels=labels).sample
        assert close(answer, expected)
        assert not close(answer, model(x, t, class_labels=labels.flip(0)).sample)


@torch.no_grad()
def test_weights_that_change_later_are_taken_over() -> None:
    model = foreign()
    fast = fastddpm.accelerate(model)
    x, t = inputs(model)
    before = fast(x, t).sample
    model.conv_out.weight.mul_(2)
    assert close(fast(x, t).sample, model(x, t).sample)
    assert not close(fast(x, t).sample, before)
    other = foreign(norm_eps=1e-5)
    model.load_state_dict({k: v + 0.01 for k, v in other.state_dict().items()}, assign=True)
    assert close(fast(x, t).sample, model(x, t).sample)
    model.to(torch.float64)
    answer = fast(x.double(), t).sample
    assert answer.dtype == torch.float64
    assert close(answer, model(x.double(), t).sample)


@torch.no_grad()
def test_counted_changes_of_any_weight_are_seen_at_the_next_call() -> None:
    """Within a chain, at a timestep whose rows are kept."""
    model = foreign()
    fast = fastddpm.accelerate(model)
    x, _ = inputs(model)
    for name, parameter in model.named_parameters():
        fast(x, 400)
        before = fast(x, 400).sample
        fast._last_t = 500.0  # The next call goes on with a chain.
        parameter.add_(0.3 * torch.randn_like(parameter))
        after = fast(x, 400).sample
        assert close(after, model(x, 400).sample), name
        # A key's bias cancels in the softmax.
        assert not torch.equal(after, before) or name.endswith("to_k.bias"), name


@torch.no_grad()
def test_a_sampler_sees_what_torch_does_not_count() -> None:
    """A write through parameter.data, and a caller's inference mode."""
    model = foreign()
    schedule = fastddpm.NoiseSchedule.linear(1000).respace([10, 500])
    diffusion = fastddpm.GaussianDiffusion(schedule)
    fast = fastddpm.Sampler(fastddpm.accelerate(model), diffusion, "reference")
    half = fastddpm.Sampler(model, diffusion, "reference", dtype=torch.bfloat16)
    with torch.inference_mode():
        first, first_half = fast.sample(2), half.sample(2)
    model.conv_out.weight.data.mul_(2)
    second, second_half = fast.sample(2), half.sample(2)
    plain = fastddpm.Sampler(model, diffusion, "reference").sample(2)
    assert (second - plain).abs().max() < 1e-4 < (second - first).abs().max()
    assert (second_half - plain).abs().mean() < 0.05 and not torch.equal(first_half, second_half)


@torch.no_grad()
def test_uncounted_writes_are_seen_when_a_chain_begins() -> None:
    model = foreign()
    fast = fastddpm.accelerate(model)
    x, t = inputs(model)
    fast(x, t)
    model.conv_out.weight.data.mul_(2)
    stale = fast(x, 400).sample
    assert not close(stale, model(x, 400).sample)  # Within a chain nothing is read anew.
    assert close(fast(x, 999).sample, model(x, 999).sample)
    model.conv_out.weight.data.mul_(2)
    fast.refresh()
    assert close(fast(x, 1).sample, model(x, 1).sample)


@torch.no_grad()
def test_an_accelerated_model_is_a_module_like_its_source() -> None:
    model = foreign()
    fast = fastddpm.accelerate(model)
    x, t = inputs(model)
    fast(x, t)
    assert fast.state_dict().keys() == model.state_dict().keys()
    other = foreign(norm_eps=1e-3)
    fast.load_state_dict({k: v + 0.01 for k, v in other.state_dict().items()})
    twin = copy.deepcopy(fast)
    assert close(twin(x, t).sample, model(x, t).sample)
    fast.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert fast(x.bfloat16(), t).sample.dtype == torch.bfloat16


@torch.no_grad()
def test_a_callers_autocast_stays_outside() -> None:
    model = foreign()
    fast = fastddpm.accelerate(model)
    x, t = inputs(model)
    expected = fast(x, t).sample
    sampler = fastddpm.Sampler(
        model, fastddpm.GaussianDiffusion(fastddpm.NoiseSchedule.linear(3)), "reference"
    )
    images = sampler.sample(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x, t).sample, expected)
        assert torch.equal(sampler.sample(2), images)


def test_the_source_stays_as_it_is() -> None:
    model = foreign().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    fast = fastddpm.accelerate(model)
    answer = fast(*inputs(model)).sample
    assert model.training and all(m.training for m in model.modules())
    assert not answer.requires_grad
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_sampler_of_the_accelerated_model_draws_what_one_of_the_converted_draws() -> None:
    model = foreign()
    fast = fastddpm.accelerate(model)
    schedule = fastddpm.NoiseSchedule.linear(1000).respace(range(0, 1000, 100))
    diffusion = fastddpm.GaussianDiffusion(schedule)
    images = fastddpm.Sampler(fast, diffusion, "reference").sample(2, seed=3)
    plain = fastddpm.Sampler(model, diffusion, "reference").sample(2, seed=3)
    assert images.shape == (2, 3, 8, 8)
    assert (images - plain).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_a_pipeline_draws_the_same_images(kind: str) -> None:
    scheduler = getattr(diffusers, f"{kind}Scheduler")(num_train_timesteps=1000)
    pipeline = getattr(diffusers, f"{kind}Pipeline")(unet=foreign(), scheduler=scheduler)
    fast = fastddpm.accelerate(pipeline)
    assert isinstance(fast, type(pipeline)) and fast is not pipeline
    assert type(fast.scheduler).__name__ == f"Fast{kind}Scheduler"
    assert type(pipeline.scheduler).__name__ == f"{kind}Scheduler"
    images = []
    for each in (pipeline, fast):
        each.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(5)
        call = {"batch_size": 2, "generator": generator, "num_inference_steps": 6}
        images.append(torch.from_numpy(each(**call, output_type="np").images))
    assert (images[0] - images[1]).abs().max() < 1e-4
    assert images[0].std() > 0.01


@pytest.mark.parametrize(
    ("kind", "noise"), [("DDPM", "torch"), ("DDIM", "torch"), ("DDPM", "counter")]
)
def test_a_saved_pipeline_is_the_source_s(kind: str, noise: str, tmp_path: Path) -> None:
    scheduler = getattr(diffusers, f"{kind}Scheduler")(num_train_timesteps=20)
    pipeline = getattr(diffusers, f"{kind}Pipeline")(unet=foreign(), scheduler=scheduler)
    fast = fastddpm.accelerate(pipeline, noise=noise)
    fast.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is type(pipeline) and type(again.scheduler) is type(scheduler)
    own = pipeline.unet.state_dict()
    assert all(torch.equal(own[name], value) for name, value in again.unet.state_dict().items())
    settings = scheduler.config.items()
    settings = {name: value for name, value in settings if name != "_use_default_values"}
    assert settings.items() <= {**again.scheduler.config}.items()


def test_a_pipeline_whose_network_was_replaced_is_saved(tmp_path: Path) -> None:
    scheduler = diffusers.DDPMScheduler()
    fast = fastddpm.accelerate(diffusers.DDPMPipeline(unet=foreign(), scheduler=scheduler))
    fast.unet = foreign(layers_per_block=2)
    fast.save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    own = fast.unet.state_dict()
    assert all(torch.equal(own[name], value) for name, value in again.unet.state_dict().items())


@pytest.mark.parametrize("noise", ["torch", "counter"])
def test_the_progress_bar_is_the_pipeline_s(noise: str) -> None:
    pipeline = diffusers.DDPMPipeline(unet=foreign(), scheduler=diffusers.DDPMScheduler())
    assert not fastddpm.accelerate(pipeline, noise=noise).progress_bar(total=2).disable
    pipeline.set_progress_bar_config(disable=True)
    assert fastddpm.accelerate(pipeline, noise=noise).progress_bar(total=2).disable


def test_a_scripted_network_is_in_evaluation_mode_while_it_runs() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.drop(x)

    model = torch.jit.script(Dropping().train())
    x = torch.ones(2, 3, 8, 8)
    assert torch.equal(fastddpm.accelerate(model)(x, torch.tensor([1, 1])), x)
    assert model.training and model.drop.training
    assert not torch.equal(model(x, torch.tensor([1, 1])), x)


@pytest.mark.slow
def test_compiled_networks_answer_with_the_same_numbers() -> None:
    model = foreign()
    x, t = inputs(model)
    fast = fastddpm.accelerate(model, engine="compile")
    with torch.no_grad():
        assert close(fast(x, t).sample, model(x, t).sample)
        assert close(fast(x[:1], 7).sample, model(x[:1], 7).sample)
        model.conv_out.weight.mul_(2)
        assert close(fast(x, t).sample, model(x, t).sample)


# ---- any callable


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.gain * x + t.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("engine", ["auto", "reference", "compile"])
def test_any_callable_runs(engine: str) -> None:
    x, t = torch.randn(3, 2, 4, 4), torch.tensor([1, 2, 3])
    module = Doubled()
    fast = fastddpm.accelerate(module, engine=engine)
    assert torch.equal(fast(x, t), module(x, t))
    assert "as it is" in fast.explain()
    with torch.no_grad():
        module.gain.fill_(3)
    assert torch.equal(fast(x, t), module(x, t))
    plain = fastddpm.accelerate(lambda x, t: x - 1, engine=engine)
    assert torch.equal(plain(x, t), x - 1)


def test_a_fastddpm_unet_runs_as_itself() -> None:
    unet, _ = fastddpm.from_pretrained("mnist")
    fast = fastddpm.accelerate(unet)
    x = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert close(fast(x, 300), unet(x, torch.tensor(300)))
    assert fast.current_unet() is unet


# ---- OpenAI's, built as its constructor leaves it


class Numbered(nn.Module):
    """Children named by numbers, with gaps, as in nn.Sequential without its activations."""

    def __getitem__(self, index: int) -> nn.Module:
        return self._modules[str(index)]  # type: ignore[return-value]


class QKVAttention(nn.Module):
    n_heads = 1


class QKVAttentionLegacy(nn.Module):
    pass


class UNetModel(Numbered):
    """A state dict as a tree of modules, with the attributes of OpenAI's class of this name."""

    def __init__(self, arguments: Arguments, state: dict[str, Tensor]) -> None:
        super().__init__()
        for key, value in state.items():
            *path, leaf = key.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, Numbered())
                module = module._modules[part]  # type: ignore[assignment]
            module.register_parameter(leaf, nn.Parameter(value))
        kept = asdict(arguments)
        hidden = ("dims", "use_scale_shift_norm", "resblock_updown", "use_new_attention_order")
        order = QKVAttention if arguments.use_new_attention_order else QKVAttentionLegacy
        for module in list(self.modules()):
            if "emb_layers" in module._modules:
                module.use_scale_shift_norm = arguments.use_scale_shift_norm
                module.updown = arguments.resblock_updown
            if "qkv" in module._modules:
                module.attention = order()
        for name in set(kept) - set(hidden):
            setattr(self, name, kept[name])


def openai_twin(**arguments: Any) -> tuple[nn.Module, fastddpm.UNet]:
    values = Arguments(
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        image_size=8,
        **arguments,
    )
    config = unet_config(values)
    torch.manual_seed(2)
    unet = fastddpm.UNet(config).eval()
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.05)
    state = to_openai(
        unet.state_dict(), config, use_new_attention_order=values.use_new_attention_order
    )
    return UNetModel(values, state), unet


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"use_scale_shift_norm": True, "num_heads": 4, "out_channels": 6},
        {"resblock_updown": True, "num_head_channels": 16, "use_new_attention_order": True},
        {"num_heads": 2, "conv_resample": False, "num_classes": 5},
    ],
    ids=lambda arguments: ",".join(arguments) or "default",
)
@torch.no_grad()
def test_an_openai_model_is_read_from_its_instance(arguments: dict[str, Any]) -> None:
    model, unet = openai_twin(**arguments)
    assert is_openai_model(model)
    fast = fastddpm.accelerate(model, engine="reference")
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 500])
    labels = torch.tensor([4, 0]) if arguments.get("num_classes") else None
    assert torch.equal(fast(x, t, y=labels), unet(x, t, labels))
    assert fast.image_size == 8


def test_an_openai_model_that_belies_its_attributes_is_refused() -> None:
    model, _ = openai_twin()
    model.num_res_blocks = 2
    with pytest.raises(ValueError, match=r"this UNetModel(.|\n)*missing"):
        OpenAIReader(model)


# ---- mistakes


def test_accelerating_again_changes_nothing() -> None:
    model = foreign()
    x, t = inputs(model)
    twice = fastddpm.accelerate(fastddpm.accelerate(model))
    assert twice.source is model and close(twice(x, t).sample, model(x, t).sample.detach())


def test_wrong_calls_are_named() -> None:
    fast = fastddpm.accelerate(foreign())
    with pytest.raises(ValueError, match=r"t must be one number or of shape \[3\]"):
        fast(torch.randn(3, 3, 8, 8), torch.tensor([1, 2]))
    tupled = fastddpm.accelerate(lambda x, t: (x, t))
    with pytest.raises(ValueError, match="must return a floating tensor"):
        tupled(torch.randn(1, 3, 8, 8), 3)
    scheduler = diffusers.DDPMScheduler()
    other = diffusers.ScoreSdeVePipeline(foreign(), scheduler)
    with pytest.raises(ValueError, match="got a ScoreSdeVePipeline"):
        fastddpm.accelerate(other)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected a model \(x, t\) -> output, got int"):
        fastddpm.accelerate(3)
    with pytest.raises(ValueError, match="'cuda_graph' cannot run: it needs a CUDA device"):
        fastddpm.accelerate(foreign(), engine="cuda_graph")
    skip = foreign(
        down_block_types=("SkipDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "SkipUpBlock2D"),
        block_out_channels=(32, 32),
    )
    with pytest.raises(ValueError, match="SkipDownBlock2D"):
        fastddpm.accelerate(skip)
