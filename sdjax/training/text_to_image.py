"""Training a UNet, and with it a text encoder if wanted, to draw what captions say."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from PIL import Image

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.files.checkpoint import Model, read_alone
from sdjax.files.layout import read_json
from sdjax.files.tensors import open_tensors, write_tensors
from sdjax.models.precision import Precision
from sdjax.pipeline import Pipeline
from sdjax.pipeline.images import read_square
from sdjax.pipeline.vae import Autoencoder
from sdjax.prompts import Words, load_tokenizer, one_chunk
from sdjax.training.data import Example
from sdjax.training.figures import save_sheet
from sdjax.training.fit import Report, Run, Task
from sdjax.training.forward import ForwardProcess
from sdjax.training.lora import begin_factors, merged, with_factors, write_lora
from sdjax.training.losses import Denoising, TextToImage
from sdjax.training.models import fresh, with_params, write_model
from sdjax.training.step import Loss, TrainState, Tree

ENCODED_AT_ONCE = 64  # pictures that are read together
MOMENTS = ("mean", "deviation")
SEEDS = range(4)  # of the sample sheets


@dataclass(frozen=True)
class Choices:
    """What is trained, and with which loss.

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


def text_to_image_task(model: Model, examples: list[Example], choices: Choices) -> Task:
    """Trains a model on captioned pictures; the result is a model directory with averaged parameters, or a LoRA's file.

    model: its configurations, VAE, tokenizer and noise schedule are used. Sample sheets are drawn with the first
    captions. Raises InputError for a model that cannot be trained on captions, or choices that contradict each other.
    """
    model, configs = _chosen(model, choices)
    about = {"kind": "text-to-image", "model": str(model.path), "pictures": len(examples)}
    trained = ("unet", "text_encoder") if choices.train_text_encoder else ("unet",)
    params = {name: model.components[name].params for name in ("unet", "text_encoder")}
    frozen = {name: tree for name, tree in params.items() if choices.lora_rank or name not in trained}
    rank = choices.lora_rank

    def init(seed: int) -> Tree:
        if choices.from_scratch:
            return {name: fresh(model.components[name].module, seed) for name in trained}
        own = {name: params[name] for name in trained}
        return begin_factors(own, rank, seed) if rank else own

    def complete(ema: Tree) -> dict[str, Tree]:
        return merged(params, ema) if rank else jax.device_get(ema)

    tokenizer = load_tokenizer(model.tokenizers[0])
    ids = np.stack([one_chunk(tokenizer, example.caption or "", {}).ids[0] for example in examples])

    def write(state: TrainState, path: Path) -> None:
        source = str(path.parent)
        if rank:
            write_lora(path, state.ema, source)
        else:
            trained_model = with_params(model, state.ema)
            write_model(path, trained_model, list(model.components), source, configs, choices.store)

    return Task(
        about=about | asdict(choices) | {"vae": choices.vae and str(choices.vae)},
        init=init,
        frozen=frozen,
        loss=_loss(model, choices, one_chunk(tokenizer, "", {}).ids[0]),
        count=len(examples),
        open=partial(open_latents, model, examples, ids),
        show=Samples(model, complete, [example.caption or "" for example in examples]),
        result="lora-{step}.safetensors" if rank else "model-{step}",
        write=write,
    )


def _chosen(model: Model, choices: Choices) -> tuple[Model, dict[str, dict[str, Any]]]:
    """The model with another VAE and prediction_type if these are wanted, and the configs that are not its own then."""
    configs = {}
    if choices.vae is not None:
        model = replace(model, components={**model.components, "vae": read_alone(choices.vae, "vae")})
        configs["vae"] = read_json(choices.vae / "vae" / "config.json")
    if choices.prediction_type:
        model = replace(model, scheduler_config={**model.scheduler_config, "prediction_type": choices.prediction_type})
    check_trainable(model)
    if choices.lora_rank and choices.from_scratch:
        raise InputError("a LoRA is trained for a model that is there: leave from_scratch or lora_rank out")
    return model, configs


