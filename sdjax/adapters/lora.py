"""LoRA: what a fine-tuning added to a model's kernels, as products of two thin matrices.

Hu et al. (2021), arXiv:2106.09685: a kernel becomes base + scale * alpha / rank * up @ down. The sum is made when a
scale changes, and a picture costs what it costs without.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from sdjax.adapters.changes import Change
from sdjax.adapters.lora_files import LoraFile
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import TEXT_ENCODERS, Model, flat_specs, layers_of
from sdjax.files.layout import shorten
from sdjax.files.original_names import source_name, unet_name
from sdjax.files.recognise import FAMILIES
from sdjax.models.precision import Precision
from sdjax.parallel import placed_leaf


class Lora(NamedTuple):
    """A LoRA that fits a model: changes by component and Flax path, and how strongly it is applied.

    changes: of each layer of a parameter, with its index there (see `layers_of`).
    text_scale: in the text encoders, where it is another than in the UNet.
    """

    path: Path
    changes: Mapping[tuple[str, str], Sequence[tuple[Any, Change]]]
    scale: float
    text_scale: float | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.scale}"

    def scale_in(self, component: str) -> float:
        """How strongly it is applied to a component's kernels."""
        return self.scale if component == "unet" or self.text_scale is None else self.text_scale


def lora_for(file: LoraFile, modules: Mapping[str, nn.Module], scale: float) -> Lora:
    """Finds the kernel of every change in a model's UNet and text encoders.

    Raises CheckpointError that lists what has no place in the model or another shape, InputError for a scale that is
    not finite.
    """
    if not math.isfinite(scale):
        raise InputError(f"the scale of {file.path} must be a finite number, not {scale}")
    kernels, others = _kernels(modules)
    known = {place: found for place in file.changes if (found := kernels.get(place) or others.get(place))}
    # Some files hold the same under today's name and under the original one.
    taken = {found[:2] for place, found in known.items() if place in kernels}
    known = {place: found for place, found in known.items() if place in kernels or found[:2] not in taken}
    unknown = [" ".join(place) for place in file.changes if place not in kernels and place not in others]
    misfits = [
        f"{component} {name}, where the model has {shape}"
        for (component, name), (_, _, shape) in known.items()
        if not file.changes[component, name].fits(shape)
    ]
    if unknown or misfits:
        parts = [(unknown, "are not in this one"), (misfits, "have other shapes")]
        listed = "; ".join(f"{len(names)} of its modules {what} ({shorten(names)})" for names, what in parts if names)
        own = FAMILIES.get(modules["unet"].config.cross_attention_dim)
        made_for = file.family if file.family and file.family != own else "another model"
        raise CheckpointError(f"{file.path} was made for {made_for}: {listed}")
    changes: dict[tuple[str, str], list[tuple[Any, Change]]] = {}
    for place, (path, index, _) in known.items():
        changes.setdefault((place[0], path), []).append((index, file.changes[place]))
    return Lora(file.path, changes, float(scale))


Kernels = dict[tuple[str, str], tuple[str, Any, tuple[int, ...]]]


def _kernels(modules: Mapping[str, nn.Module]) -> tuple[Kernels, Kernels]:
    """The kernels of a model's networks, each with its index in the parameter and its shape.

    By component and flat name; and those of the UNet by the flat names that they have in the original layout.
    """
    kernels: Kernels = {}
    others: Kernels = {}
    for component in {"unet", *TEXT_ENCODERS} & modules.keys():
        for path, spec in flat_specs(modules[component]).items():
            for layer, index, shape in layers_of(path, spec.shape) if path.endswith("/kernel") else ():
                found = (path, index, shape)
                kernels[component, layer.removesuffix("/kernel").replace("/", "_")] = found
                if component == "unet":
                    original = unet_name(source_name(layer), modules["unet"].config).removesuffix(".weight")
                    others[component, original.replace(".", "_")] = found
    return kernels, others


def kernels_of(loras: Iterable[Lora]) -> list[tuple[str, str]]:
    """The kernels to which any of `loras` adds something, as component and Flax path, each once."""
    return list(dict.fromkeys(place for lora in loras for place in lora.changes))


def added(base: np.ndarray, loras: Collection[Lora], place: tuple[str, str]) -> np.ndarray:
    """A kernel with what `loras` add to it: summed in float32; at scale 0 the base itself."""
    there = [(lora.changes[place], lora.scale_in(place[0])) for lora in loras if place in lora.changes]
    terms = [(layers, scale) for layers, scale in there if scale != 0]
    if not terms:
        return base
    plain = base.astype(np.float32)
    kernel = plain.copy()
    for layers, scale in terms:
        for index, change in layers:
            kernel[index] += change.of(plain[index], scale)
    return kernel


def with_loras(
    params: Mapping[str, Any],
    model: Model,
    loras: Collection[Lora],
    kernels: Iterable[tuple[str, str]],
    precision: Precision,
) -> dict[str, Any]:
    """Parameters on the devices with `kernels` made anew: those of the model with what `loras` add to them.

    Of 8 bits, they are rounded after the sum.

    All other leaves are shared with `params`, which stay as they are: kernels that are replaced take memory twice until
    the old tree is let go.
    """
    changed = dict(params)
    for component, path in kernels:
        names = path.split("/")
        base: Any = reduce(lambda tree, name: tree[name], names, model.components[component].params)
        kernel = added(base, loras, (component, path))
        for own, leaf in placed_leaf(component, path, kernel, precision).items():
            changed[component] = _replaced(changed[component], own.split("/"), leaf)
    return changed


def _replaced(tree: Mapping[str, Any], names: Sequence[str], leaf: Any) -> dict[str, Any]:
    """A tree with one leaf replaced, which shares the others."""
    name, *rest = names
    return {**tree, name: _replaced(tree[name], rest, leaf) if rest else leaf}


def with_another(loras: Mapping[str, Lora], lora: Lora, name: str | None = None) -> dict[str, Lora]:
    """`loras` and one more, named after its file, with a number if that is taken, unless a name is given."""
    if name is None:
        stem = lora.path.stem
        name = stem if stem not in loras else next(n for k in count(2) if (n := f"{stem}_{k}") not in loras)
    if name in loras:
        raise InputError(f"there is an adapter {name!r} already ({loras[name].path}): give another adapter_name")
    return {**loras, name: lora}


def rescaled(
    loras: Mapping[str, Lora], names: str | Sequence[str], weights: float | Sequence[float]
) -> dict[str, Lora]:
    """`loras` with new scales for those that are named, and 0 for the others."""
    names = [names] if isinstance(names, str) else list(names)
    weights = list(weights) if isinstance(weights, Sequence) else [weights] * len(names)
    if len(names) != len(weights):
        raise InputError(f"{len(weights)} weights were given for {len(names)} adapters")
    if unknown := [name for name in names if name not in loras]:
        raise InputError(f"there is no adapter {unknown[0]!r}; loaded are: {', '.join(loras) or 'none'}")
    if wrong := [weight for weight in weights if not math.isfinite(weight)]:
        raise InputError(f"the weight of an adapter must be a finite number, not {wrong[0]}")
    scales = dict(zip(names, map(float, weights)))
    return {name: lora._replace(scale=scales.get(name, 0.0)) for name, lora in loras.items()}
