"""Rows that take parts of the network from earlier ones: which rows, beside others in a batch, and what is refused."""

import numpy as np
import pytest

from sdjax.errors import InputError
from sdjax.files.plans import use_plan, write_plan
from sdjax.schedulers.tuned import ORDER, Table, TunedPlan, described
from sdjax.settings import Picture

PROMPT = "a red heart on a yellow background"


def order(pipe, **settings):
    return pipe.prepare([Picture(prompt=PROMPT, **{"num_inference_steps": 6, "sampler": "ddim", **settings})])


def rows(order):
    return order.reuse[0, : order.nfe].T.astype(int).tolist()


def test_plain_pictures_keep_nothing(pipe):
    assert order(pipe).reuse is None
    assert order(pipe, gate_step=6).reuse is None  # after the last step
    assert order(pipe, cache_interval=1, gate_step=9).key == order(pipe).key


def test_the_rows_that_take_something(pipe):
    assert rows(order(pipe, cache_interval=3)) == [[0, 1, 1, 0, 1, 1], [0] * 6]
    gated = order(pipe, cache_interval=3, gate_step=2)
    assert rows(gated) == [[0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 1]]
    assert gated.guided.tolist() == [True, True, False, False, False, False]
    # Of the half that was not computed before there is nothing to take.
    assert rows(order(pipe, cache_interval=4, guidance_interval=(0.33, 1.0)))[0] == [0, 1, 0, 1, 0, 1]
    # Steps of two evaluations.
    assert rows(order(pipe, sampler="heun", num_inference_steps=3, gate_step=1))[1] == [0, 0, 1, 1, 1]


def test_pictures_share_a_batch_only_with_those_that_take_the_same(pipe):
    keys = [order(pipe, **each).key for each in ({}, {"cache_interval": 2}, {"cache_interval": 3}, {"gate_step": 3})]
    assert len(set(keys)) == 4
    assert keys[1] == order(pipe, cache_interval=2, sampler="dpmpp_2m", guidance_scale=3.0).key


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pag_scale": 3.0}, "pag_scale"),
        ({"prompt": "a cat AND a dog"}, "AND"),
        ({"cfg_plus_plus": True}, "cfg_plus_plus"),
        ({"sampler": "dpm_adaptive"}, "dpm_adaptive"),
    ],
)
@pytest.mark.parametrize("own", [{"cache_interval": 3}, {"gate_step": 3}])
def test_what_does_not_go_together(pipe, settings, named, own):
    with pytest.raises(InputError, match=named):
        pipe.prepare([Picture(**{"prompt": PROMPT, "num_inference_steps": 6, **settings, **own})])


@pytest.mark.long
def test_each_picture_of_a_batch_is_what_it_is_alone(pipe):
    """Plain, cached and gated ones in one batch; where all is computed, the last bits are those of a plain program."""
    each = [{}, {"cache_interval": 3}, {"gate_step": 3}, {"cache_interval": 2, "gate_step": 4}]
    pictures = [Picture(prompt=PROMPT, num_inference_steps=6, sampler="dpmpp_2m", seed=3, **own) for own in each]
    together = pipe.draw(pictures, output_type="latent").images
    for picture, found in zip(pictures, together):
        alone = pipe.draw([picture] * 4, output_type="latent").images
        np.testing.assert_allclose(found, alone[0], rtol=1e-4, atol=1e-4)
    assert np.abs(together[0] - together[1:]).max((1, 2, 3)).min() > 1e-3  # they are others


@pytest.mark.long
def test_nothing_is_compiled_between_samplers_plans_and_what_is_left_out(pipe, tmp_path, compilations):
    """Where any picture of a batch takes something from before, whichever does."""
    levels = np.geomspace(14.0, 0.1, 4)[None]
    table = Table(levels, np.linspace(990.0, 10.0, 4)[None], np.eye(1, ORDER).repeat(4, 0)[None], np.full((1, 4), 0.8))
    noise = described(pipe.facts.scheduler.noise)
    write_plan(TunedPlan(np.array([7.5]), table, noise), tmp_path / "mine.json")
    tuned = {"sampler": use_plan(tmp_path / "mine.json")}
    kinds = [{"sampler": "unipc"}, tuned, {"sampler": "ddim", "cache_interval": 3}, {"sampler": "heun", "gate_step": 2}]
    for turn in range(len(kinds)):
        each = [*kinds[turn:], *kinds[:turn]]
        pipe.draw([Picture(PROMPT, num_inference_steps=4, seed=turn, **own) for own in each], output_type="latent")
        if turn == 0:
            compilations.clear()
    assert not compilations
