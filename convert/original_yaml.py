"""The YAML that original checkpoints are published with, which says what their tensors do not."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sdjax.convert import ldm_kinds as ldm
from sdjax.errors import CheckpointError

LARGEST = 1 << 20  # bytes; the published ones have two thousand

PARAMETERIZATIONS = {"eps": "epsilon", "v": "v_prediction"}
SCALINGS = {"EpsScaling": "epsilon", "VScaling": "v_prediction"}
# By the class of the original code that runs a model.
CLASSES = {
    "LatentDiffusion": {ldm.SD1, ldm.SD2},
    "LatentInpaintDiffusion": {ldm.SD1_INPAINTING, ldm.SD2_INPAINTING},
    "LatentFinetuneDiffusion": {ldm.SD2_INPAINTING, ldm.SD2_DEPTH},
    "LatentDepth2ImageDiffusion": {ldm.SD2_DEPTH},
    "LatentUpscaleDiffusion": {ldm.UPSCALER},
    "DiffusionEngine": {ldm.SDXL, ldm.SDXL_INPAINTING, ldm.REFINER},
}


class Said(NamedTuple):
    """What a YAML says: the prediction type, and settings of the scheduler; nothing where it leaves them out."""

    prediction_type: str | None = None
    scheduler: dict[str, Any] = {}


def read_yaml(path: Path, kind: ldm.Kind) -> Said:
    """What the YAML of a model says, given what its tensors say that it is.

    Raises CheckpointError for a file that cannot be read, is of another kind of model, or asks for something that sdjax
    lacks.
    """
    model = _model_of(path)
    name = str(model.get("target", "")).rpartition(".")[2]
    if name not in CLASSES:
        raise CheckpointError(f"{path} is of a {name or 'model without a target'}, which sdjax does not convert")
    if kind not in CLASSES[name]:
        raise CheckpointError(f"{path} is of a {name}, and the tensors are of {kind.title}: one belongs elsewhere")
    params = model.get("params", {})
    if not isinstance(params, dict):
        raise CheckpointError(f"{path}: model.params should be a table")
    if name == "DiffusionEngine":
        return Said(_scaling(params))
    if params.get("beta_schedule", "linear") != "linear":
        raise CheckpointError(f"{path}: beta_schedule is {params['beta_schedule']!r}, only 'linear' is known")
    said = params.get("parameterization", "eps")
    if said not in PARAMETERIZATIONS:
        raise CheckpointError(f"{path}: parameterization is {said!r}, it can be {' or '.join(PARAMETERIZATIONS)}")
    places = {"linear_start": "beta_start", "linear_end": "beta_end", "timesteps": "num_train_timesteps"}
    scheduler = {ours: params[theirs] for theirs, ours in places.items() if theirs in params}
    if wrong := [value for value in scheduler.values() if not isinstance(value, int | float)]:
        raise CheckpointError(f"{path}: {wrong[0]!r} should be a number")
    return Said(PARAMETERIZATIONS[said], scheduler)


def _scaling(params: Any) -> str | None:
    """The prediction type in the YAML of a Stable Diffusion XL, by the name of the class that scales."""
    for place in ("denoiser_config", "params", "scaling_config", "target"):
        params = params.get(place) if isinstance(params, dict) else None
    return SCALINGS.get(str(params).rpartition(".")[2])


def _model_of(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise CheckpointError(f"{path} is larger than any configuration")
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{path} is no configuration of a model: it has no table `model`")
    return content["model"]
