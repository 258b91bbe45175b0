"""The way back: an sdjax model as a diffusers directory, or as a single file in the original layout."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from sdjax.convert import ldm_kinds as ldm
from sdjax.convert.keys import from_flax
from sdjax.convert.ldm import PACKED, PROJECTION
from sdjax.convert.write import Progress
from sdjax.errors import CheckpointError, InputError
from sdjax.files.atomic import check_vacant, new_directory
from sdjax.files.checkpoint import TEXT_ENCODERS, Component, layers_of, read_component
from sdjax.files.layout import CHECKER, INDEX, component_classes, read_index, read_json, write_json
from sdjax.files.original_names import condition_name, open_clip_name, source_name, unet_name, vae_name
from sdjax.files.tensors import write_tensors
from sdjax.models import MODELS, ControlNetConfig

LAYOUTS = ("diffusers", "single-file")

# Layers that PyTorch has as convolutions of 1x1 pixel.
CONVOLUTIONS = ("conv_shortcut", "quant_conv", "post_quant_conv", "controlnet_mid_block")
ZERO_CONVOLUTION = re.compile(r"controlnet_down_blocks_\d+")
ADAPTER = ("in_conv", "out_conv", "block2")  # of T2I adapters
PROJECTIONS = ("proj_in", "proj_out")  # in the UNet: convolutions unless `use_linear_projection`
VAE_ATTENTION = ("to_q", "to_k", "to_v", "to_out_0")  # convolutions in the original layout only
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # as sai_model_spec calls them


@dataclass(frozen=True)
class _Tensor:
    """A tensor to be written: the arrays that it is made of, one below the other, in PyTorch's layout (by strides)."""

    parts: tuple[np.ndarray, ...]

    def spec(self, dtype: str | None) -> jax.ShapeDtypeStruct:
        first = self.parts[0]
        shape = first.shape if len(self.parts) == 1 else (len(first) * len(self.parts), *first.shape[1:])
        return jax.ShapeDtypeStruct(shape, jax.numpy.dtype(dtype or first.dtype))

    def array(self, dtype: np.dtype) -> np.ndarray:
        joined = self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)
        return joined.astype(dtype)


def check_layout(destination: Path, to: str) -> None:
    """Raises InputError for a layout that there is none of, or a destination that does not suit it."""
    if to not in LAYOUTS:
        raise InputError(f"to is {to!r}, it can be {' or '.join(LAYOUTS)}")
    if to == "single-file" and destination.suffix != ".safetensors":
        raise InputError(f"{destination} is to be a single file: let its name end in .safetensors")
    check_vacant(destination)


def write_export(model: Path, destination: Path, to: str, dtype: str | None, progress: Progress | None) -> None:
    """Writes an sdjax model directory in PyTorch's layout. Nothing is left after an error.

    Raises CheckpointError for a model that is damaged, or whose values are too large for the dtype.
    """
    index = read_index(model)
    classes = {name: cls for name, cls in component_classes(index, model).items() if cls in MODELS}
    components = {name: read_component(model / name, cls) for name, cls in classes.items()}
    if to == "diffusers":
        _write_directory(model, index, components, destination, dtype, progress)
    else:
        _write_file(model, components, destination, dtype, progress)


def _write_directory(
    model: Path,
    index: dict[str, Any],
    components: dict[str, Component],
    destination: Path,
    dtype: str | None,
    progress: Progress | None,
) -> None:
    with new_directory(destination) as folder:
        for path in sorted(place for place in model.iterdir() if place.is_dir() and place.name not in components):
            shutil.copytree(path, folder / path.name, copy_function=shutil.copyfile)
        for name, component in components.items():
            place = folder if name == "condition" else folder / name  # which is a repository of its own
            place.mkdir(exist_ok=True)
            shutil.copyfile(model / name / "config.json", place / "config.json")
            is_text = name.startswith("text_encoder")
            tensors = tensors_of(model / name, component, lambda path: source_name(path), is_original=False)
            if is_text:  # as transformers 4 called them, and all releases read them
                tensors = {f"text_model.{tensor}": entry for tensor, entry in tensors.items()}
            if name == CHECKER:
                tensors = {
                    f"vision_model.{tensor}" if tensor.startswith("vision_model.") else tensor: entry
                    for tensor, entry in tensors.items()
                }
            stem = "model" if is_text or name == CHECKER else "diffusion_pytorch_model"
            _write(place / f"{stem}.safetensors", name, tensors, dtype, {}, progress)
        if "condition" not in components:
            write_json(folder / INDEX, {key: value for key, value in index.items() if key != "sdjax"})


