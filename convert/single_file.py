"""Single files in the original (LDM) layout, `.safetensors` or pickled: Stable Diffusion 1, 2 and XL, or only a VAE."""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sdjax.convert import ldm_kinds as ldm
from sdjax.convert.condition_files import is_condition, read_condition
from sdjax.convert.directory import read_config
from sdjax.convert.ldm import inside, unpacked
from sdjax.convert.ldm_configs import text_config, unet_config, vae_config
from sdjax.convert.original_yaml import Said, read_yaml
from sdjax.convert.source import Part, Source
from sdjax.convert.state import IGNORED, State, check_claimed, open_state
from sdjax.convert.taesd import read_tiny_vae
from sdjax.convert.tokenizer import END, FILES, tokenizer_files
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import TEXT_ENCODERS
from sdjax.files.original_names import ema_name, open_clip_name, source_name, unet_name, vae_name
from sdjax.files.recognise import SINGLE_FILE, TINY_VAE, VAE, describe
from sdjax.models import MODELS

log = logging.getLogger("sdjax")

PREDICTIONS = ("epsilon", "v_prediction")
MODEL_SPEC = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}  # in safetensors' metadata
EMA = "model_ema.diffusion_model"
EDM_SCALING = 0.5  # of the latents of EDM's models
SD2_BASE_STEPS = 875_000  # what the published 2.0 that predicts epsilon was trained for, as its .ckpt says


@dataclass(frozen=True)
class Choices:
    """What a user may decide about a single file; None leaves it to the file.

    ema: whether the averaged weights are taken; where None, they are if the file has them.
    prediction_type: "epsilon" or "v_prediction".
    config: a diffusers directory whose configurations are taken in place of those inferred from the tensors; or an
        original .yaml, which a file of the same name beside the checkpoint is, too.
    tokenizer: a folder with vocab.json and merges.txt; where None, they come from the hub.
    base: the sdjax model directory whose UNet a ControlNet's file is a difference to.
    """

    ema: bool | None = None
    prediction_type: str | None = None
    config: Path | None = None
    tokenizer: Path | None = None
    base: Path | None = None

    def check(self) -> None:
        """Raises InputError for choices that cannot work."""
        if self.prediction_type not in (None, *PREDICTIONS):
            raise InputError(f"prediction_type is {self.prediction_type!r}, it can be {' or '.join(PREDICTIONS)}")
        if self.config is not None and not self.config.is_dir() and not self._is_yaml:
            raise InputError(f"there is no {self.config}: config takes a diffusers directory or an original .yaml")
        for name in FILES if self.tokenizer is not None else ():
            if not (self.tokenizer / name).is_file():
                raise InputError(f"{self.tokenizer} is no tokenizer: it has no {name}")

    @property
    def folder(self) -> Path | None:
        """The diffusers directory, if that is the configuration."""
        return None if self._is_yaml else self.config

    def yaml(self, checkpoint: Path) -> Path | None:
        """The original configuration of a checkpoint, if there is one."""
        beside = checkpoint.with_suffix(".yaml")
        return self.config if self._is_yaml else beside if self.config is None and beside.is_file() else None

    @property
    def _is_yaml(self) -> bool:
        return self.config is not None and self.config.is_file() and self.config.suffix in (".yaml", ".yml")


NOTHING_CHOSEN = Choices()


def read_single_file(path: Path, choices: Choices) -> Source:
    """Finds out what a single file holds.

    Raises CheckpointError when it is damaged, is nothing that sdjax converts, or holds tensors that belong to no
    network; InputError for choices that do not suit it.
    """
    state = open_state(path)
    if is_condition(state.shapes):
        if choices != Choices(base=choices.base):
            raise InputError(f"{path} is a net that sees a hint: there is only a base to choose, of some")
        return read_condition(state, choices.base)
    what = describe(state.shapes)
    if what in (VAE, TINY_VAE):
        if choices != Choices(config=choices.folder) or (what == TINY_VAE and choices.config):
            raise InputError(f"{path} is {what}: there is no EMA, prediction type or tokenizer to choose")
        return _autoencoder(state, choices) if what == VAE else read_tiny_vae(state)
    if what != SINGLE_FILE:
        raise CheckpointError(f"{path} is {what}, and cannot be converted as a model of its own")
    kind = ldm.kind_of(state.shapes, str(path))
    prefix, unet = _unet_names(state, choices.ema)
    check_claimed(state, (ldm.UNET, ldm.VAE, *(encoder.prefix for encoder in kind.encoders)))
    configs = _read_configs(choices, kind) if choices.folder else _infer_configs(state, kind, choices)
    parts = {
        **{encoder.component: _text_part(state, encoder, configs[encoder.component]) for encoder in kind.encoders},
        "unet": _part(state, prefix, "UNet2DConditionModel", configs["unet"], unet),
        "vae": _part(state, ldm.VAE, "AutoencoderKL", configs["vae"], vae_name),
    }
    weights = (
        ", its averaged (EMA) weights" if prefix == EMA else ", not its averaged weights" if state.has(EMA) else ""
    )
    log.info("%s: %s, %s%s", path.name, kind.title, configs["scheduler"].get("prediction_type", "epsilon"), weights)
    copied = partial(_copied, configs, choices, kind)
    return Source(path, path.stem, _index(kind, configs), parts, copied, _files(path, choices), _said(choices))


