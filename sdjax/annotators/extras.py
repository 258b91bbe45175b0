"""Libraries that not everybody has."""

from importlib import import_module
from typing import Any

from sdjax.errors import InputError


def opencv() -> Any:
    """The module `cv2`. Raises InputError, which says how to get it, where it is missing."""
    return needed("cv2", "conditions")


def needed(module: str, extra: str) -> Any:
    """An imported module. Raises InputError, which names the extra that has it, where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"this needs {module}: pip install 'sdjax[{extra}]' ({error})") from error
