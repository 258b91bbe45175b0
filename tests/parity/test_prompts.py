"""What pictures read and the noise they start from, against diffusers and plain PyTorch on the same weights."""

import diffusers
import numpy as np
import pytest
import torch

import sdjax
from sdjax.parallel import unshard
from sdjax.prompts import parse_emphasis, weighted_chunks

PROMPTS = [
    "a big red heart at the top left on a yellow background",
    "a cyan ring above a pink star on a black background",
]
NEGATIVE = "a green square on a white background"
SEEDS = [11, 2**40 + 12]
STEPS = 12


@pytest.fixture(scope="module")
def theirs(shared):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(shared / "models" / "shapes-sd")
    pipe.set_progress_bar_config(disable=True)
    # diffusers looks for the final norm where transformers 4 had it.
    object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    return pipe


@pytest.fixture(scope="module")
def ours(shared, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        return sdjax.load(shared / "models" / "shapes-sd", dtype="float32")


def compare(name, got, expected):
    difference = np.abs(got - expected) * 255
    print(f"\n{name:40} mean {difference.mean():.5f}/255, largest {difference.max():.4f}/255")
    assert np.ptp(expected) > 0.5  # there is something to see
    assert difference.mean() <= 0.1
    assert difference.max() <= 2


@pytest.mark.long
@pytest.mark.parametrize(
    ("sampler", "class_name", "eta", "clip_skip"),
    [
        ("euler_ancestral", "EulerAncestralDiscreteScheduler", None, None),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler", None, 1),
        ("ddim", "DDIMScheduler", 1.0, None),
        ("ddim", "DDIMScheduler", 0.0, 2),
    ],
)
def test_a_seed_gives_the_picture_of_diffusers(theirs, ours, sampler, class_name, eta, clip_skip):
    settings = {"clip_sample": False} if sampler == "ddim" else {}
    theirs.scheduler = getattr(diffusers, class_name).from_config(ours.model.scheduler_config, **settings)
    common = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "clip_skip": clip_skip, "output_type": "np"}
    expected = theirs(
        PROMPTS,
        negative_prompt=[NEGATIVE] * 2,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        eta=eta or 0.0,
        height=64,
        width=64,
        **common,
    ).images
    got = ours(
        PROMPTS,
        negative_prompt=NEGATIVE,
        seed=SEEDS,
        sampler=sampler,
        eta=eta,
        rng="torch",
        prompt_syntax="plain",
        **common,
    ).images
    compare(f"{sampler}, eta {eta}, clip skip {clip_skip}", got, expected)


def encoded(pipe, prompt, skip=0):
    tokenizer, words = pipe.facts.readers[0]
    ids, weights = (leaf[None, :, None] for leaf in weighted_chunks(tokenizer, prompt, words))
    texts = pipe.networks.encode_text(pipe.params, ids, weights, np.array([skip], np.int32), np.zeros(1, bool))
    return unshard(texts["context"], 1)


@pytest.mark.few(3)
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("a (red:1.4) star [above] a ((ring))", [list(range(6))]),
        ("a " + "(a red star:1.2), " * 20 + "a blue ring", [list(range(73)), list(range(73, 84))]),
        ("a red star BREAK (a blue ring:0.3)", [[0, 1, 2], [3, 4, 5]]),
    ],
)
def test_weighted_and_long_prompts_are_encoded_as_a1111_does(theirs, ours, prompt, chunks, skip):
    tokenizer, model = theirs.tokenizer, theirs.text_encoder
    words = [
        (token, weight)
        for text, weight in parse_emphasis(prompt)
        if text != "BREAK"
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    assert sum(map(len, chunks)) == len(words)
    expected = []
    for places in chunks:
        filling = [tokenizer.eos_token_id] * (76 - len(places))
        ids = torch.tensor([[tokenizer.bos_token_id, *(words[k][0] for k in places), *filling]])
        weights = torch.tensor([1.0, *(words[k][1] for k in places), *[1.0] * len(filling)])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[-1 - skip]
            states = model.final_layer_norm(states)[0]
        weighted = states * weights[:, None]
        expected.append(weighted * (states.mean() / weighted.mean()))
    expected = torch.cat(expected).numpy()
    got = encoded(ours, prompt, [skip])[0]
    assert got.shape == expected.shape == (77 * len(chunks), 128)
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    print(f"\n{prompt[:30]!r}, skip {skip}: relative error {error:.1e}")
    assert error <= 1e-5


@pytest.mark.few(1)
@pytest.mark.parametrize("vectors", [1, 3])
def test_learned_words_are_those_of_diffusers(theirs, ours, tmp_path, vectors):
    generator = torch.Generator().manual_seed(vectors)
    path, token = tmp_path / "learned_embeds.bin", f"<cat-toy-{vectors}>"
    torch.save({token: torch.randn(vectors, 128, generator=generator).squeeze(0) / 10}, path)
    theirs.load_textual_inversion(path)
    assert ours.load_textual_inversion(path) == token
    prompt = f"a red {token}, on a blue background"
    expected = theirs.encode_prompt(prompt, "cpu", 1, False)[0].detach().numpy()
    got = encoded(ours, prompt, [0])
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    print(f"\n{vectors} vectors: relative error {error:.1e}")
    assert error <= 1e-5
    without = encoded(ours, "a red star, on a blue background", [0])
    assert np.linalg.norm(got - without) > 0.1
