"""3x3 convolutions, and for each platform and size the form that is fastest there."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.platform import platform

# Measured on two cores in float32. Winograd's form takes up to 1.8 times less time than XLA's convolution. With fewer
# tiles than these it spends too long on the kernel, and patches times the kernel are up to 3 times faster; with fewer
# channels it spends too long on the tiles.
WINOGRAD_TILES = 128
WINOGRAD_CHANNELS = 64
PATCH_PIXELS = 256
WINOGRAD_BYTES = 2**27  # tiles and products at a time
# A TPU's compiler cuts few pictures in pieces, as if they were more, and copies them into other layouts for it. As many
# pixels as these, of so few pictures, are better multiplied row by row: by its estimates for v5e, the first level of
# Stable Diffusion 1.5 at 2 x 64 x 64 pixels then takes 0.81 times the cycles. More pixels than these take more.
ROWS_BATCH = 4
ROWS_PIXELS = range(32 * 32, 128 * 128 + 1)

Grid = Sequence[Sequence[jax.Array]]


def scaled(layer: nn.Module, product: jax.Array) -> jax.Array:
    """The product with a layer's kernel, times the scale that the kernel has if it is of 8 bits."""
    if not layer.has_variable("params", "kernel_scale"):
        return product
    return product * layer.get_variable("params", "kernel_scale").astype(product.dtype)


class Conv3x3(nn.Module):
    """A 3x3 convolution of [batch, height, width, channels], each side padded with `padding` (before, after) zeros."""

    features: int
    stride: int = 1
    padding: tuple[int, int] = (1, 1)
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.zeros, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else 0.0
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
        padding = [self.padding] * 2
        height, width = (1 + (sum(self.padding) + size - 3) // self.stride for size in x.shape[1:3])
        if platform() == "cpu" and self.stride == 1 and _suits_winograd(x, kernel):
            even = [(before, after + size % 2) for (before, after), size in zip(padding, (height, width))]
            return scaled(self, winograd(jnp.pad(x, [(0, 0), *even, (0, 0)]), kernel)[:, :height, :width]) + bias
        if platform() == "cpu" and height * width <= PATCH_PIXELS:
            x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
            rows, columns = self.stride * height, self.stride * width
            taps = [x[:, i : i + rows : self.stride, j : j + columns : self.stride] for i in range(3) for j in range(3)]
            return scaled(self, jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, self.features)) + bias
        if platform() == "tpu" and len(x) <= ROWS_BATCH and x.shape[1] * x.shape[2] in ROWS_PIXELS:
            x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
            return scaled(self, by_rows(x, kernel, self.stride)) + bias
        layout = ("NHWC", "HWIO", "NHWC")
        strides = (self.stride, self.stride)
        return scaled(self, jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)) + bias


def by_rows(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution of x [batch, height, width, channels], already padded: one product for each row of the kernel.

    A row of the kernel, [3, channels, features], times three pixels side by side. Sums are in float32.
    """
    height, width = ((size - 3) // stride + 1 for size in x.shape[1:3])
    rows, columns = stride * (height - 1) + 1, stride * (width - 1) + 1
    three = jnp.concatenate([x[:, :, j : j + columns : stride] for j in range(3)], axis=-1)
    kernel = kernel.reshape(3, -1, kernel.shape[-1])
    dot = partial(jax.lax.dot_general, dimension_numbers=(((3,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    first, second, third = (dot(three[:, i : i + rows : stride], kernel[i]) for i in range(3))
    return (first + second + third).astype(x.dtype)


def _suits_winograd(x: jax.Array, kernel: jax.Array) -> bool:
    # In half precision its sums and differences would lose digits.
    is_large = prod(x.shape[:3]) >= 4 * WINOGRAD_TILES and min(kernel.shape[2:]) >= WINOGRAD_CHANNELS
    return is_large and x.dtype == jnp.float32


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of x [batch, height + 2, width + 2, channels], already padded; height and width are even.

    F(2x2, 3x3) of Lavin and Gray (2016), arXiv:1509.09308: 16 products for each square of four pixels instead of 36.
    The kernel is [3, 3, channels, features]; the result [batch, height, width, features].
    """
    return _winograd(x, _both_ways(_of_kernel, kernel))


def _winograd(x: jax.Array, kernel: Grid) -> jax.Array:
    """The same with the transformed kernel; of one picture at a time, or of some of its rows, where x is large."""
    batch, height, width = x.shape[0], x.shape[1] - 2, x.shape[2] - 2
    size = 4 * x.dtype.itemsize * batch * height * width * sum(kernel[0][0].shape)
    if size > WINOGRAD_BYTES and batch > 1:
        return jax.lax.map(lambda one: _winograd(one[None], kernel)[0], x)
    if size > WINOGRAD_BYTES and height > 2:
        pairs = height // 2
        parts = next((n for n in range(2, pairs) if pairs % n == 0 and size <= n * WINOGRAD_BYTES), pairs)
        rows = height // parts

        def some(start: jax.Array) -> jax.Array:
            return _winograd(jax.lax.dynamic_slice_in_dim(x, start, rows + 2, axis=1), kernel)[0]

        return jax.lax.map(some, rows * jnp.arange(parts)).reshape(1, height, width, -1)
    squares = [[x[:, i : i + height : 2, j : j + width : 2] for j in range(4)] for i in range(4)]
    tiles = _both_ways(_of_input, squares)
    products = [[tile @ part for tile, part in zip(*rows)] for rows in zip(tiles, kernel)]
    pixels = jnp.stack([jnp.stack(row, axis=3) for row in _both_ways(_of_output, products)], axis=2)
    return pixels.reshape(batch, height, width, -1)


def _both_ways(transform: Callable[..., tuple[jax.Array, ...]], grid: Grid | jax.Array) -> Grid:
    """The transform of every row of a grid of arrays, and then of every column."""
    rows = [transform(*row) for row in grid]
    return list(zip(*(transform(*column) for column in zip(*rows))))


# The matrices of F(2, 3), each as what it does to a row: G, B and A of the paper.


def _of_kernel(a: jax.Array, b: jax.Array, c: jax.Array) -> tuple[jax.Array, ...]:
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _of_input(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    return a - c, b + c, c - b, b - d


def _of_output(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    return a + b + c, b - c - d
