"""The networks against PyTorch: same weights, same inputs, float32, relative error at most 1e-5.

PyTorch's own initialisation leaves biases at zero and norms at one, which would hide a swapped pair of them; here
every parameter is random. The measured errors are listed at the end of the run.
"""

import json
from collections.abc import Callable, Iterator

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers

from benchmarks.full_size import PYTORCH, WEIGHTS, write_unet
from benchmarks.processes import run_python
from sdjax.convert import fill
from sdjax.models import abstract_params, build
from sdjax.models.unet_encoder import Added

TOLERANCE = 1e-5

MIRRORED = {"CrossAttnDownBlock2D": "CrossAttnUpBlock2D", "DownBlock2D": "UpBlock2D"}


@pytest.fixture(scope="module")
def report(request) -> Iterator[Callable[[str, float], None]]:
    """Asserts that an error is small enough, and lists all of them when the module is done."""
    errors = {}

    def check(name: str, error: float) -> None:
        errors[name] = error
        assert error <= TOLERANCE

    yield check
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\nrelative errors against PyTorch, float32")
        for name, error in errors.items():
            print(f"{error:10.1e}  {name}")


def relative_error(ours: jax.Array, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Fills every parameter with noise, scaled so that activations keep their size."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(generator=generator)
        if parameter.ndim == 1:
            parameter.data.mul_(0.3).add_(float(name.endswith("weight")))  # a norm's scale, or a bias
        elif not name.endswith("embedding.weight"):
            parameter.data.div_(parameter[0].numel() ** 0.5)
    return model.eval()


def pair(class_name: str, config: dict, seed: int = 0):
    """The module, its parameters and the PyTorch model of which they are copies."""
    if class_name.startswith("CLIPTextModel"):
        theirs = getattr(transformers, class_name)(transformers.CLIPTextConfig(**config))
    else:
        theirs = getattr(diffusers, class_name).from_config(config)
    theirs = randomise(theirs, seed)
    module = build(class_name, config)
    params = fill(abstract_params(module), {name: value.numpy() for name, value in theirs.state_dict().items()})
    return module, params, theirs


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.numpy().transpose(0, 2, 3, 1)


def unet_error(config: dict, size: tuple[int, int], batch: int = 2, seed: int = 0) -> float:
    module, params, theirs = pair("UNet2DConditionModel", config, seed)
    random = np.random.default_rng(seed)
    sample = random.standard_normal((batch, *size, module.config.in_channels), np.float32)
    context = random.standard_normal((batch, 77, module.config.cross_attention_dim), np.float32)
    timesteps = random.uniform(0, 1000, batch).astype(np.float32)
    labels = None
    if module.config.has_class_embedding:
        labels = random.integers(0, module.config.num_class_embeds or 1000, batch)
    added, their_added = None, None
    if module.config.is_xl:
        pooled = random.standard_normal((batch, config["projection_class_embeddings_input_dim"] - 6 * 8), np.float32)
        time_ids = random.uniform(0, 1024, (batch, 6)).astype(np.float32)
        added = Added(pooled, time_ids)
        their_added = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(time_ids)}
    guidance, condition = None, None
    if (width := module.config.time_cond_proj_dim) is not None:
        guidance = random.uniform(1, 12, batch).astype(np.float32)
        pipe = diffusers.LatentConsistencyModelPipeline
        condition = pipe.get_guidance_scale_embedding(None, torch.from_numpy(guidance - 1), embedding_dim=width)
    with torch.no_grad():
        expected = theirs(
            nchw(sample),
            torch.from_numpy(timesteps),
            torch.from_numpy(context),
            class_labels=None if labels is None else torch.from_numpy(labels),
            timestep_cond=condition,
            added_cond_kwargs=their_added,
        ).sample
    inputs = (sample, timesteps, context, labels, added, guidance)
    return relative_error(jax.jit(module.apply)({"params": params}, *inputs), nhwc(expected))


