"""What further parts plug into, against PyTorch: residuals, further keys and values, text encodings, guidance.

Random weights, float32, relative error at most 1e-5.
"""

import jax
import numpy as np
import pytest
import torch
import transformers
from diffusers.guiders import AdaptiveProjectedGuidance
from diffusers.models.attention_processor import Attention as TheirAttention
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from test_models import SD1, UPSCALER, nchw, nhwc, pair, randomise, relative_error, unet_config

from sdjax.convert import fill
from sdjax.guidance import GUIDANCES, Pair, cfg, combined
from sdjax.models import abstract_params, build
from sdjax.models.transformer import Attention, Seen, Tokens
from sdjax.models.unet import Residuals

TOLERANCE = 1e-5


@pytest.mark.long
@pytest.mark.parametrize(
    ("config", "size"),
    [(SD1, (16, 16)), (SD1, (13, 21)), (UPSCALER, (16, 24)), (unet_config("A", (16,)), (9, 5))],
)
def test_residuals_of_a_unet(config, size):
    module, params, theirs = pair("UNet2DConditionModel", config)
    random = np.random.default_rng(0)
    sample = random.standard_normal((2, *size, module.config.in_channels)).astype(np.float32)
    context = random.standard_normal((2, 7, module.config.cross_attention_dim)).astype(np.float32)
    times, labels = np.array([3.0, 700.0], np.float32), None if config is not UPSCALER else np.array([2, 30])
    shapes = []
    hooks = [theirs.conv_in, *(block for blocks in theirs.down_blocks for block in resnets_and_downs(blocks))]
    handles = [hook.register_forward_hook(lambda _, __, out: shapes.append(out.shape)) for hook in hooks]
    their_inputs = (nchw(sample), torch.from_numpy(times), torch.from_numpy(context))
    their_labels = None if labels is None else torch.from_numpy(labels)
    with torch.no_grad():
        theirs(*their_inputs, class_labels=their_labels)
        for handle in handles:
            handle.remove()
        skips = [random.standard_normal((n, h, w, c)).astype(np.float32) for n, c, h, w in shapes]
        middle = random.standard_normal(skips[-1].shape).astype(np.float32)
        expected = theirs(
            *their_inputs,
            class_labels=their_labels,
            down_block_additional_residuals=tuple(map(nchw, skips)),
            mid_block_additional_residual=nchw(middle),
        ).sample
    got = jax.jit(module.apply)({"params": params}, sample, times, context, labels, residuals=Residuals(skips, middle))
    assert relative_error(got, nhwc(expected)) <= TOLERANCE


def resnets_and_downs(block) -> list[torch.nn.Module]:
    """The modules of a block whose outputs are skips, in order."""
    layers = list(block.attentions) if hasattr(block, "attentions") else list(block.resnets)
    layers = [ModuleOfFirst(layer) if hasattr(layer, "transformer_blocks") else layer for layer in layers]
    return [*layers, *(block.downsamplers or [])]


class ModuleOfFirst:
    """A transformer, whose hooks see the first entry of its output: its skip."""

    def __init__(self, module: torch.nn.Module):
        self.module = module

    def register_forward_hook(self, hook):
        return self.module.register_forward_hook(lambda module, inputs, out: hook(module, inputs, out[0]))


@pytest.mark.parametrize(("heads", "width", "tokens"), [(2, 16, 4), (4, 32, 16), (1, 8, 1)])
def test_further_keys_and_values_are_those_of_an_ip_adapter(heads, width, tokens):
    random = np.random.default_rng(heads)
    theirs = TheirAttention(width, cross_attention_dim=24, heads=heads, dim_head=width // heads)
    theirs.set_processor(IPAdapterAttnProcessor2_0(width, 24, num_tokens=(tokens,), scale=[0.7]))
    randomise(theirs, 0)
    x, text, extra = (
        random.standard_normal((2, length, size)).astype(np.float32)
        for length, size in ((30, width), (9, 24), (tokens, 24))
    )
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(x), encoder_hidden_states=(torch.from_numpy(text), [torch.from_numpy(extra)])
        )
    state = {name.replace("processor.", ""): value.numpy() for name, value in theirs.state_dict().items()}
    kernels = {
        "to_q": state["to_q.weight"],
        "to_k": state["to_k.weight"],
        "to_v": state["to_v.weight"],
        "to_out_0": state["to_out.0.weight"],
    }
    params = {name: {"kernel": weight.T} for name, weight in kernels.items()}
    params["to_out_0"]["bias"] = state["to_out.0.bias"]
    keys, values = (extra @ state[f"to_{name}_ip.0.weight"].T for name in "kv")
    seen = Seen(keys, values, np.full(2, 0.7, np.float32), [np.ones((2, 30), np.float32)])
    got = jax.jit(Attention(heads).apply)({"params": params}, x, Tokens(text), [seen])
    assert relative_error(got, expected.numpy()) <= TOLERANCE
    without = Attention(heads).apply({"params": params}, x, Tokens(text), [seen._replace(weight=0 * seen.weight)])
    plain = Attention(heads).apply({"params": params}, x, Tokens(text))
    np.testing.assert_array_equal(np.asarray(without), np.asarray(plain))


CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 99}


@pytest.mark.few(4)
@pytest.mark.parametrize("class_name", ["CLIPTextModel", "CLIPTextModelWithProjection"])
@pytest.mark.parametrize("end", [2, 98, 50])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_what_a_text_encoder_gives(class_name, end, activation):
    """The state of every layer before the final norm, and the pooled one at the end of the text."""
    config = {**CLIP, "eos_token_id": end, "hidden_act": activation, "projection_dim": 24, "bos_token_id": 1}
    theirs = randomise(getattr(transformers, class_name)(transformers.CLIPTextConfig(**config, pad_token_id=0)), 1)
    module = build(class_name, config)
    params = fill(abstract_params(module), {name: value.numpy() for name, value in theirs.state_dict().items()})
    ids = np.random.default_rng(end).integers(3, 98, (3, 20))
    ids[:, 11:] = 98 if end == 2 else end
    ids[1, 5] = 98 if end == 2 else end
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids), output_hidden_states=True)
    pooled = expected.text_embeds if class_name.endswith("Projection") else expected.pooler_output
    encode = jax.jit(module.apply)
    for skip in range(3):
        got = encode({"params": params}, ids, skip)
        assert relative_error(got.hidden, expected.hidden_states[-1 - skip].numpy()) <= TOLERANCE
        assert relative_error(got.pooled, pooled.numpy()) <= TOLERANCE
    assert relative_error(encode({"params": params}, ids).context, expected.last_hidden_state.numpy()) <= TOLERANCE


@pytest.mark.few(9)
@pytest.mark.parametrize("threshold", [0.0, 5.0, 15.0])
@pytest.mark.parametrize("momentum", [None, -0.5, 0.3])
@pytest.mark.parametrize(
    ("scale", "eta", "rescale"), [(7.5, 1.0, 0.0), (12.0, 0.0, 0.0), (3.0, 0.5, 0.7), (1.0, 0.0, 0.0)]
)
def test_projected_guidance_step_by_step(threshold, momentum, scale, eta, rescale):
    """Four steps, with what is remembered from one to the next."""
    guider = AdaptiveProjectedGuidance(
        guidance_scale=scale,
        adaptive_projected_guidance_momentum=momentum,
        adaptive_projected_guidance_rescale=threshold,
        eta=eta,
        guidance_rescale=rescale,
    )
    random = np.random.default_rng(0)
    batch, shape = 2, (6, 5, 4)
    ours = cfg(np.full((batch, 4), scale, np.float32))._replace(
        kind=np.full(batch, list(GUIDANCES).index("apg"), np.int32),
        rescale=np.full(batch, rescale, np.float32),
        eta=np.full(batch, eta, np.float32),
        norm_threshold=np.full(batch, threshold, np.float32),
        momentum=np.full(batch, momentum or 0.0, np.float32),
    )
    memory = np.zeros((batch, *shape), np.float32)
    for step in range(4):
        guider.set_state(step, 4, torch.tensor(0))
        positive, negative = random.standard_normal((2, batch, *shape)).astype(np.float32)
        guider.prepare_inputs({})
        expected = guider.forward(nchw(positive), nchw(negative)).pred
        scales = np.full((batch, 1, 1, 1), scale, np.float32)
        got, _, memory = combined(Pair(positive, negative, scales, memory), ours)
        assert relative_error(got, nhwc(expected)) <= TOLERANCE
