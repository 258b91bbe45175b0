"""What A1111's API lists: samplers, schedule types, models and the like, in its form."""

import os
from typing import Any

import jax

from sdjax import a1111
from sdjax.adapters.lora_folder import LoraFolder
from sdjax.pipeline.facts import Facts
from sdjax.schedulers import SOLVERS
from sdjax.schedulers.sigma_spacings import SIGMA_SPACINGS
from sdjax.server.a1111_extras import RESAMPLING, names_of
from sdjax.upscaling import UpscalerFolder


def samplers() -> list[dict[str, Any]]:
    """A1111's samplers by its labels, and ours that it lacks by our names."""
    theirs = [
        {"name": label, "aliases": [sampler.solver], "options": {"scheduler": sampler.levels or sampler.automatic}}
        for label, sampler in a1111.SAMPLERS.items()
    ]
    known = {sampler.solver for sampler in a1111.SAMPLERS.values()}
    return theirs + [{"name": name, "aliases": [], "options": {}} for name in SOLVERS if name not in known]


def schedulers() -> list[dict[str, Any]]:
    """A1111's schedule types, and our spacings of sigmas that it lacks."""
    labels = {name: a1111.SPACINGS.get(name, name) for name in (*a1111.SPACINGS, *SIGMA_SPACINGS)}
    return [
        {"name": name, "label": label, "aliases": None, "default_rho": -1.0, "need_inner_model": False}
        for name, label in {"automatic": "Automatic", **labels}.items()
    ]


def upscalers(folder: UpscalerFolder | None) -> list[dict[str, Any]]:
    """What enlarges pictures: resampling, and the models in a folder."""
    names = [*RESAMPLING, *names_of(folder)]
    return [{"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4} for name in names]


def models(names: list[str]) -> list[dict[str, Any]]:
    """Models, without the places where they lie."""
    return [
        {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
        for name in names
    ]


def loras(folder: LoraFolder | None) -> list[dict[str, Any]]:
    """The LoRAs that prompts may name."""
    names = sorted({path.stem for path in folder.folder.rglob("*.safetensors")}) if folder else []
    return [{"name": name, "alias": name, "path": f"{name}.safetensors", "metadata": {}} for name in names]


def embeddings(facts: Facts) -> dict[str, Any]:
    """The words that were learned."""
    words = facts.readers[0].words
    loaded = {
        word: {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": len(ids)}
        for word, ids in words.items()
    }
    return {"loaded": loaded, "skipped": {}}


def memory() -> dict[str, Any]:
    """Of the machine, and of the first device where it says."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    found: dict[str, Any] = {"ram": {"free": free, "used": total - free, "total": total}}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return found | {"cuda": {"error": "unavailable"}}
    limit, used = stats["bytes_limit"], stats["bytes_in_use"]
    peak = stats.get("peak_bytes_in_use", used)
    system = {"free": limit - used, "used": used, "total": limit}
    return found | {"cuda": {"system": system, "active": {"current": used, "peak": peak}}}


def scripts(names: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Scripts by their names, as clients look for them."""
    return {"txt2img": list(names), "img2img": list(names)}
