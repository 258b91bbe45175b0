"""DeepCache and T-GATE against diffusers' UNet, row by row, with the same rows cached: relative error at most 1e-5."""

import jax
import numpy as np
import pytest
import torch
from test_models import nchw, nhwc, pair, relative_error, unet_config

from benchmarks.reuse_pytorch import Cached
from sdjax.denoisers import unet_denoiser
from sdjax.guidance import cfg
from sdjax.halves import Conditioning
from sdjax.models.reuse import Kept, kept_shapes
from sdjax.models.unet import Added
from sdjax.reusing import blank, reusing
from sdjax.schedulers.loop import PlanRow
from sdjax.schedulers.plan import Rows

SD1 = unet_config("AA", (16, 32))
XL = unet_config(
    "-A",
    (16, 32),
    attention_head_dim=[2, 4],
    transformer_layers_per_block=[1, 2],
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=20 + 6 * 8,
)
TOLERANCE, ROWS, SCALE, SIDE = 1e-5, 7, 5.0, 16
TIMES = np.linspace(900, 100, ROWS).astype(np.float32)
RANDOM = np.random.default_rng(0)
SAMPLES = RANDOM.standard_normal((ROWS, 1, SIDE, SIDE, 4), np.float32)


def ours(module, params, contexts, added, takes):
    """The guided prediction at every row; takes: [rows, 2]."""
    half = {"pooled": added.pooled, "time_ids": added.time_ids} if added else {}
    negative, positive = ({"context": each[None], **half} for each in contexts)
    shared = {"channels": np.zeros((1, SIDE, SIDE, 0), np.float32), "class_labels": None, "guidance": None}
    conditioning = Conditioning(positive, negative, shared, reuse=jax.numpy.asarray(takes[None]))
    scales = np.where(takes[:, 1], 1, SCALE).astype(np.float32)
    models = {
        guided: jax.jit(
            lambda params, x, row, memory, guided=guided: reusing(
                unet_denoiser(module, params), conditioning, cfg(scales[None]), guided
            )(x, row, memory)
        )
        for guided in (False, True)
    }
    shapes = kept_shapes(module.config, SIDE, SIDE)
    shapes = Kept(shapes.deep if takes[:, 0].any() else None, shapes.attended if takes[:, 1].any() else {})
    memory, found = blank(shapes, np.zeros_like(SAMPLES[0]), np.float32), []
    for k, x in enumerate(SAMPLES):
        at = Rows(*[TIMES[k : k + 1]] * len(Rows._fields))
        row = PlanRow(at, *[np.zeros(1)] * 2, np.full(1, k), np.ones(1, bool))
        output, _, memory = models[not takes[k, 1]](params, x, row, memory)
        found.append(np.asarray(output))
    return np.stack(found)


@pytest.mark.few(1)
@pytest.mark.parametrize("config", [SD1, XL], ids=["SD 1", "XL"])
@pytest.mark.parametrize(("interval", "gate"), [(3, ROWS), (3, 4), (1, 3), (ROWS, 2)])
def test_the_same_rows_taken(config, interval, gate):
    module, params, theirs = pair("UNet2DConditionModel", config)
    contexts = np.random.default_rng(1).standard_normal((2, 7, config["cross_attention_dim"]), np.float32)
    added = None
    if module.config.is_xl:
        added = Added(np.random.default_rng(2).standard_normal((1, 20), np.float32), np.full((1, 6), 64, np.float32))
    takes = np.array([[k % interval != 0, k >= gate] for k in range(ROWS)])
    expected, reference = [], Cached(theirs, interval, gate)
    names = ("text_embeds", "time_ids")
    with torch.no_grad():
        for x, time, (_, gated) in zip(SAMPLES, TIMES, takes):
            count = 1 if gated else 2
            more = {name: torch.from_numpy(each).repeat(count, 1) for name, each in zip(names, added or ())}
            inputs = (nchw(x).repeat(count, 1, 1, 1), torch.tensor(time), torch.from_numpy(contexts[-count:]))
            halves = nhwc(reference(*inputs, added_cond_kwargs=more or None)[0])
            expected.append(halves[-1:] + (0 if gated else (SCALE - 1) * (halves[1:] - halves[:1])))
    got = ours(module, params, contexts, added, takes)
    assert relative_error(got, np.stack(expected)) <= TOLERANCE
