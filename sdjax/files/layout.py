"""What lies in an sdjax model directory, as far as it is read without JAX.

- `model_index.json`: the components' classes, and under "sdjax" the format, the source and the model's defaults
- `COMPONENT/config.json`: as PyTorch's checkpoint has it
- `COMPONENT/model.safetensors`: the parameters in Flax layout, their names joined by "/"
- `tokenizer/`, `tokenizer_2/`, `feature_extractor/` and `scheduler/scheduler_config.json`: untouched
"""

import difflib
import json
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from sdjax.errors import CheckpointError

FORMAT = 1
INDEX = "model_index.json"
WEIGHTS = "model.safetensors"
SCHEDULER = "scheduler_config.json"
CHECKER, EXTRACTOR = "safety_checker", "feature_extractor"  # and what prepares pictures for it


def read_index(path: Path) -> dict[str, Any]:
    """The model_index.json of an sdjax model directory. Raises CheckpointError where it is none, or an older one."""
    if not is_model(path):
        raise CheckpointError(f"{path} is no sdjax model directory: make one with `sdjax convert {path} DESTINATION`")
    index = read_json(path / INDEX)
    if (version := index["sdjax"].get("format")) != FORMAT:
        raise CheckpointError(f"{path} has format {version}, this sdjax reads format {FORMAT}: convert the model again")
    return index


def component_classes(index: Mapping[str, Any], where: Path) -> dict[str, str]:
    """From model_index.json, the class name of every component that is there ([null, null] stands for none)."""
    entries = {name: entry for name, entry in index.items() if isinstance(entry, list) and entry != [None, None]}
    for name, entry in entries.items():
        if len(entry) != 2 or not isinstance(entry[1], str) or not name.isidentifier():
            raise CheckpointError(f"{where / INDEX}: {name!r}: {entry!r} is no [library, class] of a component")
    return {name: entry[1] for name, entry in entries.items()}


def is_model(path: Path) -> bool:
    """Whether a path is an sdjax model directory (and not, say, a diffusers one)."""
    return (path / INDEX).is_file() and isinstance(read_json(path / INDEX).get("sdjax"), dict)


def embedded_models() -> dict[str, Path]:
    """The models that ship with the package, by name; and nets that see hints."""
    assets = Path(str(resources.files("sdjax"))) / "assets"
    return {path.parent.name: path.parent for path in sorted(assets.glob(f"*/{INDEX}"))}


def nearest(name: str, others: Collection[str] = ()) -> str:
    """Which embedded model, or other name, was probably meant, as the end of an error message."""
    names = [name for name, path in embedded_models().items() if (path / "unet").is_dir()]
    close = difflib.get_close_matches(name, [*names, *others], n=1)
    listed = f"; names of models on the hub: {', '.join(others)}" if others else ""
    return f"did you mean {close[0]!r}?" if close else f"embedded models: {', '.join(names)}{listed}"


def shorten(names: list[str], limit: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join(names[:limit] + more)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises CheckpointError, naming the file, for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object, not {type(value).__name__}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as JSON, the way that diffusers lays it out."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
