"""What forms of guidance, pictures that are looked at and judges cost: seconds of a step beside plain guidance."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import typer
from PIL import Image
from rich.progress import track

import sdjax
from benchmarks.report import JsonOption, publish, spread
from benchmarks.scenes import PALETTE, SHAPES
from sdjax.adapters.ip_adapter import IPAdapter
from sdjax.errors import InputError
from sdjax.files.checkpoint import Component
from sdjax.models import UNetConfig, build
from sdjax.models.ip_adapter import ImageProjection
from sdjax.pipeline import JudgeNet, PictureNet, Pipeline
from sdjax.pipeline.request import pictures_of
from sdjax.sight.processor import Processor
from sdjax.training.models import fresh

EVENT = "/jax/core/compile/backend_compile_duration"
TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


@dataclass(frozen=True)
class Case:
    """A way to draw. settings: of the k-th time, all of them with other numbers, pictures, masks and targets."""

    pipe: Pipeline
    settings: Callable[[int], dict[str, Any]]


class MeanColour(nn.Module):
    """A judge that costs nothing itself: the mean is to be the target."""

    def score(self, seen: jax.Array, timesteps: jax.Array, target: jax.Array) -> jax.Array:
        return -jnp.sum((seen.mean((1, 2)) - target) ** 2, -1)


def guiding(
    model: Annotated[str, typer.Option(help="As for `sdjax generate --model`.")] = "shapes",
    steps: Annotated[int, typer.Option(min=1, help="Of DDIM, one evaluation each.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 4,
    repeats: Annotated[int, typer.Option(min=2, help="Turns; each draws by every form once.")] = 3,
    only: Annotated[str, typer.Option(help="Of the forms, with commas between them; cfg is always among them.")] = "",
    json_file: JsonOption = None,
) -> None:
    """Seconds of a step of the compiled loop by each form of guidance and each condition, in turns with plain guidance.

    over plain: the median of the ratios within a turn. compiled: programs that were compiled after the first turn,
    though each turn has other scales, pictures, masks, targets and strengths.
    """
    cases = cases_of(sdjax.load(model))
    if only:
        chosen = {"cfg", *only.split(",")}
        if unknown := sorted(chosen - cases.keys()):
            raise InputError(f"there is no form {', '.join(unknown)}; known: {', '.join(cases)}")
        cases = {name: case for name, case in cases.items() if name in chosen}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    compiled = dict.fromkeys(cases, 0)
    for turn in track(range(repeats + 2), "turns"):
        for name in list(cases) if turn % 2 else reversed(list(cases)):
            with compilations() as found:
                taken = timed(cases[name], turn, steps, batch)
            if turn > 1:  # the first two compile, and fill caches
                seconds[name].append(taken / steps)
                compiled[name] += len(found)
    plain = seconds["cfg"]
    rows = [
        {"form": name, "ms a step": 1000 * spread(own)["median"]}
        | {"over plain": spread([mine / other for mine, other in zip(own, plain)])["median"]}
        | {"compiled": compiled[name]}
        for name, own in seconds.items()
    ]
    size = "x".join(map(str, cases["cfg"].pipe.facts.unet.block_out_channels))
    note = f"{model} (UNet of {size} channels): {batch} pictures, {steps} steps; medians of {repeats} turns"
    publish("guiding", rows, json_file, note)


def timed(case: Case, turn: int, steps: int, batch: int) -> float:
    """Seconds of a batch's steps, without its texts, its start and its pictures."""
    how = {"sampler": "ddim", "num_inference_steps": steps, "guidance_scale": 3.0 + turn / 10} | case.settings(turn)
    pictures = pictures_of([f"a red ring {turn}"] * batch, how, seed=turn)
    prepared = case.pipe.begin(case.pipe.prepare(pictures))
    begin = time.perf_counter()
    for step in case.pipe.denoise(prepared):
        last = step
    jax.block_until_ready(last.state)
    return time.perf_counter() - begin


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Counts the programs that XLA compiles within."""
    found: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == EVENT:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def cases_of(pipe: Pipeline) -> dict[str, Case]:
    """Every form of guidance, and every condition but ControlNets and T2I adapters (`benchmarks conditions`)."""
    combined = {
        name: Case(pipe, lambda turn, name=name: {"guidance": name, "mimic_scale": 2.0 + turn})
        for name in ("apg", "cfg_zero_star", "dynamic_threshold")
    }
    return {
        "cfg": Case(pipe, lambda turn: {}),
        **combined,
        "perp_neg": Case(
            pipe,
            lambda turn: {"guidance": "perp_neg", "perp_neg_scale": 1 + turn / 10, "negative_prompt": "a blue heart"},
        ),
        "pag": Case(pipe, lambda turn: {"pag_scale": 1.0 + turn}),
        "seg": Case(pipe, lambda turn: {"pag_scale": 1.0 + turn, "seg_blur": 1.0 + turn}),
        "sag": Case(pipe, lambda turn: {"sag_scale": 0.5 + turn / 10}),
        "instruct-pix2pix": Case(
            editing(pipe), lambda turn: {"image": noise(turn, 64), "image_guidance_scale": 1.5 + turn}
        ),
        **looking(pipe),
        **judging(pipe),
    }


def looking(pipe: Pipeline) -> dict[str, Case]:
    """IP-Adapters: one, and two with masks."""
    style = picture_net(pipe.facts.unet)

    def masked(turn: int) -> dict[str, Any]:
        masks = [noise(turn + k, 64).convert("L") for k in (0, 1)]
        return {"conditions": [style(noise(turn + k, 40), mask=mask) for k, mask in enumerate(masks)]}

    return {
        "IP-Adapter": Case(pipe, lambda turn: {"conditions": [style(noise(turn, 40), scale=0.5 + turn / 20)]}),
        "two IP-Adapters with masks": Case(pipe, masked),
    }


def judging(pipe: Pipeline) -> dict[str, Case]:
    """Guidance by gradients: each of what a judge may see, and both ways from a score to a prediction.

    Not the picture that climbs, by so many gradients of the VAE's decoder: it takes longer than all others together.
    """
    words = (*PALETTE, *SHAPES)
    module = build("LatentClassifier", {"labels": ",".join(words)})
    params = fresh(module, 0)

    def case(net: JudgeNet, target_of: Callable[[int], Any]) -> Case:
        return Case(pipe, lambda turn: {"conditions": [net(target_of(turn), scale=0.1 + turn / 100)]})

    def word(turn: int) -> str:
        return words[turn % len(words)]

    def colour(turn: int) -> np.ndarray:
        return np.random.default_rng(turn).uniform(-1, 1, 3)

    return {
        "classifier of noisy latents": case(JudgeNet("noisy", module, params), word),
        "classifier of the estimate": case(JudgeNet("estimate", module, params, "estimate"), word),
        "estimate climbs 5 steps": case(JudgeNet("climbing", module, params, "estimate", 5), word),
        "judge of the picture": case(JudgeNet("picture", MeanColour(), {}, "picture"), colour),
    }


def noise(seed: int, side: int) -> Image.Image:
    """A picture of random colours."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def picture_net(unet: UNetConfig) -> PictureNet:
    """A plain IP-Adapter with random weights for a UNet; its encoder is small, for it runs once for a picture."""
    random, width = np.random.default_rng(0), unet.cross_attention_dim
    tower = build("CLIPVisionModelWithProjection", {**TOWER, "image_size": 32, "patch_size": 8, "projection_dim": 16})
    projection = ImageProjection(4, width)
    params = projection.init(jax.random.key(0), jnp.zeros((1, 16)))["params"]
    attentions = sorted(unet.attentions.items(), key=lambda item: item[0].startswith("mid_block"))
    channels = [level.channels for _, level in attentions for _ in range(level.transformer_layers)]
    layers = tuple(tuple(random.normal(0, width**-0.5, (2, width, own)).astype(np.float32)) for own in channels)
    adapter = IPAdapter("random", projection, params, "embeds", 16, layers)
    return PictureNet("random", adapter, Component(tower, fresh(tower, 0)), Processor(32))


def editing(pipe: Pipeline) -> Pipeline:
    """The model with a UNet that also reads a picture, of which it takes no notice."""
    unet = pipe.model.unet
    config = replace(unet.module.config, in_channels=2 * unet.module.config.in_channels)
    kernel = np.asarray(unet.params["conv_in"]["kernel"])
    params = {**unet.params, "conv_in": {**unet.params["conv_in"], "kernel": np.concatenate([kernel, 0 * kernel], 2)}}
    components = {**pipe.model.components, "unet": Component(type(unet.module)(config), params)}
    return Pipeline(replace(pipe.model, components=components), pipe.precision)
