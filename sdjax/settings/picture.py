"""The schema: every setting of a picture, as a field with its type, its default and its words."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, get_args, get_type_hints

from sdjax.a1111 import mentions_of
from sdjax.errors import InputError
from sdjax.limits import DEPTH, PIXELS, SIDE, STEPS, TRAINED_TIMESTEPS
from sdjax.settings.setting import Setting, kind_of

RNGS = ("jax", "torch", "philox")
GUIDANCES = ("cfg", "apg", "cfg_zero_star", "dynamic_threshold", "perp_neg")
UPSCALERS = ("latent", "lanczos")
SYNTAXES = ("a1111", "plain")
HANDOVERS = ("a1111", "diffusers")
LAST_SEED = 2**64 - 1
# In the place of a setting in `needs`: a model that makes pictures larger, and one that changes them as it is told.
UPSCALE, EDIT = "upscale", "edit"
VARY = "variations"  # a model that draws variations of pictures, and reads no prompts

# The groups of options in `--help`.
PROMPT, SAMPLING, GUIDANCE, NOISE, SIZE = "Prompt", "Sampling", "Guidance", "Noise", "Size"
IMAGES, CONDITIONS, HIRES, XL = "From pictures", "Conditions", "Second pass", "Stable Diffusion XL"

OWN_SIZE = "the image's or the model's own"
LARGEST_SIZE = 65536  # pixels that a model may be told of


# fmt: off
@dataclass(frozen=True, eq=False)
class Picture:
    """The settings of one picture. None leaves a choice to the model.

    Images are as `sdjax.pipeline.images` reads them: an RGB picture, or latents [h, w, channels]; a mask in 8-bit grey;
    a depth map [height, width]. Raises InputError for what suits no model.
    """

    prompt: Annotated[str, Setting("What to paint.", PROMPT, flag="")]
    negative_prompt: Annotated[str | None, Setting(
        "What not to paint.", PROMPT, unset="nothing; of Stable Diffusion XL not even an empty text")] = None
    seed: Annotated[int, Setting("Another seed, another picture.", NOISE, 0, LAST_SEED, flag="", infotext="Seed")] = 0
    image: Annotated[Any, Setting("The picture, or the latents, to start from.", IMAGES, flag="")] = None
    mask_image: Annotated[Any, Setting(
        "White where to paint anew; the rest keeps every pixel.", IMAGES, flag="", needs="image")] = None
    depth_map: Annotated[Any, Setting(
        "For models that follow depth: a picture, brighter where nearer.", IMAGES)] = None
    conditions: Annotated[tuple[Any, ...], Setting(
        "What further pictures say: hints of `sdjax.load_condition`, each with its scale and its part of the steps.",
        CONDITIONS, flag="")] = ()
    strength: Annotated[float, Setting(
        "How much of the image is lost to noise: from just above 0 to 1, all of it.", IMAGES, above=0, high=1,
        needs="image")] = 0.8
    mask_blur: Annotated[float, Setting(
        "Pixels over which the edge of the mask is softened.", IMAGES, 0, 1000, needs="mask_image")] = 4.0
    padding_mask_crop: Annotated[int | None, Setting(
        "Work only on the mask's surroundings, so many pixels around it, enlarged to the full size.", IMAGES, 0,
        SIDE, unset="on the whole picture", flag="--only-masked", needs="mask_image")] = None
    noise_level: Annotated[int, Setting(
        "Noise that is put on the picture, in timesteps: more of it, more is invented.", IMAGES, 0,
        TRAINED_TIMESTEPS, needs=UPSCALE)] = 20
    num_inference_steps: Annotated[int | None, Setting(
        "Sampler steps.", SAMPLING, 1, STEPS, unset="the model's own, else 50", short="steps", infotext="Steps")] = None
    guidance_scale: Annotated[float | tuple[float, ...] | None, Setting(
        "How much the prompt matters; 1 is no guidance. One number, or one for each step.", GUIDANCE,
        unset="the model's own, else 7.5", infotext="CFG scale")] = None
    image_guidance_scale: Annotated[float, Setting(
        "How much the picture that is changed matters, from 1 on (arXiv:2211.09800).", GUIDANCE, 0,
        infotext="Image CFG scale", needs=EDIT)] = 1.5
    guidance_interval: Annotated[tuple[float, float], Setting(
        "The part of the steps that is guided, from 0 to 1; outside of it the scale is 1.", GUIDANCE)] = (0.0, 1.0)
    guidance_rescale: Annotated[float, Setting(
        "How far the deviation of guided predictions is brought back (arXiv:2305.08891).", GUIDANCE, 0, 1)] = 0.0
    cfg_plus_plus: Annotated[bool, Setting(
        "Take the noise direction from the unguided prediction (arXiv:2406.08070), for samplers of first order; "
        "scales of 0 to 2 suit it.", GUIDANCE)] = False
    guidance: Annotated[str, Setting(
        "How the two predictions are combined: classifier-free (cfg); projected (apg, arXiv:2410.02416); with the "
        "unconditional one scaled (cfg_zero_star, arXiv:2503.18886); shrunk to the reach of a lower scale "
        "(dynamic_threshold); or away from the negative prompt only where it is no part of the prompt (perp_neg, "
        "arXiv:2304.04968), at half as much work again.", GUIDANCE, choices=GUIDANCES)] = "cfg"
    apg_eta: Annotated[float, Setting(
        "The weight of the part that is parallel to the conditional prediction.", GUIDANCE, needs="guidance")] = 1.0
    apg_norm_threshold: Annotated[float, Setting(
        "The largest norm of the difference of the predictions; 0 for any.", GUIDANCE, 0, needs="guidance")] = 15.0
    apg_momentum: Annotated[float, Setting(
        "The weight of the differences of earlier steps, mostly negative; 0 for none.", GUIDANCE, -1, 1,
        needs="guidance")] = 0.0
    mimic_scale: Annotated[float, Setting(
        "The scale whose reach dynamic_threshold shrinks to.", GUIDANCE, needs="guidance")] = 7.0
    threshold_percentile: Annotated[float, Setting(
        "The part of the guided values that dynamic_threshold does not clip.", GUIDANCE, above=0, high=1,
        needs="guidance")] = 1.0
    perp_neg_scale: Annotated[float, Setting(
        "How far perp_neg goes away from the negative prompt.", GUIDANCE, 0, needs="guidance")] = 1.0
    pag_scale: Annotated[float, Setting(
        "How far to go away from a picture whose self-attention sees nothing (arXiv:2403.17377); about 3 suits, at "
        "half as much work again; 0 for none.", GUIDANCE, 0)] = 0.0
    seg_blur: Annotated[float, Setting(
        "Only blur self-attention, by this deviation in tokens of the layer (SEG, arXiv:2408.00760); from 9999 on "
        "to the mean; 0 for no blur.", GUIDANCE, 0, needs="pag_scale")] = 0.0
    sag_scale: Annotated[float, Setting(
        "How far to go away from a picture that is blurred where the model looks (SAG, arXiv:2210.00939); about 0.75 "
        "suits, at one evaluation more; 0 for none.", GUIDANCE, 0)] = 0.0
    perturbed_layers: Annotated[str, Setting(
        "Where self-attention is perturbed: mid, up, down, or as up.block_1 or up.block_1.attentions_0, with commas "
        "between several.", GUIDANCE, alike=True, needs="pag_scale")] = "mid"
    cache_interval: Annotated[int, Setting(
        "Compute the whole UNet only at every so many evaluations, and else its outermost layer (DeepCache, "
        "arXiv:2312.00858): 3 suits 50 steps; 1 computes all of it each time.", SAMPLING, 1, STEPS)] = 1
    gate_step: Annotated[int | None, Setting(
        "From this step on do without guidance, and take what cross-attention adds from the step before (T-GATE, "
        "arXiv:2404.02747): half of the steps suit.", SAMPLING, 1, STEPS, unset="guided to the end")] = None
    sampler: Annotated[str | None, Setting(
        "One of those that `sdjax samplers` lists, A1111's name, or a file of `sdjax tune`.", SAMPLING,
        unset="the model's own")] = None
    spacing: Annotated[str | None, Setting(
        "Which noise levels are visited.", SAMPLING, unset="the model's own")] = None
    recurrence: Annotated[int, Setting(
        "How often each step is taken, with fresh noise between (arXiv:2302.07121), of samplers that keep nothing from "
        "step to step; as many evaluations.", SAMPLING, 1, 10)] = 1
    eta: Annotated[float | None, Setting(
        "Share of fresh noise, of samplers that draw some.", SAMPLING, unset="the sampler's own",
        infotext="Eta")] = None
    s_churn: Annotated[float | None, Setting(
        "Noise added before each step, of euler, heun and dpm2 (arXiv:2206.00364).", SAMPLING, 0, unset="none",
        infotext="Sigma churn")] = None
    s_tmin: Annotated[float | None, Setting(
        "The lowest level at which it is added.", SAMPLING, 0, unset="0", infotext="Sigma tmin",
        needs="s_churn")] = None
    s_tmax: Annotated[float | None, Setting(
        "The highest level at which it is added.", SAMPLING, above=0, unset="any", infotext="Sigma tmax",
        needs="s_churn")] = None
    s_noise: Annotated[float | None, Setting(
        "A factor of the noise on the way.", SAMPLING, 0, unset="1", infotext="Sigma noise")] = None
    discard_penultimate_sigma: Annotated[bool, Setting(
        "Lay one level more, and leave out the one before the last.", SAMPLING,
        infotext="Discard penultimate sigma")] = False
    rho: Annotated[float | None, Setting(
        "The exponent of the spacings karras and polyexponential.", SAMPLING, above=0, high=100, unset="7 and 1",
        infotext="Schedule rho")] = None
    sigma_min: Annotated[float | None, Setting(
        "The lowest level of a sigma spacing.", SAMPLING, above=0, unset="the model's own",
        infotext="Schedule min sigma")] = None
    sigma_max: Annotated[float | None, Setting(
        "The highest level of a sigma spacing.", SAMPLING, above=0, unset="the model's own",
        infotext="Schedule max sigma")] = None
    timesteps: Annotated[tuple[float, ...] | None, Setting(
        "Timesteps of your own to visit, instead of steps and a spacing.", SAMPLING, unset="by steps and spacing",
        low=0)] = None
    sigmas: Annotated[tuple[float, ...] | None, Setting(
        "Noise levels of your own to visit, and after them the one to end at, mostly 0.", SAMPLING,
        unset="by steps and spacing", low=0)] = None
    denoising_start: Annotated[float | None, Setting(
        "Where to begin with latents that have their noise already: the share of the trained timesteps that is done.",
        IMAGES, above=0, high=1, unset="with noise for `strength`", needs="image")] = None
    denoising_end: Annotated[float | None, Setting(
        "Where to stop, or to change to the refiner: the share of the trained timesteps that is done then.", SAMPLING,
        above=0, high=1, unset="at the end, or of the refiner at 0.8", infotext="Refiner switch at")] = None
    handover: Annotated[str, Setting(
        "The sampler goes on over the change to the refiner, as in A1111, or begins anew, as in diffusers.", SAMPLING,
        choices=HANDOVERS, alike=True)] = "a1111"
    height: Annotated[int | None, Setting("In pixels.", SIZE, 1, SIDE, unset=OWN_SIZE)] = None
    width: Annotated[int | None, Setting("In pixels.", SIZE, 1, SIDE, unset=OWN_SIZE)] = None
    hires_scale: Annotated[float | None, Setting(
        "Paint over the picture, enlarged so many times: large pictures come out better so than at once.", HIRES, 1, 16,
        unset="no second pass", infotext="Hires upscale")] = None
    hires_upscaler: Annotated[str, Setting(
        "What enlarges: latent (the latents), lanczos (the pixels), or an upscaling model, by its name or file.", HIRES,
        needs="hires_scale", alike=True, infotext="Hires upscaler")] = "latent"
    hires_strength: Annotated[float, Setting(
        "How much of the enlarged picture is lost to noise.", HIRES, above=0, high=1, needs="hires_scale",
        infotext="Denoising strength")] = 0.7
    hires_steps: Annotated[int | None, Setting(
        "Sampler steps of the second pass.", HIRES, 1, STEPS, unset="as the first", needs="hires_scale",
        infotext="Hires steps")] = None
    clip_skip: Annotated[int | None, Setting(
        "Leave out so many last layers of the text encoder, besides those that the model itself leaves out.", PROMPT, 0,
        DEPTH, unset="none", infotext="Clip skip")] = None
    prompt_syntax: Annotated[str, Setting(
        "a1111: weights, edits, any length; plain: letters as they are.", PROMPT, choices=SYNTAXES)] = "a1111"
    prompt_2: Annotated[str | None, Setting(
        "The prompt of the second text encoder.", XL, unset="the prompt")] = None
    negative_prompt_2: Annotated[str | None, Setting(
        "The negative prompt of the second text encoder.", XL, unset="the negative prompt")] = None
    original_size: Annotated[tuple[int, int] | None, Setting(
        "Height and width that the picture might have had before it was scaled: small ones look blurred.", XL, 0,
        LARGEST_SIZE, unset="the picture's")] = None
    crops_coords_top_left: Annotated[tuple[int, int], Setting(
        "Top and left of a crop that the picture might be; 0 0 is centred.", XL, 0, LARGEST_SIZE)] = (0, 0)
    target_size: Annotated[tuple[int, int] | None, Setting(
        "Height and width that the picture is meant to have.", XL, 0, LARGEST_SIZE, unset="the picture's")] = None
    negative_original_size: Annotated[tuple[int, int] | None, Setting(
        "The original size to stay away from.", XL, 0, LARGEST_SIZE, unset="as original_size")] = None
    negative_crops_coords_top_left: Annotated[tuple[int, int] | None, Setting(
        "The crop to stay away from.", XL, 0, LARGEST_SIZE, unset="as crops_coords_top_left")] = None
    negative_target_size: Annotated[tuple[int, int] | None, Setting(
        "The target size to stay away from.", XL, 0, LARGEST_SIZE, unset="as target_size")] = None
    aesthetic_score: Annotated[float, Setting(
        "How pleasing the picture is to be, of the refiner: from 1 to 10.", XL, 0, 10)] = 6.0
    negative_aesthetic_score: Annotated[float, Setting(
        "The score to stay away from, of the refiner.", XL, 0, 10)] = 2.5
    subseed: Annotated[int, Setting(
        "The seed of a variation, whose noise is mixed in.", NOISE, 0, LAST_SEED, infotext="Variation seed",
        needs="subseed_strength")] = 0
    subseed_strength: Annotated[float, Setting(
        "How far the noise is on its way from the seed's to the subseed's.", NOISE, 0, 1,
        infotext="Variation seed strength")] = 0.0
    eta_noise_seed_delta: Annotated[int, Setting(
        "Added to the seed of the noise on the way (ENSD).", NOISE, 0, 2**31 - 1, infotext="ENSD")] = 0
    rng: Annotated[str, Setting(
        "Whose noise: torch is diffusers' on a CPU, philox a CUDA device's.", NOISE, choices=RNGS, infotext="RNG",
        alike=True)] = "jax"
    # fmt: on

    def __post_init__(self) -> None:
        for setting in SETTINGS.values():
            setting.check(getattr(self, setting.name))
        if self.mask_image is not None and not hasattr(self.image, "getbbox"):  # which latents have not
            raise InputError("a mask_image says what to repaint of an image: give the image too, as a picture")
        if self.padding_mask_crop is not None and self.mask_image is None:
            raise InputError("padding_mask_crop is a border around a mask: give a mask_image")
        if (self.denoising_start or 0) >= (self.denoising_end or 1):
            raise InputError(f"denoising_start {self.denoising_start} must be below denoising_end {self.denoising_end}")
        if self.timesteps is not None and self.sigmas is not None:
            raise InputError("timesteps and sigmas are two ways to say the same levels: give one of them")
        if self.width and self.height:
            check_size(self.width, self.height, self.hires_scale)
        if self.prompt_syntax == "a1111":
            mentions_of(self.prompt)
        from sdjax import schedulers  # imports JAX, which `--help` does without

        schedulers.create("ddim" if self.sampler is None else self.sampler, self.spacing)

    def uses(self, setting: Setting, *there: str) -> bool:
        """Whether a setting has an effect on this picture; `there` is what else there is, such as UPSCALE."""
        needed = SETTINGS.get(setting.needs)
        return not setting.needs or setting.needs in there or (
            needed is not None and needed.is_set(getattr(self, needed.name))
        )


def check_size(width: int, height: int, hires_scale: float | None) -> None:
    """Raises InputError for a picture of too many pixels, in its second pass where it has one."""
    pixels = int(width * height * (hires_scale or 1) ** 2)
    if pixels > PIXELS:
        larger = f", {hires_scale} times as large," if hires_scale else ""
        raise InputError(f"{width} x {height} pixels{larger} are too many: {PIXELS:,} are the most")


def _settings() -> dict[str, Setting]:
    hints, found = get_type_hints(Picture, include_extras=True), {}
    for field in fields(Picture):
        annotation, setting = get_args(hints[field.name])
        default = "" if field.name == "prompt" else field.default
        kind = kind_of(annotation, setting.choices)
        found[field.name] = replace(setting, name=field.name, kind=kind, default=default)
    return found


SETTINGS: Mapping[str, Setting] = _settings()
SHORT = {setting.short: name for name, setting in SETTINGS.items() if setting.short}


def json_schema() -> dict[str, Any]:
    """A JSON Schema of the settings of a picture."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {name: setting.schema() for name, setting in SETTINGS.items()},
        "required": ["prompt"],
        "additionalProperties": False,
    }
