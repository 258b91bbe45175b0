"""What pictures read, through a small model: weights, edits, long prompts, words; and noise of the host."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import sdjax
from sdjax.errors import InputError

STAR = "a blue star on a white background"
RING = "a red ring on a yellow background"
SETTINGS = {"num_inference_steps": 6, "sampler": "euler", "output_type": "np", "seed": 3}


@pytest.fixture(scope="module")
def star(pipe):
    return pipe(STAR, **SETTINGS).images


def test_weights_and_clip_skip_change_the_picture_and_plain_text_does_not(pipe, star):
    for prompt, settings in (
        (f"({STAR}:0.5)", {}),
        (STAR, {"clip_skip": 1}),
        (f"({STAR})", {"prompt_syntax": "plain"}),
    ):
        assert not np.array_equal(pipe(prompt, **SETTINGS | settings).images, star)
    for prompt, settings in ((f"({STAR}:1.0)", {}), (STAR, {"prompt_syntax": "plain"}), (STAR, {"clip_skip": 0})):
        assert np.array_equal(pipe(prompt, **SETTINGS | settings).images, star)


def test_an_edit_is_one_prompt_and_then_the_other(pipe, star):
    ring = pipe(RING, **SETTINGS).images
    assert np.array_equal(pipe(f"[{STAR}:{RING}:1.0]", **SETTINGS).images, star)
    both = pipe(f"[{STAR}:{RING}:2]", **SETTINGS).images
    assert not np.array_equal(both, star) and not np.array_equal(both, ring)
    told = []
    assert np.array_equal(pipe(f"[{STAR}:{RING}:2]", **SETTINGS, progress=lambda *what: told.append(what)).images, both)
    assert [what[1:] for what in told if what[0] == "denoise"] == [(k, 6) for k in range(7)]
    # In the batch of another edit: everyone's changes come at their own steps.
    batch = pipe([f"[{STAR}:{RING}:2]", f"[{RING}|{STAR}]"], **SETTINGS | {"seed": [3, 4]}).images
    assert np.abs(batch[0] - both[0]).max() <= 1 / 255


def test_a_long_prompt_beside_it_does_not_change_a_picture(pipe, star):
    long = STAR + " and a red ring" * 30  # two chunks
    negative = "a " * 160  # and three
    batch = pipe([STAR, long], negative_prompt=["", negative], **SETTINGS | {"seed": [3, 4]}).images
    assert np.abs(batch[0] - star[0]).max() <= 1 / 255
    other = pipe([long, RING], negative_prompt=negative, **SETTINGS | {"seed": [4, 3]}).images
    assert np.abs(batch[1] - other[0]).max() <= 1 / 255
    assert np.abs(batch[1] - pipe(STAR, **SETTINGS | {"seed": 4}).images[0]).max() > 0.1


@pytest.mark.parametrize("rng", ["torch", "philox"])
def test_noise_of_the_host_follows_from_the_seed(pipe, rng):
    settings = SETTINGS | {"sampler": "euler_ancestral", "rng": rng}
    batch = pipe([STAR, RING], **settings | {"seed": [7, 8]}).images
    alone = pipe(RING, **settings | {"seed": 8}).images
    assert np.abs(batch[1] - alone[0]).max() <= 1 / 255
    assert np.array_equal(pipe(RING, **settings | {"seed": 8}, progress=lambda *_: None).images, alone)
    assert not np.array_equal(pipe(RING, **settings | {"seed": 8, "rng": "jax"}).images, alone)


def test_a_learned_word_is_its_vectors(small, tmp_path, star):
    pipe = sdjax.load(small)
    table = np.asarray(pipe.params["text_encoder"]["embeddings"]["token_embedding"]["embedding"])
    ids = pipe.facts.readers[0].tokenizer.backend.encode("blue star", add_special_tokens=False).ids
    save_file({"emb_params": table[ids]}, tmp_path / "my-thing.safetensors")
    assert pipe.load_textual_inversion(tmp_path / "my-thing.safetensors") == "my-thing"
    assert np.array_equal(pipe("a My-Thing on a white background", **SETTINGS).images, star)
    assert np.array_equal(pipe(STAR, **SETTINGS).images, star)
    assert pipe.load_textual_inversion(tmp_path / "my-thing.safetensors", token="<b>") == "<b>"
    assert np.array_equal(pipe("a <b> on a white background", **SETTINGS | {"prompt_syntax": "plain"}).images, star)


@pytest.mark.parametrize(
    ("shape", "token", "says"),
    [
        ((2, 768), None, "has vectors of width 768, those of the model's text encoders are 8 wide"),
        ((76, 8), None, "has 76 vectors, a prompt's chunk has room for 75"),
        ((1, 8), " ", "needs a word"),
    ],
)
def test_an_embedding_that_does_not_fit_is_refused(pipe, tmp_path, shape, token, says):
    save_file({"emb_params": np.ones(shape, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=says):
        pipe.load_textual_inversion(tmp_path / "x.safetensors", token)
    assert not pipe.facts.readers[0].words
