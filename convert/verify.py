"""A converted model against PyTorch: the same weights and random input through both, where diffusers is installed."""

from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.convert.single_file import EMA
from sdjax.convert.source import Source
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import TEXT_ENCODERS, Component, read_component
from sdjax.files.layout import component_classes, read_index
from sdjax.models import MODELS
from sdjax.models.layers import guidance_embedding
from sdjax.models.unet_encoder import Added

TOKENS, SIZES = 7, 5  # of context for the UNet, and for that of Stable Diffusion XL at least


def compare(source: Source, model: Path) -> dict[str, float]:
    """For every component, how far sdjax and PyTorch are apart, relative to the largest value; in float32, on the CPU.

    PyTorch reads the source itself. Raises InputError where diffusers is not installed, CheckpointError where PyTorch
    cannot read the source.
    """
    try:
        import diffusers
        import torch
        import transformers
    except ImportError as error:
        raise InputError(f"verifying needs PyTorch and diffusers: pip install torch diffusers ({error})") from error
    loaders = {
        "CLIPTextModel": transformers.CLIPTextModel,
        "CLIPTextModelWithProjection": transformers.CLIPTextModelWithProjection,
        "UNet2DConditionModel": diffusers.UNet2DConditionModel,
        "AutoencoderKL": diffusers.AutoencoderKL,
        "AutoencoderTiny": diffusers.AutoencoderTiny,
    }
    classes = {name: cls for name, cls in component_classes(read_index(model), model).items() if cls in MODELS}
    errors = {}
    for name, class_name in classes.items():
        ours = read_component(model / name, class_name)
        try:
            theirs = _load(source, model, name, loaders[class_name])
        except Exception as error:  # what PyTorch's libraries raise has no common kind
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"PyTorch cannot read {name} of {source.name}: {reason}") from error
        dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(ours.params)}
        if len(dtypes) == 1:  # rounded once, as conversion did
            theirs = theirs.to(getattr(torch, *dtypes))
        errors[name] = _difference(ours, theirs.float().eval(), torch)
    return errors


def _load(source: Source, model: Path, name: str, loader: Any) -> Any:
    """A component as PyTorch's own libraries read it from the source."""
    if source.path.is_dir():
        return loader.from_pretrained(source.path / name, local_files_only=True)
    options: dict[str, Any] = {"config": str(model), "subfolder": name, "local_files_only": True}
    if name == "unet":
        options["extract_ema"] = EMA in source.parts[name].where
    if name not in TEXT_ENCODERS:
        return loader.from_single_file(str(source.path), **options)
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm, load_single_file_checkpoint

    return create_diffusers_clip_model_from_ldm(loader, load_single_file_checkpoint(str(source.path)), **options)


def _difference(ours: Component, theirs: Any, torch: ModuleType) -> float:
    """How far the outputs for random input are apart."""
    random = np.random.default_rng(0)
    params = {"params": jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), ours.params)}
    with torch.no_grad():
        if hasattr(ours.module.config, "vocab_size"):
            return _of_text_encoder(ours.module, params, theirs, torch, random)
        if hasattr(ours.module.config, "cross_attention_dim"):
            return _of_unet(ours.module, params, theirs, torch, random)
        latents = random.standard_normal((1, 4, 4, ours.module.config.latent_channels), np.float32)
        got = jax.jit(lambda params, x: ours.module.apply(params, x, method="decode"))(params, latents)
        return _relative(got, theirs.decode(torch.from_numpy(_nchw(latents))).sample)


def _of_text_encoder(module: Any, params: Any, theirs: Any, torch: ModuleType, random: np.random.Generator) -> float:
    config = module.config
    ids = random.integers(0, config.vocab_size, (1, config.max_position_embeddings))
    ids[:, -1] = config.vocab_size - 1  # the end, where the pooled embedding is
    got, expected = jax.jit(module.apply)(params, ids), theirs(torch.from_numpy(ids))
    pooled = _relative(got.pooled, expected.text_embeds) if module.projects else 0.0
    return max(_relative(got.context, expected.last_hidden_state), pooled)


def _of_unet(module: Any, params: Any, theirs: Any, torch: ModuleType, random: np.random.Generator) -> float:
    config = module.config
    size = 2 ** (len(config.levels) - 1)
    sample = random.standard_normal((1, size, size, config.in_channels), np.float32)
    context = random.standard_normal((1, TOKENS, config.cross_attention_dim), np.float32)
    times = np.array([500])
    labels = np.array([20]) if config.has_class_embedding else None
    added, guidance, told = None, None, {}
    if config.is_xl:
        pooled = config.projection_class_embeddings_input_dim - SIZES * config.addition_time_embed_dim
        sizes = random.uniform(0, 1024, (1, SIZES)).astype(np.float32)
        added = Added(*map(jnp.asarray, (random.standard_normal((1, pooled), np.float32), sizes)))
        told = {
            "added_cond_kwargs": {
                "text_embeds": torch.from_numpy(np.array(added.pooled)),
                "time_ids": torch.from_numpy(sizes),
            }
        }
    if config.embeds_guidance:
        guidance = jnp.array([7.5])
        embedding = np.asarray(guidance_embedding(guidance, config.time_cond_proj_dim))
        told |= {"timestep_cond": torch.from_numpy(embedding)}
    got = jax.jit(module.apply)(params, sample, times, context, labels, added, guidance)
    arrays = [_nchw(sample), times, context, *([] if labels is None else [labels])]
    return _relative(got, theirs(*map(torch.from_numpy, arrays), **told).sample)


def _nchw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, -1, 1))


def _relative(ours: jax.Array, theirs: Any) -> float:
    expected = theirs.numpy()
    if expected.ndim == 4:
        expected = np.moveaxis(expected, 1, -1)
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())
