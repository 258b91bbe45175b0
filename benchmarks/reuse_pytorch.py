"""DeepCache and T-GATE in PyTorch, around a UNet of diffusers: what sdjax's are compared with."""

from functools import partial
from typing import Any

import torch


class Cached:
    """A UNet's forward that takes parts of itself from earlier calls, the first of which computes all.

    interval: after so many calls the whole network is computed, and else its last layer alone (DeepCache, branch 0).
    gate: from this call on, what cross-attention adds is the mean over the samples of the call before (T-GATE).
    """

    def __init__(self, unet: Any, interval: int = 1, gate: int | None = None):
        self._unet, self._whole, self._interval, self._gate = unet, unet.forward, interval, gate
        self._calls, self._deep, self._attended = 0, None, {}
        for name, module in unet.named_modules():
            if name.endswith(".attn2"):
                module.forward = partial(self._attend, name, module.forward)
        unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(self._keep)
        unet.forward = self

    def begin(self) -> None:
        """The next call is the first of another picture."""
        self._calls = 0

    @property
    def is_gated(self) -> bool:
        """Whether the next call takes what attention added."""
        return self._gate is not None and self._calls >= self._gate

    def _keep(self, _: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self._deep = inputs[0][:, : -self._unet.config.block_out_channels[0]]

    def _attend(self, name: str, forward: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self.is_gated:
            found = forward(*args, **kwargs)
            if self._gate is not None:
                self._attended[name] = found.mean(0, keepdim=True)
            return found
        return self._attended[name]

    def __call__(self, x: torch.Tensor, time: Any, encoder_hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        if self._calls % self._interval == 0:
            found = self._whole(x, time, encoder_hidden_states, **kwargs)
        else:
            found = (self._outermost(x, time, encoder_hidden_states, kwargs.get("added_cond_kwargs")),)
        self._calls += 1
        return found

    def _outermost(self, x: torch.Tensor, time: Any, context: torch.Tensor, added: Any) -> torch.Tensor:
        unet = self._unet
        embedding = unet.time_embedding(unet.get_time_embed(x, time))
        if added:
            embedding = embedding + unet.get_aug_embed(embedding, context, added)
        assert self._deep is not None  # of the first call
        block = unet.up_blocks[-1]
        x = block.resnets[-1](torch.cat([self._deep[-len(x) :], unet.conv_in(x)], 1), embedding)
        if hasattr(block, "attentions"):
            x = block.attentions[-1](x, encoder_hidden_states=context)[0]
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
