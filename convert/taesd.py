"""TAESD as its author ships it: the encoder and the decoder of a tiny VAE, each a file of its own."""

from collections import ChainMap

from sdjax.convert.source import Part, Source
from sdjax.convert.state import State, open_state
from sdjax.convert.view import View, unchanged
from sdjax.errors import CheckpointError

CLASS = "AutoencoderTiny"
HALVES = ("encoder", "decoder")
BEFORE = {"encoder": 0, "decoder": 1}  # the decoder's first layer, which clamps, is not one of diffusers' layers


def read_tiny_vae(state: State) -> Source:
    """Finds both halves of a tiny VAE, given either, or the two in one file with diffusers' names.

    Raises CheckpointError where the other half does not lie beside the first under the name that goes with it.
    """
    path, latents = state.path, "decoder.layers.0.weight"
    if latents in state.shapes:
        files, tensors = [path], state.tensors
    else:
        half = "encoder" if "0.weight" in state.shapes else "decoder"
        other = next(name for name in HALVES if name != half)
        beside = path.with_name(path.name.replace(half, other))
        if beside == path or not beside.is_file():
            raise CheckpointError(f"{path} is the {half} of a tiny VAE (TAESD): its {other} must lie beside it")
        files = [path, beside]
        tensors = ChainMap({}, _half(state, half), _half(open_state(beside), other))
    if latents not in tensors or tensors[latents].ndim != 4:
        raise CheckpointError(f"{path} and what lies beside it are no tiny VAE (TAESD)")
    config = {"_class_name": CLASS, "latent_channels": int(tensors[latents].shape[1])}
    part = Part(CLASS, config, str(path), lambda: tensors)
    return Source(path, path.stem, {"vae": ["diffusers", CLASS]}, {"vae": part}, dict, files)


def _half(state: State, half: str) -> View:
    """One of the two files under diffusers' names: `3.conv.0.weight` -> `decoder.layers.2.conv.0.weight`."""
    names = {}
    for name in state.shapes:
        number, _, rest = name.partition(".")
        if not number.isdecimal() or not rest:
            raise CheckpointError(f"{state.path}: {name!r} is unexpected")
        names[f"{half}.layers.{int(number) - BEFORE[half]}.{rest}"] = (name, unchanged)
    return View(state.tensors, names)
