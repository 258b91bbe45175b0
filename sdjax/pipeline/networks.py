"""A model's networks on the local devices, and what is learned beside them: words and LoRAs."""

from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Literal

import jax
import numpy as np

from sdjax import programs
from sdjax.adapters.lora import Lora, kernels_of, lora_for, place_loras, rescaled, with_another
from sdjax.adapters.lora_files import read_lora
from sdjax.adapters.textual_inversion import learn
from sdjax.errors import CheckpointError
from sdjax.files.checkpoint import Component, Model
from sdjax.parallel import AXIS, fitting_in_memory, pmap, replicate, shard
from sdjax.pipeline.vae import Autoencoder
from sdjax.prompts import Words
from sdjax.schedulers.loop import State


class Networks:
    """Parameters, placed on every local device once, and the programs that use them."""

    def __init__(
        self,
        model: Model,
        dtype: np.dtype,
        vae_tiling: bool | None,
        preview: Component | Literal["linear"] | None,
    ):
        """The arguments are those of `sdjax.load`, opened; `preview` is its preview_vae."""
        self.model = model
        self.dtype = np.dtype(dtype)
        self.modules = {name: component.module for name, component in model.components.items()}
        with fitting_in_memory(f"the parameters of {model.path} in {self.dtype}"):
            self.autoencoder = Autoencoder(model.components["vae"], self.dtype, vae_tiling, preview)
            networks = {name: replicate(model.components[name].params, self.dtype) for name in ("text_encoder", "unet")}
            self.params = {**networks, "vae": self.autoencoder.params}
        self.words: Words = {}
        self.loras: dict[str, Lora] = {}
        self._compile_text_encoder()
        self._denoise, self._denoise_one = (
            pmap(
                partial(programs.denoise, self.modules["unet"], halves=halves),
                in_axes=(None, 0, 0, 0, 0, 0, 0, None),
                donate_argnums=(2,),
            )
            for halves in (None, AXIS)
        )

    def _compile_text_encoder(self) -> None:
        self._encode_text = pmap(partial(programs.encode_text, self.modules["text_encoder"]), in_axes=(None, 0, 0, 0))

    def encode_text(self, ids: np.ndarray, weights: np.ndarray, skips: np.ndarray) -> jax.Array:
        """The UNet's context, [batch, tokens, features], padded as by `shard`; see `programs.encode_text`."""
        return self._encode_text(self.params["text_encoder"], *map(shard, (ids, weights, skips)))

    def denoise(self, pictures: int, *arguments) -> State:
        """`programs.denoise` on all devices, its arguments from the plan on.

        One picture alone, which `shard` puts on every device, has the halves of guidance computed side by side.
        """
        shares_halves = pictures == 1 < jax.local_device_count()
        return (self._denoise_one if shares_halves else self._denoise)(self.params["unet"], *arguments)

    def load_textual_inversion(self, path: str | PathLike[str], token: str | None = None) -> str:
        """Learn a word from a file of vectors; prompts may use it from then on. Returns the word.

        path: a file of diffusers ({token: vectors}) or A1111 ("string_to_param", "emb_params"), .safetensors, .pt or
            .bin. token: the word; where None, the token in the file, or the name of A1111's file.
        Raises CheckpointError for a file that holds no embedding and InputError for one that does not fit the model.
        """
        encoder, params = self.modules["text_encoder"], self.params["text_encoder"]
        encoder, params, self.words = learn(encoder, params, self.words, path, token)
        self.modules["text_encoder"], self.params["text_encoder"] = encoder, params
        self._compile_text_encoder()
        return list(self.words)[-1]

    def load_lora_weights(self, path: str | PathLike[str], adapter_name: str | None = None, scale: float = 1.0) -> str:
        """Add to the model what a LoRA file has learned, beside those that are loaded already; returns its name.

        path: a .safetensors file of kohya's trainers (LoRA or LoCon), diffusers or PEFT.
        adapter_name: what `set_adapters` is to call it; where None, the file's name without its ending, followed by a
            number where that is taken.
        scale: how strongly; 1 is what it was trained for, and at 0 the model is as it was, bit for bit.
        Nothing is compiled again, for any LoRA and any scale. Raises CheckpointError for a file that is no LoRA, or one
        for another model, and InputError for a name that is taken or a scale that is not finite.
        """
        lora = lora_for(read_lora(path), self.modules, scale)
        loras = with_another(self.loras, lora, adapter_name)
        self.use_loras(loras)
        return list(loras)[-1]

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] = 1.0) -> None:
        """Set the scales of loaded LoRAs, one for all that are named or one for each; those not named get 0."""
        self.use_loras(rescaled(self.loras, adapter_names, adapter_weights))

    def unload_lora_weights(self) -> None:
        """Forget all LoRAs: the model is as it was, bit for bit."""
        self.use_loras({})

    def use_loras(self, loras: Mapping[str, Lora]) -> None:
        """Put `loras`, by name, in the place of those that are loaded. After an error all is as it was before."""
        kernels = kernels_of([*self.loras.values(), *loras.values()])
        try:
            with fitting_in_memory("the parameters that the LoRAs change"):
                place_loras(self.params, self.model, loras.values(), kernels, self.dtype)
        except BaseException:
            place_loras(self.params, self.model, self.loras.values(), kernels, self.dtype)
            raise
        self.loras = dict(loras)

    def check_finite(self, values: np.ndarray) -> None:
        """Raises CheckpointError, which says where from, for numbers that are not finite."""
        if np.isfinite(values).all():
            return
        for name, params in self.params.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(params):
                if not np.isfinite(np.asarray(leaf)).all():  # on the host, where nothing is compiled for it
                    where = "/".join(str(key.key) for key in path)
                    raise CheckpointError(f"{self.model.path}: {name}/{where} holds values that are not finite")
        raise CheckpointError(f"{self.model.path} overflowed in {self.dtype}: try another dtype, such as float32")
