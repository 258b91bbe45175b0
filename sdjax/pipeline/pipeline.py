"""Prompts, and images where some are given, to pictures."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from PIL import Image

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.files.checkpoint import Component, Model
from sdjax.parallel import fitting_in_memory, shard
from sdjax.pipeline.contexts import check_clip_skip, contexts_of_rows
from sdjax.pipeline.denoising import Progress, run
from sdjax.pipeline.hires import first_pass, hires_settings, in_latents, second_pass
from sdjax.pipeline.images import GivenImage, to_pil
from sdjax.pipeline.networks import Networks
from sdjax.pipeline.previews import OnPreview, Previews, previews_of
from sdjax.pipeline.request import OUTPUT_TYPES, Picture, spread
from sdjax.pipeline.resolve import Recipe, guidance_of, recipe_of, settings_of
from sdjax.pipeline.start import Given, begin, given, given_noise, size_of, task_of
from sdjax.prompts import load_tokenizer
from sdjax.random import noise_of


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


class Pipeline(Networks):
    """A model, ready to draw. Made by `sdjax.load`.

    The parameters are placed on every local device once. Programs are compiled at the first call of each batch size
    and resolution; other prompts, weights, clip skips, seeds, samplers, spacings, steps, strengths, masks and guidance
    scales use the same. Prompts beyond 75 tokens and noise from the host have programs of their own.
    """

    def __init__(
        self,
        model: Model,
        dtype: np.dtype,
        vae_tiling: bool | None = None,
        preview: Component | Literal["linear"] | None = None,
    ):
        """The arguments are those of `sdjax.load`, opened; `preview` is its preview_vae."""
        self.task = task_of(model.components["unet"].module.config, model.components["vae"].module.config)
        self.scheduler = schedulers.from_config(model.scheduler_config)
        self.low_res = schedulers.from_config(model.low_res_config).noise if model.low_res_config else None
        self.tokenizer = load_tokenizer(model.tokenizer)
        super().__init__(model, dtype, vae_tiling, preview)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        image: GivenImage | Sequence[GivenImage] | None = None,
        mask_image: GivenImage | Sequence[GivenImage] | None = None,
        depth_map: GivenImage | Sequence[GivenImage] | None = None,
        strength: float | Sequence[float] = 0.8,
        mask_blur: float | Sequence[float] = 4.0,
        padding_mask_crop: int | Sequence[int] | None = None,
        noise_level: int | Sequence[int] = 20,
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
        hires_scale: float | None = None,
        hires_upscaler: str = "latent",
        hires_strength: float = 0.7,
        hires_steps: int | None = None,
        clip_skip: int | Sequence[int] | None = None,
        prompt_syntax: str | Sequence[str] = "a1111",
        rng: str = "jax",
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        latents: np.ndarray | None = None,
        output_type: str = "pil",
        preview_every: int | None = None,
        on_preview: OnPreview | None = None,
        progress: Progress | None = None,
    ) -> Output:
        """Draw pictures: from a prompt alone, or from an image, or a part of it.

        Every setting is one for all pictures, or a list of one for each; texts and images are one for all prompts, or
        a list of one for each.

        prompt: one or several; each gives `num_images_per_prompt` pictures.
        negative_prompt: what to keep away from; nothing where None.
        image: what to start from: a path, a PIL image, an array [height, width, 3] (8 bits, or floats in [0, 1]), or
            latents [height / factor, width / factor, channels] as output_type "latent" gives them. An upscaling model
            makes it larger.
        mask_image: paint only a part of the image anew, where the mask is white; the rest stays as it is, every pixel.
        depth_map: for models that follow depth, brighter where nearer: a picture of any depth of bits, or an array.
        strength: in (0, 1], how much of the image is lost to noise; the share of the steps that is taken.
        mask_blur: pixels over which the edge of the mask is softened.
        padding_mask_crop: work only on the mask's surroundings, so many pixels around it, at full size ("only masked").
        noise_level: of an upscaling model, in timesteps; the noise that is put on its image.
        clip_skip: how many of the text encoder's last layers are left out, besides those that the model itself lacks.
        prompt_syntax: "a1111" for weights, changes over the steps and prompts of any length, as `docs/prompts.md` shows
            them; "plain" takes every letter as it is, and leaves out words beyond 75 tokens, with a warning.
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
        height, width: in pixels, multiples of the VAE's factor; those of the image, or else the size that the UNet was
            trained at, where None.
        hires_scale: paint a second pass over the picture, enlarged so many times: large pictures come out better so
            than at once. hires_upscaler: enlarge its latents ("latent") or its pixels ("lanczos"). hires_strength,
            hires_steps: of the second pass; as many steps as the first where None.
        seed: one number, counted up over the pictures, or one per picture, each in [0, 2**64).
        rng: "jax"; or "torch" or "philox", for the noise that diffusers draws with this seed from a generator on the
            CPU, and A1111 from one on a CUDA device.
        latents: standard-normal start noise [pictures, height / factor, width / factor, channels] in place of the
            seeds' own.
        output_type: "pil", "np" (float32 in [0, 1], [pictures, height, width, 3]) or "latent" (the denoised latents,
            before division by the scaling factor).
        preview_every, on_preview: behind every so many steps, `on_preview` is called with the number of
            steps taken and a list of PIL images, the pictures as the model sees them coming. Of a picture of which only
            a part is worked on, it is that part.
        progress: called on the way; see `Progress`.
        Raises InputError, before any work, for arguments that cannot work, and CheckpointError where the model's
        numbers overflow or are not numbers at all.
        """
        images = {"image": image, "mask_image": mask_image, "depth_map": depth_map}
        settings = {
            "strength": strength,
            "mask_blur": mask_blur,
            "padding_mask_crop": padding_mask_crop,
            "noise_level": noise_level,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "guidance_rescale": guidance_rescale,
            "cfg_plus_plus": cfg_plus_plus,
            "sampler": sampler,
            "spacing": spacing,
            "eta": eta,
            "height": height,
            "width": width,
            "hires_scale": hires_scale,
            "hires_upscaler": hires_upscaler,
            "hires_strength": hires_strength,
            "hires_steps": hires_steps,
            "clip_skip": clip_skip,
            "prompt_syntax": prompt_syntax,
            "rng": rng,
        }
        pictures = spread(prompt, negative_prompt, num_images_per_prompt, seed, images, settings)
        previews = previews_of(preview_every, on_preview)
        return self.draw(pictures, latents=latents, output_type=output_type, previews=previews, progress=progress)

    def draw(
        self,
        pictures: Sequence[Picture],
        *,
        latents: np.ndarray | None = None,
        output_type: str = "pil",
        previews: Previews | None = None,
        progress: Progress | None = None,
    ) -> Output:
        """Draw pictures of one size, each with settings of its own, in one batch. Arguments as in a call."""
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"unknown output_type {output_type!r}; known: {', '.join(OUTPUT_TYPES)}")
        if any(picture.hires_scale for picture in pictures):
            return self._draw_twice(pictures, latents, output_type, previews, progress)
        recipes, givens, shape = self._prepared(pictures)
        noise = given_noise(latents, (len(pictures), *shape))
        width, height = self.size(pictures)
        if output_type == "np" and len({each.repaint.whole.size for each in givens if each.repaint}) > 1:
            raise InputError("output_type np wants one size, and these pictures have several: take pil")
        with self._in_memory(pictures):
            images = self._draw(recipes, givens, noise, shape, output_type != "latent", previews, progress)
        whole = list(images) if output_type == "latent" else finished(images, givens)
        shared: dict[str, Any] = {"width": width, "height": height, "dtype": self.dtype.name}
        if loras := [str(lora) for lora in self.loras.values() if lora.scale]:
            shared["loras"] = loras
        return Output(
            images=to_pil(whole) if output_type == "pil" else np.stack(whole),
            seeds=[picture.seed for picture in pictures],
            nfe=max(int(recipe.plan.nfe) for recipe in recipes),
            settings=[settings_of(recipe, self.task) | shared for recipe in recipes],
        )

    def compile(self, pictures: Sequence[Picture], progress: Progress | None = None) -> None:
        """Make all programs that `draw` runs for such pictures, and keep them in the cache; no step is taken.

        Their number, their size and the kinds of what they are given count; see the class. Errors are those of `draw`.
        """
        recipes, givens, shape = self._prepared(pictures)
        unmoved = [replace(recipe, plan=replace(recipe.plan, nfe=np.array(0, np.int32))) for recipe in recipes]
        with self._in_memory(pictures):
            self._draw(unmoved, givens, None, shape, True, None, progress or (lambda stage, done, total: None))

    def _prepared(self, pictures: Sequence[Picture]) -> tuple[list[Recipe], list[Given], tuple[int, int, int]]:
        """What is drawn, with every choice made; and the shape of a picture's latents."""
        factor = self.modules["vae"].config.factor
        width, height = self.size(pictures)
        shape = (height // factor, width // factor, self.modules["vae"].config.latent_channels)
        recipes = [recipe_of(picture, self.task, self.scheduler, self.model.defaults) for picture in pictures]
        for picture in pictures:
            check_clip_skip(picture, self.modules["text_encoder"].config.num_hidden_layers)
        rngs = {picture.rng for picture in pictures}
        if len(rngs) > 1:
            raise InputError(f"the pictures of a batch have one rng, not {', '.join(sorted(rngs))}")
        with self._in_memory(pictures):
            return recipes, [given(picture, self.task, shape, factor) for picture in pictures], shape

    def _in_memory(self, pictures: Sequence[Picture]) -> AbstractContextManager[None]:
        width, height = self.size(pictures)
        return fitting_in_memory(
            f"{len(pictures)} of {width} x {height} pixels at once: ask for fewer or smaller pictures"
        )

    def size(self, pictures: Sequence[Picture]) -> tuple[int, int]:
        """The width and height in pixels that pictures will have. Raises InputError where they differ."""
        factor = self.modules["vae"].config.factor
        return size_of(pictures, self.task, (self.modules["unet"].config.sample_size or 0) * factor, factor)

    def _draw_twice(
        self,
        pictures: Sequence[Picture],
        latents: np.ndarray | None,
        output_type: str,
        previews: Previews | None,
        progress: Progress | None,
    ) -> Output:
        """A first pass, and a second one over what it gave, enlarged."""
        kind = "latent" if in_latents(pictures) else "np"
        first = self.draw(first_pass(pictures), latents=latents, output_type=kind, progress=progress)
        larger = second_pass(pictures, np.asarray(first.images), self.autoencoder.config.factor)
        second = self.draw(larger, output_type=output_type, previews=previews, progress=progress)
        told = [how | hires_settings(picture) for how, picture in zip(first.settings, pictures)]
        return Output(second.images, second.seeds, first.nfe + second.nfe, told)

    def _draw(
        self,
        recipes: Sequence[Recipe],
        givens: Sequence[Given],
        start: np.ndarray | None,
        shape: tuple[int, int, int],
        decode: bool,
        previews: Previews | None,
        progress: Progress | None,
    ) -> np.ndarray:
        """The decoded pictures or the denoised latents, on the host."""
        report = progress or (lambda stage, done, total: None)
        pictures = [recipe.picture for recipe in recipes]
        plan = schedulers.stack([recipe.plan for recipe in recipes])
        guidance = guidance_of(recipes, plan.sigmas.shape[-1])  # refuses what does not suit, before any work
        seeds = [picture.seed for picture in pictures]
        noise = noise_of(pictures[0].rng, seeds)
        report("encode", 0, 1)
        contexts = contexts_of_rows(self.tokenizer, self.words, recipes, max(1, int(plan.nfe.max())), self.encode_text)
        first = begin(pictures, givens, plan, shape, start, noise, self.autoencoder.encode, self.low_res)
        report("encode", 1, 1)
        advance = partial(self.denoise, len(pictures), shard(plan))
        shown = None if previews is None else Previews(previews.steps, partial(self._preview, previews.show))
        latents = run(advance, plan, guidance, first, contexts, noise, seeds, shown, progress)
        self.check_finite(latents)
        if not decode:
            return latents
        report("decode", 0, 1)
        drawn = self.autoencoder.decode(latents)
        self.check_finite(drawn)
        report("decode", 1, 1)
        return drawn

    def _preview(self, show: OnPreview, step: int, latents: np.ndarray) -> None:
        self.check_finite(latents)
        show(step, to_pil(self.autoencoder.preview(latents)))


def finished(drawn: np.ndarray, givens: Sequence[Given]) -> list[np.ndarray]:
    """What was drawn, put into the pictures of which it is a part: each [height, width, 3] in [0, 1]."""
    return [each.repaint.finish(image) if each.repaint else image for image, each in zip(drawn, givens)]
