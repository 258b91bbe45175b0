"""From a model's name to a pipeline, and from that of a net to what conditions are made with."""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax

from sdjax.adapters.lora import Lora, lora_for, with_another
from sdjax.adapters.lora_files import read_lora
from sdjax.convert import Choices, OnHub, download_file, encoder_for, is_clip, open_clip, read_picture_adapter, resolve
from sdjax.errors import InputError
from sdjax.files.cache import cache_directory, is_writable
from sdjax.files.checkpoint import Component, Model, read_alone, read_model
from sdjax.files.eviction import limit
from sdjax.files.layout import component_classes, read_index
from sdjax.models import UNetConfig
from sdjax.models.platform import platform
from sdjax.models.precision import Precision
from sdjax.pipeline import ConditionNet, JudgeNet, PictureNet, Pipeline
from sdjax.pipeline.clip_judge import clip_judge
from sdjax.pipeline.hints import NetOpener
from sdjax.sight.processor import Processor
from sdjax.upscaling import UpscalerFolder

log = logging.getLogger("sdjax")

DEFAULT_MODEL = "shapes"


def load(
    model: str | os.PathLike = DEFAULT_MODEL,
    dtype: str | Mapping[str, str] | None = None,
    *,
    weights: str | None = None,
    offload: bool = False,
    shard_parameters: bool = False,
    vae: str | os.PathLike | None = None,
    vae_tiling: bool | None = None,
    preview_vae: str | os.PathLike | None = None,
    loras: Sequence[tuple[str | os.PathLike, float]] = (),
    lora_dir: str | os.PathLike | None = None,
    upscaler_dir: str | os.PathLike | None = None,
    refiner: str | os.PathLike | None = None,
    variant: str | None = None,
    revision: str | None = None,
    single_file: Choices | None = None,
    safety_checker: Literal["own"] | None = "own",
    progress=None,
) -> Pipeline:
    """Open a model and place it on the local devices.

    model: an embedded model's name ("shapes"), an sdjax or diffusers directory, a single file, or a hub id such as
        "stable-diffusion-v1-5/stable-diffusion-v1-5". What is not in sdjax's own format yet is converted once into the
        cache ($SDJAX_CACHE, else ~/.cache/sdjax).
    dtype: "float32", "bfloat16" or "float16", what is computed in; where None, float32 on the CPU and bfloat16
        elsewhere. By component: "float16,vae=float32", or {"default": "float16", "vae": "float32"}. A VAE that
        overflows in float16, as its configuration says, computes in float32 unless it is named.
    weights: "bfloat16", "float16" or "int8", what the kernels of the UNet and the text encoders are kept in, where that
        is to be less than what is computed in; int8 has a scale for every output.
    offload: whether the text encoders and the VAE wait on the host, and are on a device only while they work.
    shard_parameters: whether each device keeps a part of the UNet's and the text encoders' kernels, and reads the rest
        from the others while a layer works: the same pictures, where one device is too small for the model.
    vae: another model whose VAE takes the place of the model's own, or a VAE by itself: a directory or a hub id such
        as "stabilityai/sd-vae-ft-mse", or "madebyollin/taesd", which is small and fast.
    vae_tiling: whether the VAE works on bands of rows, one after another: the same pictures from a third of the memory,
        slower. Where None, it does for pictures of more than 1024 x 1024 pixels. Small VAEs never do.
    preview_vae: what decodes previews (`preview_every`): a VAE, as for `vae`; "linear" for a guess at the colours,
        which costs nothing; the model's own where None.
    loras: LoRA files, each with its scale; see `Pipeline.load_lora_weights`.
    lora_dir: a folder of LoRA files that prompts may name, as in A1111: "a cat <lora:file_name:0.8>".
    upscaler_dir: a folder of upscaling models (ESRGAN, Real-ESRGAN, SwinIR), or a file, that `hires_upscaler` may name.
    refiner: another model that takes over where little noise is left, as that of Stable Diffusion XL is made to.
    variant, revision: which weights ("fp16") and which commit of a hub repository.
    single_file: what a single file does not say of itself; see `sdjax.convert.Choices`.
    safety_checker: "own" lets the safety checker that the model brings along, if any, withhold pictures: they are
        black, and `Output.withheld` says which. None draws without it, and does not download it.
    progress: called while a model is converted; see `sdjax.convert.convert`.
    Raises InputError for a model that is not there, CheckpointError and ConfigError for one that cannot be read.
    """
    if safety_checker not in ("own", None):
        raise InputError(f"safety_checker can be 'own', the model's, or None, not {safety_checker!r}")
    precision = Precision.of(default_dtype() if dtype is None else dtype, weights, offload, shard_parameters)
    if lora_dir is not None and not os.path.isdir(lora_dir):
        raise InputError(f"there is no folder {lora_dir} of LoRAs")
    lora_files = [(read_lora(path), scale) for path, scale in loras]
    upscalers = None if upscaler_dir is None else UpscalerFolder(upscaler_dir)
    keep_compiled_programs()
    checks = safety_checker is not None
    choices = single_file or Choices()
    opened = read_model(
        resolve(model, variant=variant, revision=revision, single_file=choices, progress=progress, checker=checks)
    )
    modules = {name: component.module for name, component in opened.components.items()}
    adapters: dict[str, Lora] = {}
    for file, scale in lora_files:
        adapters = with_another(adapters, lora_for(file, modules, scale))
    if vae is not None:
        opened = replace(opened, components={**opened.components, "vae": _other_vae(opened, vae, progress)})
    preview: Component | Literal["linear"] | None = None
    if preview_vae is not None:
        preview = "linear" if preview_vae == "linear" else _other_vae(opened, preview_vae, progress)
    pipe = Pipeline(opened, precision, vae_tiling, preview, lora_dir=lora_dir, checks=checks, upscalers=upscalers)
    pipe.facts = replace(pipe.facts, open_net=net_opener(progress))
    pipe.use_loras(adapters)
    if pipe.facts.family:
        chosen = ", ".join(f"{name} {value}" for name, value in pipe.facts.defaults.items())
        log.info("taken for %s: %s", pipe.facts.family, chosen)
    if refiner is not None:
        pipe.use_refiner(
            load(
                refiner,
                dtype,
                weights=weights,
                offload=offload,
                shard_parameters=shard_parameters,
                vae_tiling=vae_tiling,
                progress=progress,
            )
        )
    return pipe