def prediction_type(state: State, kind: ldm.Kind) -> str:
    """What the model predicts; a guess, and said to be one, where the file does not say."""
    if said := said_prediction_type(state, kind):
        return said
    log.warning(
        "%s does not say what it predicts: %s is assumed; if pictures come out as noise, choose %s as its prediction "
        "type",
        state.path.name,
        *kind.predicts,
    )
    return kind.predicts[0]


def said_prediction_type(state: State, kind: ldm.Kind) -> str | None:
    """What the model predicts, as far as the file says so, or its kind leaves no choice."""
    if "v_pred" in state.shapes:
        return "v_prediction"
    if named := MODEL_SPEC.get(state.metadata.get("modelspec.prediction_type", "")):
        return named
    if kind is ldm.SD2 and state.global_step == SD2_BASE_STEPS:
        return "epsilon"
    return kind.predicts[0] if len(kind.predicts) == 1 else None


def _infer_configs(state: State, kind: ldm.Kind, choices: Choices) -> dict[str, dict[str, Any]]:
    yaml = choices.yaml(state.path)
    said = read_yaml(yaml, kind) if yaml else Said()
    where = str(state.path)
    prediction = choices.prediction_type or said.prediction_type or prediction_type(state, kind)
    size = 64 if kind is ldm.SD2 and prediction == "epsilon" else kind.sample_size
    configs = {
        **{encoder.component: text_config(state.shapes, encoder, where) for encoder in kind.encoders},
        "unet": {**unet_config(state.shapes, kind, where), "sample_size": size},
        "vae": vae_config(state.shapes, ldm.VAE, kind, where),
        "scheduler": ldm.scheduler_config(kind, prediction, state.shapes) | said.scheduler,
    }
    if "edm_mean" in state.shapes:  # its latents have other means and deviations
        moments = {f"latents_{name}": state.tensors[f"edm_{name}"].reshape(-1).tolist() for name in ("mean", "std")}
        configs["vae"] |= {**moments, "scaling_factor": EDM_SCALING}
    return configs | ({"low_res_scheduler": ldm.LOW_RES_SCHEDULER} if kind is ldm.UPSCALER else {})


def _read_configs(choices: Choices, kind: ldm.Kind) -> dict[str, dict[str, Any]]:
    folder = choices.folder
    assert folder is not None
    configs = {component: read_config(folder, f"{component}/config.json") for component in ("unet", "vae")}
    for encoder in kind.encoders:  # the first refiner had its only one as text_encoder
        place = encoder.component if (folder / encoder.component).is_dir() else "text_encoder"
        configs[encoder.component] = read_config(folder, f"{place}/config.json")
    schedulers = ["scheduler", *(["low_res_scheduler"] if (folder / "low_res_scheduler").is_dir() else [])]
    configs |= {name: read_config(folder, f"{name}/scheduler_config.json") for name in schedulers}
    if choices.prediction_type:
        configs["scheduler"]["prediction_type"] = choices.prediction_type
    return configs


def _unet_names(state: State, ema: bool | None) -> tuple[str, Callable[..., str]]:
    """Where the UNet's tensors are and how they are called: the averaged ones, or those of the last step."""
    has_ema = state.has(EMA)
    if ema and not has_ema:
        raise InputError(f"{state.path} has no averaged (EMA) weights")
    return (EMA, ema_name) if has_ema and ema is not False else (ldm.UNET, unet_name)


