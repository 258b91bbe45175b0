"""Attention on a TPU: a Pallas kernel that never keeps tokens x tokens, and reads tokens where XLA has put them.

XLA lays q, k and v with the tokens along the lanes, which the 40 or 80 channels of a head would not fill. The heads of
a token then lie one below the other, and [batch, heads, head_dim, tokens] is the same memory: nothing is moved for the
kernel. JAX's own wants tokens before channels: by the compiler's estimates for v5e, what is copied for it is 5.3 of the
66 ms that 8 halves of Stable Diffusion 1.5 take.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu import flash_attention as published

from sdjax.models.platform import LANES

QUERIES = (512, 256, 128)  # at a time: the first of these that tokens are a multiple of
KEYS = (4096, 2048, 1024, 512)  # in the chip's memory at a time, and of them so many in one product:
KEYS_OF_A_PRODUCT = 512


def can_flash(q: jax.Array, k: jax.Array) -> bool:
    """Whether `flash` takes q and k, [batch, tokens, heads, head_dim], and serves there.

    In float32 its products would not be exact. With few keys there is nothing to save.
    """
    return (
        q.dtype == jnp.bfloat16 and q.shape[1] % QUERIES[-1] == 0 and k.shape[1] % KEYS[-1] == 0 and q.shape[3] <= LANES
    )


@jax.custom_vjp
def flash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`attention` by blocks, of Dao et al. (2022), arXiv:2205.14135, algorithm 1; for what `can_flash` takes.

    q: [batch, tokens, heads, head_dim]; k and v: [batch, other tokens, heads, head_dim]. Returns the shape of q.
    """
    batch, tokens, heads, channels = q.shape
    others = k.shape[1]
    queries, keys = (next(size for size in sizes if n % size == 0) for sizes, n in ((QUERIES, tokens), (KEYS, others)))

    def block(size: int, axis: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, channels, size), lambda *places: (places[0], places[1], 0, places[axis]))

    kernel = pl.pallas_call(
        partial(_kernel, scale=channels**-0.5),
        grid=(batch, heads, tokens // queries, others // keys),
        in_specs=[block(queries, 2), block(keys, 3), block(keys, 3)],
        out_specs=block(queries, 2),
        out_shape=jax.ShapeDtypeStruct((batch, heads, channels, tokens), q.dtype),
        scratch_shapes=[pltpu.VMEM((rows, queries), jnp.float32) for rows in (1, 1, channels)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=4 * batch * heads * tokens * others * -(-channels // LANES) * LANES,  # as the matrix unit takes them
            transcendentals=batch * heads * tokens * others,
            bytes_accessed=2 * q.dtype.itemsize * (q.size + k.size),
        ),
        name="flash",
    )
    return kernel(*(x.transpose(0, 2, 3, 1) for x in (q, k, v))).transpose(0, 3, 1, 2)


def _kernel(q_ref, k_ref, v_ref, out_ref, largest_ref, total_ref, sum_ref, *, scale: float) -> None:
    """Some queries of a head, [1, 1, head_dim, queries], and some keys: what is known of the softmax so far goes on.

    largest_ref, total_ref: [1, queries], of the keys so far. sum_ref: [head_dim, queries], of their weighted values.
    """
    step = pl.program_id(3)

    @pl.when(step == 0)
    def _begin() -> None:
        largest_ref[...] = jnp.full_like(largest_ref, -jnp.inf)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    q = q_ref[0, 0]

    def some(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        before, total, values = state
        here = pl.ds(i * KEYS_OF_A_PRODUCT, KEYS_OF_A_PRODUCT)
        k, v = k_ref[0, 0, :, here], v_ref[0, 0, :, here]
        logits = scale * jax.lax.dot_general(k, q, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        largest = jnp.maximum(before, logits.max(axis=0, keepdims=True))
        weights, shrinks = jnp.exp(logits - largest), jnp.exp(before - largest)
        new = jnp.dot(v, weights.astype(v.dtype), preferred_element_type=jnp.float32)
        return largest, shrinks * total + weights.sum(axis=0, keepdims=True), shrinks * values + new

    state = largest_ref[...], total_ref[...], sum_ref[...]
    state = jax.lax.fori_loop(0, k_ref.shape[3] // KEYS_OF_A_PRODUCT, some, state, unroll=True)
    largest_ref[...], total_ref[...], sum_ref[...] = state

    @pl.when(step == pl.num_programs(3) - 1)
    def _end() -> None:
        out_ref[0, 0] = (sum_ref[...] / total_ref[...]).astype(out_ref.dtype)


def _by_published(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The same by JAX's own kernel, which has one for its derivatives too."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    rows, columns = (next(size for size in QUERIES if x.shape[2] % size == 0) for x in (q, k))
    of_queries = dict.fromkeys(("block_q", "block_q_major_dkv", "block_q_dkv", "block_q_dq"), rows)
    of_keys = ("block_k_major", "block_k", "block_k_major_dkv", "block_k_dkv", "block_k_major_dq", "block_k_dq")
    blocks = published.BlockSizes(block_b=1, **of_queries, **dict.fromkeys(of_keys, columns))
    return published.flash_attention(q, k, v, sm_scale=q.shape[-1] ** -0.5, block_sizes=blocks).swapaxes(1, 2)


def _forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Callable]:
    return jax.vjp(_by_published, q, k, v)


flash.defvjp(_forward, lambda backward, gradient: backward(gradient))
