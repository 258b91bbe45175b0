"""One picture from a model's files, with pure functions alone: python docs/minimal.py [PICTURE.png]

The page to read first. `sdjax.load()(PROMPT, seed=SEED, num_inference_steps=STEPS, guidance_scale=SCALE)` does the
same, for many pictures, on all devices, and compiles once for all of them.
"""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from PIL import Image

from sdjax import programs, schedulers
from sdjax.files.checkpoint import read_model
from sdjax.files.layout import embedded_models
from sdjax.prompts import load_tokenizer, weighted_chunks
from sdjax.random import image_keys, normal

PROMPT, SEED, STEPS, SCALE = "a big red heart at the top left on a yellow background", 7, 20, 3.0


def draw(folder: Path) -> tuple[jax.Array, jax.Array]:
    """From a model directory: denoised latents [1, h, w, channels], and the picture [1, height, width, 3] in [0, 1]."""
    model = read_model(folder)
    modules = {name: component.module for name, component in model.components.items()}
    params = {name: jax.tree.map(jnp.float32, component.params) for name, component in model.components.items()}
    unet, vae = modules["unet"], modules["vae"]

    tokens = [weighted_chunks(load_tokenizer(model.tokenizers[0]), text, {}) for text in ("", PROMPT)]
    # Without the prompt, and with it; the other axes are chunks of a long prompt, and the text encoders: [2, 1, 1, T].
    ids, weights = (jnp.stack(leaves)[:, :, None] for leaves in zip(*tokens))
    encode_text = jax.jit(partial(programs.encode_text, (modules["text_encoder"],), is_xl=False))
    skip, absent = jnp.zeros(2, int), jnp.zeros(2, bool)
    context = encode_text((params["text_encoder"],), ids, weights, skip, absent)["context"]

    plan = schedulers.from_config(model.scheduler_config).plan(STEPS)  # a table of numbers; see `explain(plan)`
    keys = image_keys([SEED])
    noise = normal(keys.start, (unet.config.sample_size, unet.config.sample_size, vae.config.latent_channels))

    @jax.jit
    def denoise(params: dict, x: jax.Array) -> jax.Array:
        def guided(x: jax.Array, timesteps: jax.Array) -> jax.Array:  # classifier-free guidance
            twice, times = jnp.concatenate([x, x]), jnp.concatenate([timesteps, timesteps])
            negative, positive = jnp.split(unet.apply({"params": params}, twice, times, context), 2)
            return negative + SCALE * (positive - negative)

        return schedulers.denoise(plan, guided, x, keys.step)

    latents = denoise(params["unet"], plan.start(noise))
    return latents, jax.jit(partial(programs.decode, vae, tiling=None))(params["vae"], latents)


if __name__ == "__main__":
    _, pictures = draw(embedded_models()["shapes"])
    pixels = (pictures[0] * 255).round().astype("uint8")
    Image.fromarray(jax.device_get(pixels)).save(sys.argv[1] if len(sys.argv) > 1 else "minimal.png")