def vae_errors(config: dict, size: tuple[int, int], batch: int = 2, seed: int = 0) -> dict[str, float]:
    """`size` is that of the latents."""
    module, params, theirs = pair("AutoencoderKL", config, seed)
    random = np.random.default_rng(seed)
    latents = random.standard_normal((batch, *size, module.config.latent_channels), np.float32)
    images = random.uniform(-1, 1, (batch, *(module.config.factor * side for side in size), 3)).astype(np.float32)
    with torch.no_grad():
        posterior = theirs.encode(nchw(images)).latent_dist
        expected = theirs.decode(nchw(latents)).sample
    mean, logvar = jax.jit(lambda p, x: module.apply({"params": p}, x, method="encode"))(params, images)
    decoded = jax.jit(lambda p, x: module.apply({"params": p}, x, method="decode"))(params, latents)
    return {
        "mean": relative_error(mean, nhwc(posterior.mean)),
        "logvar": relative_error(logvar, nhwc(posterior.logvar)),
        "decoded": relative_error(decoded, nhwc(expected)),
    }


def clip_error(config: dict, tokens: int, batch: int = 2, seed: int = 0) -> float:
    module, params, theirs = pair("CLIPTextModel", config, seed)
    ids = np.random.default_rng(seed).integers(0, module.config.vocab_size, (batch, tokens))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).last_hidden_state
    return relative_error(jax.jit(module.apply)({"params": params}, ids).context, expected.numpy())


def unet_config(down: str, channels: tuple[int, ...], **rest) -> dict:
    """`down` has one letter for each level: A with attention, - without. The way up mirrors it."""
    blocks = ["CrossAttnDownBlock2D" if letter == "A" else "DownBlock2D" for letter in down]
    config = {
        "down_block_types": blocks,
        "up_block_types": [MIRRORED[block] for block in reversed(blocks)],
        "block_out_channels": list(channels),
        "layers_per_block": 2,
        "attention_head_dim": 4,
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
    }
    return {**config, **rest}


SD1 = unet_config("AAA-", (16, 32, 64, 64))
SD2 = {**SD1, "attention_head_dim": [2, 4, 8, 8], "use_linear_projection": True, "upcast_attention": True}
UPSCALER = unet_config(
    "-AAA",
    (16, 32, 32, 64),
    in_channels=7,
    num_class_embeds=1000,
    only_cross_attention=[True, True, True, False],
    use_linear_projection=True,
)

XL = unet_config(
    "-AA",
    (16, 32, 64),
    attention_head_dim=[2, 4, 8],
    transformer_layers_per_block=[1, 2, 4],
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=20 + 6 * 8,
)
REFINER = {
    **XL,
    **unet_config("-AA-", (16, 32, 48, 48), attention_head_dim=[2, 4, 6, 6], transformer_layers_per_block=3),
}

