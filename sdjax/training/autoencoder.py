"""Training an autoencoder between pictures and latents."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sdjax.errors import InputError
from sdjax.files.checkpoint import Model
from sdjax.files.layout import read_json
from sdjax.models.precision import Precision
from sdjax.pipeline.images import read_square, to_pil
from sdjax.pipeline.vae import Autoencoder
from sdjax.training.data import Example
from sdjax.training.figures import save_sheet
from sdjax.training.fit import Task
from sdjax.training.losses import Autoencoding
from sdjax.training.models import fresh, with_params, write_model
from sdjax.training.step import TrainState, Tree

MEASURED = 256  # pictures, at most, from whose latents the scaling factor is measured
SHOWN = 8
ENCODER = {"encoder", "quant_conv"}  # parameter groups of the encoder half


@dataclass(frozen=True)
class Choices:
    """What is trained, and for which pictures and loss.

    size: of the pictures' squares in pixels; what the UNet was trained at where None. from_scratch: begin with random
    parameters instead of the model's. decoder_only: the encoder stays as it is, and with it the latents. kl_weight: see
    `Autoencoding`.
    """

    size: int | None = None
    from_scratch: bool = False
    decoder_only: bool = False
    kl_weight: float = 1e-6


def vae_task(model: Model, examples: list[Example], choices: Choices) -> Task:
    """Trains the model's VAE; the result is a model directory that holds only the averaged VAE.

    Where the encoder is trained, the scaling factor in the new config.json is measured: with it, latents have unit
    variance. Sample sheets show pictures above their reconstructions. Raises InputError for a size that is no multiple
    of the VAE's factor, and for decoder_only with from_scratch.
    """
    if choices.from_scratch and choices.decoder_only:
        raise InputError("a decoder is trained for an encoder that is there: leave from_scratch or decoder_only out")
    vae = model.vae
    factor = vae.module.config.factor
    pixels = choices.size or (model.unet.module.config.sample_size or 0) * factor
    if not pixels or pixels % factor:
        raise InputError(f"the size of the pictures must be a multiple of {factor} pixels, not {pixels}")
    about = {"kind": "vae", "model": str(model.path), "pictures": len(examples)}
    frozen = {name: tree for name, tree in vae.params.items() if choices.decoder_only and name in ENCODER}

    def init(seed: int) -> Tree:
        if choices.from_scratch:
            return fresh(vae.module, seed)
        return {name: tree for name, tree in vae.params.items() if name not in frozen}

    def trained(state: TrainState) -> Model:
        return with_params(model, {"vae": frozen | state.ema})

    def read(i: int) -> dict[str, np.ndarray]:
        return {"image": read_square(examples[i].picture, pixels)}

    count = min(MEASURED, len(examples))
    pictures = np.stack([read(i)["image"] for i in range(min(SHOWN, count))])

    def show(state: TrainState, folder: Path) -> None:
        draw_reconstructions(trained(state), pictures, folder, int(state.step))

    def write(state: TrainState, path: Path) -> None:
        done, config = trained(state), read_json(model.path / "vae" / "config.json")
        if not choices.decoder_only:
            config["scaling_factor"] = measure_scale(done, [read(i)["image"] for i in range(count)])
        write_model(path, done, ["vae"], str(path.parent), {"vae": config})

    return Task(
        about=about | asdict(choices) | {"size": pixels},
        init=init,
        frozen=frozen,
        loss=Autoencoding(vae.module, choices.kl_weight),
        count=len(examples),
        open=lambda run: read,
        show=show,
        result="vae-{step}",
        write=write,
    )


def autoencoder(model: Model) -> Autoencoder:
    """The model's own, in float32."""
    return Autoencoder(model.vae, Precision("float32"), None, None)


def measure_scale(model: Model, pictures: list[np.ndarray]) -> float:
    """One over the standard deviation of latents drawn from the posteriors of pictures."""
    vae = autoencoder(model)
    means, deviations = map(np.stack, zip(*vae.encode(pictures)))
    # Mean and deviation are those of the model's own scale already; the variance of a draw is that of both together.
    spread = float(np.sqrt(means.var() + np.square(deviations).mean())) / vae.config.scaling_factor
    return round(1 / spread, 5)


def draw_reconstructions(model: Model, pictures: np.ndarray, folder: Path, step: int) -> None:
    """A sheet: pictures [count, size, size, 3] in [-1, 1], and below each the decoded mean of its latents."""
    vae = autoencoder(model)
    means = np.stack([mean for mean, _ in vae.encode(list(pictures))])
    rows = [to_pil(pictures / 2 + 0.5), to_pil(vae.decode(means))]
    save_sheet(folder, step, rows, ["picture", "decoded"], [str(i + 1) for i in range(len(pictures))])
