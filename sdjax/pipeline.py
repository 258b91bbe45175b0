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
from sdjax.arguments import Picture, check_arguments
from sdjax.checkpoint import Model
from sdjax.errors import CheckpointError, ConfigError, InputError
from sdjax.parallel import fitting_in_memory, pmap, replicate, shard, unshard
from sdjax.prompts import load_tokenizer, tokenize
from sdjax.random import image_keys, start_noise
from sdjax.recipes import Recipe, guidance_of, guidance_settings, settings_of
from sdjax.schedulers import Plan

# Called with a stage ("encode", "compile", "denoise", "decode"), how much of it is done, and out of how much.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Output:
    """What a call of a pipeline gives.

    images: a list of PIL images; or [batch, height, width, 3] float32 in [0, 1]; or latents [batch, h, w, channels].
    seeds: the seed of each picture.
    nfe: evaluations of the UNet that the batch took, those of its longest plan; the two halves of guidance are one.
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
        with fitting_in_memory(f"the parameters of {model.path} in {self.dtype}"):
            self.params = {name: replicate(part.params, self.dtype) for name, part in model.components.items()}
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
        num_inference_steps: int | Sequence[int] | None = None,
        guidance_scale: float | Sequence[float | Sequence[float]] | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        cfg_plus_plus: bool = False,
        sampler: str | Sequence[str] | None = None,
        spacing: str | Sequence[str] | None = None,
        eta: float | Sequence[float] | None = None,
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
            At 1 the negative prompt plays no part and is not computed. A list has an entry for each picture, which is
            a number or a list of one for each step.
        guidance_interval: the part of the steps that is guided, from 0 to 1; outside of it the scale is 1.
        guidance_rescale: from 0 to 1, how far the spread of guided predictions is brought back (arXiv:2305.08891).
        cfg_plus_plus: tell the noise by the unguided prediction (arXiv:2406.08070), for samplers of first order; scales
            of 0 to 2 suit it.
        sampler, spacing: names in `sdjax.schedulers.SOLVERS` and `SPACINGS`, or A1111's ("DPM++ 2M Karras"); the
            checkpoint's own where None.
        eta: share of fresh noise, for samplers that have it (ddim, euler_ancestral).
            Of these four, and of guidance scales, a list has one for each picture of the batch.
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
        pictures = check_arguments(
            prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            sampler=sampler,
            spacing=spacing,
            eta=eta,
            height=height,
            width=width,
            num_images_per_prompt=num_images_per_prompt,
            seed=seed,
            output_type=output_type,
        )
        shape = self._latent_shape(height, width)
        start = self._start(latents, (len(pictures), *shape))
        recipes = [self._recipe(picture) for picture in pictures]
        plan = schedulers.stack([recipe.plan for recipe in recipes])
        guidance = guidance_of(recipes, plan.sigmas.shape[-1], guidance_interval, guidance_rescale, cfg_plus_plus)
        shared = self._shared_settings(shape) | guidance_settings(guidance_interval, guidance_rescale, cfg_plus_plus)
        size = f"{shared['width']} x {shared['height']} pixels"
        with fitting_in_memory(f"{len(pictures)} of {size} at once: ask for fewer or smaller pictures"):
            images = self._draw(pictures, plan, guidance, shape, start, output_type != "latent", progress)
        return Output(
            images=to_pil(images) if output_type == "pil" else images,
            seeds=[picture.seed for picture in pictures],
            nfe=int(plan.nfe.max()),
            settings=[settings_of(recipe) | shared for recipe in recipes],
        )

    def _draw(
        self,
        pictures: Sequence[Picture],
        plan: Plan,
        guidance: programs.Guidance,
        shape: tuple[int, int, int],
        start: np.ndarray | None,
        decode: bool,
        progress: Progress | None,
    ) -> np.ndarray:
        """The decoded pictures or the denoised latents, on the host."""
        report = progress or (lambda stage, done, total: None)
        report("encode", 0, 1)
        context = self._encode_texts([picture.prompt for picture in pictures])
        negative = self._encode_texts([picture.negative_prompt for picture in pictures])
        report("encode", 1, 1)
        start_keys, step_keys = image_keys([picture.seed for picture in pictures])
        x = plan.start(start_noise(start_keys, shape) if start is None else jnp.asarray(start))
        latents = self._run(plan, x, (context, negative, shard(guidance), shard(step_keys)), progress)
        self._check_finite(latents)
        if not decode:
            return latents
        report("decode", 0, 1)
        drawn = unshard(self._decode(self.params["vae"], shard(latents)), len(pictures))
        self._check_finite(drawn)
        report("decode", 1, 1)
        return drawn

    def _encode_texts(self, texts: Sequence[str]) -> jax.Array:
        """The UNet's context, [devices, pictures per device, tokens, features]."""
        return self._encode(self.params["text_encoder"], shard(tokenize(self.tokenizer, texts)))

    def _run(self, plan: Plan, x: jax.Array, inputs: tuple, progress: Progress | None) -> np.ndarray:
        """The denoised latents on the host, from the first sample. With progress, one program is called per step."""
        state = shard(schedulers.init_state(plan, x))
        run = partial(self._denoise, self.params["unet"], shard(plan))
        nfe = int(plan.nfe.max())
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

    def _recipe(self, picture: Picture) -> Recipe:
        steps = self._default("num_inference_steps", picture.num_inference_steps, 50)
        scale = self._default("guidance_scale", picture.guidance_scale, 7.5)
        scheduler = self.scheduler
        if not (picture.sampler is picture.spacing is picture.eta is None):
            options = {} if picture.eta is None else {"eta": float(picture.eta)}
            scheduler = scheduler.with_solver(picture.sampler or scheduler.solver, picture.spacing, **options)
        return Recipe(picture, scheduler, scheduler.plan(steps), scale, int(steps))

    def _shared_settings(self, shape: tuple[int, int, int]) -> dict[str, Any]:
        factor = self.modules["vae"].config.factor
        return {"width": shape[1] * factor, "height": shape[0] * factor, "dtype": self.dtype.name}

    def _latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        vae = self.modules["vae"].config
        native = (self.modules["unet"].config.sample_size or 0) * vae.factor
        if not native and None in (height, width):
            raise InputError(f"{self.model.path} does not say its size: give a height and a width")
        for name, size in (("height", height), ("width", width)):
            if size is not None and size % vae.factor:
                raise InputError(f"{name} must be a multiple of {vae.factor} with this model, not {size!r}")
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
