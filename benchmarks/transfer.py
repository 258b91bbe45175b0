"""How far tuned plans hold for what they were not fitted to: other scales, sizes, prompts, and a LoRA."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

import sdjax
from benchmarks.report import JsonOption, publish
from benchmarks.runs import REFERENCE, Kind
from benchmarks.scenes import HELD_OUT, draw_scene
from benchmarks.trained import numbers
from benchmarks.tuned import compared
from sdjax.settings import Picture
from sdjax.training.following import root_mean_square

BY_HAND = "ddim trailing,unipc trailing,dpmpp_2m trailing"
CHANGES: dict[str, dict[str, Any]] = {
    "other captions and noise": {},
    **{f"guidance {scale:g}": {"guidance_scale": scale} for scale in (1.5, 2.0, 5.0, 12.0)},
    **{f"{w} x {h} pixels": {"width": w, "height": h} for w, h in ((48, 48), (64, 96), (96, 96))},
}


def transfer(
    lora: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Also with this LoRA, and with half of it.")
    ] = None,
    budgets: Annotated[str, typer.Option(help="Evaluations that a picture may take.")] = "5,8",
    pictures: Annotated[int, typer.Option(min=8, help="Of each kind.")] = 16,
    reference_steps: Annotated[int, typer.Option(min=100, max=999, help="Evaluations of converged ones.")] = 100,
    samplers: Annotated[str, typer.Option(help="By hand: with their spacings, with commas between them.")] = BY_HAND,
    json_file: JsonOption = None,
) -> None:
    """The embedded model's plans at guidance 3, and then with one thing changed at a time, beside the best by hand.

    Error: the median distance of the latents from those of a converged run from the same noise. "Objects unseen": of
    colours and shapes that the model has not been shown together.
    """
    sizes, kinds = [int(budget) for budget in numbers("--budgets", budgets)], map(Kind.of, samplers.split(","))
    pipe = sdjax.load("shapes", lora_dir=None if lora is None else lora.parent, safety_checker=None)
    captions = [str(draw_scene(np.random.default_rng([0, i])).facts) for i in range(pictures)]
    named = sorted(HELD_OUT)
    unseen = [f"a {colour} {shape}" for colour, shape in (named[i % len(named)] for i in range(pictures))]
    cases = {what: (captions, change) for what, change in CHANGES.items()} | {"objects unseen": (unseen, {})}
    for scale in () if lora is None else (0.5, 1.0):
        cases[f"a LoRA at {scale:g}"] = ([f"{text} <lora:{lora.stem}:{scale:g}>" for text in captions], {})
    by_hand = {" ".join((kind.sampler, str(kind.spacing))): kind for kind in kinds}
    found = []
    for what, (texts, change) in track(cases.items(), "pictures"):

        def latents(sampler: str, spacing: str | None, steps: int, texts=texts, change=change) -> np.ndarray:
            how = {
                "guidance_scale": 3.0,
                **change,
                "sampler": sampler,
                "spacing": spacing,
                "num_inference_steps": steps,
            }
            drawn = pipe.draw([Picture(text, seed=i, **how) for i, text in enumerate(texts)], output_type="latent")
            return np.asarray(drawn.images)

        endless = latents(*REFERENCE, reference_steps)

        def error(sampler: str, spacing: str | None, steps: int, latents=latents, endless=endless) -> float:
            return float(np.median(root_mean_square(latents(sampler, spacing, steps) - endless)))

        for budget in sizes:
            errors = {name: error(kind.sampler, kind.spacing, budget) for name, kind in by_hand.items()}
            found.append({"what": what} | compared(budget, errors, error("tuned", None, budget)))
    publish("transfer", found, json_file, f"{pictures} pictures of each, against {reference_steps} evaluations")
