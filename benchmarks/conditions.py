"""What a ControlNet and a T2I adapter add to a step of the UNet, sdjax beside PyTorch: time and memory."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from benchmarks.configs import SD15
from benchmarks.processes import Worker, peak_memory
from benchmarks.report import JsonOption, publish, spread
from benchmarks.speed import REST, copied, relative_error, write_weights
from benchmarks.speed_worker import Case, inputs
from sdjax.convert import convert

NETS = ("controlnet", "adapter")
# outside: with a ControlNet, in a row that its window leaves out.
STEPS = ("plain", "controlnet", "outside", "adapter")
Run = Callable[[], np.ndarray]


def conditions(
    model: Annotated[
        Path, typer.Option(help="A folder with a diffusers repository's configs.", exists=True, file_okay=False)
    ] = SD15,
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 2,
    pixels: Annotated[int, typer.Option(min=64, help="The pictures' side.")] = 512,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that are counted.")] = 5,
    json_file: JsonOption = None,
) -> None:
    """A step of the UNet alone, with a ControlNet, outside of its window, and with a T2I adapter, beside PyTorch's.

    Each framework has a process; in every turn both run every kind of step. `over plain` is the median of a step's time
    over the plain step's in the same turn. A hint is encoded once and not measured in sdjax, and at every step in
    diffusers, which is measured. `GB` is the most that a process of its own holds which runs this kind of step only.

    .venv-parity/bin/python -m benchmarks conditions --json conditions.json
    """
    if find_spec("diffusers") is None:
        raise typer.BadParameter("PyTorch's diffusers is not installed: use .venv-parity/bin/python (`make parity`)")
    case = Case("unet", batch, pixels)
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:
        task = progress.add_task("making weights", total=None)
        source = write_weights(model, Path(folder))
        write_nets(source)
        folders = {"sdjax": convert(source, Path(folder) / "sdjax"), "pytorch": copied(source, "theirs")}
        for net in NETS:
            convert(source / net, folders["sdjax"] / net)
        progress.update(task, description="measuring")
        seconds = in_turns(folders, case, repeats)
        outputs = {key: np.load(folders[key[0]] / f"{key[1]}.npy") for key in seconds}
        progress.update(task, description="measuring memory")
        memory = {key: alone(key[0], folders[key[0]], case, key[1]) for key in seconds}
    rows = [
        {"step": step, "framework": name, "s": median(times)}
        | {"over plain": spread([mine / plain for mine, plain in zip(times, seconds[name, "plain"])])["median"]}
        | {"GB": memory[name, step], "error": relative_error(outputs["sdjax", step], outputs["pytorch", step])}
        for (name, step), times in seconds.items()
    ]
    publish("conditions", rows, json_file, f"{model}; {batch} samples of {pixels} pixels; medians of {repeats} turns")


def write_nets(source: Path) -> None:
    """Nets for a checkpoint's UNet, with random weights: the layers that begin at 0 too."""
    import torch
    from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(source / "unet")
    levels = len(json.loads((source / "vae" / "config.json").read_text())["block_out_channels"])
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 96, 256)[:levels])
    for parameter in controlnet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.01)
    controlnet.save_pretrained(source / "controlnet")
    channels, factor = unet.config.block_out_channels, 2 ** (levels - 1)
    T2IAdapter(channels=channels, downscale_factor=factor, adapter_type="full_adapter").save_pretrained(
        source / "adapter"
    )


def in_turns(folders: dict[str, Path], case: Case, repeats: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of every framework's every step, without its first run."""
    seconds: dict[tuple[str, str], list[float]] = {(name, step): [] for step in STEPS for name in folders}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker(name, folder, case)) for name, folder in folders.items()}
        for turn in range(repeats + 1):
            for name, step in list(seconds) if turn % 2 else reversed(list(seconds)):
                seconds[name, step].append(workers[name].ask(step)["seconds"])
                time.sleep(REST)
    return {key: times[1:] for key, times in seconds.items()}


