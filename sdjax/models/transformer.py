"""The transformer blocks through which the UNet sees the prompt."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdjax.models.activations import gelu
from sdjax.models.attention import attention, biased
from sdjax.models.layers import Dense, GroupNorm, LayerNorm
from sdjax.models.platform import LANES, platform
from sdjax.models.reuse import COLLECTION, Reuse, taken
from sdjax.shards import anywhere

ATTENDED = "attended"  # what the middle's self-attention looks at, where that is asked for (`mutable`)
FAST_MEMORY = 2**27  # of a TPU v5e or v6e
MEAN = 9999.0  # a deviation from which on a blur is the mean of all tokens


class Seen(NamedTuple):
    """What cross-attention reads of a picture beside the prompt, with a softmax of its own.

    Ye et al. (2023), arXiv:2308.06721 (IP-Adapter), equation 5.
    keys, values: [batch, layers, tokens, channels], for each transformer block of a layer.
    weight: [batch]; where all are 0, nothing is computed. places: for each level of a UNet [batch, height * width], as
    much it counts there.
    """

    keys: jax.Array
    values: jax.Array
    weight: jax.Array
    places: Sequence[jax.Array]


class Perturb(NamedTuple):
    """What is done to self-attention, of each sample [batch], for guidance away from what comes of it.

    identity: whether each token attends to itself alone (Ahn et al., 2024, arXiv:2403.17377, equation 14).
    blur: the deviation, in tokens, of a Gaussian over the queries (Hong, 2024, arXiv:2408.00760); 0 for none.
    """

    identity: jax.Array
    blur: jax.Array


class Tokens(NamedTuple):
    """What cross-attention reads: the encoded prompt [batch, T, features], and maybe styles behind it.

    bias: [batch, T], of each token; see `attention.biased`. None where there are no styles.
    """

    features: jax.Array
    bias: jax.Array | None = None


class Context(NamedTuple):
    """What attention sees: the tokens, and maybe more.

    seen: what each layer reads of pictures. perturb: what is done to its self-attention. Both by the layers' names.
    reuse: what cross-attention takes from an earlier evaluation, None for nothing, ever.
    """

    text: Tokens
    seen: Mapping[str, Sequence[Seen]] | None = None
    perturb: Mapping[str, Perturb] | None = None
    reuse: Reuse | None = None


class Attention(nn.Module):
    """Multi-head attention of x [batch, tokens, channels] to tokens [batch, context tokens, any].

    size: height and width of the tokens, where queries may be blurred.
    """

    heads: int
    size: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: Tokens, seen: Sequence[Seen] = (), perturb: Perturb | None = None
    ) -> jax.Array:
        channels, context = x.shape[-1], tokens.features

        def project(y: jax.Array, name: str) -> jax.Array:
            y = Dense(channels, use_bias=False, name=name)(y)
            return y.reshape(*y.shape[:-1], self.heads, channels // self.heads)

        queries, keys, values = project(x, "to_q"), project(context, "to_k"), project(context, "to_v")
        if perturb is not None:
            queries = jnp.where(_by_sample(perturb.blur > 0), blurred(queries, self.size, perturb.blur), queries)
        attend = attention if tokens.bias is None else partial(biased, bias=tokens.bias)
        x = attend(queries, keys, values)
        if self.path[:1] == ("mid_block",) and self.name == "attn1" and self.is_mutable_collection(ATTENDED):
            self.sow(ATTENDED, "tokens", attended(queries, keys))
        if perturb is not None:
            x = jnp.where(_by_sample(perturb.identity), values, x)
        for picture in seen:
            x += _attended(queries, picture)
        return Dense(channels, name="to_out_0")(x.reshape(*x.shape[:-2], channels))


def attended(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """How much attention each token gets from all others, [batch, tokens], the mean over heads; 1 is even.

    queries, keys: [batch, tokens, heads, any].
    """
    logits = jnp.einsum("bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * queries.shape[-1] ** -0.5, axis=-1).mean(1).sum(1)


def _attended(queries: jax.Array, seen: Seen) -> jax.Array:
    """Attention of queries [batch, tokens, heads, any] to a picture, whose keys are [batch, tokens, channels]."""

    def attend() -> jax.Array:
        keys, values = (y.reshape(*y.shape[:-1], *queries.shape[2:]) for y in (seen.keys, seen.values))
        places = next(each for each in seen.places if each.shape[1] == queries.shape[1])
        weight = (seen.weight[:, None] * places)[..., None, None].astype(queries.dtype)
        return weight * attention(queries, keys.astype(queries.dtype), values.astype(queries.dtype))

    return jax.lax.cond(jnp.any(seen.weight != 0), attend, lambda: jnp.zeros_like(queries))


def blurred(tokens: jax.Array, size: tuple[int, int], deviation: jax.Array) -> jax.Array:
    """Tokens [batch, height * width, heads, any] under a Gaussian of a deviation [batch], in tokens; of MEAN, the mean.

    The Gaussian ends after 3 deviations, or half of the shorter side; beyond the edges the picture is mirrored.
    """
    height, width = size
    largest = min(size) // 2
    offsets = jnp.arange(-largest, largest + 1)
    reach = jnp.minimum(jnp.ceil(6 * deviation) // 2, largest)[:, None]
    weights = jnp.exp(-0.5 * (offsets / jnp.maximum(deviation[:, None], 1e-6)) ** 2) * (jnp.abs(offsets) <= reach)
    weights /= weights.sum(1, keepdims=True)

    def matrix(side: int) -> jax.Array:
        places = np.arange(side)[:, None] + np.arange(-largest, largest + 1)
        mirrored = (side - 1) - np.abs((side - 1) - np.abs(places))
        gaussian = jnp.einsum("bo,ioj->bij", weights, jax.nn.one_hot(mirrored, side))
        return jnp.where((deviation >= MEAN)[:, None, None], 1 / side, gaussian)

    whole = tokens.astype(jnp.float32).reshape(len(tokens), height, width, -1)
    whole = jnp.einsum("bij,bjwc->biwc", matrix(height), whole)
    whole = jnp.einsum("bij,bhjc->bhic", matrix(width), whole)
    return whole.reshape(tokens.shape).astype(tokens.dtype)


def _by_sample(values: jax.Array) -> jax.Array:
    return values[:, None, None, None]


class GEGLU(nn.Module):
    """x times gelu(gate), both linear in the input (Shazeer, 2020, arXiv:2002.05202)."""

    dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        project = Dense(2 * self.dim, name="proj")
        if platform() == "tpu" and _is_better_apart(x, 2 * self.dim):
            gate = jax.lax.optimization_barrier(gelu(project(x, slice(self.dim, None))))
            return project(x, slice(self.dim)) * gate
        x, gate = jnp.split(project(x), 2, axis=-1)
        return x * gelu(gate)


def _is_better_apart(x: jax.Array, features: int) -> bool:
    """Whether a TPU should compute the gate before what it multiplies, and not both by one product.

    Where both do not fit into its fast memory, or its compiler has the tokens along the lanes: by its estimates for
    v5e, a transformer block then takes 0.87 times the cycles at 8 x 64 x 64 x 320, and 0.93 at 2 x 64 x 64 x 320.
    """
    return x.shape[-1] % LANES > 0 or x.size // x.shape[-1] * features * x.dtype.itemsize > FAST_MEMORY


class FeedForward(nn.Module):
    """Expands each token fourfold through a GEGLU and contracts it again."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Dense(x.shape[-1], name="net_2")(GEGLU(4 * x.shape[-1], name="net_0")(x))


