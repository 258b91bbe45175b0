"""Training a UNet, and with it a text encoder if wanted, to draw what captions say."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from sdjax import programs, schedulers
from sdjax.checkpoint import Model, read_json, read_vae
from sdjax.errors import InputError
from sdjax.images import grid
from sdjax.parallel import replicate
from sdjax.pipeline import Pipeline
from sdjax.prompts import load_tokenizer, one_chunk
from sdjax.training.data import Example, read_square
from sdjax.training.fit import Intervals, Report, Task, fit, open_run
from sdjax.training.forward import ForwardProcess
from sdjax.training.losses import Denoising, TextToImage
from sdjax.training.models import fresh, with_params, write_model
from sdjax.training.step import Settings, TrainState, Tree

ENCODED_AT_ONCE = 8  # pictures
SEEDS = range(4)  # of the sample sheets


@dataclass(frozen=True)
class Choices:
    """What is trained, and towards what.

    from_scratch: begin with random parameters instead of the model's. train_text_encoder: not the UNet alone. vae: the
    directory of another one, in the place of the model's own.
    """

    from_scratch: bool = False
    train_text_encoder: bool = True
    prediction_type: str | None = None
    min_snr_gamma: float | None = 5.0
    caption_dropout: float = 0.1
    vae: Path | None = None


def train_text_to_image(
    model: Model,
    examples: list[Example],
    folder: Path,
    settings: Settings,
    choices: Choices,
    intervals: Intervals,
    report: Report,
) -> Path:
    """Trains in a run's folder (see `fit`) and writes the averaged parameters as a model directory, which it returns.

    model: its configurations, VAE, tokenizer and noise schedule are used. Sample sheets are drawn into
    samples/ with the first captions.
    """
    configs = {}
    if choices.vae is not None:
        model = replace(model, components={**model.components, "vae": read_vae(choices.vae)})
        configs["vae"] = read_json(choices.vae / "vae" / "config.json")
    unet = model.components["unet"].module
    if unet.config.sample_size is None:
        raise InputError(f"{model.path}: the UNet's config does not say its sample_size")
    if unet.config.in_channels != model.components["vae"].module.config.latent_channels:
        raise InputError(f"{model.path} reads more than a prompt, and cannot be trained on captions alone")
    if choices.prediction_type:
        model = replace(model, scheduler_config={**model.scheduler_config, "prediction_type": choices.prediction_type})
    about = {"kind": "text-to-image", "model": str(model.path), "pictures": len(examples)}
    open_run(folder, settings, about | asdict(choices) | {"vae": choices.vae and str(choices.vae)})
    trained = ("unet", "text_encoder") if choices.train_text_encoder else ("unet",)
    frozen = {} if choices.train_text_encoder else {"text_encoder": model.components["text_encoder"].params}
    tokenizer = load_tokenizer(model.tokenizer)
    ids = np.stack([one_chunk(tokenizer, example.caption or "", {}).ids[0] for example in examples])
    moments = encode_pictures(model, examples, report)

    def init() -> Tree:
        parts = {name: model.components[name] for name in trained}
        if choices.from_scratch:
            return {name: fresh(part.module, settings.seed) for name, part in parts.items()}
        return {name: part.params for name, part in parts.items()}

    process = ForwardProcess(schedulers.from_config(model.scheduler_config).noise)
    loss = TextToImage(
        unet,
        model.components["text_encoder"].module,
        Denoising(process, choices.min_snr_gamma),
        tuple(map(int, one_chunk(tokenizer, "", {}).ids[0])),
        choices.caption_dropout,
    )
    read = partial(_latents, moments, ids)
    captions = list(dict.fromkeys(example.caption or "" for example in examples))[: len(SEEDS)]
    task = Task(init, frozen, loss, read, len(examples), Samples(model, captions, folder / "samples"))
    state = fit(task, settings, folder, intervals, report)
    destination = folder / f"model-{int(state.step)}"
    if not destination.exists():
        write_model(destination, with_params(model, state.ema), list(model.components), str(folder), configs)
    return destination


def encode_pictures(model: Model, examples: list[Example], report: Report) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the deviation of the latents of every picture, once for the whole run: [count, h, w, channels]."""
    vae = model.components["vae"]
    size = model.components["unet"].module.config.sample_size * vae.module.config.factor
    encode = jax.jit(lambda params, pictures: programs.encode(vae.module, params, pictures, None))
    params = jax.device_put(vae.params)
    parts = []
    for i in range(0, len(examples), ENCODED_AT_ONCE):
        report("encode", i, len(examples), "")
        group = [read_square(example.path, size) for example in examples[i : i + ENCODED_AT_ONCE]]
        # The last one is repeated, so that all groups are one program's.
        pictures = np.stack(group + group[-1:] * (ENCODED_AT_ONCE - len(group)))
        parts.append([np.asarray(moment)[: len(group)] for moment in encode(params, pictures)])
    report("encode", len(examples), len(examples), "")
    means, deviations = map(np.concatenate, zip(*parts))
    return means, deviations


def _latents(moments: tuple[np.ndarray, np.ndarray], ids: np.ndarray, i: int) -> dict[str, np.ndarray]:
    return {"mean": moments[0][i], "deviation": moments[1][i], "ids": ids[i]}


class Samples:
    """Draws sheets of what the averaged parameters paint: a row for each caption, a column for each seed."""

    def __init__(self, model: Model, captions: list[str], folder: Path):
        self.model, self.captions, self.folder = model, captions, folder
        self.pipe: Pipeline | None = None

    def __call__(self, state: TrainState) -> None:
        """Writes the sheet of a state, its name the number of steps."""
        params = jax.device_get(state.ema)
        if self.pipe is None:
            self.pipe = Pipeline(with_params(self.model, params), np.dtype("float32"))
        self.pipe.params.update({name: replicate(tree, np.dtype("float32")) for name, tree in params.items()})
        prompts = [caption for caption in self.captions for _ in SEEDS]
        seeds = [*SEEDS] * len(self.captions)
        images = list(self.pipe(prompts, prompt_syntax="plain", seed=seeds, num_inference_steps=20).images)
        rows = [images[i : i + len(SEEDS)] for i in range(0, len(images), len(SEEDS))]
        self.folder.mkdir(exist_ok=True)
        sheet = grid(rows, [caption[:60] for caption in self.captions], [f"seed {seed}" for seed in SEEDS])
        sheet.save(self.folder / f"{int(state.step):07d}.png")
