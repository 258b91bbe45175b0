"""The embedded model, end to end."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import edit_json
from hypothesis import given, settings
from hypothesis import strategies as st

import sdjax
from sdjax.errors import CheckpointError, InputError
from sdjax.files.layout import embedded_models
from sdjax.random import image_keys, image_seeds, normal
from sdjax.schedulers import SOLVERS, SPACINGS
from sdjax.schedulers.names import LABELS

HEART = "a big red heart at the top left on a yellow background"


def test_the_picture_shows_the_prompt():
    out = sdjax.load()(HEART, num_inference_steps=20, sampler="dpmpp_2m", spacing="karras", output_type="np")
    picture = out.images[0]
    assert picture.shape == (64, 64, 3)
    assert out.nfe == 20
    # Palette of the scenes: yellow is 248, 216, 60 and red is 214, 48, 44, each give or take its tint.
    yellow, red = np.array([248, 216, 60]) / 255, np.array([214, 48, 44]) / 255
    assert np.abs(picture[40:60, 40:60].mean((0, 1)) - yellow).max() < 0.1
    distance_to_red = np.abs(picture - red).max(-1) < 0.2
    rows, columns = np.nonzero(distance_to_red)
    assert 200 < len(rows) < 1600  # big, and not the whole picture
    assert rows.mean() < 28
    assert columns.mean() < 28


def test_other_settings_compile_nothing(pipe, compilations):
    for guided in (1.0, 7.5):  # two programs: the one that most runs need has no branch without guidance
        pipe(HEART, num_inference_steps=2, guidance_scale=guided)
        pipe(HEART, num_inference_steps=2, guidance_scale=guided, progress=lambda *_: None)
    pipe(
        HEART, sampler="DPM adaptive"
    )  # which has small programs of its own, that judge its steps and draw their noise
    compilations.clear()
    for k, solver in enumerate(SOLVERS):
        settings = {"num_inference_steps": max(4, k % 8), "seed": k, "guidance_scale": 1 + k % 3}
        pipe(f"a {solver} star", sampler=solver, spacing=SPACINGS[k % len(SPACINGS)], **settings)
    for k, (label, sampler) in enumerate(LABELS.items()):  # as A1111, ComfyUI and the original code run them
        spacing = None if sampler.levels else ("karras", "sgm_uniform", "beta", None)[k % 4]
        pipe("a star", sampler=label, spacing=spacing, num_inference_steps=3 + k % 3, seed=k)
    pipe("a blue ring", negative_prompt="a red ring", sampler="ddim", eta=1.0, seed=2**63, num_inference_steps=60)
    pipe("a blue ring", num_inference_steps=3, progress=lambda *_: None)
    pipe("a (blue:1.3) [ring|star]", clip_skip=1, num_inference_steps=3, seed=5)
    pipe("[a blue:a red:0.5] ring", prompt_syntax="plain", rng="philox", sampler="euler", num_inference_steps=3)
    guided = {"guidance_scale": [[3.0, 1.0, 2.0, 2.0]], "guidance_interval": (0.2, 0.8), "guidance_rescale": 0.7}
    pipe("a blue ring", num_inference_steps=4, sampler="euler", cfg_plus_plus=True, **guided)
    assert len(compilations) == 0


def test_cfg_plus_plus_by_the_samplers_name(pipe):
    settings = {"num_inference_steps": 4, "output_type": "latent", "seed": 3, "negative_prompt": "a blue ring"}
    by_name = pipe(HEART, sampler="euler_cfg_pp", guidance_scale=0.8, **settings).images
    asked_for = pipe(HEART, sampler="euler", cfg_plus_plus=True, guidance_scale=0.8, **settings).images
    np.testing.assert_array_equal(by_name, asked_for)
    theirs = pipe(HEART, sampler="DDIM CFG++", guidance_scale=10.0, **settings)
    ddim = pipe(HEART, sampler="DDIM", cfg_plus_plus=True, guidance_scale=0.8, **settings)
    np.testing.assert_allclose(theirs.images, ddim.images, atol=1e-5)
    assert theirs.settings[0]["sampler"] == "DDIM CFG++" and theirs.settings[0]["guidance_scale"] == 10


@pytest.mark.long
def test_conditions_joined_by_and(pipe, compilations):
    settings = {"num_inference_steps": 3, "output_type": "latent", "seed": 3, "guidance_scale": 4.0}
    plain = pipe(HEART, **settings).images
    halves = pipe(f"{HEART} :0.25 AND {HEART}:.75", **settings).images
    np.testing.assert_allclose(halves, plain, atol=1e-4 * np.abs(plain).max())
    np.testing.assert_array_equal(pipe(f"{HEART} :0.5", **settings | {"guidance_scale": 8.0}).images, plain)
    apart = pipe(f"{HEART} AND a blue ring :0.5", **settings).images
    assert np.abs(apart - plain).max() > 0.01
    three = pipe(f"{HEART} AND a blue [ring|star]:0.5 AND a star :-0.2", **settings).images
    together = pipe([HEART, f"{HEART} AND a blue ring :0.5"], **settings | {"seed": [3, 3]}).images
    for beside, alone in zip(
        together, [plain[0], apart[0]]
    ):  # of another size, and of more conditions than one of them
        np.testing.assert_allclose(beside, alone, atol=1e-4 * np.abs(plain).max())
    compilations.clear()
    four = pipe("a AND b AND c AND d", **settings).images
    assert len(compilations) == 0 and np.isfinite([three, four]).all()
    with pytest.raises(InputError, match="8 parts with AND between them, not 9"):
        pipe(" AND ".join("a" * 9), **settings)
    plain_text = pipe("a AND b", **settings, prompt_syntax="plain").images
    assert np.isfinite(plain_text).all()


def test_a_picture_does_not_depend_on_the_batch_around_it(pipe):
    settings = {"num_inference_steps": 8, "sampler": "euler_ancestral", "output_type": "np"}
    batch = pipe([HEART, "a blue ring on a white background", "a star"], seed=[5, 6, 7], **settings).images
    other = pipe(["a cross", HEART, "a green square"], seed=[1, 5, 9], **settings).images
    alone = pipe(HEART, seed=5, **settings).images
    assert np.array_equal(batch[0], other[1])  # in another slot of a batch of the same size: bit for bit
    assert np.abs(batch[0] - alone[0]).max() <= 1 / 255  # in a batch of another size XLA may sum in another order


def test_every_picture_of_a_batch_may_have_settings_of_its_own(pipe):
    prompts = [HEART, "a blue ring on a white background", "a star"]
    own = {
        "sampler": ["DPM++ 2M Karras", "euler_ancestral", "heun"],
        "spacing": [None, "trailing", "karras"],
        "num_inference_steps": [8, 5, 3],
        "guidance_scale": [3, [5.0, 5.0, 2.0, 1.0, 1.0], 1],
        "seed": [1, 2, 3],
    }
    batch = pipe(prompts, output_type="np", **own)
    assert batch.nfe == 8
    for i, prompt in enumerate(prompts):
        alone = pipe(prompt, output_type="np", **{name: [values[i]] for name, values in own.items()})
        assert np.abs(batch.images[i] - alone.images[0]).max() <= 1 / 255


def test_guidance_interval_is_the_scale_per_step(pipe):
    settings = {"num_inference_steps": 6, "sampler": "heun", "output_type": "np"}
    interval = pipe(HEART, guidance_scale=5, guidance_interval=(1 / 3, 2 / 3), **settings).images
    per_step = pipe(HEART, guidance_scale=[[1, 1, 5, 5, 1, 1]], **settings).images
    assert np.array_equal(interval, per_step)
    assert not np.array_equal(interval, pipe(HEART, guidance_scale=5, **settings).images)


def test_several_pictures_of_several_prompts(pipe):
    out = pipe([HEART, "a star"], num_images_per_prompt=2, seed=40, num_inference_steps=4, output_type="np")
    assert out.seeds == [40, 41, 42, 43]
    singles = [pipe(HEART, seed=41, num_inference_steps=4, output_type="np").images[0]]
    assert np.abs(out.images[1] - singles[0]).max() <= 1 / 255


def test_latents_in_and_out(pipe):
    given_latents = np.asarray(normal(image_keys([3]).start, (16, 16, 4)))
    expected = pipe(HEART, seed=3, num_inference_steps=4, output_type="np").images
    assert np.array_equal(pipe(HEART, latents=given_latents, num_inference_steps=4, output_type="np").images, expected)
    denoised = pipe(HEART, seed=3, num_inference_steps=4, output_type="latent").images
    assert denoised.shape == (1, 16, 16, 4)
    decoded = pipe.networks.autoencoder.decode(denoised)
    assert np.abs(np.asarray(decoded) - expected).max() < 1e-5


def test_guidance_1_ignores_the_negative_prompt(pipe):
    settings = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": 1}
    plain = pipe(HEART, **settings).images
    assert np.array_equal(plain, pipe(HEART, negative_prompt="a red heart", **settings).images)
    assert not np.array_equal(plain, pipe(HEART, **settings | {"guidance_scale": 1.001}).images)


@pytest.mark.long
@pytest.mark.parametrize(("height", "width"), [(36, 44)])
def test_any_multiple_of_the_factor_is_a_size(pipe, height, width):
    out = pipe("a star", height=height, width=width, num_inference_steps=2)
    assert out.images[0].size == (width, height)


def test_progress_tells_every_step(pipe):
    told = []
    pipe(HEART, num_inference_steps=5, sampler="heun", progress=lambda *what: told.append(what))
    assert [what for what in told if what[0] == "denoise"] == [("denoise", k, 9) for k in range(10)]
    assert [stage for stage, done, _ in told if done == 0] == ["encode", "compile", "denoise", "decode"]


def test_long_prompts_say_what_is_cut_and_do_not_fill_the_screen(pipe):
    with pytest.warns(UserWarning, match="81 tokens, of which the model reads 75; left out: .*heart"):
        pipe("a red star " * 26 + "a red heart", num_inference_steps=1, prompt_syntax="plain")
    with pytest.warns(UserWarning, match="27000 tokens") as told:
        pipe("a red star " * 9_000, num_inference_steps=1, prompt_syntax="plain")
    assert len(str(told[0].message)) < 300


def test_a_size_that_no_memory_holds_is_refused_by_its_limit(pipe):
    with pytest.raises(InputError, match="height must be a whole number from 1 to 16384, not 4000000"):
        pipe("a star", height=4_000_000, width=4_000_000, num_inference_steps=1)


def test_a_model_that_does_not_say_its_size_wants_it_told(tmp_path):
    folder = Path(shutil.copytree(embedded_models()["shapes"], tmp_path / "model"))
    edit_json(folder / "unet" / "config.json", sample_size=None)
    with pytest.raises(InputError, match="no height to be known"):
        sdjax.load(folder)("a star", width=64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "no prompt"),
        ({"prompt": [3]}, "prompt must be a text, not 3"),
        ({"negative_prompt": "\udcff"}, "not valid Unicode"),
        ({"negative_prompt": ["a", "b"]}, "2 of negative_prompt were given for 1 prompts"),
        ({"num_inference_steps": 1001}, "(from 1 to 1000|whole number from 1)"),
        ({"num_inference_steps": -3}, "num_inference_steps must be a whole number from 1"),
        ({"height": 65}, "height must be a multiple of 4"),
        ({"width": 0}, "width must be a whole number from 1"),
        ({"seed": [1, 2]}, "2 seeds were given for 1 pictures"),
        ({"seed": -1}, "a seed is a whole number"),
        ({"seed": "x"}, "a seed is a whole number"),
        ({"seed": 2**64 - 1, "num_images_per_prompt": 2}, "a seed is a whole number"),
        ({"sampler": "eulr"}, "did you mean euler"),
        ({"spacing": "karas"}, "did you mean karras"),
        ({"sampler": "heun", "eta": 0.5}, "no option 'eta'"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ({"latents": np.zeros((1, 4, 16, 16))}, r"latents must have shape \(1, 16, 16, 4\)"),
        ({"latents": np.full((1, 16, 16, 4), np.nan)}, "not finite"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"sampler": ["euler", "ddim"]}, "2 values of sampler were given for 1 pictures"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval must be a start and an end"),
        ({"guidance_rescale": 2}, "guidance_rescale must be a finite number from 0 to 1"),
        ({"guidance_scale": [[1.0, 2.0]], "num_inference_steps": 5}, "2 guidance scales were given for a picture of 5"),
        ({"sampler": "heun", "cfg_plus_plus": True}, "cfg_plus_plus does not suit sampler"),
        ({"output_type": "tensor"}, "unknown output_type"),
        ({"clip_skip": -1}, "clip_skip must be a whole number"),
        ({"clip_skip": 3}, "clip_skip must be less than the text encoder's 2 layers"),
        ({"prompt_syntax": "a111"}, "prompt_syntax must be one of a1111, plain, not 'a111'"),
        ({"rng": "cuda"}, "rng must be one of jax, torch, philox, not 'cuda'"),
    ],
)
def test_wrong_arguments_are_named_before_any_work(pipe, arguments, message, compilations):
    arguments = {"prompt": HEART} | arguments
    with pytest.raises(InputError, match=message):
        pipe(arguments.pop("prompt"), **arguments)
    assert not compilations


def test_weights_that_are_not_numbers_are_said():
    damaged = sdjax.load("shapes")
    kernel = damaged.params["unet"]["conv_out"]["bias"]
    damaged.params["unet"]["conv_out"]["bias"] = kernel.at[0].set(np.nan)
    with pytest.raises(CheckpointError, match="unet/conv_out/bias holds values that are not finite"):
        damaged(HEART, num_inference_steps=1)


@given(st.integers(0, 2**64 - 8), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_every_seed_has_noise_of_its_own(seed, count):
    seeds = image_seeds(seed, count + 1)
    noise = normal(image_keys(seeds).start, (4, 4, 4))
    assert np.array_equal(noise[1], normal(image_keys([seed + 1]).start, (4, 4, 4))[0])
    assert len({row.tobytes() for row in np.asarray(noise)}) == count + 1


def test_previews_show_the_picture_coming(pipe, compilations):
    """After the last step it is the picture; before, it is nearer the more steps were taken. Nothing is compiled."""
    settings = {"num_inference_steps": 6, "seed": 3, "sampler": ["heun", "euler"]}
    pictures = np.stack([np.asarray(image) for image in pipe([HEART, "a blue ring"], **settings).images])
    shown = {}
    compilations.clear()
    out = pipe([HEART, "a blue ring"], **settings, preview_every=2, on_preview=shown.__setitem__)
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in out.images]), pictures)
    assert list(shown) == [2, 4, 6]
    distances = [np.abs(np.stack(images) - pictures.astype(float)).mean((1, 2, 3)) for images in shown.values()]
    assert (distances[0] > distances[1]).all() and (distances[1] > distances[2]).all()
    assert (distances[2] < 1).all()
    compilations.clear()
    pipe([HEART, "a ring"], **settings | {"sampler": "dpmpp_2m"}, preview_every=5, on_preview=shown.__setitem__)
    assert compilations == []


@pytest.mark.long
def test_linear_previews_tell_pictures_apart():
    quick = sdjax.load(preview_vae="linear")
    latents = quick([HEART, "a blue ring on a white background"], num_inference_steps=6, output_type="latent").images
    pictures, guesses = quick.networks.autoencoder.decode(latents), quick.networks.autoencoder.preview(latents)
    own, other = (np.abs(guesses - each).mean((1, 2, 3)) for each in (pictures, pictures[::-1]))
    assert (own < other).all()
    assert (own < np.abs(pictures.mean() - pictures).mean((1, 2, 3))).all()  # and better than grey


@pytest.mark.parametrize("wrong", [{"preview_every": 2}, {"preview_every": 0, "on_preview": print}])
def test_previews_that_cannot_be(pipe, wrong):
    with pytest.raises(InputError, match="previews need preview_every"):
        pipe(HEART, **wrong)


def test_a_variation_lies_between_two_seeds(pipe):
    """Of each picture of a batch, whatever is beside it; at the ends it is the one or the other."""
    how = {"num_inference_steps": 2, "output_type": "latent"}
    seeds = pipe(["a cat"] * 2, seed=[3, 8], **how).images
    ends = pipe(["a cat"] * 2, seed=3, subseed=8, subseed_strength=[0.0, 1.0], **how).images
    assert np.array_equal(ends[0], seeds[0])
    np.testing.assert_allclose(ends[1], seeds[1], atol=1e-3)
    between, alone = (
        pipe(["a cat"] * 2, seed=[3, 3], subseed=[8, 9], subseed_strength=[0.5, 0.5], **how).images[0],
        pipe(["a cat"] * 2, seed=[3, 3], subseed=[8, 8], subseed_strength=[0.5, 0.0], **how).images[0],
    )
    assert np.array_equal(between, alone)
    assert all(np.abs(between - end).max() > 0.1 for end in seeds)
