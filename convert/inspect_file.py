"""What a file of tensors is, without loading it."""

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

from sdjax.convert import ldm_kinds as ldm
from sdjax.convert.single_file import said_prediction_type
from sdjax.convert.state import IGNORED, open_state
from sdjax.errors import CheckpointError
from sdjax.files.recognise import SINGLE_FILE, describe

ENCODERS = {encoder.prefix: encoder.component for kind in ldm.KINDS for encoder in kind.encoders}
NETWORKS = {ldm.UNET: "unet", ldm.VAE: "vae", **ENCODERS}


@dataclass(frozen=True)
class Network:
    """The tensors that belong together: how many numbers, in which dtypes, of how many bytes."""

    parameters: int
    dtypes: str
    size: int


@dataclass(frozen=True)
class FileInfo:
    """What a file says about itself. `prediction_type` is None where it does not say, or has none."""

    what: str
    networks: dict[str, Network]
    prediction_type: str | None
    metadata: dict[str, str]


def inspect_file(path: Path) -> FileInfo:
    """Says what a file is. Raises CheckpointError where it cannot be read; one that sdjax does not know is no error."""
    state = open_state(path)
    what, prediction = describe(state.shapes), None
    if what == SINGLE_FILE:
        try:
            kind = ldm.kind_of(state.shapes, str(path))
            what, prediction = kind.title, said_prediction_type(state, kind)
        except CheckpointError as error:
            what = f"{what}, but incomplete: {error}"
    groups: dict[str, list[str]] = {}
    for name in state.shapes:
        groups.setdefault(_network(name, what), []).append(name)
    networks = {}
    for group, names in groups.items():
        dtypes = {name: state.tensors[name].dtype for name in names}
        counts = Counter({name: prod(state.shapes[name]) for name in names})
        size = sum(counts[name] * dtypes[name].itemsize for name in names)
        networks[group] = Network(counts.total(), ", ".join(sorted({str(d) for d in dtypes.values()})), size)
    return FileInfo(what, networks, prediction, dict(state.metadata))


def _network(name: str, what: str) -> str:
    if name.startswith("model_ema."):
        return "unet, averaged (EMA)"
    if IGNORED.match(name):
        return "not needed"
    return next((network for prefix, network in NETWORKS.items() if name.startswith(prefix)), "tensors")
