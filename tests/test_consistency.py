"""Distilling into few steps: the loss against the paper written out, and the command from pictures to a LoRA."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_training import PAINTING, write_pictures, write_tiny_model

import sdjax
from sdjax.cli import main
from sdjax.models.layers import Dense
from sdjax.schedulers import create
from sdjax.schedulers.noise import BETA_SCHEDULES, NoiseSchedule
from sdjax.training.consistency import Consistency
from sdjax.training.forward import ForwardProcess
from sdjax.training.losses import normal

ALPHAS = np.cumprod(1 - BETA_SCHEDULES["scaled_linear"](0.00085, 0.012, 1000))


class Encoder(nn.Module):
    """A context for each of two captions."""

    @nn.compact
    def __call__(self, ids):
        return Encoded(ids[:, :, None].astype(jnp.float32) / 10)


class Encoded:
    def __init__(self, context):
        self.context = context


class Linear(nn.Module):
    """Predicts something that depends on all that a UNet is given, through a layer that a LoRA can change."""

    @nn.compact
    def __call__(self, x, times, context):
        x = x * jnp.cos(times / 300)[:, None, None, None] + context.mean((1, 2))[:, None, None, None]
        return Dense(x.shape[-1], name="block_0")(x)


def plain_loss(kind, x0, noise, index, kernel, bias, change, contexts, guidance):
    """Algorithm 1 of arXiv:2310.04378 for one example, in float64."""
    later = 20 * (index + 1) - 1
    earlier = max(later - 20, 0)
    a, b = (np.sqrt(ALPHAS[t]) for t in (later, earlier))
    s, u = (np.sqrt(1 - ALPHAS[t]) for t in (later, earlier))

    def output(x, t, context, weight):
        return (x * np.cos(t / 300) + context) @ weight + bias

    def estimates(x, out, signal, spread):
        if kind == "epsilon":
            return (x - spread * out) / signal, out
        return signal * x - spread * out, signal * out + spread * x

    def student(x, t, signal, spread):
        x0_hat, _ = estimates(x, output(x, t, contexts[0], kernel + change), signal, spread)
        scaled = 10 * t
        return 0.25 / (scaled**2 + 0.25) * x + scaled / np.sqrt(scaled**2 + 0.25) * x0_hat

    sample = a * x0 + s * noise
    positive, negative = (output(sample, later, context, kernel) for context in contexts)
    x0_hat, noise_hat = estimates(sample, negative + guidance * (positive - negative), a, s)
    before = b * x0_hat + u * noise_hat
    error = (student(sample, later, a, s) - student(before, earlier, b, u)) ** 2
    return np.mean(np.sqrt(error + 1e-6) - 1e-3)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_loss_is_that_of_the_paper(kind, guidance):
    random = np.random.default_rng(0)
    batch, shape = 6, (3, 2, 4)
    process = ForwardProcess(NoiseSchedule.from_betas(BETA_SCHEDULES["scaled_linear"](0.00085, 0.012, 1000), kind))
    kernel, bias = random.standard_normal((4, 4)) / 2, random.standard_normal(4) / 10
    down, up = random.standard_normal((4, 2)) / 4, random.standard_normal((2, 4)) / 4
    frozen = {"unet": {"block_0": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}, "text_encoder": {}}
    factors = {"unet": {"block_0": {"down": jnp.float32(down), "up": jnp.float32(up)}}}
    mean = random.standard_normal((batch, *shape)).astype(np.float32)
    ids = np.array([[1, 2, 3]] * batch)
    keys = jax.random.split(jax.random.key(3), batch)
    loss = Consistency(Linear(), Encoder(), process, (0, 0, 0), guidance, 50)
    arrays = {"mean": mean, "deviation": np.zeros_like(mean), "ids": ids}
    got = jax.jit(loss)(factors, frozen, arrays, keys)["loss"]
    noise = np.asarray(normal(keys, "noise", shape))
    for k in range(batch):
        index = int(jax.random.randint(jax.random.fold_in(keys[k], 0), (), 0, 50))
        expected = plain_loss(kind, mean[k], noise[k], index, kernel, bias, down @ up, (0.2, 0.0), guidance)
        np.testing.assert_allclose(got[k], expected, rtol=2e-4)
    gradients = jax.grad(lambda factors: loss(factors, frozen, arrays, keys)["loss"].mean())(factors)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_the_sampler_asks_where_the_student_has_learned():
    """LCM's timesteps for any number of steps are among those of the distillation."""
    learned = {20 * (i + 1) - 1 for i in range(50)}
    for steps in range(1, 9):
        assert set(create("lcm").plan(steps).timesteps) <= learned


@pytest.mark.long
def test_from_pictures_to_a_lora_that_is_known_for_one(tmp_path, capsys):
    model = write_tiny_model(tmp_path / "model", PAINTING)
    pictures = write_pictures(tmp_path / "pictures")
    wanted = ["train", "lcm", str(pictures), str(tmp_path / "run"), "--model", str(model)]
    assert main([*wanted, "--solver-steps", "7"]) == 1
    assert "solver_steps 7 does not divide the 1000 trained timesteps" in capsys.readouterr().err
    how = ["--rank", "2", "--guidance", "3", "--steps", "2", "--batch-size", "2", "--warmup-steps", "0"]
    assert main([*wanted, *how, "--learning-rate", "0.1"]) == 0
    path = tmp_path / "run" / "lcm-lora-2.safetensors"
    assert str(path) in capsys.readouterr().out
    ups = [array for name, array in load_file(path).items() if "lora_up" in name]
    assert any(np.abs(array).max() > 0 for array in ups)
    pipe = sdjax.load(model, loras=[(path, 1.0)])
    assert pipe.facts.family == "LCM"
    settings = pipe("a red square", output_type="latent").settings[0]
    assert (settings["sampler"], settings["steps"], settings["guidance_scale"]) == ("lcm", 4, 1.0)