def load_condition(
    net: str | os.PathLike,
    *,
    subfolder: str | None = None,
    weight_name: str | None = None,
    base: str | os.PathLike | None = None,
    image_encoder: str | os.PathLike | None = None,
    variant: str | None = None,
    revision: str | None = None,
    progress=None,
) -> ConditionNet | PictureNet | JudgeNet:
    """Open a ControlNet, a T2I or style adapter, an IP-Adapter or what judges pictures, which its files tell apart.

    Called with a picture, a classifier with words, CLIP with a text or a picture, it gives one of a picture's
    `conditions`.

    net: an embedded one's name ("outline"), an sdjax or diffusers directory, a single file (lllyasviel's, kohya's
        differences, Control-LoRA, TencentARC's), the folder of a CLIPModel of transformers, or a hub id such as
        "lllyasviel/control_v11p_sd15_canny". It is converted once, as a model is.
    subfolder, weight_name: where it is in a directory or a repository: a folder, and the file of a single-file net. A
        file of a repository may be named in one, "h94/IP-Adapter/models/ip-adapter_sd15.safetensors".
    base: the model whose UNet a file of differences adds to, as for `load`.
    image_encoder: of an IP-Adapter or a style adapter, the CLIP that it looks at pictures with: a directory, a folder
        of the adapter's repository, or a repository; where None, what lies beside the adapter and fits it, as in
        h94/IP-Adapter, or for a style adapter OpenAI's.
    variant, revision, progress: as for `load`.
    Raises InputError for a net that is not there, CheckpointError and ConfigError for one that cannot be read.
    """
    choices = Choices() if base is None else Choices(base=resolve(base, progress=progress))
    place = _place_of(net, subfolder, weight_name, revision)
    found = place.file if place.file.exists() else net
    name = str(net if weight_name is None else f"{net}/{weight_name}")
    if place.file.is_file() and (adapter := read_picture_adapter(place.file, name)) is not None:
        encoder = encoder_for(adapter, place.file, place.on_hub, image_encoder, progress)
        return PictureNet(name, adapter, encoder, Processor(encoder.module.config.image_size))
    if image_encoder is not None:
        raise InputError(f"{name} is neither an IP-Adapter nor a style adapter: only those have an image encoder")
    if place.file.is_dir() and is_clip(place.file):
        return clip_judge(name, open_clip(place.file))
    opened = resolve(found, variant=variant, revision=place.revision, single_file=choices, progress=progress)
    if "judge" in component_classes(read_index(opened), opened):
        judge = read_alone(opened, "judge")
        return JudgeNet(name, judge.module, judge.params)
    component = read_alone(opened, "condition")
    return ConditionNet(name, component.module, component.params)


class _Place(NamedTuple):
    """Where a net lies: a path, or what is none; its place on the hub; and the revision that is still to be found."""

    file: Path
    on_hub: OnHub | None
    revision: str | None


