"""Attention on a TPU: its kernel by interpretation, against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pallas_tpu

from sdjax.models.attention import attention
from sdjax.models.flash import flash
from sdjax.models.platform import target_platform


def random_arrays(*lengths, heads=2, head_dim=40, dtype=jnp.bfloat16):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.standard_normal((1, n, heads, head_dim)), dtype) for n in lengths]


def exact_attention(q, k, v):
    """The definition, in float32; [batch, tokens, heads, head_dim]."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5, axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def distance(one, other):
    """Of the norm, which each digit of bfloat16 halves from 2^-8 on."""
    return float(jnp.linalg.norm(one.astype(jnp.float32) - other) / jnp.linalg.norm(other))


@pytest.mark.parametrize(
    ("tokens", "keys", "head_dim"),
    [(384, 512, 40), (1024, 1024, 80), pytest.param(512, 4608, 64, marks=pytest.mark.long)],
    ids=["one block of keys", "two products of keys", "many blocks of keys"],
)
def test_flash_attention_is_attention(tokens, keys, head_dim):
    q, k, v = random_arrays(tokens, keys, keys, head_dim=head_dim)
    with pallas_tpu.force_tpu_interpret_mode():
        assert distance(flash(q, k, v), exact_attention(q, k, v)) < 2**-8


def test_large_logits_leave_no_trace_of_others():
    """One key that a query is a large multiple of takes all weight, wherever it is; nothing overflows."""
    q, k, v = random_arrays(128, 1024, 1024)
    q = (100 * k[:, 800:928]).astype(q.dtype)
    with pallas_tpu.force_tpu_interpret_mode():
        np.testing.assert_array_equal(flash(q, k, v), v[:, 800:928])


def test_derivatives_of_flash_attention():
    q, k, v, toward = random_arrays(512, 512, 512, 512)
    with pallas_tpu.force_tpu_interpret_mode():
        ours = jax.vjp(flash, q, k, v)[1](toward)
    exact = jax.vjp(exact_attention, *(x.astype(jnp.float32) for x in (q, k, v)))[1](toward.astype(jnp.float32))
    assert max(map(distance, ours, exact)) < 2**-7


@pytest.mark.parametrize(
    ("tokens", "keys", "head_dim", "dtype", "is_used"),
    [
        (4096, 4096, 40, jnp.bfloat16, True),
        (4096, 77, 40, jnp.bfloat16, False),
        (4096, 4096, 512, jnp.bfloat16, False),
        (4096, 4096, 40, jnp.float32, False),
    ],
)
def test_flash_attention_is_used_where_it_serves(tokens, keys, head_dim, dtype, is_used):
    shapes = [jax.ShapeDtypeStruct((2, length, 8, head_dim), dtype) for length in (tokens, keys, keys)]
    with target_platform("tpu"):
        exported = jax.export.export(jax.jit(lambda q, k, v: attention(q, k, v)), platforms=["tpu"])(*shapes)
    assert ("tpu_custom_call" in exported.mlir_module()) == is_used
