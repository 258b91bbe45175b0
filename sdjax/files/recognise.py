"""What a file of tensors is, inferred from the names in it."""

import re
from collections.abc import Collection, Mapping, Sequence

SINGLE_FILE = "a Stable Diffusion checkpoint in the original layout"
VAE = "a VAE in the original layout"
TINY_VAE = "a tiny VAE (TAESD)"

# The first that any name begins with counts.
SIGNS = (
    ("a checkpoint of Stable Diffusion 3", r"(model\.diffusion_model\.)?joint_blocks\."),
    ("a checkpoint of Flux", r"(model\.diffusion_model\.)?double_blocks\."),
    ("a ControlNet", r"control_model\.|controlnet_(cond_embedding|down_blocks)\.|input_hint_block\."),
    ("a LoRA in kohya's format", r"lora_(unet|te\d?)_"),
    ("a LoRA in diffusers' format", r".*(\.lora[._](A|B|down|up)\.|_lora\.(down|up)\.)"),
    ("a textual inversion embedding", r"emb_params$|string_to_param|clip_[lg]$|<.*>$"),
    ("a Stable Diffusion unCLIP checkpoint", r"noise_augmentor\.|embedder\.model\.visual\."),
    ("a latent diffusion model with a BERT text encoder", r"cond_stage_model\.transformer\.(token_emb|attn_layers)\."),
    (SINGLE_FILE, r"model\.diffusion_model\.input_blocks\.0\.0\.weight$"),
    (VAE, r"(first_stage_model\.)?decoder\.up\.\d+\.block\."),
    (TINY_VAE, r"((encoder|decoder)\.layers\.)?\d+\.conv\.0\.weight$"),
    ("the UNet of a diffusers directory", r"down_blocks\.\d+\.resnets\..*time_emb_proj"),
    ("the VAE of a diffusers directory", r"decoder\.up_blocks\."),
    ("the text encoder of a diffusers directory", r"(text_model\.)?encoder\.layers\.\d+\.self_attn"),
)


def describe(names: Collection[str]) -> str:
    """What these tensors are, in words: "a Stable Diffusion XL checkpoint"."""
    return next(
        (what for what, sign in SIGNS if any(re.match(sign, name) for name in names)), "nothing that sdjax knows"
    )


# By how many features of a prompt the UNet's cross-attention reads.
FAMILIES = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "the refiner of Stable Diffusion XL",
    2048: "Stable Diffusion XL",
}
CROSS_ATTENTION = re.compile(
    r"attn2[._](processor[._])?to_k(_lora)?[._]((lora(_linear_layer)?[._])?(down|A)[._])?weight$"
)


def family(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """The models that tensors belong to, or are made for, by the features that their cross-attention reads."""
    widths = (shape[1] for name, shape in shapes.items() if len(shape) > 1 and CROSS_ATTENTION.search(name))
    return FAMILIES.get(next(widths, 0))
