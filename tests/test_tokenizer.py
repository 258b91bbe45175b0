"""Token ids of the published tokenizers, against transformers called as diffusers calls it."""

import random
import shutil
import warnings

import numpy as np
import pytest

from sdjax.prompts import load_tokenizer, one_chunk

TEXT = (
    "a photo of an astronaut riding Horse naïve café Straße 東京 タワー Привет мир 😀 👩‍🚀 🏳️‍🌈 3.14 it's don't — "
    "“quoted” don’t (word:1.3) [b] <|endoftext|> \t \n ½ ﬁ Å ا ب ไทย 한국어 ZWJ\u200d e\u0301 MiXeD --ar 16:9 !!! ?"
)


def strings() -> list[str]:
    draw, words = random.Random(0), TEXT.split(" ")
    mixed = [" ".join(draw.choices(words, k=draw.randrange(1, 25))) for _ in range(300)]
    overlong = [" ".join(draw.choices(words, k=200)) for _ in range(20)]
    any_letters = ["".join(chr(draw.randrange(0x20, 0x2FFFF)) for _ in range(12)) for _ in range(60)]
    readable = ["".join(letter for letter in text if not "\ud800" <= letter <= "\udfff") for text in any_letters]
    return ["", " ", "   ", "\n", "a", *words, *mixed, *overlong, *readable]


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "repository",
    [
        "runwayml/stable-diffusion-v1-5",
        "runwayml/stable-diffusion-inpainting",
        "stabilityai/stable-diffusion-2-1",
        "stabilityai/stable-diffusion-2-inpainting",
        "stabilityai/stable-diffusion-x4-upscaler",
    ],
)
def test_ids_and_padding_are_those_of_transformers(shared, tmp_path, repository):
    from transformers import AutoTokenizer

    original = shared / "reference" / "hub" / repository / "tokenizer"
    # Through the copy that a conversion makes: vocabulary, merges and the special tokens' map are all read from it.
    copy = shutil.copytree(original, tmp_path / "tokenizer")
    theirs = AutoTokenizer.from_pretrained(original, local_files_only=True)
    texts = strings()
    expected = theirs(texts, padding="max_length", max_length=theirs.model_max_length, truncation=True)["input_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is cut
        tokenizer = load_tokenizer(copy)
        got = np.concatenate([one_chunk(tokenizer, text, {}).ids for text in texts])
    assert len(texts) > 400
    assert got.shape == (len(texts), 77)
    assert np.array_equal(got, expected)
    # Stable Diffusion 2 pads with "!", 1 with its end token.
    padding = 0 if "stabilityai" in repository else 49407
    assert got[0].tolist() == [49406, 49407, *[padding] * 75]
