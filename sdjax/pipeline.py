"""Text to image: prompts in, pictures out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sdjax import programs, schedulers
from sdjax.checkpoint import Model
from sdjax.errors import CheckpointError, ConfigError, InputError
from sdjax.parallel import pmap, replicate, shard, unshard
from sdjax.prompts import load_tokenizer, tokenize
from sdjax.random import image_keys, image_seeds, start_noise
from sdjax.schedulers import Plan, Scheduler

# Called with a stage ("encode", "compile", "denoise", "decode"), how much of it is done, and out of how much.
Progress = Callable[[str, int, int], None]

OUTPUT_TYPES = ("pil", "np", "latent")


@dataclass(frozen=True)
class Output:
    """What a call of a pipeline gives.

    images: a list of PIL images; or [batch, height, width, 3] float32 in [0, 1]; or latents [batch, h, w, channels].
    seeds: the seed of each picture. nfe: evaluations of the UNet for each picture, its two halves counted as one.
    settings: how each picture was made, with every default that the call left to the model filled in.
    """

    images: list[Image.Image] | np.ndarray
    seeds: list[int]
    nfe: int
    settings: list[dict[str, Any]]


class Pipeline:
    """A model, ready to draw. Made by `sdjax.load`.

    The parameters are placed on every local device once. Programs are compiled at the first call of each batch size
    and resolution; other prompts, seeds, samplers, spacings, steps and guidance scales use the same ones.
    """

    def __init__(self, model: Model, dtype: np.dtype):
        self.model = model
        self.dtype = np.dtype(dtype)
        self.modules = {name: component.module for name, component in model.components.items()}
        self.params = {name: replicate(component.params, self.dtype) for name, component in model.components.items()}
        self.scheduler = schedulers.from_config(model.scheduler_config)
        self.tokenizer = load_tokenizer(model.tokenizer)
        unet, vae = self.modules["unet"].config, self.modules["vae"].config
        if unet.in_channels != vae.latent_channels:
            raise ConfigError(
                f"the UNet of {model.path} takes {unet.in_channels} channels, its latents have {vae.latent_channels}: "
                "models that also take an image (inpainting, depth, upscaling) can be converted, but not run yet"
            )
        self._encode = pmap(partial(programs.encode_text, self.modules["text_encoder"]), in_axes=(None, 0))
        self._denoise = pmap(
            partial(programs.denoise, self.modules["unet"]), in_axes=(None, 0, 0, 0, 0, 0, 0, None), donate_argnums=(2,)
        )
        self._decode = pmap(partial(programs.decode, self.modules["vae"]), in_axes=(None, 0))

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        eta: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        latents: np.ndarray | None = None,
        output_type: str = "pil",
        progress: Progress | None = None,
    ) -> Output:
        """Draw pictures.

        prompt: one or several; each gives `num_images_per_prompt` pictures.
        negative_prompt: what to keep away from, one for all or one per prompt; nothing where None.
        num_inference_steps: the model's own default where None, else 50.
        guidance_scale: how much more than its prompt a picture is to be; the model's own default where None, else 7.5.
            At 1 the negative prompt plays no part and is not computed.
        sampler, spacing: names in `sdjax.schedulers.SOLVERS` and `SPACINGS`; the checkpoint's own where None.
        eta: share of fresh noise, for samplers that have it (ddim, euler_ancestral).
        height, width: in pixels, multiples of the VAE's factor; the size that the UNet was trained at where None.
        seed: one number, counted up over the pictures, or one per picture, each in [0, 2**64).
        latents: standard-normal start noise [pictures, height / factor, width / factor, channels] in place of the
            seeds' own.
        output_type: "pil", "np" (float32 in [0, 1], [pictures, height, width, 3]) or "latent" (the denoised latents,
            before division by the scaling factor).
        progress: called on the way; see `Progress`.
        Raises InputError, before any work, for arguments that cannot work, and CheckpointError where the model's
        numbers overflow or are not numbers at all.
        """
        report = progress or (lambda stage, done, total: None)
        prompts, negatives = _paired_prompts(prompt, negative_prompt, num_images_per_prompt)
        seeds = image_seeds(seed, len(prompts))
        shape = self._latent_shape(height, width)
        start = self._start(latents, (len(prompts), *shape))
        scheduler = self._scheduler(sampler, spacing, eta)
        steps = self._default("num_inference_steps", num_inference_steps, 50)
        plan = scheduler.plan(steps)
        guidance = _finite("guidance_scale", self._default("guidance_scale", guidance_scale, 7.5))
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"unknown output_type {output_type!r}; known: {', '.join(OUTPUT_TYPES)}")

        report("encode", 0, 1)
        context, negative = self._encode_texts(prompts), self._encode_texts(negatives)
        report("encode", 1, 1)
        start_keys, step_keys = image_keys(seeds)
        x = plan.start(start_noise(start_keys, shape) if start is None else jnp.asarray(start))
        scales = np.full(len(prompts), guidance, np.float32)
        images = self._run(plan, x, (context, negative, shard(scales), shard(step_keys)), progress)
        self._check_finite(images)
        if output_type != "latent":
            report("decode", 0, 1)
            images = unshard(self._decode(self.params["vae"], shard(images)), len(prompts))
            self._check_finite(images)
            report("decode", 1, 1)
        shared = self._settings(scheduler, shape) | {"steps": steps, "guidance_scale": guidance}
        return Output(
            images=to_pil(images) if output_type == "pil" else images,
            seeds=seeds,
            nfe=int(plan.nfe),
            settings=[
                {"prompt": prompt, "negative_prompt": negative, "seed": seed, **shared}
                for prompt, negative, seed in zip(prompts, negatives, seeds)
            ],
        )

    def _encode_texts(self, texts: Sequence[str]) -> jax.Array:
        """The UNet's context, [devices, pictures per device, tokens, features]."""
        return self._encode(self.params["text_encoder"], shard(tokenize(self.tokenizer, texts)))

    def _run(self, plan: Plan, x: jax.Array, inputs: tuple, progress: Progress | None) -> np.ndarray:
        """The denoised latents on the host, from the first sample. With progress, one program is called per step."""
        state = shard(schedulers.init_state(plan, x))
        run = partial(self._denoise, self.params["unet"], shard(schedulers.stack([plan] * x.shape[0])))
        nfe = int(plan.nfe)
        if progress is None:
            state = run(state, *inputs, np.int32(nfe))
        else:
            progress("compile", 0, 1)
            state = jax.block_until_ready(run(state, *inputs, np.int32(0)))  # compiles, and takes no step
            progress("compile", 1, 1)
            progress("denoise", 0, nfe)
            for row in range(1, nfe + 1):
                state = jax.block_until_ready(run(state, *inputs, np.int32(row)))
                progress("denoise", row, nfe)
        return np.asarray(schedulers.result(plan, unshard(state, x.shape[0])))

    def _settings(self, scheduler: Scheduler, shape: tuple[int, int, int]) -> dict[str, Any]:
        factor = self.modules["vae"].config.factor
        return {
            "sampler": scheduler.solver,
            "spacing": scheduler.sigma_spacing or scheduler.spacing,
            **({"eta": scheduler.options["eta"]} if "eta" in scheduler.options else {}),
            "width": shape[1] * factor,
            "height": shape[0] * factor,
            "dtype": self.dtype.name,
        }

    def _scheduler(self, sampler: str | None, spacing: str | None, eta: float | None) -> Scheduler:
        if sampler is None and spacing is None and eta is None:
            return self.scheduler
        options = {} if eta is None else {"eta": _finite("eta", eta)}
        return self.scheduler.with_solver(sampler or self.scheduler.solver, spacing, **options)

    def _latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        vae = self.modules["vae"].config
        native = self.modules["unet"].config.sample_size * vae.factor
        for name, size in (("height", height), ("width", width)):
            if size is not None and (not isinstance(size, int) or size <= 0 or size % vae.factor):
                raise InputError(f"{name} must be a positive multiple of {vae.factor}, not {size!r}")
        return ((height or native) // vae.factor, (width or native) // vae.factor, vae.latent_channels)

    def _start(self, latents: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
        if latents is None:
            return None
        latents = np.asarray(latents, np.float32)
        if latents.shape != shape:
            raise InputError(f"latents must have shape {shape} (NHWC), not {latents.shape}")
        if not np.isfinite(latents).all():
            raise InputError("latents hold values that are not finite")
        return latents

    def _default(self, name: str, given: Any, otherwise: Any) -> Any:
        return given if given is not None else self.model.defaults.get(name, otherwise)

    def _check_finite(self, values: np.ndarray) -> None:
        if np.isfinite(values).all():
            return
        for name, params in self.params.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(params):
                if not bool(jnp.isfinite(leaf).all()):
                    where = "/".join(str(key.key) for key in path)
                    raise CheckpointError(f"{self.model.path}: {name}/{where} holds values that are not finite")
        raise CheckpointError(f"{self.model.path} overflowed in {self.dtype}: try another dtype, such as float32")


def to_pil(pictures: np.ndarray) -> list[Image.Image]:
    """Pictures [batch, height, width, 3] in [0, 1] as PIL images, rounded to 8 bits."""
    return [Image.fromarray(np.round(picture * 255).astype(np.uint8)) for picture in pictures]


def _paired_prompts(
    prompt: str | Sequence[str], negative: str | Sequence[str] | None, per_prompt: int
) -> tuple[list[str], list[str]]:
    """The prompt and the negative prompt of every picture."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    negatives = [negative or ""] * len(prompts) if negative is None or isinstance(negative, str) else list(negative)
    if not prompts:
        raise InputError("there is no prompt: give at least one (an empty text is one)")
    for text in (*prompts, *negatives):
        if not isinstance(text, str):
            raise InputError(f"a prompt is a text, not {text!r}")
    if len(negatives) != len(prompts):
        raise InputError(f"{len(negatives)} negative prompts were given for {len(prompts)} prompts: one, or as many")
    if not isinstance(per_prompt, int) or isinstance(per_prompt, bool) or per_prompt < 1:
        raise InputError(f"num_images_per_prompt must be a whole number above 0, not {per_prompt!r}")
    return _repeated(prompts, per_prompt), _repeated(negatives, per_prompt)


def _repeated(texts: list[str], times: int) -> list[str]:
    return [text for text in texts for _ in range(times)]


def _finite(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise InputError(f"{name} must be a finite number, not {value!r}")
    return float(value)
