"""Pictures of the forward process, sheets of what a run has learned, and its loss curve."""

import csv
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from sdjax.files.atomic import replaced
from sdjax.files.pictures import grid
from sdjax.pipeline.images import resized, to_array, to_pil
from sdjax.schedulers.noise import BETA_SCHEDULES, NoiseSchedule
from sdjax.training.forward import ForwardProcess

SHOWN = ("linear", "scaled_linear", "squaredcos_cap_v2")
TIMESTEPS = (0, 50, 150, 300, 450, 600, 800, 999)
# Of the papers and checkpoints in which each is at home: DDPM, Stable Diffusion; the cosine has none.
ENDS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (0.0, 0.0)}
LARGEST = 128  # pixels of a cell


def save_sheet(
    folder: Path,
    step: int,
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
) -> None:
    """Writes a sheet of samples (see `images.grid`) into a folder, its name the number of steps."""
    folder.mkdir(exist_ok=True)
    with replaced(folder / f"{step:07d}.png") as partial:
        grid(rows, row_labels, column_labels).save(partial, format="PNG")


def save_loss_curve(log: Path) -> None:
    """Draws loss and norm of the gradient over the steps of a log.csv, into loss.png beside it.

    Without matplotlib, which sdjax has no other use for, nothing is drawn.
    """
    if find_spec("matplotlib") is None:
        return
    from matplotlib.figure import Figure

    with log.open() as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "gradient_norm")):
        values = [float(row[name]) for row in rows]
        axes.plot([int(row["step"]) for row in rows], values, ".-", lw=0.8, ms=3)
        if min(values) > 0:  # a loss may be a logarithm already
            axes.set_yscale("log")
        axes.set(title=name.replace("_", " "), xlabel="step")
        axes.grid(which="both", lw=0.3)
    with replaced(log.with_name("loss.png")) as partial:
        figure.savefig(partial, format="png", dpi=100)


def noise_sheet(image: Image.Image) -> Image.Image:
    """A picture under growing noise: a row for each of three schedules, the same noise everywhere."""
    shrink = min(1.0, LARGEST / max(image.size))
    x0 = 2 * to_array(resized(image, (round(image.width * shrink), round(image.height * shrink)))) - 1
    noise = np.random.default_rng(0).standard_normal(x0.shape)
    rows, labels = [], []
    for name in SHOWN:
        process = ForwardProcess(NoiseSchedule.from_betas(BETA_SCHEDULES[name](*ENDS[name], 1000)))
        samples = process.add_noise(x0[None], noise[None], np.array(TIMESTEPS))
        rows.append(to_pil((samples / 2 + 0.5).clip(0, 1)))
        labels.append("cosine" if name == "squaredcos_cap_v2" else name)
    return grid(rows, labels, [f"t = {t}" for t in TIMESTEPS])
