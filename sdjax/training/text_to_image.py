"""Training a UNet, and with it a text encoder if wanted, to draw what captions say."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.files.checkpoint import Model, read_json, read_vae
from sdjax.files.tensors import open_tensors, write_tensors
from sdjax.pipeline import Pipeline
from sdjax.pipeline.images import read_square
from sdjax.pipeline.vae import Autoencoder
from sdjax.prompts import Words, load_tokenizer, one_chunk
from sdjax.training.data import Example
from sdjax.training.figures import save_sheet
from sdjax.training.fit import Intervals, Report, Task, fit, open_run
from sdjax.training.forward import ForwardProcess
from sdjax.training.lora import begin_factors, merged, with_factors, write_lora
from sdjax.training.losses import Denoising, TextToImage
from sdjax.training.models import fresh, with_params, write_model
from sdjax.training.step import Loss, Settings, TrainState, Tree

ENCODED_AT_ONCE = 64  # pictures that are read together
MOMENTS = ("mean", "deviation")
SEEDS = range(4)  # of the sample sheets


@dataclass(frozen=True)
class Choices:
    """What is trained, and towards what.

    from_scratch: begin with random parameters instead of the model's. train_text_encoder: not the UNet alone. vae: the
    directory of another one, in the place of the model's own. lora_rank: train a LoRA, and leave the model as it is.
    store: the dtype in which the model is written, if not in that of each parameter.
    """

    from_scratch: bool = False
    train_text_encoder: bool = True
    prediction_type: str | None = None
    min_snr_gamma: float | None = 5.0
    caption_dropout: float = 0.1
    vae: Path | None = None
    lora_rank: int | None = None
    store: str | None = None


def train_text_to_image(
    model: Model,
    examples: list[Example],
    folder: Path,
    settings: Settings,
    choices: Choices,
    intervals: Intervals,
    report: Report,
) -> Path:
    """Trains in a run's folder (see `fit`), and writes the averaged parameters: a model directory, or a LoRA's file.

    Returns where that is. model: its configurations, VAE, tokenizer and noise schedule are used. Sheets of samples are
    drawn into samples/ with the first captions. Raises InputError for a model or choices that do not suit.
    """
    model, configs = _chosen(model, choices)
    about = {"kind": "text-to-image", "model": str(model.path), "pictures": len(examples)}
    open_run(folder, settings, about | asdict(choices) | {"vae": choices.vae and str(choices.vae)})
    trained = ("unet", "text_encoder") if choices.train_text_encoder else ("unet",)
    params = {name: model.components[name].params for name in ("unet", "text_encoder")}
    frozen = {name: tree for name, tree in params.items() if choices.lora_rank or name not in trained}
    rank = choices.lora_rank

    def init() -> Tree:
        if choices.from_scratch:
            return {name: fresh(model.components[name].module, settings.seed) for name in trained}
        own = {name: params[name] for name in trained}
        return begin_factors(own, rank, settings.seed) if rank else own

    def complete(ema: Tree) -> dict[str, Tree]:
        return merged(params, ema) if rank else jax.device_get(ema)

    tokenizer = load_tokenizer(model.tokenizer)
    ids = np.stack([one_chunk(tokenizer, example.caption or "", {}).ids[0] for example in examples])
    loss = _loss(model, choices, one_chunk(tokenizer, "", {}).ids[0])
    read = partial(read_latents, encode_pictures(model, examples, folder / "latents.safetensors", report), ids)
    captions = [example.caption or "" for example in examples]
    samples = Samples(model, complete, captions, folder / "samples")
    state = fit(Task(init, frozen, loss, read, len(examples), samples), settings, folder, intervals, report)
    if rank:
        destination = folder / f"lora-{int(state.step)}.safetensors"
        write_lora(destination, state.ema, str(folder))
        return destination
    destination = folder / f"model-{int(state.step)}"
    if not destination.exists():
        trained_model = with_params(model, state.ema)
        write_model(destination, trained_model, list(model.components), str(folder), configs, choices.store)
    return destination


def _chosen(model: Model, choices: Choices) -> tuple[Model, dict[str, dict[str, Any]]]:
    """The model with another VAE and prediction_type if these are wanted, and the configs that are not its own then."""
    configs = {}
    if choices.vae is not None:
        model = replace(model, components={**model.components, "vae": read_vae(choices.vae)})
        configs["vae"] = read_json(choices.vae / "vae" / "config.json")
    if choices.prediction_type:
        model = replace(model, scheduler_config={**model.scheduler_config, "prediction_type": choices.prediction_type})
    check_trainable(model)
    if choices.lora_rank and choices.from_scratch:
        raise InputError("a LoRA is trained for a model that is there: leave from_scratch or lora_rank out")
    return model, configs


def check_trainable(model: Model) -> None:
    """Raises InputError for a model that does not draw from captions alone, or does not say its size."""
    config = model.components["unet"].module.config
    if config.sample_size is None:
        raise InputError(f"{model.path}: the UNet's config does not say its sample_size")
    if config.in_channels != model.components["vae"].module.config.latent_channels or config.has_class_embedding:
        raise InputError(f"{model.path} reads more than a prompt, and cannot be trained on captions alone")


def _loss(model: Model, choices: Choices, empty: np.ndarray) -> Loss:
    process = ForwardProcess(schedulers.from_config(model.scheduler_config).noise)
    loss = TextToImage(
        model.components["unet"].module,
        model.components["text_encoder"].module,
        Denoising(process, choices.min_snr_gamma),
        tuple(map(int, empty)),
        choices.caption_dropout,
    )
    return with_factors(loss) if choices.lora_rank else loss


def encode_pictures(model: Model, examples: list[Example], path: Path, report: Report) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the deviation of the latents of every picture, [count, h, w, channels] float32 each.

    They are encoded once for the whole run: a file keeps them, from which they are mapped.
    """
    if not path.is_file():
        moments = list(zip(*_encoded(model, examples, report)))
        specs = {
            name: jax.ShapeDtypeStruct((len(moment), *moment[0].shape), np.float32)
            for name, moment in zip(MOMENTS, moments)
        }
        write_tensors(path, specs, lambda name: np.stack(moments[MOMENTS.index(name)]), {})
    arrays = open_tensors(path).arrays()
    return arrays["mean"], arrays["deviation"]


