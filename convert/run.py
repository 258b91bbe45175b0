"""From the name of a model to an sdjax model directory: at a given path, or in the user's cache."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdjax.adapters.lora_files import read_lora
from sdjax.convert.directory import read_directory
from sdjax.convert.export import check_layout, write_export
from sdjax.convert.hub import download
from sdjax.convert.single_file import NOTHING_CHOSEN, Choices, read_single_file
from sdjax.convert.source import Source
from sdjax.convert.verify import compare
from sdjax.convert.write import Progress, write_model
from sdjax.errors import InputError
from sdjax.files.atomic import check_vacant, sweep
from sdjax.files.cache import cache_directory
from sdjax.files.eviction import hold, keep_to_limit
from sdjax.files.layout import FORMAT, embedded_models, is_model, nearest
from sdjax.models.precision import FLOATS

# Short names of models on the hub, which a path of that name goes before.
NAMES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl-refiner": "stabilityai/stable-diffusion-xl-refiner-1.0",
    "sdxl-turbo": "stabilityai/sdxl-turbo",
    "sd-turbo": "stabilityai/sd-turbo",
    "lcm": "SimianLuo/LCM_Dreamshaper_v7",
}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    dtype: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    single_file: Choices = NOTHING_CHOSEN,
    defaults: Mapping[str, Any] | None = None,
    loras: Sequence[tuple[str | os.PathLike, float]] = (),
    progress: Progress | None = None,
) -> Path:
    """Converts a PyTorch checkpoint into a new sdjax model directory, and returns its path.

    source       a directory in diffusers layout, a single file in the original layout (.safetensors, .ckpt), or a
                 model on the Hugging Face hub, "org/name"
    destination  must not exist, or be empty; it appears when it is complete, and not at all after an error
    dtype        "float32", "float16", "bfloat16", or None: every tensor as it is stored in the source
    variant      which weights to take where there are several, such as "fp16"
    revision     a branch, tag or commit on the hub
    single_file  what there is to decide about a single file
    defaults     arguments of a pipeline call that suit this model, such as {"guidance_scale": 3.0}
    loras        LoRA files to add to the model for good, each with its scale
    progress     called after every tensor with (component, bytes written, bytes in all)

    Raises InputError for a bad argument or a model that is not there, CheckpointError for files that are missing,
    damaged, do not fit each other or hold NaN, ConfigError for a model that sdjax does not implement.
    """
    _check_dtype(dtype)
    destination = Path(destination)
    check_vacant(destination)
    lora_files = [(read_lora(path), scale) for path, scale in loras]
    found, _ = _locate(source, variant, revision, single_file)
    write_model(found, destination, dtype, defaults or {}, progress, lora_files)
    return destination


def resolve(
    model: str | os.PathLike,
    *,
    dtype: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    single_file: Choices = NOTHING_CHOSEN,
    progress: Progress | None = None,
    checker: bool = True,
) -> Path:
    """The sdjax model directory for an embedded model's name, a directory or file of any kind, or a model on the hub.

    What is not an sdjax model directory yet is converted once, into `$SDJAX_CACHE` or `~/.cache/sdjax`, and found
    there the next time; a source that has changed is converted again. Arguments and errors are those of `convert`;
    a model that is in sdjax's format already is used as it is, whatever `dtype` says. checker: whether the safety
    checker of a model on the hub is downloaded with it.
    """
    _check_dtype(dtype)
    if str(model) in (embedded := embedded_models()):
        return embedded[str(model)]
    if Path(model).is_dir() and is_model(Path(model)):
        return Path(model)
    source, commit = _locate(model, variant, revision, single_file, checker)
    destination = _cached(source, commit, dtype)
    while not (hold(destination) and is_model(destination)):
        sweep(destination.parent)
        try:
            write_model(source, destination, dtype, {}, progress)
        except InputError:
            if not is_model(destination):  # else another process was faster, and its conversion is as good
                raise
        hold(destination)  # first, since it may not be dropped for room of its own
        keep_to_limit()
    return destination


def export(
    model: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    to: str = "diffusers",
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes a model as PyTorch has it, in safetensors, and returns the path: the way back from `convert`, bit for bit.

    model        anything that `resolve` takes
    destination  must not exist; it appears when it is complete, and not at all after an error
    to           "diffusers": a directory; "single-file": a .safetensors in the original layout, which holds the
                 networks, but no scheduler and no tokenizer
    dtype        "float32", "float16", "bfloat16", or None: every tensor as it is stored
    progress     called after every tensor with (component, bytes written, bytes in all)

    Errors are those of `convert`.
    """
    _check_dtype(dtype)
    destination = Path(destination)
    check_layout(destination, to)
    write_export(resolve(model, progress=progress), destination, to, dtype, progress)
    return destination