def _place_of(net: str | os.PathLike, subfolder: str | None, weight_name: str | None, revision: str | None) -> _Place:
    """Where a net lies, a file of a repository once it is downloaded; arguments as for `load_condition`."""
    path = Path(net)
    if path.is_dir():
        return _Place(path.joinpath(*filter(None, (subfolder, weight_name))), None, revision)
    parts = str(net).split("/")
    if weight_name is None and subfolder is None and len(parts) > 2 and not path.exists() and parts[0]:
        parts, subfolder, weight_name = parts[:2], "/".join(parts[2:-1]), parts[-1]
    if weight_name is not None:
        repo, inside = "/".join(parts), "/".join(filter(None, (subfolder, weight_name)))
        file = download_file(repo, inside, "is it the name of a file of that repository?", revision)
        return _Place(file, OnHub(repo, inside, revision), None)
    if subfolder is not None:
        raise InputError(f"{net} is no directory: of a repository on the hub, say the file too (weight_name)")
    return _Place(path, None, revision)


H94 = "h94/IP-Adapter"
# Nets that ship with the package, for its models, and the annotator that makes their hints.
EMBEDDED = {"outline": "scribble"}
# Short names of conditions: the annotator that makes the hint, and a net for Stable Diffusion 1 and for XL.
CONDITIONS = {
    "canny": ("canny", "lllyasviel/control_v11p_sd15_canny", "diffusers/controlnet-canny-sdxl-1.0"),
    "depth": ("depth", "lllyasviel/control_v11f1p_sd15_depth", "diffusers/controlnet-depth-sdxl-1.0"),
    "ip-adapter": ("", f"{H94}/models/ip-adapter_sd15.safetensors", f"{H94}/sdxl_models/ip-adapter_sdxl.safetensors"),
    "ip-adapter-face": ("", f"{H94}/models/ip-adapter-plus-face_sd15.safetensors", ""),
    "ip-adapter-plus": ("", f"{H94}/models/ip-adapter-plus_sd15.safetensors", ""),
    "inpaint": ("", "lllyasviel/control_v11p_sd15_inpaint", ""),
    "lineart": ("lineart_standard", "lllyasviel/control_v11p_sd15_lineart", ""),
    "normal": ("normal_bae", "lllyasviel/control_v11p_sd15_normalbae", ""),
    "openpose": ("", "lllyasviel/control_v11p_sd15_openpose", ""),
    "scribble": ("scribble", "lllyasviel/control_v11p_sd15_scribble", ""),
    "seg": ("seg_ade20k", "lllyasviel/control_v11p_sd15_seg", ""),
    "shuffle": ("shuffle", "lllyasviel/control_v11e_sd15_shuffle", ""),
    "softedge": ("softedge_gradient", "lllyasviel/control_v11p_sd15_softedge", ""),
    "style": ("", "TencentARC/T2I-Adapter/models/t2iadapter_style_sd14v1.pth", ""),
    "tile": ("tile_resample", "lllyasviel/control_v11f1e_sd15_tile", ""),
}
SD1_CONTEXT = 768  # features of a prompt that Stable Diffusion 1 reads, and no other


def net_opener(progress=None) -> NetOpener:
    """What opens the nets that conditions name, each of them once."""
    open_once = cache(partial(load_condition, progress=progress))

    def open_net(name: str, unet: UNetConfig) -> tuple[ConditionNet | PictureNet | JudgeNet, str]:
        if name not in CONDITIONS or Path(name).exists():
            return open_once(name), EMBEDDED.get(name, "")
        annotator, of_sd1, of_xl = CONDITIONS[name]
        found = of_xl if unet.is_xl else of_sd1 if unet.cross_attention_dim == SD1_CONTEXT else ""
        if not found:
            raise InputError(f"there is no known net {name!r} for this model: name one, as for `sdjax.load_condition`")
        return open_once(found), annotator

    return open_net


def default_dtype() -> str:
    """What is computed in on the devices where nobody says."""
    return "float32" if platform() == "cpu" else "bfloat16"


def _other_vae(model: Model, name: str | os.PathLike, progress) -> Component:
    """Another VAE for a model. Raises InputError where its latents are other ones."""
    vae = read_alone(resolve(name, progress=progress), "vae")
    ours, theirs = model.vae.module.config, vae.module.config
    if (theirs.latent_channels, theirs.factor) != (ours.latent_channels, ours.factor):
        raise InputError(
            f"the VAE of {name} does not suit {model.path}: its latents have {theirs.latent_channels} channels and "
            f"{theirs.factor} pixels a side, those of the model {ours.latent_channels} and {ours.factor}"
        )
    return vae


def keep_compiled_programs() -> None:
    """Turns on JAX's cache of compiled programs, so that the next process starts at once. A user's own setting stands.

    Raises InputError for a limit of the cache that is not a size.
    """
    limit()
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = cache_directory() / "compiled"
        if not is_writable(folder):
            log.warning("%s cannot be written: every start compiles anew; SDJAX_CACHE may name another folder", folder)
        # JAX warns of every single program that it cannot keep.
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # A picture needs a dozen programs besides the three large ones, each of which takes a moment to compile.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
