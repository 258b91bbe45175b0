"""Forms of guidance against diffusers, or against their formula in a plain loop."""

import math

import diffusers
import jax
import numpy as np
import pytest
import torch
from diffusers.guiders import ClassifierFreeZeroStarGuidance
from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0
from test_models import SD1, XL, nchw, nhwc, pair, relative_error

from sdjax.guidance import GUIDANCES, Pair, cfg, combined, composed
from sdjax.models.transformer import MEAN, Perturb
from sdjax.models.unet import Added

TOLERANCE = 1e-5
BATCH, SHAPE = 3, (6, 5, 4)


def of_kind(name, scale, **fields):
    arrays = {field: np.full(BATCH, value, np.float32) for field, value in fields.items()}
    kind = np.full(BATCH, list(GUIDANCES).index(name), np.int32)
    return cfg(np.full((BATCH, 1), scale, np.float32))._replace(kind=kind, **arrays)


def predictions(count=2):
    return np.random.default_rng(0).standard_normal((count, BATCH, *SHAPE)).astype(np.float32)


def guided(guidance, perturbed=None):
    positive, negative = predictions()
    scales = guidance.scale[:, :1, None, None]
    return combined(Pair(positive, negative, scales, np.zeros_like(positive), perturbed), guidance)[0]


@pytest.mark.few(1)
@pytest.mark.parametrize(("scale", "rescale"), [(1.0, 0.0), (7.5, 0.0), (12.0, 0.7)])
def test_cfg_zero_star(scale, rescale):
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=scale, zero_init_steps=0, guidance_rescale=rescale)
    guider.set_state(0, 4, torch.tensor(0))
    guider._is_cfg_enabled = lambda: True  # at scale 1 too, where it gives the conditional one anyhow
    expected = guider.forward(*map(nchw, predictions())).pred
    assert relative_error(guided(of_kind("cfg_zero_star", scale, rescale=rescale)), nhwc(expected)) <= TOLERANCE


@pytest.mark.few(2)
@pytest.mark.parametrize("percentile", [1.0, 0.9, 0.31])
@pytest.mark.parametrize(("scale", "mimic"), [(20.0, 7.0), (3.0, 9.0)])
def test_dynamic_thresholding(scale, mimic, percentile):
    positive, negative = map(nchw, predictions())
    flat, small = ((negative + each * (positive - negative)).flatten(2) for each in (scale, mimic))
    mean = flat.mean(2, keepdim=True)
    target = (small - small.mean(2, keepdim=True)).abs().amax(2, keepdim=True)
    reach = torch.maximum(torch.quantile((flat - mean).abs(), percentile, dim=2, keepdim=True), target)
    expected = ((flat - mean).clamp(-reach, reach) / reach * target + mean).unflatten(2, positive.shape[2:])
    ours = guided(of_kind("dynamic_threshold", scale, mimic=mimic, percentile=percentile))
    assert relative_error(ours, nhwc(expected)) <= TOLERANCE


def test_perpendicular_negative_prompts():
    """Picture by picture in float64; what comes of a batch of another guidance is not touched."""
    unconditional, *parts = predictions(4)
    weights = np.array([[1, -1, 0], [0.7, 0.4, -1.5], [1, -2, -0.5]], np.float32)
    ours = composed(unconditional, parts, weights, of_kind("perp_neg", 7.5))
    for k in range(BATCH):
        directions = [(part[k] - unconditional[k]).astype(float).ravel() for part in parts]
        towards = sum(w * each for w, each in zip(weights[k], directions) if w > 0)
        expected = unconditional[k].ravel() + towards
        for w, each in zip(weights[k], directions):
            if w < 0:
                expected = expected + w * (each - (each @ towards) / (towards @ towards) * towards)
        np.testing.assert_allclose(np.ravel(ours[k]), expected, rtol=1e-4, atol=1e-5)
    plain = composed(unconditional, parts, weights, of_kind("cfg", 7.5))
    mixed = unconditional + np.einsum("bp,pbhwc->bhwc", weights, np.stack(parts) - unconditional)
    np.testing.assert_allclose(plain, mixed, rtol=1e-4, atol=1e-5)


