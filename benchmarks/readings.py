"""What is read of a run's pictures: the facts of scenes, CLIP scores, FID."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from benchmarks.frechet import Gaussian, SceneSpace, frechet
from benchmarks.inception import BATCH, FEATURES, inception_features, read_inception
from benchmarks.scenes import Scene, render
from benchmarks.scorer import facts_that_hold, read_picture
from sdjax.convert import open_clip
from sdjax.errors import InputError
from sdjax.pipeline.images import read_image, to_pil
from sdjax.sight.clip import Clip

# From pictures [n, height, width, 3] in [0, 1] to what a row of the study says of them.
Reader = Callable[[np.ndarray], dict[str, Any]]
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def of_scenes(scenes: Sequence[Scene]) -> Reader:
    """The facts of scenes, and how far pictures are from rendered ones."""
    return partial(shown, scenes=scenes, space=SceneSpace())


def rendered(scenes: Sequence[Scene]) -> np.ndarray:
    """The scenes as pictures, [n, 64, 64, 3] in [0, 1]."""
    drawn = [np.asarray(render(scene, np.random.default_rng(i))) for i, scene in enumerate(scenes)]
    return np.stack(drawn) / 255


def shown(pixels: np.ndarray, scenes: Sequence[Scene], space: SceneSpace) -> dict[str, Any]:
    """What pictures [n, 64, 64, 3] in [0, 1] show of their scenes: the share of each fact that holds, and of all."""
    held = [facts_that_hold(scene.facts, read_picture(picture)) for scene, picture in zip(scenes, pixels)]
    names = dict.fromkeys(fact for facts in held for fact in facts)
    shares = {fact: float(np.mean([facts[fact] for facts in held if fact in facts])) for fact in names}
    whole = float(np.mean([all(facts.values()) for facts in held]))
    return {"pictures": len(held), "all": whole, "facts": shares, "frechet": space.distance(pixels)}


def of_ones_own(texts: Sequence[str], clip: Path | None, inception: Path | None, against: Path | None) -> list[Reader]:
    """CLIP scores and FID, as far as their models are there; texts: of each picture one.

    Raises InputError, CheckpointError or ConfigError for files that are others than they should be.
    """
    if bool(inception) != bool(against):
        raise InputError(
            "FID takes both: --inception, whose features are compared, and --against, what they are compared with"
        )
    readers: list[Reader] = []
    if clip:
        readers.append(partial(_scored, open_clip(clip), texts))
    if inception and against:
        params = read_inception(inception)
        readers.append(partial(_distant, params, statistics_of(against, params)))
    return readers


def _scored(clip: Clip, texts: Sequence[str], pixels: np.ndarray) -> dict[str, Any]:
    scores = clip.scores(to_pil(pixels), texts)
    error = float(scores.std(ddof=1) / len(scores) ** 0.5)
    return {"pictures": len(pixels), "clip": float(scores.mean()), "clip error": error}


def _distant(params: dict[str, Any], reference: Gaussian, pixels: np.ndarray) -> dict[str, Any]:
    return {"pictures": len(pixels), "fid": frechet(inception_features(params, pixels), reference)}


def statistics_of(path: Path, params: dict[str, Any]) -> Gaussian:
    """Those of a folder of pictures in Inception's features, or of an .npz that holds them. Raises InputError."""
    if path.is_file():
        return stored_statistics(path)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
    if len(files) < 2:
        raise InputError(f"{path} holds {len(files)} pictures: FID needs thousands to mean much, and 2 to be anything")
    found = []
    for start in track(range(0, len(files), BATCH), "pictures to compare with"):
        group = (read_image(str(file), file) for file in files[start : start + BATCH])
        found.append(inception_features(params, (np.asarray(image, np.float32) / 255 for image in group)))
    return Gaussian.of(np.concatenate(found))


def stored_statistics(file: Path) -> Gaussian:
    """The mean `mu` and the covariance `sigma` of an .npz, as pytorch-fid writes it. Raises InputError for another."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            found = Gaussian(np.asarray(stored["mu"], np.float64), np.asarray(stored["sigma"], np.float64))
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise InputError(f"{file} is no .npz with mu and sigma, as pytorch-fid writes it: {error}") from error
    if found.mean.shape != (FEATURES,) or found.covariance.shape != (FEATURES, FEATURES):
        shapes = f"{found.mean.shape} and {found.covariance.shape}"
        raise InputError(f"{file} has mu and sigma of {shapes}: FID's features have {FEATURES}")
    return found
