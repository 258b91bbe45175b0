"""The nonlinearities of transformers, by the names that configurations give them."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """x times the probability that a normal variable is below x (Hendrycks and Gimpel, 2016, arXiv:1606.08415).

    By 7.1.26 of Abramowitz and Stegun, in float32: within 4e-7, as by XLA's erfc, which on a CPU takes 1.2 times as
    long (backwards too), and on a TPU longer than the product that it follows.
    """
    y = x.astype(jnp.float32)
    z = jnp.abs(y) * 0.5**0.5
    t = 1 / (1 + 0.3275911 * z)
    polynomial = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    beyond = 0.5 * polynomial * jnp.exp(-z * z)  # the probability of more than |x|
    return (jnp.maximum(y, 0) - jnp.abs(y) * beyond).astype(x.dtype)


def quick_gelu(x: jax.Array) -> jax.Array:
    """The sigmoid approximation of the GELU with which OpenAI's CLIP was trained."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}