def test_away_from_a_perturbed_prediction_before_rescaling():
    positive, negative, perturbed = predictions(3)
    ours = guided(of_kind("cfg", 5.0, perturbed=3.0, rescale=0.7), perturbed)
    expected = nchw(negative + 5 * (positive - negative) + 3 * (positive - perturbed))
    rescale = diffusers.pipelines.pag.pipeline_pag_sd.rescale_noise_cfg
    assert relative_error(ours, nhwc(rescale(expected, nchw(positive), 0.7))) <= TOLERANCE


class Plain:
    """A UNet of either library on the same input."""

    def __init__(self, config):
        self.module, self.params, self.theirs = pair("UNet2DConditionModel", config)
        random = np.random.default_rng(0)
        self.sample = random.standard_normal((2, 32, 32, 4), np.float32)
        self.context = random.standard_normal((2, 7, config["cross_attention_dim"]), np.float32)
        self.apply = jax.jit(lambda params, *inputs: self.module.apply(params, *inputs[:-1], perturb=inputs[-1]))
        self.added = None
        if self.module.config.is_xl:
            self.added = Added(random.standard_normal((2, 20), np.float32), np.full((2, 6), 64, np.float32))

    def ours(self, **perturb):
        what = {"identity": np.zeros(2, bool), "blur": np.zeros(2, np.float32), **perturb}
        inputs = (self.sample, np.full(2, 500), self.context, None, self.added)
        return self.apply({"params": self.params}, *inputs, {"mid_block/attentions_0": Perturb(**what)})

    def expected(self, twice=False):
        times = 2 if twice else 1
        kwargs = {}
        if self.added is not None:
            names = ("text_embeds", "time_ids")
            kwargs["added_cond_kwargs"] = {
                name: torch.from_numpy(each).repeat(times, 1) for name, each in zip(names, self.added)
            }
        with torch.no_grad():
            sample, context = nchw(self.sample), torch.from_numpy(self.context)
            sample, context = sample.repeat(times, 1, 1, 1), context.repeat(times, 1, 1)
            return nhwc(self.theirs(sample, torch.tensor(500), context, **kwargs).sample)


@pytest.fixture(scope="module", params=[pytest.param("SD 1", marks=pytest.mark.long), "SDXL"])
def unet(request):
    return Plain({"SD 1": SD1, "SDXL": XL}[request.param])


def attentions(unet):
    return [block.attn1 for block in unet.theirs.mid_block.attentions[0].transformer_blocks]


@pytest.mark.long
def test_identity_self_attention(unet):
    """Of the second picture alone."""
    plain = unet.expected()
    before = [each.processor for each in attentions(unet)]
    for each in attentions(unet):
        each.set_processor(PAGIdentitySelfAttnProcessor2_0())
    perturbed = unet.expected(twice=True)[2:]
    for each, processor in zip(attentions(unet), before):
        each.set_processor(processor)
    ours = unet.ours(identity=np.array([False, True]))
    assert relative_error(ours, np.stack([plain[0], perturbed[1]])) <= TOLERANCE
    assert relative_error(plain[1], perturbed[1]) > 1e-3


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "deviation", [*(pytest.param(value, marks=pytest.mark.long) for value in (0.4, 100.0)), 1.7, MEAN]
)
def test_blurred_self_attention(unet, deviation):
    plain, size = unet.expected(), math.ceil(6 * deviation)

    def blur(module, inputs, queries):
        if deviation == MEAN:
            return queries.mean(1, keepdim=True).expand_as(queries)
        # Its last argument, which is compared the wrong way round, is chosen so that it blurs.
        return _gaussian_blur_2d(queries.clone(), size + 1 - size % 2, deviation, 0.0)

    hooks = [each.to_q.register_forward_hook(blur) for each in attentions(unet)]
    perturbed = unet.expected()
    for hook in hooks:
        hook.remove()
    ours = unet.ours(blur=np.array([0, deviation], np.float32))
    assert relative_error(ours, np.stack([plain[0], perturbed[1]])) <= TOLERANCE
    assert relative_error(plain[1], perturbed[1]) > 1e-4
