"""One step of training, sdjax beside PyTorch: the embedded model's UNet with AdamW, same weights and batch."""

import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated

import jax
import numpy as np
import typer

from benchmarks.report import JsonOption, publish, spread
from sdjax import schedulers
from sdjax.convert import export
from sdjax.files.checkpoint import read_model
from sdjax.files.layout import embedded_models
from sdjax.training.forward import ForwardProcess
from sdjax.training.losses import Denoising
from sdjax.training.step import Settings, begin, make_step, place

TOKENS, SIDE, LEARNING_RATE = 77, 16, 1e-4
REST = 0.3  # seconds in which the threads of one framework fall asleep before the other steps


def training(
    batch: Annotated[int, typer.Option(min=1, help="Pictures per step.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Steps of each framework.")] = 10,
    json_file: JsonOption = None,
) -> None:
    """A step of training against PyTorch's: noise, forward, backward, clip, AdamW, and sdjax's moving average; float32.

    Both step in turn, in one process. `ratio` is the median of sdjax's time over PyTorch's within each turn, below 1
    where sdjax is faster; believe it on a quiet machine only. `loss` is that of the first step, each with noise of its
    own. Needs PyTorch and diffusers (`make parity` installs them into .venv-parity).
    """
    if find_spec("diffusers") is None:
        raise typer.BadParameter("PyTorch's diffusers is not installed: use .venv-parity/bin/python (`make parity`)")
    random = np.random.default_rng(0)
    model = read_model(embedded_models()["shapes"])
    latents = random.standard_normal((batch, SIDE, SIDE, 4), np.float32)
    context = random.standard_normal((batch, TOKENS, 128), np.float32)
    steps = {"sdjax": sdjax_step(model, latents, context), "PyTorch": pytorch_step(model.path, latents, context)}
    first = {name: step() for name, step in steps.items()}  # which also compiles
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            time.sleep(REST)
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    ratio = median(ours / theirs for ours, theirs in zip(times["sdjax"], times["PyTorch"]))
    rows = [
        {"framework": name, **spread(seconds), "pictures/s": batch / median(seconds), "loss": first[name]}
        for name, seconds in times.items()
    ]
    publish("training", rows, json_file, f"seconds; batch {batch}, float32; ratio {ratio:.2f}")


def sdjax_step(model, latents: np.ndarray, context: np.ndarray) -> Callable[[], float]:
    """A step at every call, which returns its loss."""
    unet = model.unet.module
    denoising = Denoising(ForwardProcess(schedulers.from_config(model.scheduler_config).noise), None)

    def loss(params, frozen, batch, keys):
        def predict(sample, times):
            return unet.apply({"params": params}, sample, times, batch["context"])

        return denoising.loss(predict, batch["latents"], keys, batch["latents"].dtype)

    settings = Settings(batch_size=len(latents), learning_rate=LEARNING_RATE)
    step, batch = make_step(loss, settings), place({"latents": latents, "context": context})
    state, number = begin(jax.device_put(model.unet.params), settings), 0

    def run() -> float:
        nonlocal state, number
        state, metrics = step(state, {}, batch, number)
        number += 1
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return run


def pytorch_step(path: Path, latents: np.ndarray, context: np.ndarray) -> Callable[[], float]:
    """The same by diffusers, as its examples train."""
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel

    with tempfile.TemporaryDirectory() as folder:
        exported = export(path, Path(folder) / "model", to="diffusers")
        unet = UNet2DConditionModel.from_pretrained(exported, subfolder="unet", low_cpu_mem_usage=False).train()
        scheduler = DDPMScheduler.from_pretrained(exported, subfolder="scheduler")
    optimizer = torch.optim.AdamW(unet.parameters(), LEARNING_RATE)
    x0, states = torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()), torch.from_numpy(context)

    def run() -> float:
        noise, timesteps = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),))
        output = unet(scheduler.add_noise(x0, noise, timesteps), timesteps, states).sample
        loss = torch.nn.functional.mse_loss(output, scheduler.get_velocity(x0, noise, timesteps))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return run
