"""`sdjax batch` against the loops that people write: one call for each picture, and diffusers' with batches."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import JsonOption, publish

PROMPTS = ("a red heart", "a big blue star on a yellow background", "a small green ring", "a purple square")
SAMPLER, SPACING, GUIDANCE = "euler", "leading", 7.5
Draw = Callable[[list[str], Path, int], float | None]


def batch(
    pictures: Annotated[int, typer.Option(min=1, help="How many, with each.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Sampler steps of each picture.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Of `sdjax batch`, and of diffusers.")] = 8,
    diffusers: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The same model for diffusers; needs the environment of `make parity`."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Pictures per second of the embedded model, from prompts to PNGs on disk, by `sdjax batch` and by two loops.

    Each is run once for what it compiles before it is measured.
    """
    import sdjax

    pipe = sdjax.load()
    ways: dict[str, Draw] = {
        "sdjax batch": lambda prompts, folder, steps: by_batch(pipe, prompts, folder, steps, batch_size),
        "a loop over pipe(...)": lambda prompts, folder, steps: by_loop(pipe, prompts, folder, steps),
    }
    if diffusers is not None:
        theirs = open_diffusers(diffusers)
        ways["a loop over diffusers"] = lambda prompts, folder, steps: by_diffusers(
            theirs, prompts, folder, steps, batch_size
        )
    prompts = [f"{PROMPTS[i % len(PROMPTS)]}, {i}" for i in range(pictures)]
    rows: list[dict[str, Any]] = []
    for what, draw in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            draw(prompts[:batch_size], Path(folder) / "first", 1)
            begin = time.perf_counter()
            waiting = draw(prompts, Path(folder) / "measured", steps)
            seconds = time.perf_counter() - begin
            assert len(list((Path(folder) / "measured").rglob("*.png"))) == pictures
        size = 1 if what.endswith("pipe(...)") else batch_size
        row = {"what": what, "batch": size, "seconds": seconds, "pictures/s": pictures / seconds}
        rows.append(row | {"devices waited": "" if waiting is None else f"{waiting:.1%}"})
    publish(
        "batch",
        rows,
        json_file,
        f"{pictures} pictures of 64 x 64 pixels, {steps} steps of {SAMPLER}, guidance {GUIDANCE}",
    )


def by_batch(pipe: Any, prompts: list[str], folder: Path, steps: int, batch_size: int) -> float:
    """What the command does behind reading its rows; returns the share of the time that devices waited."""
    from sdjax.batch.drawing import Drawing
    from sdjax.batch.groups import place
    from sdjax.batch.hosts import Hosts
    from sdjax.batch.output import Output
    from sdjax.batch.rows import Naming, items_of
    from sdjax.batch.runner import Run, run

    settings = {"sampler": SAMPLER, "spacing": SPACING, "guidance_scale": GUIDANCE, "num_inference_steps": steps}
    items, _ = items_of([{"prompt": prompt} for prompt in prompts], settings, Naming(), Path())
    this = Run([place(item, pipe.facts) for item in items], {}, Output(folder), {"model_hash": ""}, {})
    return run(Drawing(pipe, batch_size), this, lambda *_: None, lambda *_: None, Hosts()).meter.waiting


def by_loop(pipe: Any, prompts: list[str], folder: Path, steps: int) -> None:
    """A call for each picture."""
    from sdjax.files.pictures import save_picture

    folder.mkdir()
    for i, prompt in enumerate(prompts):
        out = pipe(prompt, seed=i, sampler=SAMPLER, spacing=SPACING, guidance_scale=GUIDANCE, num_inference_steps=steps)
        save_picture(out.images[0], folder / f"{i:08d}.png", out.settings[0])


def open_diffusers(model: Path) -> Any:
    """Its pipeline, with the sampler that is measured."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing=SPACING)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def by_diffusers(pipe: Any, prompts: list[str], folder: Path, steps: int, batch_size: int) -> None:
    """A call for each batch."""
    import torch

    folder.mkdir()
    for i in range(0, len(prompts), batch_size):
        together = prompts[i : i + batch_size]
        generators = [torch.Generator().manual_seed(i + k) for k in range(len(together))]
        out = pipe(together, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=generators)
        for k, image in enumerate(out.images):
            image.save(folder / f"{i + k:08d}.png")