class BasicTransformerBlock(nn.Module):
    """Attention to the picture (or, with `only_cross_attention`, the prompt), to the prompt, and a feed-forward."""

    heads: int
    only_cross_attention: bool
    size: tuple[int, int]

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        text: Tokens,
        seen: Sequence[Seen],
        perturb: Perturb | None,
        kept: jax.Array | None,
        is_taken: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns x, and where some is kept, what cross-attention added; kept: what the samples that take it do."""
        h = LayerNorm(name="norm1")(x)
        own = text if self.only_cross_attention else Tokens(h)
        x += Attention(self.heads, self.size, name="attn1")(h, own, (), perturb)

        def attend(_: nn.Module, x: jax.Array) -> jax.Array:
            return Attention(self.heads, name="attn2")(LayerNorm(name="norm2")(x), text, seen)

        if kept is None or is_taken is None:
            attended = attend(self, x)
        else:
            old = kept.astype(x.dtype)
            attended = nn.cond(anywhere(~is_taken), attend, lambda *_: old, self, x)
            attended = taken(is_taken, old, attended)
        x += attended
        return x + FeedForward(name="ff")(LayerNorm(name="norm3")(x)), None if kept is None else attended


class Transformer2DModel(nn.Module):
    """Transformer blocks over the pixels of x [batch, height, width, channels], around a residual connection.

    Several are a scan over stacked parameters, [layers, ...]: the 70 of Stable Diffusion XL are compiled as 11.
    """

    layers: int
    heads: int
    groups: int
    only_cross_attention: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, eps=1e-6, name="norm")(x).reshape(batch, height * width, channels)
        h = Dense(channels, name="proj_in")(h)
        block = partial(BasicTransformerBlock, self.heads, self.only_cross_attention, (height, width))
        name = "/".join(self.path)
        perturb, seen = (context.perturb or {}).get(name), (context.seen or {}).get(name, ())
        keys = [(each.keys.swapaxes(0, 1), each.values.swapaxes(0, 1)) for each in seen]
        kept, is_taken = None, None
        if context.reuse is not None and context.reuse.kept.attended:
            kept, is_taken = context.reuse.kept.attended[name].swapaxes(0, 1), context.reuse.attended

        def of_block(found: Sequence[tuple[jax.Array, jax.Array]]) -> list[Seen]:
            return [Seen(*own, each.weight, each.places) for own, each in zip(found, seen)]

        if self.layers == 1:
            first = of_block([(k[0], v[0]) for k, v in keys])
            own = None if kept is None else kept[0]
            h, attended = block(name="transformer_blocks_0")(h, context.text, first, perturb, own, is_taken)
            attended = None if attended is None else attended[None]
        else:
            scan = nn.scan(
                lambda block, h, own: block(h, context.text, of_block(own[0]), perturb, own[1], is_taken),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.layers,
            )
            h, attended = scan(block(name="transformer_blocks"), h, (keys, kept))
        if kept is not None:
            self.sow(COLLECTION, "attended", attended.swapaxes(0, 1), lambda _, new: new, lambda: None)
        # Of this shape, or a TPU would transpose what is added: by its compiler's estimates 0.94 of a level's cycles.
        return x + Dense(channels, name="proj_out")(h.reshape(x.shape))