def _part(state: State, prefix: str, class_name: str, config: dict[str, Any], name: Callable[..., str]) -> Part:
    """A network whose tensors begin with `prefix`; `name` says, given its configuration, what they go on with."""
    where = f"{state.path} ({prefix}…)" if prefix else str(state.path)
    parsed = MODELS[class_name].config_class.from_dict(config)

    def left_out(tensor: str) -> bool:
        return prefix != EMA and IGNORED.match(tensor) is not None

    return Part(
        class_name,
        config,
        where,
        lambda: inside(state.tensors, prefix, left_out),
        lambda path: name(source_name(path), parsed),
    )


def _text_part(state: State, encoder: ldm.Encoder, config: dict[str, Any]) -> Part:
    """A text encoder: OpenAI's, named as in transformers, or OpenCLIP's, without layers that do not count."""
    class_name = "CLIPTextModelWithProjection" if encoder.projects else "CLIPTextModel"
    if not encoder.is_open_clip:
        return _part(state, encoder.prefix, class_name, config, lambda name, _: name)
    prefix, block = encoder.prefix, re.compile(r"transformer\.resblocks\.(\d+)\.")
    layers = config["num_hidden_layers"]

    def left_out(tensor: str) -> bool:
        number = block.match(tensor.removeprefix(prefix))
        return IGNORED.match(tensor) is not None or (number is not None and int(number[1]) >= layers)

    return Part(
        class_name,
        config,
        f"{state.path} ({prefix}…)",
        lambda: unpacked(inside(state.tensors, prefix, left_out)),
        lambda path: open_clip_name(source_name(path)),
    )


def _autoencoder(state: State, choices: Choices) -> Source:
    """A file that holds nothing but a VAE, which becomes a model of one component."""
    prefix = ldm.VAE if state.has(ldm.VAE) else ""
    check_claimed(state, (prefix,))
    folder = choices.folder
    if folder is None:
        config = vae_config(state.shapes, prefix, ldm.SD1, str(state.path))
    else:
        config = read_config(folder, "vae/config.json" if (folder / "vae").is_dir() else "config.json")
    log.info("%s: %s", state.path.name, VAE)
    parts = {"vae": _part(state, prefix, "AutoencoderKL", config, vae_name)}
    index = {"vae": ["diffusers", "AutoencoderKL"]}
    return Source(state.path, state.path.stem, index, parts, dict, _files(state.path, choices), _said(choices))


def _index(kind: ldm.Kind, configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The model_index.json."""
    schedulers = {name: ["diffusers", config["_class_name"]] for name, config in configs.items() if "scheduler" in name}
    texts = {}
    for encoder in kind.encoders:
        class_name = "CLIPTextModelWithProjection" if encoder.projects else "CLIPTextModel"
        texts[encoder.component] = ["transformers", class_name]
        texts[TEXT_ENCODERS[encoder.component]] = ["transformers", "CLIPTokenizer"]
    return {
        "_class_name": kind.pipeline,
        **texts,
        **dict(kind.index),
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **schedulers,
    }


def _copied(configs: dict[str, dict[str, Any]], choices: Choices, kind: ldm.Kind) -> dict[str, bytes]:
    schedulers = {name: config for name, config in configs.items() if "scheduler" in name}
    written = {f"{name}/scheduler_config.json": json.dumps(config, indent=2) for name, config in schedulers.items()}
    files = {name: text.encode() for name, text in written.items()}
    for encoder in kind.encoders:
        name = TEXT_ENCODERS[encoder.component]
        files |= tokenizer_files(_tokenizer(choices, name), name, "!" if encoder.is_open_clip else END)
    return files


def _tokenizer(choices: Choices, name: str) -> Path | None:
    """The folder with a tokenizer, if a user named one, or named a model that has one."""
    beside = choices.folder / name if choices.folder else None
    return choices.tokenizer or (beside if beside is not None and (beside / "vocab.json").is_file() else None)


def _files(path: Path, choices: Choices) -> list[Path]:
    yaml = choices.yaml(path)
    files = [path, *([yaml] if yaml else [])]
    for folder in (choices.folder, choices.tokenizer):
        files += sorted(file for file in folder.rglob("*.json") if file.is_file()) if folder else []
    return files


def _said(choices: Choices) -> tuple[str, ...]:
    return (f"ema {choices.ema}", f"prediction type {choices.prediction_type}")
