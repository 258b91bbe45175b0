"""What cheaper evaluations save: seconds per picture with DeepCache and T-GATE, sdjax beside PyTorch."""

import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.progress import Progress

from benchmarks.configs import SD15
from benchmarks.processes import Worker
from benchmarks.report import JsonOption, publish, spread
from benchmarks.speed import REST, copied, relative_error, write_weights
from sdjax.convert import convert

PROMPT = "a lighthouse in a storm"
Run = Callable[[], np.ndarray]


class Case(NamedTuple):
    """What is drawn: a picture's side in pixels, and steps of ddim."""

    pixels: int
    steps: int

    @property
    def kinds(self) -> dict[str, dict[str, Any]]:
        """The settings of each kind of picture."""
        plain = {"num_inference_steps": self.steps}
        deep, gate = plain | {"cache_interval": 3}, plain | {"gate_step": self.steps // 2}
        return {"plain": plain, "DeepCache": deep, "T-GATE": gate, "both": deep | gate}


def reuse(
    model: Annotated[
        Path, typer.Option(help="A folder with a diffusers repository's configs.", exists=True, file_okay=False)
    ] = SD15,
    pixels: Annotated[int, typer.Option(min=64, help="The picture's side.")] = 512,
    steps: Annotated[int, typer.Option(min=2, help="Of ddim, all guided but for T-GATE.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="Turns.")] = 3,
    json_file: JsonOption = None,
) -> None:
    """A guided picture's latents: plain, every third row whole, the second half of the steps gated, and both.

    Each framework has a process; in every turn both draw every kind, each after a picture of two steps, which compiles.
    `over plain` is the median of a kind's time over the plain one's in the same turn. `error` is that of sdjax's
    latents against PyTorch's.

    .venv-parity/bin/python -m benchmarks reuse --json reuse.json
    """
    if find_spec("diffusers") is None:
        raise typer.BadParameter("PyTorch's diffusers is not installed: use .venv-parity/bin/python (`make parity`)")
    case = Case(pixels, steps)
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:
        task = progress.add_task("making weights", total=None)
        source = write_weights(model, Path(folder))
        folders = {"sdjax": convert(source, Path(folder) / "sdjax"), "pytorch": copied(source, "theirs")}
        progress.update(task, description="measuring")
        seconds: dict[tuple[str, str], list[float]] = {(name, kind): [] for kind in case.kinds for name in folders}
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(
                    Worker("-m", "benchmarks.reuse", name, path, json.dumps(case), compiled=path / "compiled")
                )
                for name, path in folders.items()
            }
            for turn in range(repeats):
                for name, kind in reversed(list(seconds)) if turn % 2 else list(seconds):
                    seconds[name, kind].append(workers[name].ask(kind)["seconds"])
                    time.sleep(REST)
        outputs = {key: np.load(folders[key[0]] / f"{key[1]}.npy") for key in seconds}
    rows = [
        {"kind": kind, "framework": name, "s": median(times)}
        | {"over plain": spread([mine / plain for mine, plain in zip(times, seconds[name, "plain"])])["median"]}
        | {"error": relative_error(outputs["sdjax", kind], outputs["pytorch", kind])}
        for (name, kind), times in seconds.items()
    ]
    publish("reuse", rows, json_file, f"{model}; {pixels} pixels, {steps} steps; medians of {repeats} turns")


def sdjax(folder: Path, pixels: int, noise: np.ndarray) -> Callable[[dict[str, Any]], Run]:
    """As a call of the pipeline."""
    from sdjax import load

    pipe = load(folder)
    plain = {"sampler": "ddim", "guidance_scale": 7.5, "negative_prompt": "", "width": pixels, "height": pixels}

    def prepare(settings: dict[str, Any]) -> Run:
        return lambda: np.asarray(pipe(PROMPT, latents=noise, output_type="latent", **plain, **settings).images)

    return prepare


def pytorch(folder: Path, pixels: int, noise: np.ndarray) -> Callable[[dict[str, Any]], Run]:
    """As diffusers' pipeline."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from benchmarks.reuse_pytorch import Cached

    opened = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)

    def prepare(settings: dict[str, Any]) -> Run:
        unet = copy.deepcopy(opened.unet, {id(each): each for each in opened.unet.parameters()})  # the same weights
        pipe = StableDiffusionPipeline(**opened.components | {"unet": unet}, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        interval, gate = settings.get("cache_interval", 1), settings.get("gate_step")
        cached = Cached(pipe.unet, interval, gate) if interval > 1 or gate else None

        def after(pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step + 1 == gate:
                pipe._guidance_scale = 1.0
                tensors["prompt_embeds"] = tensors["prompt_embeds"][-1:]
            return tensors

        def run() -> np.ndarray:
            if cached is not None:
                cached.begin()
            latents = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
            found = pipe(
                PROMPT,
                num_inference_steps=settings["num_inference_steps"],
                latents=latents,
                output_type="latent",
                callback_on_step_end=after,
                callback_on_step_end_tensor_inputs=["prompt_embeds"],
            )
            return found.images.permute(0, 2, 3, 1).numpy()

        return run

    return prepare


def main(framework: str, folder: Path, case: Case) -> None:
    """Answers each line, a kind, with the seconds that its picture took."""
    side = case.pixels // 8
    noise = np.random.default_rng(0).standard_normal((1, side, side, 4), np.float32)
    prepare = {"sdjax": sdjax, "pytorch": pytorch}[framework](folder, case.pixels, noise)
    short, prepared = Case(case.pixels, 2), dict[str, Run]()
    for line in sys.stdin:
        kind = line.strip()
        if is_first := kind not in prepared:
            prepare(short.kinds[kind])()
            prepared[kind] = prepare(case.kinds[kind])
        start = time.perf_counter()
        output = prepared[kind]()
        seconds = time.perf_counter() - start
        if is_first:
            np.save(folder / f"{kind}.npy", output)
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Case(*json.loads(sys.argv[3])))
