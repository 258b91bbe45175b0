"""Guidance by gradients against a plain loop over PyTorch's modules with autograd: same networks, prompts and noise."""

import diffusers
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from test_conditions import LATENTS, NEGATIVE, PROMPTS, STEPS, UNET, components_in, to_torch, unet_of
from test_images import compare, drawn_mask, quiet
from test_studies import random_clip
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import sdjax
from sdjax.pipeline import JudgeNet
from sdjax.sight.processor import MEAN, STD

TARGET = np.array([0.5, -1.0, 2.0], np.float32)


class Likeness(nn.Module):
    """How like a target what is seen is, by the means of a smooth function of it and of the time."""

    @nn.compact
    def score(self, seen, timesteps, target):
        features = nn.Dense(3, name="mix")(jnp.tanh(seen)).mean((1, 2)) * jnp.cos(timesteps / 1000)[:, None]
        return -jnp.sum((features - target) ** 2, -1)


def likeness(seen, time, target, kernel, bias):
    """The same of PyTorch's, of seen [batch, channels, height, width]."""
    features = (torch.tanh(seen).permute(0, 2, 3, 1) @ kernel + bias).mean((1, 2)) * torch.cos(time / 1000)
    return -((features - target) ** 2).sum()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("judged")
        theirs = diffusers.StableDiffusionPipeline(
            **components_in(folder) | {"unet": unet_of(UNET)}, requires_safety_checker=False
        )
        quiet(theirs).save_pretrained(folder / "model")
        yield theirs, sdjax.load(folder / "model", dtype="float32")


OURS = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np",
        "sampler": "ddim", "latents": LATENTS}  # fmt: skip


def drawn_by_theirs(theirs, score, scale, sees="picture", climbs=0, recurrence=1, noise=None):
    """DDIM and guidance in a plain loop, where a score of what is seen, and of the time, pulls in the first 8 steps."""
    scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        texts, none = theirs.encode_prompt(PROMPTS, "cpu", 1, True, [NEGATIVE] * 2)
    x, factor = to_torch(LATENTS), theirs.vae.config.scaling_factor
    levels = [*scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod]

    def shown(estimate):
        return theirs.vae.decode(estimate / factor).sample if sees == "picture" else estimate

    for i, time in enumerate(scheduler.timesteps):
        alpha, later, counts = levels[i], levels[i + 1], scale * (i < 8)
        for again in range(recurrence):
            x = x.detach().requires_grad_()
            outputs = [theirs.unet(x, time, context).sample for context in (none, texts)]
            found = outputs[0] + 3.0 * (outputs[1] - outputs[0])
            estimate = (x - (1 - alpha) ** 0.5 * found) / alpha**0.5
            if climbs:
                found, end = found.detach(), estimate.detach()
                for _ in range(climbs):
                    end = end.detach().requires_grad_()
                    end = end + counts * torch.autograd.grad(score(shown(end), time), end)[0]
                found = found - (alpha / (1 - alpha)) ** 0.5 * (end - estimate).detach()
            else:
                (gradient,) = torch.autograd.grad(score(x if sees == "noisy" else shown(estimate), time), x)
                found = found.detach() - counts * (1 - alpha) ** 0.5 * gradient
            x = scheduler.step(found, time, x.detach()).prev_sample
            if again < recurrence - 1:
                x = (alpha / later) ** 0.5 * x + (1 - alpha / later) ** 0.5 * noise(x)
    with torch.no_grad():
        drawn = theirs.vae.decode(x / factor).sample
    return (drawn / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def compare_judged(name, ours, wish, expected, **more):
    got, plain = (ours(PROMPTS, **OURS, **more, conditions=each).images for each in ([wish], []))
    compare(f"judge, {name}", got, expected)
    assert np.abs(got - plain).mean() > 0.002  # the wish matters
    assert np.abs(got - expected).max() <= 1e-4


WAYS = {
    "noisy": ({"sees": "noisy"}, 30.0),
    "estimate": ({"sees": "estimate"}, 40.0),
    "picture": ({"sees": "picture"}, 200.0),
    "climbing, estimate": ({"sees": "estimate", "climbs": 5}, 12.0),
    "climbing, picture": ({"sees": "picture", "climbs": 3}, 300.0),
}


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_whole_pictures(both, way):
    theirs, ours = both
    how, scale = WAYS[way]
    channels = 3 if how["sees"] == "picture" else 4
    random = np.random.default_rng(1)
    kernel, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((channels, 3), (3,)))
    judge = JudgeNet("likeness", Likeness(), {"mix": {"kernel": kernel, "bias": bias}}, **how)
    arrays = [torch.from_numpy(each) for each in (TARGET, kernel, bias)]
    expected = drawn_by_theirs(theirs, lambda seen, time: likeness(seen, time, *arrays), scale, **how)
    compare_judged(way, ours, judge(TARGET, scale=scale, end=0.8), expected)


