"""The kinds of single files: what tells them, where their networks are, and what published models of a kind share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdjax.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

UNET = "model.diffusion_model."
VAE = "first_stage_model."


@dataclass(frozen=True)
class Encoder:
    """A text encoder of a single file: its component, and what its tensors' names begin with.

    is_open_clip: they have OpenCLIP's names, else those of transformers. projects: it has a projection.
    layers: how many are taken of those that are there; None for all.
    """

    component: str
    prefix: str
    is_open_clip: bool = False
    projects: bool = False
    layers: int | None = None


CLIP = Encoder("text_encoder", "cond_stage_model.transformer.")
# Stable Diffusion 2 takes what the last but one of 24 layers gives, and some files lack the last.
OPEN_CLIP = Encoder("text_encoder", "cond_stage_model.model.", is_open_clip=True, layers=23)
XL_CLIP = Encoder("text_encoder", "conditioner.embedders.0.transformer.")
XL_OPEN_CLIP = Encoder("text_encoder_2", "conditioner.embedders.1.model.", is_open_clip=True, projects=True)
REFINER_CLIP = Encoder("text_encoder_2", "conditioner.embedders.0.model.", is_open_clip=True, projects=True)

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
UPSCALER_BETAS = {"beta_start": 0.0001, "beta_end": 0.02}
LOW_RES_SCHEDULER = SCHEDULER | UPSCALER_BETAS | {"_class_name": "DDPMScheduler", "clip_sample": True}
XL_SCHEDULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "interpolation_type": "linear"}
# Of models that were trained with EDM's noise, Karras et al. (2022), arXiv:2206.00364, as Playground 2.5 was.
EDM_SCHEDULER = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "solver_order": 2,
    "solver_type": "midpoint",
}


@dataclass(frozen=True)
class Kind:
    """What a single file is.

    predicts: the first is taken where the file does not say. index: what model_index.json says besides its components.
    """

    title: str
    pipeline: str  # diffusers' class
    encoders: tuple[Encoder, ...]
    channels: int = 4  # that the UNet takes
    sample_size: int = 64
    predicts: tuple[str, ...] = ("epsilon",)
    scaling_factor: float = 0.18215
    index: tuple[tuple[str, Any], ...] = ()

    @property
    def is_xl(self) -> bool:
        """Whether it is a Stable Diffusion XL."""
        return self.encoders[-1].projects


PLAIN, INPAINT = "StableDiffusionPipeline", "StableDiffusionInpaintPipeline"
XL, XL_INPAINT = "StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline"
XL_FACTS: dict[str, Any] = {"sample_size": 128, "scaling_factor": 0.13025}
ZEROS, SCORED = (("force_zeros_for_empty_prompt", True),), (("requires_aesthetics_score", True),)

SD1 = Kind("Stable Diffusion 1.x", PLAIN, (CLIP,))
SD1_INPAINTING = Kind("Stable Diffusion 1.x for inpainting", INPAINT, (CLIP,), 9)
SD2 = Kind("Stable Diffusion 2.x", PLAIN, (OPEN_CLIP,), 4, 96, ("v_prediction", "epsilon"))
SD2_INPAINTING = Kind("Stable Diffusion 2.x for inpainting", INPAINT, (OPEN_CLIP,), 9)
SD2_DEPTH = Kind("Stable Diffusion 2.x with depth", "StableDiffusionDepth2ImgPipeline", (OPEN_CLIP,), 5, 32)
UPSCALER = Kind(
    "Stable Diffusion x4 upscaler",
    "StableDiffusionUpscalePipeline",
    (OPEN_CLIP,),
    7,
    128,
    ("v_prediction",),
    0.08333,
    (("max_noise_level", 350),),
)
SDXL = Kind("Stable Diffusion XL", XL, (XL_CLIP, XL_OPEN_CLIP), index=ZEROS, **XL_FACTS)
SDXL_INPAINTING = Kind("Stable Diffusion XL for inpainting", XL_INPAINT, SDXL.encoders, 9, index=ZEROS, **XL_FACTS)
REFINER = Kind(
    "the refiner of Stable Diffusion XL", "StableDiffusionXLImg2ImgPipeline", (REFINER_CLIP,), index=SCORED, **XL_FACTS
)
KINDS = (SD1, SD1_INPAINTING, SD2, SD2_INPAINTING, SD2_DEPTH, UPSCALER, SDXL, SDXL_INPAINTING, REFINER)


def kind_of(shapes: Shapes, where: str) -> Kind:
    """Which kind of Stable Diffusion a file with these tensors is. Raises CheckpointError where it is none of them."""

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in shapes)

    encoders = {encoder: has(encoder.prefix) for kind in KINDS for encoder in kind.encoders}
    if not any(encoders.values()):
        raise CheckpointError(f"{where} has no text encoder ({'…, '.join(encoder.prefix for encoder in encoders)}…)")
    if not has(VAE):
        raise CheckpointError(f"{where} has no autoencoder ({VAE}…)")
    found = tuple(encoder for encoder, is_there in encoders.items() if is_there)
    channels = shape_of(shapes, f"{UNET}input_blocks.0.0.weight", 4, where)[1]
    for kind in KINDS:
        if (kind.encoders, kind.channels) == (found, channels):
            return kind
    known = "; ".join(f"{kind.title}: {kind.channels}, {_listed(kind.encoders)}" for kind in KINDS)
    raise CheckpointError(
        f"{where}: no known model takes {channels} channels and the text encoders {_listed(found)}; known are {known}"
    )


def _listed(encoders: tuple[Encoder, ...]) -> str:
    return " and ".join(f"{encoder.prefix}…" for encoder in encoders)


def scheduler_config(kind: Kind, prediction_type: str, marks: Shapes) -> dict[str, Any]:
    """The scheduler_config.json that the published models of this kind have.

    marks: tensors of a file that say something by being there: "ztsnr" for zero terminal SNR, "edm_mean" for EDM.
    """
    if "edm_mean" in marks:
        return dict(EDM_SCHEDULER)
    config: dict[str, Any] = {**SCHEDULER, "prediction_type": prediction_type}
    if kind is UPSCALER:
        config |= UPSCALER_BETAS
    if kind.is_xl:
        config |= XL_SCHEDULER
    elif prediction_type == "v_prediction":
        config["_class_name"] = "DDIMScheduler"
    if "ztsnr" in marks:
        own = "EulerDiscreteScheduler" if kind.is_xl else "DDIMScheduler"
        config |= {"_class_name": own, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def shape_of(shapes: Shapes, name: str, rank: int, where: str) -> tuple[int, ...]:
    """The shape of a tensor. Raises CheckpointError where it is missing or has another number of dimensions."""
    if name not in shapes:
        raise CheckpointError(f"{where} lacks {name}")
    if len(shapes[name]) != rank:
        raise CheckpointError(f"{where}: {name} has shape {shapes[name]}, expected one of {rank} dimensions")
    return shapes[name]