def check_trainable(model: Model) -> None:
    """Raises InputError for a model that does not draw from captions alone, or does not say its size."""
    config = model.unet.module.config
    if config.sample_size is None:
        raise InputError(f"{model.path}: the UNet's config does not say its sample_size")
    if config.in_channels != model.vae.module.config.latent_channels or config.has_class_embedding:
        raise InputError(f"{model.path} reads more than a prompt, and cannot be trained on captions alone")
    if config.is_xl or config.embeds_guidance:
        raise InputError(f"{model.path} is a kind of model that sdjax does not train: Stable Diffusion 1 and 2 are")


def _loss(model: Model, choices: Choices, empty: np.ndarray) -> Loss:
    process = ForwardProcess(schedulers.from_config(model.scheduler_config).noise)
    loss = TextToImage(
        model.unet.module,
        model.components["text_encoder"].module,
        Denoising(process, choices.min_snr_gamma),
        tuple(map(int, empty)),
        choices.caption_dropout,
    )
    return with_factors(loss) if choices.lora_rank else loss


def open_latents(
    model: Model, examples: list[Example], ids: np.ndarray, run: Run
) -> Callable[[int], dict[str, np.ndarray]]:
    """Encodes all pictures, once for the whole run, into a file in its folder, and returns the function that reads
    example i as `TextToImage` takes it: mean and deviation of its latents, [height, width, channels] float32 each, and
    its caption's token ids, ids[i]."""
    path = run.folder / "latents.safetensors"
    if not path.is_file():
        moments = list(zip(*_encoded(model, examples, run.report)))
        specs = {
            name: jax.ShapeDtypeStruct((len(moment), *moment[0].shape), np.float32)
            for name, moment in zip(MOMENTS, moments)
        }
        write_tensors(path, specs, lambda name: np.stack(moments[MOMENTS.index(name)]), {})
    arrays = open_tensors(path).arrays()
    return lambda i: {name: arrays[name][i] for name in MOMENTS} | {"ids": ids[i]}


def _encoded(model: Model, examples: list[Example], report: Report) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    vae = model.vae
    size = model.unet.module.config.sample_size * vae.module.config.factor
    autoencoder = Autoencoder(vae, Precision("float32"), None, None)
    with ThreadPoolExecutor() as pool:
        for i in range(0, len(examples), ENCODED_AT_ONCE):
            report("encode", i, len(examples), None)
            group = examples[i : i + ENCODED_AT_ONCE]
            yield from autoencoder.encode(list(pool.map(lambda example: read_square(example.picture, size), group)))
    report("encode", len(examples), len(examples), None)


class Samples:
    """Draws sheets of what the averaged parameters paint: a row for each caption, a column for each seed.

    complete: from the averaged parameters to those of whole components. captions: the first few that differ are drawn.
    words: learned words that captions may hold. how: settings of the pictures.
    """

    def __init__(
        self,
        model: Model,
        complete: Callable[[Tree], dict[str, Tree]],
        captions: Sequence[str],
        words: Words = MappingProxyType({}),
        how: Mapping[str, Any] = MappingProxyType({"num_inference_steps": 20}),
    ):
        self.model, self.complete, self.words, self.how = model, complete, words, how
        self.captions = list(dict.fromkeys(captions))[: len(SEEDS)]
        self.pipe: Pipeline | None = None

    def __call__(self, state: TrainState, folder: Path) -> None:
        """Writes the sheet of a state into a folder, its name the number of steps."""
        images = self.drawn(self.complete(state.ema), {})
        rows = [images[i : i + len(SEEDS)] for i in range(0, len(images), len(SEEDS))]
        labels = [caption[:60] for caption in self.captions]
        save_sheet(folder, int(state.step), rows, labels, [f"seed {seed}" for seed in SEEDS])

    def drawn(self, params: dict[str, Tree], settings: Mapping[str, Any]) -> list[Image.Image]:
        """The pictures of all captions, those of one next to each other, with other parameters and further settings."""
        if self.pipe is None:
            self.pipe = Pipeline(with_params(self.model, params), Precision("float32"), words=self.words)
        pipe = self.pipe.with_params(params)
        prompts = [caption for caption in self.captions for _ in SEEDS]
        seeds = [*SEEDS] * len(self.captions)
        return list(pipe(prompts, prompt_syntax="plain", seed=seeds, **self.how, **settings).images)
