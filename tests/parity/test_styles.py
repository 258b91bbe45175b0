"""T2I-Adapter's style adapters against PyTorch: its authors' formulas, written anew, and networks of diffusers."""

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from test_conditions import HINTS, LATENTS, NEGATIVE, PROMPTS, STEPS, UNET, components_in, to_torch, unet_of
from test_images import compare, quiet
from test_models import SD1, nchw, nhwc, pair, randomise, relative_error
from test_sight import EXTRACT, VISION
from torch import nn

import sdjax
from sdjax.adapters.style_adapter import style_adapter_of
from sdjax.denoisers import unet_denoiser

TOLERANCE = 1e-5
HIDDEN, COUNT = VISION["hidden_size"], 3


class Layer(nn.Module):
    """CLIP's, with the names of its own files."""

    def __init__(self, width):
        super().__init__()
        self.attn, self.ln_1, self.ln_2 = nn.MultiheadAttention(width, 8), nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed)[0]
        inner = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](inner * torch.sigmoid(1.702 * inner))


class Style(nn.Module):
    """Learned tokens after those of a picture, through layers that see both; they alone are projected."""

    def __init__(self, width, context):
        super().__init__()
        self.transformer_layes = nn.ModuleList([Layer(width) for _ in range(2)])
        self.style_embedding = nn.Parameter(torch.randn(1, COUNT, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, context))

    def forward(self, hidden):
        x = torch.cat([hidden, self.style_embedding.repeat(len(hidden), 1, 1)], 1)
        x = self.ln_pre(x).transpose(0, 1)  # tokens first, as PyTorch's attention has them
        for layer in self.transformer_layes:
            x = layer(x)
        return self.ln_post(x.transpose(0, 1)[:, -COUNT:]) @ self.proj


def style_of(context):
    torch.manual_seed(0)
    return randomise(Style(HIDDEN, context), 6)


def tokens_of(hidden):
    """What PyTorch makes of what CLIP sees, and ours, of the same tensors."""
    style = style_of(24)
    adapter = style_adapter_of({name: value.numpy() for name, value in style.state_dict().items()}, "a file")
    with torch.no_grad():
        expected = style(torch.from_numpy(hidden))
    return expected, np.array(jax.jit(adapter.projection.apply)({"params": adapter.params}, hidden))


def test_tokens():
    expected, tokens = tokens_of(np.random.default_rng(1).standard_normal((2, 10, HIDDEN), np.float32))
    error = relative_error(tokens, expected.numpy())
    print(f"\ntokens of a style adapter: {error:.1e}")
    assert error <= TOLERANCE


@pytest.mark.long
def test_what_a_unet_makes_of_them():
    """Of a text that is there three times, as where a batch holds longer ones; and of the half without the style."""
    module, params, theirs = pair("UNet2DConditionModel", SD1)
    random = np.random.default_rng(1)
    expected, tokens = tokens_of(random.standard_normal((2, 10, HIDDEN), np.float32))
    sample = random.standard_normal((2, 8, 8, 4), np.float32)
    text = random.standard_normal((2, 7, 24), np.float32)
    other = np.array([False, True])
    own = {"context": np.tile(text, (1, 3, 1)), "repeats": np.full(2, 3.0), "style_is_other": other}
    own |= {"styles": (tokens, tokens), "style_weights": (np.full(2, 0.8), np.zeros(2))}
    shared = {"channels": sample[..., :0], "class_labels": None, "guidance": None}
    got = jax.jit(unet_denoiser(module, params))(sample, np.full(2, 500), own, shared)
    behind = torch.stack([expected[0] * 0.8, torch.from_numpy(text[1, -COUNT:])])
    with torch.no_grad():
        context = torch.cat([torch.from_numpy(text), behind], 1)
        wanted = theirs(nchw(sample), torch.tensor(500), context).sample
    error = relative_error(got, nhwc(wanted))
    print(f"\nprediction with a style: {error:.1e}")
    assert error <= TOLERANCE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """diffusers' pipeline and ours, PyTorch's tower and style, and where their files are."""
    folder = tmp_path_factory.mktemp("styles")
    theirs = diffusers.StableDiffusionPipeline(
        **components_in(folder) | {"unet": unet_of(UNET)}, requires_safety_checker=False
    )
    theirs.save_pretrained(folder / "model")
    tower = randomise(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION)), 3)
    tower.save_pretrained(folder / "image_encoder")
    style = style_of(24)
    save_file({f"adapter.{name}": value for name, value in style.state_dict().items()}, folder / "style.safetensors")
    torch.save(style.state_dict(), folder / "style.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDJAX_CACHE", str(folder / "cache"))
        yield quiet(theirs), sdjax.load(folder / "model", dtype="float32"), (tower, style), folder


WAYS = {
    "one": [{}],
    "weaker, in the first steps": [{"scale": 0.6, "end": 0.5}],
    "two": [{}, {"scale": 1.4, "start": 0.3}],
}


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_pictures_in_a_style(made, way):
    theirs, ours, networks, folder = made
    names = ("style.pth", "style.safetensors")
    nets = [sdjax.load_condition(folder / name) for name in names]
    hows = WAYS[way]
    conditions = [net(picture, **how) for net, picture, how in zip(nets, HINTS, hows)]
    how = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 3.0, "sampler": "ddim"}
    more = {"output_type": "np", "seed": 1, "latents": LATENTS[:1]}
    got = ours(PROMPTS[0], **how, **more, conditions=conditions).images
    compare(f"style adapter, {way}", got, drawn_by_theirs(theirs, networks, hows))
    assert np.abs(got - ours(PROMPTS[0], **how, **more).images).mean() > 0.002  # the style matters


def drawn_by_theirs(pipe, networks, hows):
    tower, style = networks
    with torch.no_grad():
        seen = [EXTRACT(picture, return_tensors="pt")["pixel_values"] for picture, _ in zip(HINTS, hows)]
        tokens = [style(tower(each).last_hidden_state) for each in seen]
        texts = pipe.encode_prompt(PROMPTS[0], "cpu", 1, True, NEGATIVE)[:2]
        pipe.scheduler.set_timesteps(STEPS)
        x = to_torch(LATENTS)[:1]
        for i, t in enumerate(pipe.scheduler.timesteps):
            positive, negative = texts
            for own, how in zip(tokens, hows):
                if i / STEPS >= how.get("start", 0) and (i + 1) / STEPS <= how.get("end", 1):
                    positive = torch.cat([positive, own * how.get("scale", 1)], 1)
                    negative = torch.cat([negative, texts[1][:, -COUNT:]], 1)
            told, free = (pipe.unet(x, t, encoder_hidden_states=each).sample for each in (positive, negative))
            x = pipe.scheduler.step(free + 3.0 * (told - free), t, x).prev_sample
        drawn = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    return (nhwc(drawn) / 2 + 0.5).clip(0, 1)
