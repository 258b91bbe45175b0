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
from sdjax.training.fit import Task
from sdjax.training.forward import ForwardProcess
from sdjax.training.losses import Denoising, TextToImage
from sdjax.training.step import Metrics, TrainState, Tree
from sdjax.training.text_to_image import Samples, check_trainable, open_latents
from sdjax.version import __version__


@dataclass(frozen=True)
class Word:
    """The word to learn, and its number of vectors.

    begins_as: a word that the model knows, with whose vectors training begins; None: random vectors, as large as those
    of the vocabulary.
    """

    name: str
    vectors: int = 1
    begins_as: str | None = None


def word_task(model: Model, examples: list[Example], word: Word) -> Task:
    """Learns a word; the result is diffusers' file {word: vectors}, which A1111 reads too, under the file's name.

    examples: with captions that hold the word. Sample sheets are drawn with the first captions. Raises InputError for a
    word that the model knows already, or one that a caption lacks.
    """
    check_trainable(model)
    tokenizer = load_tokenizer(model.tokenizers[0])
    encoder = model.components["text_encoder"]
    table = np.asarray(encoder.params["embeddings"]["token_embedding"]["embedding"], np.float32)
    begins_as = check_word(word, tokenizer)
    words = {word.name: range(len(table), len(table) + word.vectors)}
    ids = np.stack([_ids(tokenizer, example, words) for example in examples])

    larger = encoder.module.clone(config=replace(encoder.module.config, vocab_size=len(table) + word.vectors))
    learning = replace(model, components={**model.components, "text_encoder": replace(encoder, module=larger)})
    denoising = Denoising(ForwardProcess(schedulers.from_config(model.scheduler_config).noise), None)
    loss = TextToImage(model.unet.module, larger, denoising, tuple(map(int, ids[0])), 0.0)
    frozen = {name: model.components[name].params for name in ("unet", "text_encoder")}

    def with_vectors(params: Tree, frozen: Tree, batch: Tree, keys: jax.Array) -> Metrics:
        return loss({}, frozen | complete(frozen, params), batch, keys)

    def write(state: TrainState, path: Path) -> None:
        vectors = np.asarray(state.ema["vectors"])
        specs = {word.name: jax.ShapeDtypeStruct(vectors.shape, vectors.dtype)}
        write_tensors(path, specs, lambda _: vectors, {"sdjax_version": __version__, "source": str(path.parent)})

    plain = re.sub(r"[^\w-]", "", word.name) or "word"
    about = {"kind": "textual inversion", "model": str(model.path), "pictures": len(examples), "word": word.name}
    captions = [example.caption or "" for example in examples]
    return Task(
        about=about | {"vectors": word.vectors, "begins_as": word.begins_as},
        init=partial(first_vectors, table, word.vectors, begins_as),
        frozen=frozen,
        loss=with_vectors,
        count=len(examples),
        open=partial(open_latents, model, examples, ids),
        show=Samples(learning, partial(complete, frozen), captions, words),
        result=f"{plain}-{{step}}.safetensors",
        write=write,
    )


def check_word(word: Word, tokenizer: Tokenizer) -> list[int]:
    """The token ids of `word.begins_as`, none where that is None. Raises InputError for a word that cannot be learned,
    and for a `begins_as` without tokens."""
    known = tokenizer.backend.get_vocab()
    if not word.name.strip() or any(name in known for name in (word.name.lower(), f"{word.name.lower()}</w>")):
        raise InputError(f"{word.name!r} is a word that the model knows: choose another, such as '<{word.name}>'")
    if not 1 <= word.vectors <= tokenizer.length - 2:
        raise InputError(f"a word has 1 to {tokenizer.length - 2} vectors, not {word.vectors}")
    if word.begins_as is None:
        return []
    ids = tokenizer.backend.encode(word.begins_as, add_special_tokens=False).ids
    if not ids:
        raise InputError(f"{word.begins_as!r} is no word to begin with")
    return ids


def first_vectors(table: np.ndarray, count: int, begins_as: list[int], seed: int) -> Tree:
    """The vectors that training begins with, [count, width]: those of the tokens `begins_as`, else random ones."""
    if begins_as:
        return {"vectors": table[np.resize(begins_as, count)]}
    return {"vectors": table.std() * np.random.default_rng(seed).standard_normal((count, table.shape[1]), np.float32)}


def complete(params: Mapping[str, Any], learned: Tree) -> dict[str, Tree]:
    """The text encoder of these components with the learned vectors after those of its vocabulary."""
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
