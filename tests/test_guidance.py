"""Forms of guidance in a pipeline: by name, picture by picture, and without compiling again."""

import numpy as np
import pytest

from sdjax.errors import InputError
from sdjax.guidance import GUIDANCES
from sdjax.pipeline.perturbing import chosen_layers
from sdjax.settings import picture

PROMPT, DRAW = "a red heart", {"num_inference_steps": 3, "negative_prompt": "blue", "output_type": "latent"}


def test_the_schema_has_the_names_of_all_forms():
    assert tuple(GUIDANCES) == picture.GUIDANCES


def test_every_form_is_another_picture_and_none_compiles_again(pipe, compilations):
    drawn = {"cfg": pipe(PROMPT, **DRAW).images}
    compilations.clear()
    for name in ("apg", "cfg_zero_star", "dynamic_threshold"):
        drawn[name] = pipe(PROMPT, guidance=name, apg_eta=0.0, mimic_scale=3.0, **DRAW).images
    assert not compilations
    drawn["perp_neg"] = pipe(PROMPT, guidance="perp_neg", **DRAW).images
    assert len({latents.tobytes() for latents in drawn.values()}) == len(drawn)
    assert all(np.isfinite(latents).all() for latents in drawn.values())
    compilations.clear()
    pipe(PROMPT, guidance="perp_neg", perp_neg_scale=0.5, guidance_scale=3.0, **DRAW)
    assert not compilations
    # With nothing to stay away from, perpendicular is plain.
    kinds = [pipe(PROMPT, guidance=name, **(DRAW | {"negative_prompt": None})).images for name in ("cfg", "perp_neg")]
    np.testing.assert_array_equal(*kinds)


@pytest.mark.long
def test_away_from_perturbed_attention(pipe, compilations):
    """Pictures of a batch have scales and forms of their own; at 0 they are as they would be without."""
    plain = pipe([PROMPT] * 3, seed=[1, 1, 1], **DRAW).images
    forms = {"pag_scale": [0.0, 3.0, 3.0], "seg_blur": [0.0, 0.0, 9999.0]}
    drawn = pipe([PROMPT] * 3, seed=[1, 1, 1], **forms, **DRAW).images
    np.testing.assert_allclose(drawn[0], plain[0], rtol=1e-4, atol=1e-5)
    assert not np.allclose(drawn[1], plain[1], atol=1e-3) and not np.allclose(drawn[2], drawn[1], atol=1e-3)
    compilations.clear()
    pipe([PROMPT] * 3, pag_scale=2.0, seg_blur=0.7, guidance_scale=1.5, **DRAW)
    assert not compilations


@pytest.mark.long
def test_away_from_what_is_blurred_where_the_model_looks(pipe, compilations):
    """A batch without it is drawn by another program; in one with it, pictures at 0 are as they would be without."""
    plain = pipe([PROMPT] * 2, seed=[1, 1], **DRAW).images
    drawn = pipe([PROMPT] * 2, seed=[1, 1], sag_scale=[0.0, 0.75], **DRAW).images
    np.testing.assert_allclose(drawn[0], plain[0], rtol=1e-4, atol=1e-5)
    assert not np.allclose(drawn[1], plain[1], atol=1e-3)
    compilations.clear()
    pipe([PROMPT] * 2, sag_scale=[0.3, 0.1], guidance_scale=1.5, **DRAW)
    assert not compilations


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sag_scale": float("nan")}, "sag_scale must be"),
        ({"recurrence": 2}, "recurrence is for samplers of one evaluation"),
        ({"pag_scale": 1.0, "perturbed_layers": "up.block_7"}, r"no 'up.block_7'; it has attention in down, mid, up"),
        ({"pag_scale": -1.0}, "pag_scale must be a finite number from 0"),
        ({"threshold_percentile": 1.5}, "threshold_percentile must be"),
    ],
)
def test_what_cannot_be_is_said(pipe, settings, message):
    with pytest.raises(InputError, match=message):
        pipe(PROMPT, **settings, **DRAW)


LAYERS = (
    "down_blocks_0/attentions_0",
    "down_blocks_0/attentions_1",
    "mid_block/attentions_0",
    "up_blocks_1/attentions_0",
)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("mid", [2]),
        ("down", [0, 1]),
        ("up.block_1, mid", [2, 3]),
        ("down.block_0.attentions_1", [1]),
        ("down.block_0.attentions_1,down", [0, 1]),
    ],
)
def test_layers_by_diffusers_names(said, found):
    assert chosen_layers(said, LAYERS) == tuple(LAYERS[i] for i in found)
