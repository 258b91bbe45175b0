"""Training an autoencoder between pictures and latents."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from sdjax.autoencoding import Autoencoder
from sdjax.checkpoint import Model, read_json
from sdjax.errors import InputError
from sdjax.inputs import read_square, to_pil
from sdjax.training.data import Example
from sdjax.training.figures import save_sheet
from sdjax.training.fit import Intervals, Report, Task, fit, open_run
from sdjax.training.losses import Autoencoding
from sdjax.training.models import fresh, with_params, write_model
from sdjax.training.step import Settings, TrainState, Tree

MEASURED = 256  # pictures at most, whose latents say the scaling factor
SHOWN = 8


def train_vae(
    model: Model,
    examples: list[Example],
    size: int | None,
    folder: Path,
    settings: Settings,
    from_scratch: bool,
    kl_weight: float,
    intervals: Intervals,
    report: Report,
) -> Path:
    """Trains in a run's folder (see `fit`) and writes the averaged VAE as a model directory, which it returns.

    size: of the pictures' squares in pixels; what the UNet was trained at where None. The scaling factor in the new
    config.json is measured: with it, latents have unit variance. Sheets of pictures above what became of them are drawn
    into samples/.
    """
    vae = model.components["vae"]

    factor = vae.module.config.factor
    pixels = size or (model.components["unet"].module.config.sample_size or 0) * factor
    if not pixels or pixels % factor:
        raise InputError(f"the size of the pictures must be a multiple of {factor} pixels, not {pixels}")
    about = {"model": str(model.path), "pictures": len(examples), "size": pixels, "kl_weight": kl_weight}
    open_run(folder, settings, about | {"kind": "vae", "from_scratch": from_scratch})

    def init() -> Tree:
        return fresh(vae.module, settings.seed) if from_scratch else vae.params

    def read(i: int) -> dict[str, np.ndarray]:
        return {"image": read_square(examples[i].picture, pixels)}

    count = min(MEASURED, len(examples))
    pictures = np.stack([read(i)["image"] for i in range(min(SHOWN, count))])
    show = partial(draw_reconstructions, model, pictures, folder / "samples")
    task = Task(init, {}, Autoencoding(vae.module, kl_weight), read, len(examples), show)
    state = fit(task, settings, folder, intervals, report)
    destination = folder / f"vae-{int(state.step)}"
    if not destination.exists():
        config = read_json(model.path / "vae" / "config.json")
        config["scaling_factor"] = measure_scale(model, state, [read(i)["image"] for i in range(count)])
        write_model(destination, with_params(model, {"vae": state.ema}), ["vae"], str(folder), {"vae": config})
    return destination


def trained(model: Model, state: TrainState) -> Autoencoder:
    """The model's autoencoder with the averaged parameters of a state."""
    return Autoencoder(replace(model.components["vae"], params=state.ema), np.dtype(np.float32), None, None)


def measure_scale(model: Model, state: TrainState, pictures: list[np.ndarray]) -> float:
    """One over the standard deviation of latents drawn from the posteriors of pictures."""
    vae = trained(model, state)
    means, deviations = map(np.stack, zip(*vae.encode(pictures)))
    # Mean and deviation are those of the model's own scale already; the variance of a draw is that of both together.
    spread = float(np.sqrt(means.var() + np.square(deviations).mean())) / vae.config.scaling_factor
    return round(1 / spread, 5)


def draw_reconstructions(model: Model, pictures: np.ndarray, folder: Path, state: TrainState) -> None:
    """A sheet: pictures [count, size, size, 3] in [-1, 1], and below each what its mean decodes to."""
    vae = trained(model, state)
    means = np.stack([mean for mean, _ in vae.encode(list(pictures))])
    rows = [to_pil(pictures / 2 + 0.5), to_pil(vae.decode(means))]
    save_sheet(folder, int(state.step), rows, ["picture", "decoded"], [str(i + 1) for i in range(len(pictures))])
