"""Exact softmax attention: one function, and for each platform the implementation that is fastest there.

Every implementation computes logits and softmax in float32 whatever the dtype, which is what `upcast_attention` of a
checkpoint asks for. Those of this file take q [batch, heads, tokens, head_dim] and k, v [batch, heads, other tokens,
head_dim]; that for TPUs is in `models.flash`.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp

from sdjax.models.platform import platform

HALF = (jnp.bfloat16, jnp.float16)

# On the CPU as many heads at a time as make no more logits than these; or as many queries of one head, but enough for
# the keys and values, which are read once for all of them, to be no more than the logits are.
CPU_LOGITS = 2**18
CPU_QUERIES = 128
# Elsewhere all heads at once, and as many queries as keep the logits below half a gigabyte.
MAX_LOGITS = 2**27


def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool = False) -> jax.Array:
    """softmax(q kᵀ / sqrt(head_dim)) v of Vaswani et al. (2017), arXiv:1706.03762.

    q: [batch, tokens, heads, head_dim]; k and v: [batch, other tokens, heads, head_dim]. Returns the shape and the
    dtype of q. `causal` hides from each token those after it. Nothing of the size tokens x tokens is kept, except
    where it is small.
    """
    target = platform()
    if target == "gpu" and _cudnn_can(q):
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    if target == "tpu" and not causal:
        from sdjax.models.flash import can_flash, flash  # slow to import, and no use elsewhere

        if can_flash(q, k):
            return flash(q, k, v)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    if target == "cpu":
        out = by_heads(q, k, v, causal=causal)
    else:
        out = chunked(q, k, v, causal=causal, queries=max(1, MAX_LOGITS // (q.shape[0] * q.shape[1] * k.shape[2])))
    return out.swapaxes(1, 2)


def biased(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """Attention to few tokens, each of which has a bias, [batch, other tokens]; otherwise as `attention`.

    The logarithm of a number counts a token so many times, minus infinity not at all.
    """
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5 + bias[:, None, None].astype(jnp.float32), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32).astype(q.dtype)


def by_heads(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool) -> jax.Array:
    """A few heads after the others, so that everything they need stays in the cache of a CPU."""
    heads, most = q.shape[0] * q.shape[1], max(1, CPU_LOGITS // (q.shape[2] * k.shape[2]))
    together = next(n for n in range(min(heads, most), 0, -1) if heads % n == 0)
    return _by_heads(*(x.reshape(-1, together, *x.shape[2:]) for x in (q, k, v)), causal).reshape(q.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _by_heads(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    """Attention of each entry of q [groups, heads of a group, tokens, head_dim] after the other."""
    return _replace_each(_of_heads(k, causal), q, k, v)


def _of_heads(k: jax.Array, causal: bool) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """Attention of a group of heads to keys of k's shape, so many queries at a time that all stays in the cache."""
    keys, head_dim = k.shape[-2:]
    enough = -(-2 * head_dim // CPU_QUERIES) * CPU_QUERIES
    return partial(chunked, causal=causal, queries=max(enough, CPU_LOGITS // keys))


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _by_heads(q, k, v, causal), (q, k, v)


def _backward(causal: bool, qkv: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    # A group's weights are computed anew: what derivatives of the loop would keep of all takes three times longer.
    def group(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return jax.vjp(_of_heads(qkv[1], causal), *arrays[:3])[1](arrays[3])

    return jax.lax.map(group, (*qkv, gradient))


_by_heads.defvjp(_forward, _backward)


def chunked(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, queries: int) -> jax.Array:
    """At most `queries` queries at a time, of all heads; q [..., tokens, head_dim]."""
    tokens = q.shape[-2]
    chunks = -(-tokens // queries)
    size = -(-tokens // chunks)
    if chunks == 1:
        return _softmax_attention(q, k, v, 0 if causal else None)
    padding = [(0, 0)] * (q.ndim - 2) + [(0, chunks * size - tokens), (0, 0)]
    q = jnp.pad(q, padding).reshape(*q.shape[:-2], chunks, size, q.shape[-1])

    def chunk(q: jax.Array, start: jax.Array) -> jax.Array:
        return _softmax_attention(q, k, v, start if causal else None)

    out = jnp.moveaxis(_replace_each(chunk, jnp.moveaxis(q, -3, 0), jnp.arange(chunks) * size), 0, -3)
    return out.reshape(*out.shape[:-3], chunks * size, out.shape[-1])[..., :tokens, :]


def _replace_each(function: Callable[..., jax.Array], x: jax.Array, *others: jax.Array) -> jax.Array:
    """`function` of each entry of x and the others, one after the other, in the place of the entry of x.

    `jax.lax.map` would begin with zeros, and XLA makes those of all the attentions of a program at once and keeps
    them, 180 MB in the UNet of Stable Diffusion 1.5 at 512 pixels.
    """

    def replace(i: int, x: jax.Array) -> jax.Array:
        entries = (jax.lax.dynamic_index_in_dim(array, i, keepdims=False) for array in (x, *others))
        return jax.lax.dynamic_update_index_in_dim(x, function(*entries), i, axis=0)

    return jax.lax.fori_loop(0, x.shape[0], replace, x)


def _softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array | int | None) -> jax.Array:
    """The textbook form; with `start`, causal: the number of the first query among the tokens."""
    logits = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32)
    if start is not None:
        visible = start + jnp.arange(q.shape[-2])[:, None] >= jnp.arange(k.shape[-2])
        logits = jnp.where(visible, logits, -jnp.inf)
    # Scaled inside the exponential and normalised after the product: fewer passes over the largest array. Subtracting
    # the largest logit changes nothing but the range, so there is no derivative to it.
    largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp((logits - largest) * q.shape[-1] ** -0.5)
    out = jnp.einsum("...qk,...kd->...qd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / weights.sum(-1, keepdims=True)).astype(q.dtype)


def _cudnn_can(q: jax.Array) -> bool:
    return q.dtype in HALF and q.shape[3] <= 128 and q.shape[3] % 8 == 0 and cudnn_is_installed()


def cudnn_is_installed() -> bool:
    """Whether JAX's CUDA plugin is: `jax.nn.dot_product_attention` asks it for cuDNN's version, even to lower only."""
    return any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
