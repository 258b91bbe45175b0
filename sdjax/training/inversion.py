"""Textual inversion: a new word for what some pictures show, while the model stays as it is.

Gal et al. (2022), arXiv:2208.01618: only the vectors that stand for the word in the text encoder's table are trained.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.files.checkpoint import Model
from sdjax.files.tensors import write_tensors
from sdjax.prompts import Tokenizer, load_tokenizer, one_chunk
from sdjax.training.data import Example
from sdjax.training.fit import Intervals, Report, Task, fit, open_run
from sdjax.training.forward import ForwardProcess
from sdjax.training.losses import Denoising, TextToImage
from sdjax.training.step import Metrics, Settings, Tree
from sdjax.training.text_to_image import Samples, check_trainable, encode_pictures, read_latents
from sdjax.version import __version__


@dataclass(frozen=True)
class Word:
    """What is to be learned. begins_as: a word that the model knows, with whose vectors training begins; else they are
    random, as large as those of the vocabulary."""

    name: str
    vectors: int = 1
    begins_as: str | None = None


def train_word(
    model: Model,
    examples: list[Example],
    word: Word,
    folder: Path,
    settings: Settings,
    intervals: Intervals,
    report: Report,
) -> Path:
    """Trains in a run's folder (see `fit`), and writes the word's file, which it returns.

    examples: with captions that hold the word. The file is diffusers' {word: vectors}, which A1111 reads too, under the
    file's name. Sheets of samples are drawn into samples/ with the first captions. Raises InputError for a word that
    the model knows already, or one that a caption lacks.
    """
    check_trainable(model)
    tokenizer = load_tokenizer(model.tokenizer)
    encoder = model.components["text_encoder"]
    table = np.asarray(encoder.params["embeddings"]["token_embedding"]["embedding"], np.float32)
    begin = first_vectors(word, table, tokenizer, settings.seed)
    words = {word.name: range(len(table), len(table) + word.vectors)}
    ids = np.stack([_ids(tokenizer, example, words) for example in examples])
    about = {"kind": "textual inversion", "model": str(model.path), "pictures": len(examples), "word": word.name}
    open_run(folder, settings, about | {"vectors": word.vectors, "begins_as": word.begins_as})

    larger = encoder.module.clone(config=replace(encoder.module.config, vocab_size=len(table) + word.vectors))
    learning = replace(model, components={**model.components, "text_encoder": replace(encoder, module=larger)})
    denoising = Denoising(ForwardProcess(schedulers.from_config(model.scheduler_config).noise), None)
    loss = TextToImage(model.components["unet"].module, larger, denoising, tuple(map(int, ids[0])), 0.0)
    frozen = {name: model.components[name].params for name in ("unet", "text_encoder")}

    def with_vectors(params: Tree, frozen: Tree, batch: Tree, keys: jax.Array) -> Metrics:
        return loss({}, frozen | complete(frozen, params), batch, keys)

    moments = encode_pictures(model, examples, folder / "latents.safetensors", report)
    captions = [example.caption or "" for example in examples]
    samples = Samples(learning, partial(complete, frozen), captions, folder / "samples", words)
    read = partial(read_latents, moments, ids)
    task = Task(lambda: {"vectors": begin}, frozen, with_vectors, read, len(examples), samples)
    state = fit(task, settings, folder, intervals, report)
    vectors = np.asarray(state.ema["vectors"])
    plain = re.sub(r"[^\w-]", "", word.name) or "word"
    destination = folder / f"{plain}-{int(state.step)}.safetensors"
    specs = {word.name: jax.ShapeDtypeStruct(vectors.shape, vectors.dtype)}
    write_tensors(destination, specs, lambda _: vectors, {"sdjax_version": __version__, "source": str(folder)})
    return destination


def first_vectors(word: Word, table: np.ndarray, tokenizer: Tokenizer, seed: int) -> np.ndarray:
    """What training begins with, [vectors, width]. Raises InputError for a word that cannot be learned."""
    known = tokenizer.backend.get_vocab()
    if not word.name.strip() or any(name in known for name in (word.name.lower(), f"{word.name.lower()}</w>")):
        raise InputError(f"{word.name!r} is a word that the model knows: choose another, such as '<{word.name}>'")
    if not 1 <= word.vectors <= tokenizer.length - 2:
        raise InputError(f"a word has 1 to {tokenizer.length - 2} vectors, not {word.vectors}")
    if word.begins_as is None:
        return table.std() * np.random.default_rng(seed).standard_normal((word.vectors, table.shape[1]), np.float32)
    ids = tokenizer.backend.encode(word.begins_as, add_special_tokens=False).ids
    if not ids:
        raise InputError(f"{word.begins_as!r} is no word to begin with")
    return table[np.resize(ids, word.vectors)]


def complete(params: Mapping[str, Any], learned: Tree) -> dict[str, Tree]:
    """The text encoder of these components with the learned vectors behind those of its vocabulary."""
    encoder = params["text_encoder"]
    table = encoder["embeddings"]["token_embedding"]["embedding"]
    longer = jnp.concatenate([table, learned["vectors"].astype(table.dtype)])
    embeddings = encoder["embeddings"] | {"token_embedding": {"embedding": longer}}
    return {"text_encoder": encoder | {"embeddings": embeddings}}


def _ids(tokenizer: Tokenizer, example: Example, words: Mapping[str, range]) -> np.ndarray:
    ids = one_chunk(tokenizer, example.caption or "", words).ids[0]
    [(name, its_ids)] = words.items()
    if not np.isin(ids, its_ids).any():
        raise InputError(f"the caption {example.caption!r} does not hold the word {name!r}")
    return ids
