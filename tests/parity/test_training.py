"""Gradients of one step against PyTorch's autograd: same weights, same batch, same noise, float32.

The losses are written once more in PyTorch, from the papers; what is drawn at random is drawn by sdjax.
"""

import jax
import numpy as np
import pytest
import torch
from test_models import nchw, pair

from sdjax.convert import fill
from sdjax.files.layout import embedded_models, read_json
from sdjax.models import abstract_params
from sdjax.schedulers import from_config
from sdjax.training import losses
from sdjax.training.forward import ForwardProcess

TOLERANCE = 1e-4
SHAPES = embedded_models()["shapes"]
BATCH = 2


def config(name: str) -> dict:
    return {key: value for key, value in read_json(SHAPES / name / "config.json").items() if not key.startswith("_")}


def gradients_of(module, theirs: torch.nn.Module):
    """PyTorch's gradients in the layout of the module's parameters."""
    arrays = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    return fill(abstract_params(module), arrays)


def error(name: str, ours, theirs) -> None:
    """Asserts that gradients agree, leaf by leaf: against the leaf's norm, and the largest leaf's where one is tiny."""
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
    whole = np.linalg.norm([np.linalg.norm(b) for _, b in pairs])
    together = np.linalg.norm([np.linalg.norm(a - b) for a, b in pairs]) / whole
    leaf = max(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3 * whole) for a, b in pairs)
    print(f"{name}: {together:.1e} over all, {leaf:.1e} of the worst leaf")
    assert together <= TOLERANCE and leaf <= TOLERANCE


def draw(keys: jax.Array, use: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.stack([jax.random.normal(jax.random.fold_in(key, losses.USES.index(use)), shape) for key in keys])


def gradients(loss, params, batch, keys):
    """Of the mean of a loss, as a step takes them."""
    mean = jax.jit(jax.grad(lambda params: loss(params, {}, batch, keys)["loss"].mean()))
    return jax.device_get(mean(params))


@pytest.mark.few(1)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_unet_and_text_encoder(prediction_type):
    unet, unet_params, their_unet = pair("UNet2DConditionModel", config("unet"))
    text, text_params, their_text = pair("CLIPTextModel", config("text_encoder"), seed=1)
    scheduler = {"_class_name": "DDIMScheduler", "prediction_type": prediction_type}
    process = ForwardProcess(from_config(scheduler).noise)
    loss = losses.TextToImage(unet, text, losses.Denoising(process, 5.0), (0,) * 12, caption_dropout=0.0)
    random, keys = np.random.default_rng(0), jax.random.split(jax.random.key(3), BATCH)
    mean = random.standard_normal((BATCH, 8, 8, 4), np.float32)
    batch = {"mean": mean, "deviation": 0.1 * np.abs(mean), "ids": random.integers(0, 621, (BATCH, 12))}
    ours = gradients(loss, {"unet": unet_params, "text_encoder": text_params}, batch, keys)

    x0 = torch.from_numpy(batch["mean"] + batch["deviation"] * draw(keys, "latents", (8, 8, 4)))
    noise = torch.from_numpy(draw(keys, "noise", (8, 8, 4)))
    t = torch.tensor([int(jax.random.randint(jax.random.fold_in(key, 0), (), 0, 1000)) for key in keys])
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t].float().reshape(-1, 1, 1, 1)
    sample = kept.sqrt() * x0 + (1 - kept).sqrt() * noise
    context = their_text(torch.from_numpy(batch["ids"])).last_hidden_state
    output = their_unet(sample.permute(0, 3, 1, 2), t, context).sample.permute(0, 2, 3, 1)
    is_v = prediction_type == "v_prediction"
    target = kept.sqrt() * noise - (1 - kept).sqrt() * x0 if is_v else noise
    snr = kept / (1 - kept)
    weight = snr.clamp(max=5) / (snr + 1 if is_v else snr)
    (weight * (output - target) ** 2).mean().backward()
    error("UNet", ours["unet"], gradients_of(unet, their_unet))
    error("text encoder", ours["text_encoder"], gradients_of(text, their_text))


@pytest.mark.long
def test_autoencoder():
    vae, params, theirs = pair("AutoencoderKL", config("vae"))
    random, keys = np.random.default_rng(0), jax.random.split(jax.random.key(3), BATCH)
    images = random.uniform(-1, 1, (BATCH, 72, 72, 3)).astype(np.float32)  # larger than what is convolved as patches
    ours = gradients(losses.Autoencoding(vae, 0.01), params, {"image": images}, keys)

    posterior = theirs.encode(nchw(images)).latent_dist
    latents = posterior.mean + posterior.std * nchw(draw(keys, "latents", (18, 18, 4)))
    kl = posterior.mean**2 + posterior.var - 1 - posterior.logvar
    loss = (theirs.decode(latents).sample - nchw(images)).abs().mean() + 0.01 * kl.mean() / 2
    loss.backward()
    error("VAE", ours, gradients_of(vae, theirs))
