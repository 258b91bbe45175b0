"""What the networks are to learn: losses of every example of a batch, as pure functions of parameters and arrays.

Each returns metrics, [batch] float32 each, "loss" among them. The dtype of the parameters is what is computed in.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.training.forward import ForwardProcess
from sdjax.training.step import Metrics, Tree


@dataclass(frozen=True, eq=False)
class Denoising:
    """How a denoiser is trained: which process it undoes, and how errors at each timestep count."""

    process: ForwardProcess
    min_snr_gamma: float | None = 5.0

    def loss(self, predict, x0: jax.Array, keys: jax.Array, dtype: jnp.dtype) -> Metrics:
        """The squared error of what `predict(sample, times)` says at a random timestep of each example.

        x0: [batch, height, width, channels] float32, in the scale in which noise is put on it.
        """
        timesteps = jax.vmap(lambda key: jax.random.randint(use(key, "time"), (), 0, len(self.process.schedule)))(keys)
        noise = normal(keys, "noise", x0.shape[1:])
        sample = self.process.add_noise(x0, noise, timesteps)
        output = predict(sample.astype(dtype), self.process.times(timesteps)).astype(jnp.float32)
        error = example_mean(jnp.square(output - self.process.target(x0, noise, timesteps)))
        return {"loss": jnp.asarray(self.process.weights(timesteps, self.min_snr_gamma)) * error, "error": error}


@dataclass(frozen=True, eq=False)
class TextToImage:
    """Rombach et al. (2022), arXiv:2112.10752: denoising latents, conditioned on a caption.

    Parameters are those of "unet" and "text_encoder"; either may be frozen. caption_dropout: the share of the captions
    that are left out, for guidance (Ho and Salimans, 2022, arXiv:2207.12598).
    """

    unet: nn.Module
    text_encoder: nn.Module
    denoising: Denoising
    empty: tuple[int, ...]  # the ids of no caption
    caption_dropout: float

    def __call__(self, params: Tree, frozen: Tree, batch: Tree, keys: jax.Array) -> Metrics:
        """batch: "mean" and "deviation" of the latents, scaled for the UNet, and "ids" [batch, tokens]."""
        params = {**frozen, **params}
        x0 = batch["mean"] + batch["deviation"] * normal(keys, "latents", batch["mean"].shape[1:])
        dropped = jax.vmap(lambda key: jax.random.bernoulli(use(key, "caption"), self.caption_dropout))(keys)
        ids = jnp.where(dropped[:, None], jnp.array(self.empty), batch["ids"])
        context = self.text_encoder.apply({"params": params["text_encoder"]}, ids).context

        def predict(sample: jax.Array, times: jax.Array) -> jax.Array:
            return self.predict(params, sample, times, context, batch)

        return self.denoising.loss(predict, x0, keys, context.dtype)

    def predict(self, params: Tree, sample: jax.Array, times: jax.Array, context: jax.Array, batch: Tree) -> jax.Array:
        """What the network says of a sample; params: trained and frozen ones."""
        return self.unet.apply({"params": params["unet"]}, sample, times, context)


@dataclass(frozen=True, eq=False)
class Autoencoding:
    """Kingma and Welling (2013), arXiv:1312.6114: what was drawn from the posterior must decode to the picture.

    kl_weight: how much the posterior's distance from a standard normal counts, per latent, beside a mean absolute error
    per pixel; small, as in latent diffusion. Parameters are the VAE's; the encoder's may be frozen.
    """

    vae: nn.Module
    kl_weight: float = 1e-6

    def __call__(self, params: Tree, frozen: Tree, batch: Tree, keys: jax.Array) -> Metrics:
        """batch: "image" [batch, height, width, 3] in [-1, 1]."""
        variables, image = {"params": {**frozen, **params}}, batch["image"]
        inputs = image.astype(jax.tree.leaves(params)[0].dtype)
        mean, logvar = (x.astype(jnp.float32) for x in self.vae.apply(variables, inputs, method="encode"))
        latents = mean + jnp.exp(logvar / 2) * normal(keys, "latents", mean.shape[1:])
        decoded = self.vae.apply(variables, latents.astype(inputs.dtype), method="decode").astype(jnp.float32)
        reconstruction = example_mean(jnp.abs(decoded - image))
        kl = example_mean(jnp.square(mean) + jnp.exp(logvar) - 1 - logvar) / 2
        return {"loss": reconstruction + self.kl_weight * kl, "reconstruction": reconstruction, "kl": kl}


USES = ("time", "noise", "latents", "caption")


def use(key: jax.Array, name: str) -> jax.Array:
    """The key of one use of an example's randomness."""
    return jax.random.fold_in(key, USES.index(name))


def normal(keys: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
    """Standard-normal noise for one use, [batch, *shape]."""
    return jax.vmap(lambda key: jax.random.normal(use(key, name), shape, jnp.float32))(keys)


def example_mean(x: jax.Array) -> jax.Array:
    """[batch]: the mean over everything else."""
    return x.reshape(x.shape[0], -1).mean(1)
