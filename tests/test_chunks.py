"""Prompts cut into chunks of tokens, as A1111 cuts them; literal prompts; learned words."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdjax.errors import InputError
from sdjax.files.layout import embedded_models
from sdjax.prompts import load_tokenizer, one_chunk, padded, tiled, weighted_chunks

TOKENIZER = load_tokenizer(embedded_models()["shapes"] / "tokenizer")
BEGIN, END = TOKENIZER.bos, TOKENIZER.eos
(A, RED, STAR, COMMA) = TOKENIZER.backend.encode("a red star,", add_special_tokens=False).ids
WORDS = {"<cat-toy>": [700, 701], "easyneg": [702], "easyneg-2": [703]}


def contents(prompt, words=None):
    """The tokens of each chunk without begin, end and padding, which are checked."""
    tokens = weighted_chunks(TOKENIZER, prompt, words or {})
    chunks = []
    for ids in tokens.ids.tolist():
        end = ids.index(END)
        assert len(ids) == 77 and ids[0] == BEGIN and set(ids[end:]) == {END}
        chunks.append(ids[1:end])
    return chunks


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [
        ("", [0]),
        ("a " * 75, [75]),
        ("a " * 76, [75, 1]),
        ("a " * 151, [75, 75, 1]),
        ("a " * 60 + ", " + "a " * 20, [61, 20]),  # moved: 14 tokens stand behind the comma
        ("a " * 55 + ", " + "a " * 19, [75]),
        ("a " * 55 + ", " + "a " * 20, [56, 20]),  # the comma is the 20th from the end
        ("a " * 54 + ", " + "a " * 21, [75, 1]),  # the 21st: too far
        ("a " * 75 + ", a", [75, 2]),  # a comma where a chunk is full begins the next
        ("a " * 74 + ", a", [75, 1]),
        ("a BREAK a a", [1, 2]),
        ("BREAK a", [0, 1]),
        ("a BREAK", [1]),
        ("a, BREAK " + "a " * 76, [2, 75, 1]),
        ("a " * 60 + ", " + "a " * 20 + "(a:1.3) " * 60, [61, 75, 5]),
    ],
)
def test_chunks_end_where_those_of_a1111_do(prompt, lengths):
    assert [len(chunk) for chunk in contents(prompt)] == lengths


@given(st.lists(st.sampled_from(["a", "red star", ",", "(red:1.3)", "BREAK", "[star]", "<cat-toy>"]), max_size=200))
def test_no_token_is_lost_and_each_has_its_weight(pieces):
    tokens = weighted_chunks(TOKENIZER, " ".join(pieces), WORDS)
    expected = {"a": [(A, 1.0)], "red star": [(RED, 1.0), (STAR, 1.0)], ",": [(COMMA, 1.0)], "BREAK": []}
    expected |= {"(red:1.3)": [(RED, 1.3)], "[star]": [(STAR, 1 / 1.1)], "<cat-toy>": [(700, 1.0), (701, 1.0)]}
    words = [
        (token, weight)
        for token, weight in zip(tokens.ids.ravel().tolist(), tokens.weights.ravel().tolist())
        if token not in (BEGIN, END)
    ]
    wanted = [pair for piece in pieces for pair in expected[piece]]
    assert [token for token, _ in words] == [token for token, _ in wanted]
    np.testing.assert_allclose([weight for _, weight in words], [weight for _, weight in wanted], rtol=1e-6)
    framing = np.isin(tokens.ids, [BEGIN, END])
    assert np.all(tokens.weights[framing] == 1)
    for ids in tokens.ids.tolist():  # vectors of one word stay in one chunk
        assert ids.count(700) == ids.count(701)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a <cat-toy>, star", [A, 700, 701, COMMA, STAR]),
        ("a<cat-toy>a", [A, 700, 701, A]),
        ("EasyNeg, red", [702, COMMA, RED]),
        ("(easyneg:0.5)", [702]),
        ("easyneg-2", [703]),
    ],
)
def test_learned_words_are_found(text, ids):
    assert contents(text, WORDS) == [ids]
    if "(" not in text:
        assert one_chunk(TOKENIZER, text, WORDS).ids[0, 1 : len(ids) + 1].tolist() == ids


def test_learned_words_are_not_found_inside_of_words():
    (chunk,) = contents("easynegs uneasyneg", WORDS)
    assert 702 not in chunk


def test_a_word_that_does_not_fit_begins_the_next_chunk():
    assert [len(chunk) for chunk in contents("a " * 74 + "<cat-toy> a", WORDS)] == [74, 3]


def test_a_literal_prompt_is_one_chunk_and_says_what_it_leaves_out():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one_chunk(TOKENIZER, "(red:1.3) BREAK a", {}).ids.shape == (1, 77)
    with pytest.warns(UserWarning, match="81 tokens, of which the model reads 75; left out: .*star"):
        tokens = one_chunk(TOKENIZER, "a red star " * 27, {})
    assert tokens.ids[0, [0, 75, 76]].tolist() == [BEGIN, STAR, END]
    assert np.all(tokens.weights == 1)


def test_prompts_are_made_longer():
    long, short = (weighted_chunks(TOKENIZER, prompt, {}) for prompt in ("(a:1.5) " * 76, "(a:0.5)"))
    ids, weights = padded(TOKENIZER, short, 3)
    assert ids.shape == weights.shape == (3, 77)
    assert ids[1:].tolist() == [[BEGIN] + [END] * 76] * 2 and np.all(weights[1:] == 1)
    assert np.array_equal(ids[0], short.ids[0]) and weights[0, 1] == np.float32(0.5)
    ids, weights = tiled(long, 4)
    assert np.array_equal(ids[:2], long.ids) and np.array_equal(ids[2:], long.ids)
    assert np.array_equal(weights[:2], long.weights) and np.array_equal(weights[2:], long.weights)


def test_weights_beyond_float32_are_said():
    with pytest.raises(InputError, match="a weight in the prompt is too large"):
        weighted_chunks(TOKENIZER, f"(a:{'9' * 50})", {})


def test_an_exclamation_mark_is_a_word_to_open_clip_and_padding_to_diffusers(shared):
    """256 is "!</w>" and 995 "!!!</w>" in CLIP's vocabulary, 0 the "!" that Stable Diffusion 2 pads with."""
    tokenizer = load_tokenizer(shared / "reference/hub/stabilityai/stable-diffusion-2-1/tokenizer")
    vocabulary = tokenizer.backend.get_vocab()
    assert [vocabulary[word] for word in ("!", "!</w>", "!!!</w>")] == [0, 256, 995]
    assert weighted_chunks(tokenizer, "wow! wow!!!", {}).ids[0, 1:5].tolist() == [2781, 256, 2781, 995]
    assert one_chunk(tokenizer, "wow! wow!!!", {}).ids[0, 1:7].tolist() == [2781, 0, 2781, 0, 0, 0]


@pytest.mark.parametrize("repository", ["runwayml/stable-diffusion-v1-5", "stabilityai/stable-diffusion-2-1"])
def test_chunks_are_filled_up_as_plain_prompts_are(shared, repository):
    tokenizer = load_tokenizer(shared / "reference" / "hub" / repository / "tokenizer")
    text = "a photo of an astronaut, riding a horse"
    assert weighted_chunks(tokenizer, text, {}).ids.tolist() == one_chunk(tokenizer, text, {}).ids.tolist()
