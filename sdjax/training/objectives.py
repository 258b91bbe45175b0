"""What a fit of a plan makes small: how far a picture is from the one that the teacher drew from the same noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.layers import Block
from sdjax.models.vae import AutoencoderKL
from sdjax.programs import units_of_latents
from sdjax.training.step import Tree

Name = Literal["latents", "relaxed", "decoded"]
# Maps frozen parameters, latents [batch, h, w, channels] and the teacher's to distances [batch].
Apart = Callable[[Tree, jax.Array, jax.Array], jax.Array]
NEAR = 0.1  # of S4S' relaxed objective: how far the noise may move, as a root mean square


def of_latents(frozen: Tree, drawn: jax.Array, target: jax.Array) -> jax.Array:
    """The root mean square difference, [batch]."""
    return jnp.sqrt(jnp.mean((drawn - target) ** 2, (1, 2, 3)) + 1e-10)


@dataclass(frozen=True, eq=False)
class OfDecoded:
    """The difference as the VAE's decoder sees it: of its features after every level, each at unit length.

    LPIPS, Zhang et al. (2018), arXiv:1801.03924, without weights that were learned of people, on a network that every
    model brings along. Frozen parameters are those of "vae".
    """

    vae: AutoencoderKL

    def __call__(self, frozen: Tree, drawn: jax.Array, target: jax.Array) -> jax.Array:
        """[batch]."""
        pairs = zip(self.features(frozen["vae"], drawn), self.features(frozen["vae"], target))
        squares = [jnp.mean(jnp.sum((ours - theirs) ** 2, -1), (1, 2)) for ours, theirs in pairs]
        return jnp.sqrt(sum(squares) / len(squares) + 1e-10)

    def features(self, params: Tree, latents: jax.Array) -> list[jax.Array]:
        """After every level, from the coarsest on, [batch, height, width, channels] of unit length."""
        shift, scale = units_of_latents(self.vae)

        def is_level(module: nn.Module, method: str) -> bool:
            return isinstance(module, Block) and method == "__call__"

        _, kept = self.vae.apply(
            {"params": params},
            latents / scale + shift,
            method="decode",
            capture_intermediates=is_level,
            mutable=["intermediates"],
        )
        levels = kept["intermediates"]["decoder"]
        found = [levels[name]["__call__"][0][-1] for name in sorted(levels)]
        return [each / jnp.sqrt(jnp.sum(each**2, -1, keepdims=True) + 1e-10) for each in found]


def nearer_noise(distance: Callable[[jax.Array], jax.Array], noise: jax.Array, radius: float) -> jax.Array:
    """Noise no farther away than `radius`, a root mean square, from which a picture is nearer to the teacher's.

    S4S' relaxed objective, Frankel et al. (2025), arXiv:2502.17423: what is to be drawn may be drawn from any noise
    nearby. One step along the gradient, as long as would bring the distance to 0 were it linear. Noise is [batch, h, w,
    channels].
    """
    apart, back = jax.vjp(distance, noise)
    (slope,) = back(jnp.ones_like(apart))
    steep = jnp.sqrt(jnp.mean(slope**2, (1, 2, 3)) + 1e-20)
    length = jnp.minimum(apart / (steep * slope[0].size), radius)
    return jax.lax.stop_gradient(noise - (length / steep)[:, None, None, None] * slope)
