"""The autoencoder on the local devices: pictures to latents and back, and previews of what is coming."""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Literal

import numpy as np

from sdjax import programs
from sdjax.files.checkpoint import Component
from sdjax.models.platform import devices
from sdjax.models.precision import Precision
from sdjax.parallel import placed, pmap, shard, unshard
from sdjax.pipeline.previews import STABLE_DIFFUSION, ColourMap, fit, palette


class Autoencoder:
    """A VAE with its parameters on every device, and what previews are decoded by.

    tiling: see `programs.works_in_bands`. preview: another VAE, "linear" for a guess at the colours, or None for the
    VAE itself.
    """

    def __init__(
        self, vae: Component, precision: Precision, tiling: bool | None, preview: Component | Literal["linear"] | None
    ):
        self.config = vae.module.config
        self.params = placed("vae", vae.params, precision)
        self._preview = preview
        self._encode = pmap(partial(programs.encode, vae.module, tiling=tiling), in_axes=(None, 0))
        self._decode = pmap(partial(programs.decode, vae.module, tiling=tiling), in_axes=(None, 0))
        if isinstance(preview, Component):
            self._preview_params = placed("vae", preview.params, precision)
            self._decode_preview = pmap(partial(programs.decode, preview.module, tiling=None), in_axes=(None, 0))

    def encode(self, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The mean and the deviation of the latents of each image, [height, width, 3] in [-1, 1].

        One image on each device at a time, so that any number of them is one program.
        """
        moments: list[tuple[np.ndarray, np.ndarray]] = []
        together = len(devices())
        for i in range(0, len(images), together):
            group = np.stack(images[i : i + together])
            mean, deviation = unshard(self._encode(self.params, shard(group)), len(group))
            moments += zip(mean, deviation)
        return moments

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents [batch, h, w, channels] of output_type "latent" to [batch, height, width, 3] in [0, 1]."""
        return unshard(self._decode(self.params, shard(latents)), len(latents))

    def preview(self, latents: np.ndarray) -> np.ndarray:
        """The same, by what was chosen for previews."""
        if self._preview is None:
            return self.decode(latents)
        if self._preview == "linear":
            return self._colours(latents).repeat(self.config.factor, axis=1).repeat(self.config.factor, axis=2)
        return unshard(self._decode_preview(self._preview_params, shard(latents)), len(latents))

    @cached_property
    def _colours(self) -> ColourMap:
        if (self.config.latent_channels, self.config.factor) == (4, 8):
            return STABLE_DIFFUSION
        picture = palette(self.config.factor)
        return fit(self.encode([2 * picture - 1])[0][0], picture)