def alone(framework: str, folder: Path, case: Case, step: str) -> float:
    """The memory in GB of a fresh process that runs a step twice."""
    with worker(framework, folder, case) as process:
        return [process.ask(step)["GB"] for _ in range(2)][-1]


def worker(framework: str, folder: Path, case: Case) -> Worker:
    """A process that runs the steps that it is told."""
    return Worker("-m", "benchmarks.conditions", framework, folder, json.dumps(case), compiled=folder / "compiled")


def sdjax(folder: Path, arrays: dict[str, np.ndarray]) -> Callable[[str], Run]:
    """As the denoising program evaluates it."""
    import jax

    from sdjax import load, load_condition, programs
    from sdjax.denoisers import unet_denoiser

    pipe = load(folder)
    unet = pipe.networks.modules["unet"]

    def prepare(step: str) -> Run:
        nets, weights, features = [], (), ()
        if step != "plain":
            net = load_condition(folder / ("controlnet" if step == "outside" else step))
            nets = [net]
            params = jax.device_put(net.params)
            features = (jax.jit(programs.encode_hint, static_argnums=0)(net.module, params, arrays["hint"]),)
            weight = np.full((len(arrays["sample"]), net.module.config.residuals), step != "outside", np.float32)
            weights = (weight,)

        @jax.jit
        def evaluate(params, net_params, sample, timesteps, context, weights, features):
            with jax.default_matmul_precision("highest"):
                predict = unet_denoiser(unet, params, [(net.module, own) for net, own in zip(nets, net_params)])
                own = {"context": context, "hint_weights": weights}
                shared = {"channels": sample[..., :0], "class_labels": None, "guidance": None, "hints": features}
                return predict(sample, timesteps, own, shared)

        placed = jax.device_put([arrays[name] for name in ("sample", "timesteps", "context")])
        of_nets = (params,) if nets else ()
        return lambda: np.asarray(evaluate(pipe.params["unet"], of_nets, *placed, weights, features))

    return prepare


def pytorch(folder: Path, arrays: dict[str, np.ndarray]) -> Callable[[str], Run]:
    """As diffusers' pipelines evaluate it."""
    import torch
    from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    tensors = {
        name: torch.from_numpy(x.transpose(0, 3, 1, 2).copy() if x.ndim == 4 else x) for name, x in arrays.items()
    }
    of_the_step = (tensors["sample"], tensors["timesteps"].long(), tensors["context"])

    def prepare(step: str) -> Run:
        if step in ("controlnet", "outside"):
            net = ControlNetModel.from_pretrained(folder / "controlnet")
        elif step == "adapter":
            with torch.inference_mode():
                levels = T2IAdapter.from_pretrained(folder / "adapter")(tensors["hint"])

        @torch.inference_mode()
        def run() -> np.ndarray:
            more: dict[str, Any] = {}
            if step in ("controlnet", "outside"):
                scale = float(step == "controlnet")
                skips, middle = net(*of_the_step, tensors["hint"], scale, return_dict=False)
                more = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
            elif step == "adapter":
                more = {"down_intrablock_additional_residuals": [level.clone() for level in levels]}
            return unet(*of_the_step, **more).sample.permute(0, 2, 3, 1).numpy()

        return run

    return prepare


def main(framework: str, folder: Path, case: Case) -> None:
    """Answers each line, the name of a step, with the seconds that it took and the most memory that was held."""
    configs = {part: json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae")}
    arrays = inputs(configs, case)
    hint = np.random.default_rng(1).random((case.batch, case.pixels, case.pixels, 3), np.float32)
    prepare = {"sdjax": sdjax, "pytorch": pytorch}[framework](folder, arrays | {"hint": hint})
    prepared: dict[str, Run] = {}
    for line in sys.stdin:
        step = line.strip()
        is_first = step not in prepared
        if is_first:
            prepared[step] = prepare(step)
        run = prepared[step]
        start = time.perf_counter()
        output = run()
        seconds = time.perf_counter() - start
        if is_first:
            np.save(folder / f"{step}.npy", output)
        print(json.dumps({"seconds": seconds, "GB": peak_memory() / 1e9}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Case(*json.loads(sys.argv[3])))