def _write_file(
    model: Path, components: dict[str, Component], destination: Path, dtype: str | None, progress: Progress | None
) -> None:
    tensors: dict[str, _Tensor] = {}
    for name, component in components.items():
        if name == CHECKER:  # which single files are without
            continue
        prefix, name_of = _original_names(name, components)
        named = tensors_of(model / name, component, name_of, is_original=True)
        tensors |= {prefix + tensor: entry for tensor, entry in named.items()}
    metadata = {}
    if (scheduler := model / "scheduler" / "scheduler_config.json").is_file():
        prediction = read_json(scheduler).get("prediction_type", "epsilon")
        metadata["modelspec.prediction_type"] = PREDICTIONS.get(prediction, prediction)
    destination.parent.mkdir(parents=True, exist_ok=True)
    _write(destination, destination.name, tensors, dtype, metadata, progress)


def _original_names(name: str, components: dict[str, Component]) -> tuple[str, Callable[[str], str]]:
    """What a component's tensors are called in the original layout: the beginning, and the rest by its parameter."""
    config = components[name].module.config
    if name == "unet":
        return ldm.UNET, lambda path: unet_name(source_name(path), config)
    if name == "condition" and isinstance(config, ControlNetConfig):
        return "", lambda path: condition_name(source_name(path), config)
    if name == "vae" and hasattr(config, "use_quant_conv"):
        return "" if len(components) == 1 else ldm.VAE, lambda path: vae_name(source_name(path), config)
    if name not in TEXT_ENCODERS:
        raise CheckpointError(f"{name} ({type(components[name].module).__name__}) has no names in the original layout")
    encoder = _encoder(name, components)
    if encoder.is_open_clip:
        return encoder.prefix, lambda path: open_clip_name(source_name(path))
    return f"{encoder.prefix}text_model.", source_name


def _encoder(name: str, components: dict[str, Component]) -> ldm.Encoder:
    """Which text encoder of the original layout a component is."""
    names = [each for each in TEXT_ENCODERS if each in components]
    if not components[names[-1]].module.projects:
        return ldm.OPEN_CLIP if components[name].module.config.hidden_act == "gelu" else ldm.CLIP
    return ldm.REFINER_CLIP if len(names) == 1 else ldm.SDXL.encoders[names.index(name)]


def tensors_of(
    folder: Path, component: Component, name_of: Callable[[str], str], is_original: bool
) -> dict[str, _Tensor]:
    """The tensors of a component by their names in PyTorch's layout."""
    linear = read_json(folder / "config.json").get("use_linear_projection", False)
    class_name = type(component.module).__name__
    convolutions = set(CONVOLUTIONS)
    if class_name in ("UNet2DConditionModel", "ControlNetModel") and not linear:
        convolutions |= set(PROJECTIONS)
    if class_name == "AutoencoderKL" and is_original:
        convolutions |= set(VAE_ATTENTION)
    if class_name == "T2IAdapter":
        convolutions |= set(ADAPTER)
    tensors: dict[str, _Tensor] = {}
    layers = {
        path: array[index]
        for stacked, array in flatten_dict(component.params, sep="/").items()
        for path, index, _ in layers_of(stacked, array.shape)
    }
    for path, array in sorted(layers.items(), key=lambda item: name_of(item[0])):
        layer, leaf = f"/{path}".split("/")[-2:]
        name = name_of(path).partition("[")[0]  # parts [0], [1] and [2], in this order, become one
        if is_original and path == f"{PROJECTION}/kernel":
            tensors[PROJECTION] = _Tensor((array,))
            continue
        before = tensors[name].parts if PACKED.search(name) and name in tensors else ()
        is_convolution = layer in convolutions or ZERO_CONVOLUTION.fullmatch(layer) is not None
        laid_out = from_flax(array, is_convolution) if leaf == "kernel" else array
        tensors[name] = _Tensor((*before, laid_out))
    return tensors


def _write(
    path: Path,
    component: str,
    tensors: dict[str, _Tensor],
    dtype: str | None,
    metadata: dict[str, str],
    progress: Progress | None,
) -> None:
    specs = {name: tensor.spec(dtype) for name, tensor in tensors.items()}
    total = sum(spec.size * spec.dtype.itemsize for spec in specs.values())
    done = 0

    def produce(name: str) -> np.ndarray:
        nonlocal done
        with np.errstate(over="ignore"):
            array = tensors[name].array(specs[name].dtype)
        if not np.isfinite(array).all():
            raise CheckpointError(f"{name} is not finite in {array.dtype}: choose another dtype")
        done += array.nbytes
        if progress:
            progress(component, done, total)
        return array

    write_tensors(path, specs, produce, {"format": "pt", **metadata})
