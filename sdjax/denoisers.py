"""What networks predict of a sample: one half of guidance, with all that it reads, and with nets that see hints."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.models.reuse import COLLECTION, Reuse, kept_from
from sdjax.models.transformer import ATTENDED, Seen
from sdjax.models.unet import Residuals
from sdjax.models.unet_encoder import Added
from sdjax.shards import anywhere, read_after

Params = dict[str, Any]
# Maps a sample [batch, h, w, channels], timesteps [batch], one half of a conditioning and its shared part to the
# network's prediction, float32; with watch=True, also to what its middle attends to, [batch, tokens]; with reuse, also
# to what may be taken from this evaluation (`models.reuse.Kept`).
Predict = Callable[..., Any]


def unet_denoiser(unet: nn.Module, params: Params, nets: Sequence[tuple[nn.Module, Params]] = ()) -> Predict:
    """The prediction of a UNet of Stable Diffusion, and of `nets` that see hints.

    It reads {"context": [batch, T, features]} of its half, and for Stable Diffusion XL "pooled" and "time_ids" (see
    `models.unet_encoder.Added`); and of the shared part {"channels": [batch, h, w, extra], "class_labels": [batch] or
    None, "guidance": [batch] or None}, where the channels are put after those of the sample. With nets it reads of its
    half "hint_weights", for each net [batch, residuals], and of the shared part "hints", for each net its features.
    "edited" of its half, [batch, h, w, channels], are further channels: the picture that is changed, or zeros.
    "perturb" of its half: see `models.transformer.Perturb`, by the layers where it is done. Of pictures that are looked
    at it reads of its half "looks", for each what `encode_look` gives, and "look_weights", [batch, layers]; and of the
    shared part "look_places", for each and for each level [batch, height * width]. Of styles: see `with_styles`.
    """

    def predict(
        x: jax.Array, timesteps: jax.Array, own: Any, shared: Any, watch: bool = False, reuse: Reuse | None = None
    ) -> Any:
        own_params, own_nets = read_after(x, (params, nets))
        dtype = jax.tree.leaves(own_params)[0].dtype  # a bias, which has that of the computing
        context = own["context"].astype(dtype)
        edited = [own["edited"]] if "edited" in own else []
        sample = jnp.concatenate([x, shared["channels"], *edited], axis=-1).astype(dtype)
        added = Added(own["pooled"].astype(dtype), own["time_ids"]) if "pooled" in own else None
        of_the_step = (sample, timesteps, context, shared["class_labels"], added)
        residuals = None
        if own_nets:
            found = zip(own_nets, own["hint_weights"], shared["hints"])
            residuals = _summed(
                [_weighted(net, its, weights, seen, of_the_step) for (net, its), weights, seen in found]
            )
        changed = {"perturb": own["perturb"]} if "perturb" in own else {}
        if "styles" in own:
            context, changed["bias"] = with_styles(context, own)
        if "looks" in own:
            looks = list(zip(own["looks"], own["look_weights"], shared["look_places"]))
            changed["seen"] = {
                name: [Seen(look[name][0], look[name][1], weights[:, i], places) for look, weights, places in looks]
                for i, name in enumerate(unet.config.attentions)
            }
        inputs = (sample, timesteps, context, shared["class_labels"], added, shared["guidance"], residuals)
        if reuse is not None:
            output, found = unet.apply({"params": own_params}, *inputs, **changed, reuse=reuse, mutable=[COLLECTION])
            return output.astype(jnp.float32), kept_from(found, reuse.kept)
        if not watch:
            return unet.apply({"params": own_params}, *inputs, **changed).astype(jnp.float32)
        output, kept = unet.apply({"params": own_params}, *inputs, **changed, mutable=[ATTENDED])
        return output.astype(jnp.float32), jax.tree.leaves(kept)[0]

    return predict


def with_styles(context: jax.Array, own: Any) -> tuple[jax.Array, jax.Array]:
    """A context [batch, T, features] with the tokens of styles behind it, and a bias of every token.

    Of its half it reads "styles", for each tokens [batch, n, features]; "style_weights", for each [batch], what they
    are multiplied by, of which 0 leaves them out; "style_is_other", [batch], whether it is the half that does not see
    them, which has the last n tokens of its own text once more, as T2I-Adapter's authors do it; and "repeats", [batch],
    how often the text is there: as often must they count.
    """
    found, biases = [context], [jnp.zeros(context.shape[:2])]
    for tokens, weight in zip(own["styles"], own["style_weights"]):
        again = context[:, -tokens.shape[1] :]
        weighted = (tokens * weight[:, None, None]).astype(context.dtype)
        found.append(jnp.where(own["style_is_other"][:, None, None], again, weighted))
        bias = jnp.where(weight == 0, -jnp.inf, jnp.log(own["repeats"]))
        biases.append(jnp.broadcast_to(bias[:, None], tokens.shape[:2]))
    return jnp.concatenate(found, axis=1), jnp.concatenate(biases, axis=1)


def _weighted(net: nn.Module, params: Params, weights: jax.Array, features: Any, of_the_step: Any) -> Residuals:
    """What a net adds, times weights [batch, residuals]. Where all of them are 0 it is not computed."""
    sample, timesteps, context, class_labels, added = of_the_step
    sample = sample[..., : getattr(net.config, "in_channels", 0)]  # of an inpainting UNet the latents alone

    def run() -> Residuals:
        found = net.apply(
            {"params": params}, features, sample, timesteps, context, class_labels, added, method="residuals"
        )
        leaves, structure = jax.tree.flatten(found)
        columns = weights.astype(context.dtype).T[..., None, None, None]
        return jax.tree.unflatten(structure, [leaf * column for leaf, column in zip(leaves, columns, strict=True)])

    shapes = jax.eval_shape(run)
    return jax.lax.cond(
        anywhere(weights != 0), run, lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    )


def _summed(residuals: Sequence[Residuals]) -> Residuals:
    """Those of ControlNets together, and those of adapters."""
    of_nets, of_adapters = ([each for each in residuals if bool(each.levels) == kind] for kind in (False, True))
    skips, middle, levels = (), None, ()
    if of_nets:
        skips, middle, _ = jax.tree.map(lambda *leaves: sum(leaves), *of_nets)
    if of_adapters:
        levels = jax.tree.map(lambda *leaves: sum(leaves), *(each.levels for each in of_adapters))
    return Residuals(skips, middle, levels)