@pytest.mark.long
def test_steps_taken_again(both):
    """With a judge; what is drawn on the way are the numbers of PyTorch's generators, as many as ours needs."""
    theirs, ours = both
    kernel, bias = np.eye(4, 3, dtype=np.float32), np.zeros(3, np.float32)
    judge = JudgeNet("likeness", Likeness(), {"mix": {"kernel": kernel, "bias": bias}}, "estimate")
    arrays = [torch.from_numpy(each) for each in (TARGET, kernel, bias)]
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]

    def noise(x):
        return torch.stack([torch.randn(x.shape[1:], generator=each) for each in generators])

    expected = drawn_by_theirs(
        theirs, lambda seen, time: likeness(seen, time, *arrays), 40.0, "estimate", recurrence=3, noise=noise
    )
    wish = judge(TARGET, scale=40.0, end=0.8)
    compare_judged("recurrence", ours, wish, expected, recurrence=3, rng="torch", seed=[5, 6])


@pytest.mark.long
@pytest.mark.parametrize(("by", "scale"), [("text", 60.0), ("picture", 900.0)])
def test_clip(both, by, scale, tmp_path):
    theirs, ours = both
    tokenizer = theirs.tokenizer
    tokenizer.save_pretrained(tmp_path)
    text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    clip = random_clip(text, {"image_size": 40, "patch_size": 8}, 24)
    clip.save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}).save_pretrained(tmp_path)
    judge = sdjax.load_condition(tmp_path)
    wanted = "a red heart" if by == "text" else drawn_mask(64).convert("RGB")
    (point,) = [torch.from_numpy(judge(wanted).array)]
    if by == "text":
        ids = tokenizer(wanted, return_tensors="pt", padding="max_length", max_length=77)
        with torch.no_grad():
            own = clip.get_text_features(**ids).pooler_output[0]
        np.testing.assert_allclose(point, own / own.norm(), atol=1e-5)

    def score(seen, time):
        pixels = torch.nn.functional.interpolate(seen, (40, 40), mode="bilinear", antialias=True) / 2 + 0.5
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
        found = clip.visual_projection(clip.vision_model((pixels - mean) / std).pooler_output)
        unit = torch.nn.functional.normalize(found, dim=-1)
        return -2 * ((unit - point).norm(dim=-1) / 2).arcsin().pow(2).sum()

    expected = drawn_by_theirs(theirs, score, scale)
    compare_judged(f"CLIP, {by}", ours, judge(wanted, scale=scale, end=0.8), expected)


@pytest.mark.long
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_away_from_what_is_blurred_where_the_model_looks(both, guidance):
    """SAG, with and without the unconditional half."""
    theirs, ours = both
    pipe = quiet(diffusers.StableDiffusionSAGPipeline(**theirs.components))
    how = {"num_inference_steps": STEPS, "guidance_scale": guidance, "sag_scale": 0.9, "output_type": "np"}
    expected = pipe(
        PROMPTS, negative_prompt=[NEGATIVE] * 2, height=32, width=32, latents=to_torch(LATENTS), **how
    ).images
    ours_too = {"negative_prompt": NEGATIVE, "sampler": "ddim", "latents": LATENTS}
    got, plain = (ours(PROMPTS, **ours_too, **how | {"sag_scale": scale}).images for scale in (0.9, 0.0))
    compare(f"SAG, guidance {guidance:g}", got, expected)
    assert np.abs(got - plain).mean() > 0.002