def verify(
    source: str | os.PathLike,
    model: str | os.PathLike,
    *,
    variant: str | None = None,
    revision: str | None = None,
    single_file: Choices = NOTHING_CHOSEN,
) -> dict[str, float]:
    """Runs a converted model and its source, which PyTorch reads, on the same random input.

    Returns by component the largest difference, relative to the largest value: about 1e-6 where all is well.
    Arguments are those with which `convert` made `model`. Raises InputError where PyTorch or diffusers is missing,
    CheckpointError where PyTorch cannot read the source.
    """
    return compare(_locate(source, variant, revision, single_file)[0], Path(model))


def hub_id(model: str | os.PathLike) -> str | None:
    """The repository on the hub that a name stands for, None for what can be none, or is something here."""
    if Path(model).exists() or str(model) in embedded_models():
        return None
    repository = NAMES.get(str(model), str(model))
    return repository if HUB_ID.fullmatch(repository) else None


def _check_dtype(dtype: str | None) -> None:
    if dtype not in (None, *FLOATS):
        raise InputError(f"dtype is {dtype!r}, it can be {', '.join(FLOATS)} or None")


def _locate(
    model: str | os.PathLike, variant: str | None, revision: str | None, single_file: Choices, checker: bool = True
) -> tuple[Source, str | None]:
    """Opens a source, downloading it where it is on the hub, and the commit that it then comes from."""
    path = Path(model)
    if path.exists() and revision is not None:
        raise InputError(f"{path} is there: only models on the hub have a revision")
    if path.is_file():
        if variant is not None:
            raise InputError(f"{path} is a file: only directories and models on the hub have variants")
        single_file.check()
        return read_single_file(path, single_file), None
    if single_file != NOTHING_CHOSEN:
        raise InputError(f"{model} is no file: only there are EMA, prediction type, config and tokenizer to choose")
    if path.is_dir():
        return read_directory(path, path.resolve().name, variant), None
    if str(model) in embedded_models():
        raise InputError(f"{str(model)!r} comes with sdjax, converted: use it by that name")
    repository = hub_id(model)
    if repository is None:
        raise InputError(f"there is no model or directory {str(model)!r}; {nearest(str(model), NAMES)}")
    folder, commit = download(repository, variant, revision, checker=checker)
    return read_directory(folder, f"{repository}@{commit}", variant), commit


def _cached(source: Source, commit: str | None, dtype: str | None) -> Path:
    """Where a source's conversion lies; the name changes whenever the conversion might come out differently.

    A commit on the hub never changes; the files of a directory are known by their place, size and time.
    """
    contents: list[Any] = [source.choices]
    for path in source.files:
        stat = path.stat()
        place, time = (path.relative_to(source.path), None) if commit else (path.resolve(), stat.st_mtime_ns)
        contents.append([str(place), stat.st_size, time])
    key = hashlib.sha256(json.dumps([FORMAT, source.name, dtype, contents]).encode()).hexdigest()[:16]
    return cache_directory() / "models" / f"{source.name.replace('/', '--').split('@')[0]}-{key}"