def _encoded(model: Model, examples: list[Example], report: Report) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    vae = model.components["vae"]
    size = model.components["unet"].module.config.sample_size * vae.module.config.factor
    autoencoder = Autoencoder(vae, np.dtype(np.float32), None, None)
    with ThreadPoolExecutor() as pool:
        for i in range(0, len(examples), ENCODED_AT_ONCE):
            report("encode", i, len(examples), None)
            group = examples[i : i + ENCODED_AT_ONCE]
            yield from autoencoder.encode(list(pool.map(lambda example: read_square(example.picture, size), group)))
    report("encode", len(examples), len(examples), None)


def read_latents(moments: tuple[np.ndarray, np.ndarray], ids: np.ndarray, i: int) -> dict[str, np.ndarray]:
    """An example, as `TextToImage` takes it, by its number."""
    return dict(zip(MOMENTS, (moment[i] for moment in moments))) | {"ids": ids[i]}


class Samples:
    """Draws sheets of what the averaged parameters paint: a row for each caption, a column for each seed.

    complete: from the averaged parameters to those of whole components. captions: of which the first few that differ
    are taken. words: what was learned, that captions may hold.
    """

    def __init__(
        self,
        model: Model,
        complete: Callable[[Tree], dict[str, Tree]],
        captions: Sequence[str],
        folder: Path,
        words: Words = MappingProxyType({}),
    ):
        self.model, self.complete, self.folder, self.words = model, complete, folder, words
        self.captions = list(dict.fromkeys(captions))[: len(SEEDS)]
        self.pipe: Pipeline | None = None

    def __call__(self, state: TrainState) -> None:
        """Writes the sheet of a state, its name the number of steps."""
        params = self.complete(state.ema)
        if self.pipe is None:
            self.pipe = Pipeline(with_params(self.model, params), np.dtype("float32"), words=self.words)
        pipe = self.pipe.with_params(params)
        prompts = [caption for caption in self.captions for _ in SEEDS]
        seeds = [*SEEDS] * len(self.captions)
        images = list(pipe(prompts, prompt_syntax="plain", seed=seeds, num_inference_steps=20).images)
        rows = [images[i : i + len(SEEDS)] for i in range(0, len(images), len(SEEDS))]
        labels = [caption[:60] for caption in self.captions]
        save_sheet(self.folder, int(state.step), rows, labels, [f"seed {seed}" for seed in SEEDS])
