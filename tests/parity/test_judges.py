"""Guidance by gradients against a plain loop over PyTorch's modules with autograd: same networks, prompts and noise."""

import diffusers
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from test_conditions import LATENTS, NEGATIVE, PROMPTS, STEPS, UNET, components_in, to_torch, unet_of
from test_images import compare, quiet

import sdjax
from sdjax.pipeline import JudgeNet

SCALES, TARGET = {"noisy": 30.0, "estimate": 40.0, "picture": 200.0}, np.array([0.5, -1.0, 2.0], np.float32)


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


@pytest.mark.long
@pytest.mark.parametrize("sees", SCALES)
def test_whole_pictures(both, sees):
    theirs, ours = both
    channels = 3 if sees == "picture" else 4
    random = np.random.default_rng(1)
    kernel, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((channels, 3), (3,)))
    judge = JudgeNet("likeness", Likeness(), {"mix": {"kernel": kernel, "bias": bias}}, sees)
    scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        texts, none = theirs.encode_prompt(PROMPTS, "cpu", 1, True, [NEGATIVE] * 2)
    x = to_torch(LATENTS)
    arrays = [torch.from_numpy(each) for each in (TARGET, kernel, bias)]
    for i, time in enumerate(scheduler.timesteps):
        x = x.detach().requires_grad_()
        alpha = scheduler.alphas_cumprod[time]
        outputs = [theirs.unet(x, time, context).sample for context in (none, texts)]
        noise = outputs[0] + 3.0 * (outputs[1] - outputs[0])
        seen = x if sees == "noisy" else (x - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        if sees == "picture":
            seen = theirs.vae.decode(seen / theirs.vae.config.scaling_factor).sample
        (gradient,) = torch.autograd.grad(likeness(seen, time, *arrays), x)
        counts = SCALES[sees] * (i < 8)
        x = scheduler.step(noise.detach() - counts * (1 - alpha) ** 0.5 * gradient, time, x.detach()).prev_sample
    with torch.no_grad():
        expected = theirs.vae.decode(x / theirs.vae.config.scaling_factor).sample
    expected = (expected / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    how = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np",
           "sampler": "ddim", "latents": LATENTS}  # fmt: skip
    wish = judge(TARGET, scale=SCALES[sees], end=0.8)
    got, plain = (ours(PROMPTS, **how, conditions=each).images for each in ([wish], []))
    compare(f"judge, {sees}", got, expected)
    assert np.abs(got - plain).mean() > 0.002  # the wish matters
    assert np.abs(got - expected).max() <= 1e-4


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
