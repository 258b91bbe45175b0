"""What preparing pictures needs to know of a model, read off its files once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdjax import schedulers
from sdjax.adapters.lora_folder import LoraFolder
from sdjax.files.checkpoint import Model
from sdjax.models import UNetConfig
from sdjax.pipeline.few_steps import name_of, recognised
from sdjax.pipeline.hints import NetOpener
from sdjax.pipeline.tasks import Task, task_of
from sdjax.prompts import Reader, load_tokenizer
from sdjax.schedulers import NoiseSchedule, Scheduler
from sdjax.upscaling import UpscalerFolder

XL_GUIDANCE = 5.0  # as diffusers has it


@dataclass(frozen=True, eq=False)
class Facts:
    """What preparing pictures needs to know of a model.

    unet: its configuration. low_res: the noise schedule of an upscaling model's small pictures.
    defaults: settings that suit the model. family: of distilled models, what it is taken for, else "".
    factor: pixels to a latent. channels: of the latents. native: the side that the UNet was trained at, in pixels, 0
        where it does not say. layers: of the text encoders that may be left out. readers: how they read prompts.
    loras, upscalers: those that prompts and the second pass may name.
    refiner: of the model that takes over, if there is one. open_net: opens nets that conditions name.
    time_ids: how many sizes the UNet reads, 0 for models that are no Stable Diffusion XL. zeros_for_none: whether no
    negative prompt is zeros, and not an empty text. embeds_guidance: whether the UNet reads the guidance scale.
    attentions: the names of its layers with self-attention. watched: blocks of the one in the middle.
    scaling: what the VAE's latents are multiplied by. plans: the folder of its tuned plans.
    """

    task: Task
    unet: UNetConfig
    scheduler: Scheduler
    low_res: NoiseSchedule | None
    defaults: Mapping[str, Any]
    family: str
    factor: int
    channels: int
    native: int
    layers: int
    readers: tuple[Reader, ...]
    loras: LoraFolder | None
    refiner: "Facts | None"
    open_net: NetOpener | None
    time_ids: int
    zeros_for_none: bool
    embeds_guidance: bool
    attentions: tuple[str, ...]
    scaling: float
    plans: Path
    watched: int
    upscalers: UpscalerFolder | None = None

    @classmethod
    def of(cls, model: Model, loras: Sequence[str] = ()) -> "Facts":
        """Read off an opened model, and the names of the LoRAs that are added to it."""
        unet, vae = model.unet.module.config, model.vae.module.config
        encoders = [component.module.config for component in model.text_encoders.values()]
        name = name_of(str(model.index["sdjax"].get("source", "")))
        added = recognised(reversed(loras), {}, False)  # what is added decides, else the model itself
        known = added if added.title else recognised([name], model.scheduler_config, unet.embeds_guidance)
        own = ({"guidance_scale": XL_GUIDANCE} if unet.is_xl else {}) | model.defaults
        side = known.settings.pop("side", (unet.sample_size or 0) * vae.factor)
        return cls(
            task=task_of(unet, vae, bool(encoders)),
            unet=unet,
            scheduler=schedulers.from_config(model.scheduler_config | known.scheduler),
            low_res=schedulers.from_config(model.low_res_config).noise if model.low_res_config else None,
            defaults=own | known.settings | ({} if added.title else model.defaults),
            family=known.title,
            factor=vae.factor,
            channels=vae.latent_channels,
            native=side,
            layers=min((config.num_hidden_layers for config in encoders), default=1) - unet.is_xl,
            readers=tuple(
                Reader(load_tokenizer(path, config.max_position_embeddings), {})
                for path, config in zip(model.tokenizers, encoders)
            ),
            loras=None,
            refiner=None,
            open_net=None,
            time_ids=unet.time_ids(encoders[-1].projection_dim) if unet.is_xl else 0,
            zeros_for_none=unet.is_xl and bool(model.index.get("force_zeros_for_empty_prompt", False)),
            embeds_guidance=unet.embeds_guidance,
            attentions=tuple(unet.attentions),
            scaling=vae.scaling_factor,
            plans=model.path / "plans",
            watched=sum(level.transformer_layers for name, level in unet.attentions.items() if "mid_block" in name),
        )