UNETS = {
    "SDXL": (XL, (16, 16)),
    "SDXL, odd size": (XL, (13, 9)),
    "SDXL, inpainting": ({**XL, "in_channels": 9}, (8, 16)),
    "SDXL, the guidance scale embedded": ({**XL, "time_cond_proj_dim": 12}, (8, 8)),
    "SDXL, other sinusoids": ({**XL, "flip_sin_to_cos": False, "freq_shift": 1}, (8, 8)),
    "SDXL, convolutions as projections": ({**XL, "use_linear_projection": False}, (8, 8)),
    "SDXL refiner": (REFINER, (16, 8)),
    "SDXL refiner, odd size": (REFINER, (9, 17)),
    "SD 1, the guidance scale embedded (LCM)": ({**SD1, "time_cond_proj_dim": 32}, (8, 8)),
    "SD 1": (SD1, (16, 16)),
    "SD 1, odd size": (SD1, (13, 21)),
    "SD 1, inpainting": ({**SD1, "in_channels": 9}, (16, 8)),
    "SD 2": (SD2, (16, 16)),
    "SD 2, inpainting": ({**SD2, "in_channels": 9}, (8, 16)),
    "SD 2, depth": ({**SD2, "in_channels": 5}, (24, 16)),
    "x4 upscaler": (UPSCALER, (16, 24)),
    "class embedding of a noise level": ({**SD2, "class_embed_type": "timestep"}, (8, 8)),
    "two levels, one layer": (unet_config("A-", (16, 32), layers_per_block=1), (8, 8)),
    "three levels, three layers": (unet_config("AA-", (16, 24, 40), layers_per_block=3), (8, 12)),
    "layers by level": (unet_config("AAA", (16, 32, 48), layers_per_block=[1, 3, 2]), (8, 8)),
    "transformer layers by level": (
        unet_config("-AA", (16, 32, 48), transformer_layers_per_block=[1, 2, 3], use_linear_projection=True),
        (8, 8),
    ),
    "one level": (unet_config("A", (16,)), (9, 5)),
    "no attention but in the middle": (unet_config("---", (16, 24, 32)), (12, 12)),
    "only cross-attention, middle included": (unet_config("A-", (16, 32), only_cross_attention=True), (8, 8)),
    "attention on the way up only": (unet_config("-A", (16, 32), up_block_types=["CrossAttnUpBlock2D"] * 2), (8, 8)),
    "other sinusoids": (unet_config("A-", (16, 32), flip_sin_to_cos=False, freq_shift=1), (8, 8)),
    "other norms": (unet_config("A-", (12, 36), norm_num_groups=4, norm_eps=1e-3, attention_head_dim=3), (8, 8)),
    "more queries than one chunk": (unet_config("A", (16,)), (40, 37)),
    "wide enough for Winograd's convolution": (unet_config("A-", (64, 96), layers_per_block=1), (29, 32)),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", UNETS)
def test_unet(name, report):
    config, size = UNETS[name]
    report(f"UNet: {name}", unet_error(config, size))


def vae_config(channels: tuple[int, ...], **rest) -> dict:
    config = {
        "block_out_channels": list(channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "layers_per_block": 2,
        "norm_num_groups": 4,
    }
    return {**config, **rest}


VAES = {
    "SD": (vae_config((8, 16, 32, 32)), (8, 8)),
    "SD, not square": (vae_config((8, 16, 32, 32)), (5, 7)),
    "x4 upscaler": (vae_config((8, 16, 32), scaling_factor=0.08333), (8, 8)),
    "one level": (vae_config((16,)), (12, 10)),
    "two levels": (vae_config((8, 24)), (9, 8)),
    "five levels": (vae_config((8, 8, 16, 16, 24)), (3, 4)),
    "one layer": (vae_config((8, 16), layers_per_block=1), (8, 8)),
    "three layers": (vae_config((8, 16), layers_per_block=3), (8, 8)),
    "sixteen latent channels": (vae_config((8, 16), latent_channels=16), (8, 8)),
    "no quant_conv": (vae_config((8, 16), use_quant_conv=False, use_post_quant_conv=False), (8, 8)),
    "no attention in the middle": (vae_config((8, 16), mid_block_add_attention=False), (8, 8)),
    "eight groups": (vae_config((16, 32, 32), norm_num_groups=8), (8, 8)),
    "more queries than one chunk": (vae_config((8, 16)), (40, 37)),
    "wide enough for Winograd's convolution": (vae_config((64, 80), norm_num_groups=8), (17, 18)),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", VAES)
def test_vae(name, report):
    config, size = VAES[name]
    for part, error in vae_errors(config, size).items():
        report(f"VAE: {name}, {part}", error)


def tiny_errors(config: dict, size: tuple[int, int], batch: int = 2, seed: int = 0) -> dict[str, float]:
    """`size` is that of the latents."""
    module, params, theirs = pair("AutoencoderTiny", config, seed)
    random = np.random.default_rng(seed)
    latents = 3 * random.standard_normal((batch, *size, module.config.latent_channels), np.float32)
    images = random.uniform(-1, 1, (batch, *(module.config.factor * side for side in size), 3)).astype(np.float32)
    with torch.no_grad():
        encoded, decoded = theirs.encode(nchw(images)).latents, theirs.decode(nchw(latents)).sample
    ours, _ = jax.jit(lambda p, x: module.apply({"params": p}, x, method="encode"))(params, images)
    return {
        "encoded": relative_error(ours, nhwc(encoded)),
        "decoded": relative_error(
            jax.jit(lambda p, x: module.apply({"params": p}, x, method="decode"))(params, latents), nhwc(decoded)
        ),
    }


TINY_VAES = {
    "TAESD": ({}, (8, 8)),
    "not square": ({}, (5, 7)),
    "sixteen latent channels": ({"latent_channels": 16}, (4, 6)),
    "other widths": (
        {"encoder_block_out_channels": [24, 24, 24, 24], "decoder_block_out_channels": [40, 40, 40, 40]},
        (6, 4),
    ),
    "two levels, two blocks": (
        {
            "encoder_block_out_channels": [32, 32],
            "decoder_block_out_channels": [32, 32],
            "num_encoder_blocks": [2, 2],
            "num_decoder_blocks": [2, 1],
        },
        (9, 20),
    ),
    "one level": (
        {
            "encoder_block_out_channels": [16],
            "decoder_block_out_channels": [16],
            "num_encoder_blocks": [3],
            "num_decoder_blocks": [1],
        },
        (11, 30),
    ),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", TINY_VAES)
def test_tiny_vae(name, report):
    config, size = TINY_VAES[name]
    for part, error in tiny_errors(config, size).items():
        report(f"tiny VAE: {name}, {part}", error)


def clip_config(hidden_size: int, layers: int, heads: int, **rest) -> dict:
    config = {
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": 100,
    }
    return {**config, **rest}


CLIPS = {
    "SD 1": (clip_config(48, 3, 4), 77),
    "SD 1, two layers": (clip_config(48, 2, 4), 77),
    "SD 2": (clip_config(64, 4, 8, hidden_act="gelu"), 77),
    "SD 2, one layer": (clip_config(64, 1, 8, hidden_act="gelu"), 77),
    "one head": (clip_config(32, 2, 1), 77),
    "sixteen heads": (clip_config(64, 2, 16), 77),
    "one token": (clip_config(48, 2, 4), 1),
    "few tokens": (clip_config(48, 2, 4, hidden_act="gelu"), 13),
    "a long context": (clip_config(32, 2, 4, max_position_embeddings=256), 256),
    "a narrow middle": (clip_config(48, 2, 4, intermediate_size=20), 77),
    "another epsilon": (clip_config(48, 2, 4, layer_norm_eps=1e-3), 77),
    "six layers": (clip_config(24, 6, 3), 77),
}


PIXEL_UNETS = {
    "two levels, attention in the second": {},
    "heads of 4, not square, no attention in the middle": {
        "attention_head_dim": 4,
        "add_attention": False,
        "size": (8, 6),
    },
    "of the DDPM paper: padding after, one head, sines first": {
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
}


@pytest.mark.parametrize("name", PIXEL_UNETS)
def test_unet_of_pixels(name, report):
    changes = dict(PIXEL_UNETS[name])
    size = changes.pop("size", (8, 8))
    config = {
        "block_out_channels": [16, 32],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
    } | changes
    module, params, theirs = pair("UNet2DModel", config)
    random = np.random.default_rng(0)
    sample = random.standard_normal((2, *size, 3), np.float32)
    timesteps = np.array([3, 700], np.float32)
    with torch.no_grad():
        expected = theirs(nchw(sample), torch.from_numpy(timesteps)).sample
    ours = jax.jit(module.apply)({"params": params}, sample, timesteps)
    report(f"UNet of pixels, {name}", relative_error(ours, nhwc(expected)))


@pytest.mark.few(5)
@pytest.mark.parametrize("name", CLIPS)
def test_clip(name, report):
    config, tokens = CLIPS[name]
    report(f"CLIP: {name}", clip_error(config, tokens))


@pytest.mark.full_size
@pytest.mark.parametrize("repository", ["runwayml/stable-diffusion-v1-5", "stabilityai/stable-diffusion-2-1"])
class TestFullSize:
    """The published configurations, at the resolution they were trained for, with random weights."""

    def config(self, shared, repository: str, component: str) -> dict:
        return json.loads((shared / "reference" / "hub" / repository / component / "config.json").read_text())

    def test_unet(self, shared, repository, report):
        config = self.config(shared, repository, "unet")
        report(f"UNet: {repository}", unet_error(config, (config["sample_size"],) * 2, batch=1))

    def test_vae(self, shared, repository, report):
        config = self.config(shared, repository, "vae")
        for part, error in vae_errors(config, (config["sample_size"] // 8,) * 2, batch=1).items():
            report(f"VAE: {repository}, {part}", error)

    def test_clip(self, shared, repository, report):
        report(f"CLIP: {repository}", clip_error(self.config(shared, repository, "text_encoder"), 77))


@pytest.mark.full_size
def test_the_unet_of_sdxl(shared, tmp_path, report):
    """At 512 pixels. Each in a process of its own, one after the other: there is no room for both."""
    config = shared / "reference" / "hub" / "stabilityai" / "stable-diffusion-xl-base-1.0" / "unet" / "config.json"
    write_unet(config, tmp_path / WEIGHTS)
    for kind in (PYTORCH, "float32"):
        run_python("-m", "benchmarks.full_size", kind, config, tmp_path, "512", "1", "1")
    ours, theirs = (np.load(tmp_path / f"{kind}.npy") for kind in ("float32", PYTORCH))
    report("UNet: SDXL base", relative_error(ours, theirs))
