"""3x3 convolutions, and for each platform and size the form that is fastest there."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
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
# pixels as these, of so few pictures, are better multiplied tap by tap: by its estimates for v5e, resnets of Stable
# Diffusion 1.5 then take 0.63 times the cycles at 2 x 16 x 16 pixels. Fewer pixels, or more pictures, take more.
TAPS_BATCH = 4
TAPS_PIXELS = range(16 * 16, 128 * 128 + 1)

LAYOUT = "NHWC", "HWIO", "NHWC"
Grid = Sequence[Sequence[jax.Array]]


def scaled(layer: nn.Module, product: jax.Array, some: slice = slice(None)) -> jax.Array:
    """The product with a layer's kernel, or some of its features, times the scale that one of 8 bits has."""
    if not layer.has_variable("params", "kernel_scale"):
        return product
    return product * layer.get_variable("params", "kernel_scale")[..., some].astype(product.dtype)


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
            patches = jnp.concatenate(taps(x, self.stride), axis=-1)
            return scaled(self, patches @ kernel.reshape(-1, self.features)) + bias
        if platform() == "tpu" and len(x) <= TAPS_BATCH and x.shape[1] * x.shape[2] in TAPS_PIXELS:
            x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
            return scaled(self, by_taps(x, kernel, self.stride)) + bias
        strides = (self.stride, self.stride)
        return scaled(self, jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)) + bias


def by_taps(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution of x [batch, height, width, channels], already padded: one product for each tap of the kernel.

    Nothing is copied for it: pixels are read where they lie. Sums are in float32.
    """
    dot = partial(jax.lax.dot_general, dimension_numbers=(((3,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    products = (dot(pixels, kernel[divmod(tap, 3)]) for tap, pixels in enumerate(taps(x, stride)))
    return reduce(jnp.add, products).astype(x.dtype)


def taps(x: jax.Array, stride: int) -> list[jax.Array]:
    """The pixels of x, already padded, that each of a kernel's nine taps is multiplied with, row by row."""
    height, width = (stride * ((size - 3) // stride) + 1 for size in x.shape[1:3])
    return [x[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]


def _suits_winograd(x: jax.Array, kernel: jax.Array) -> bool:
    # In half precision its sums and differences would lose digits.
    is_large = prod(x.shape[:3]) >= 4 * WINOGRAD_TILES and min(kernel.shape[2:]) >= WINOGRAD_CHANNELS
    return is_large and x.dtype == jnp.float32


@jax.custom_vjp
def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of x [batch, height + 2, width + 2, channels], already padded; height and width are even.

    F(2x2, 3x3) of Lavin and Gray (2016), arXiv:1509.09308: 16 products for each square of four pixels instead of 36.
    The kernel is [3, 3, channels, features]; the result [batch, height, width, features].
    """
    return _winograd(x, _both_ways(_of_kernel, kernel))


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return winograd(x, kernel), (x, kernel)


def _backward(inputs: tuple[jax.Array, jax.Array], by_output: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients by x, a convolution with the mirrored kernel, and by the kernel, both in Winograd's form.

    What JAX makes of the form itself takes three times as long: zeros between the pixels of each slice of every second.
    """
    x, kernel = inputs
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    by_x = winograd(jnp.pad(by_output, [(0, 0), (2, 2), (2, 2), (0, 0)]), mirrored)
    return by_x, _by_kernel(x, by_output)


winograd.defvjp(_forward, _backward)


def _winograd(x: jax.Array, kernel: Grid) -> jax.Array:
    """The same with the transformed kernel; of one picture at a time, or of some of its rows, where x is large."""
    batch, height, width = x.shape[0], x.shape[1] - 2, x.shape[2] - 2
    size = 4 * x.dtype.itemsize * batch * height * width * sum(kernel[0][0].shape)
    if size > WINOGRAD_BYTES and batch > 1:
        return jax.lax.map(lambda one: _winograd(one[None], kernel)[0], x)
    rows = _rows_at_once(height, size)
    if rows < height:

        def some(start: jax.Array) -> jax.Array:
            return _winograd(jax.lax.dynamic_slice_in_dim(x, start, rows + 2, axis=1), kernel)[0]

        return jax.lax.map(some, jnp.arange(0, height, rows)).reshape(1, height, width, -1)
    tiles = _both_ways(_of_input, _squares(x, height, width, 4))
    products = [[tile @ part for tile, part in zip(*rows)] for rows in zip(tiles, kernel)]
    pixels = jnp.stack([jnp.stack(row, axis=3) for row in _both_ways(_of_output, products)], axis=2)
    return pixels.reshape(batch, height, width, -1)


def _by_kernel(x: jax.Array, by_output: jax.Array) -> jax.Array:
    """The gradient by the kernel: the transposes of the transforms, and sums over all squares; in parts as above."""
    batch, height, width, features = by_output.shape
    size = 4 * x.dtype.itemsize * batch * height * width * (x.shape[-1] + features)
    zeros = jnp.zeros((3, 3, x.shape[-1], features), x.dtype)
    if size > WINOGRAD_BYTES and batch > 1:
        pictures = x[:, None], by_output[:, None]
        return jax.lax.scan(lambda total, one: (total + _by_kernel(*one), None), zeros, pictures)[0]
    rows = _rows_at_once(height, size)
    if rows < height:

        def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
            cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, axis=1)
            return total + _by_kernel(cut(x, slice_size=rows + 2), cut(by_output, slice_size=rows)), None

        return jax.lax.scan(add, zeros, jnp.arange(0, height, rows))[0]
    tiles = _both_ways(_of_input, _squares(x, height, width, 4))
    gradients = _both_ways(_to_products, _squares(by_output, height, width, 2))
    dot = partial(jax.lax.dot_general, dimension_numbers=(((0, 1, 2), (0, 1, 2)), ((), ())))
    products = [[dot(tile, own) for tile, own in zip(*rows)] for rows in zip(tiles, gradients)]
    return jnp.stack([jnp.stack(row) for row in _both_ways(_to_kernel, products)])


def _rows_at_once(height: int, size: int) -> int:
    """How many rows of a picture are taken at once, where what is made of all of them is so many bytes."""
    pairs = height // 2
    return height // next((n for n in range(1, pairs) if pairs % n == 0 and size <= n * WINOGRAD_BYTES), pairs)


def _squares(x: jax.Array, height: int, width: int, side: int) -> Grid:
    """Every second pixel: of the squares of so many pixels a side, the first ones, the ones beside them, and so on."""
    return [[x[:, i : i + height : 2, j : j + width : 2] for j in range(side)] for i in range(side)]


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


# And the transposes of the last and the first.


def _to_products(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
    return a, a + b, a - b, -b


def _to_kernel(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d
