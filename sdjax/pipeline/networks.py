"""A model's networks as programs over the local devices. Parameters are arguments of theirs, and placed apart."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np

from sdjax import programs
from sdjax.errors import CheckpointError
from sdjax.files.checkpoint import TEXT_ENCODERS, Component, Model
from sdjax.gradients import Judge
from sdjax.models.platform import devices
from sdjax.models.precision import Precision
from sdjax.parallel import AXIS, each_alone, pmap, shard
from sdjax.pipeline.conditions import Conditions
from sdjax.pipeline.looks import PictureNet
from sdjax.pipeline.vae import Autoencoder
from sdjax.programs import Params
from sdjax.schedulers.loop import State


@dataclass(frozen=True, eq=False)
class Networks:
    """The modules of a model, and what runs them.

    encode_text: maps all parameters and the arrays of `programs.encode_text` to texts.
    denoise: maps parameters, nets that see hints, the number of pictures, whether the unconditional half is computed,
        and the arguments of `programs.denoise` from `plan` to `stop` to the next state.
    encode_hint: maps a net, its parameters and the arguments of `programs.encode_hint` after these to features.
    encode_look: maps a net, its parameters, pixels [n, size, size, 3] and whether each is no picture at all to what
        `programs.encode_look` gives, on the host.
    """

    modules: Mapping[str, nn.Module]
    encode_text: Callable[..., dict[str, jax.Array]]
    denoise: Callable[..., State]
    encode_hint: Callable[..., Any]
    encode_look: Callable[..., Any]
    autoencoder: Autoencoder

    @classmethod
    def of(
        cls, model: Model, precision: Precision, vae_tiling: bool | None, preview: Component | Literal["linear"] | None
    ) -> "Networks":
        """The networks of an opened model; the other arguments are those of `sdjax.load`, opened."""
        modules = {name: component.module for name, component in model.components.items()}
        return cls(
            modules=modules,
            encode_text=_text_program(modules),
            denoise=_denoising_program(modules["unet"], modules["vae"]),
            encode_hint=_hint_program(),
            encode_look=_look_program(),
            autoencoder=Autoencoder(model.vae, precision, vae_tiling, preview),
        )

    def with_text_encoders(self, encoders: Mapping[str, nn.Module]) -> "Networks":
        """These networks with other text encoders, such as those that know more words."""
        modules = {**self.modules, **encoders}
        return replace(self, modules=modules, encode_text=_text_program(modules))


def _text_program(modules: Mapping[str, nn.Module]) -> Callable[..., dict[str, jax.Array]]:
    names = [name for name in TEXT_ENCODERS if name in modules]
    encoders = tuple(modules[name] for name in names)
    program = partial(programs.encode_text, encoders, is_xl=modules["unet"].config.is_xl)
    encode = pmap(program, in_axes=(None, 0, 0, 0, 0))
    return lambda params, *arrays: encode(tuple(params[name] for name in names), *map(shard, arrays))


def _denoising_program(unet: nn.Module, vae: nn.Module) -> Callable[..., State]:
    @cache
    def of_form(
        guided: bool, halves: str | None, nets: tuple[nn.Module, ...], judges: tuple[Judge, ...]
    ) -> Callable[..., State]:
        decoder = vae if any(judge.sees == "picture" for judge in judges) else None
        return pmap(
            partial(programs.denoise, unet, guided=guided, halves=halves, nets=nets, judges=judges, decoder=decoder),
            in_axes=(None, 0, 0, 0, 0, 0, 0, None, None, None, 0),
            donate_argnums=(2,),
        )

    def denoise(params: Params, nets: Conditions, pictures: int, guided: bool, *arguments: Any) -> State:
        # One picture, which `shard` puts on every device, has the halves of guidance computed side by side.
        judges, judge_params, wishes = nets.wishes
        alone = any(judge.sees != "noisy" for judge in judges) or arguments[3].degraded is not None
        alone |= arguments[2].reuse is not None
        side_by_side = guided and pictures == 1 < len(devices()) and not alone
        program = of_form(guided, AXIS if side_by_side else None, nets.nets.modules, judges)
        return program(params, *arguments, nets.nets.params, judge_params, wishes)

    return denoise


def _hint_program() -> Callable[..., Any]:
    @cache
    def of_net(net: nn.Module, arguments: int) -> Callable[..., Any]:
        return pmap(partial(programs.encode_hint, net), in_axes=(None, *[0] * arguments))

    return lambda net, params, *seen: of_net(net, len(seen))(params, *map(shard, seen))


def _look_program() -> Callable[..., Any]:
    @cache
    def of_net(modules: tuple[nn.Module, nn.Module], reads: str) -> Callable[..., Any]:
        return pmap(partial(programs.encode_look, modules, reads=reads), in_axes=(None, 0, 0))

    def encode(net: PictureNet, params: Params, pixels: np.ndarray, blank: np.ndarray) -> Any:
        program = of_net((net.encoder.module, net.module), net.adapter.reads)
        return each_alone(partial(program, params), pixels, blank)

    return encode


def check_finite(values: np.ndarray, params: Mapping[str, Params], model: Model, precision: Precision) -> None:
    """Raises CheckpointError, which says where from, for values that are not finite."""
    if np.isfinite(values).all():
        return
    for name, tree in params.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not np.isfinite(np.asarray(leaf)).all():  # on the host, where nothing is compiled for it
                where = "/".join(str(key.key) for key in path)
                raise CheckpointError(f"{model.path}: {name}/{where} holds values that are not finite")
    raise CheckpointError(f"{model.path} overflowed in {precision}: try another dtype, such as float32")
