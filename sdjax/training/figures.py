"""Pictures of the forward process, and sheets of what a run has learned."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sdjax.folders import replaced
from sdjax.images import grid
from sdjax.inputs import resized, to_array, to_pil
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
