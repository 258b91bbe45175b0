"""Whether a model fits: programs compiled for devices whose memory nothing is put into."""

import re
from importlib.util import find_spec

import jax
import pytest

import sdjax
from sdjax.cli import main
from sdjax.convert import outline
from sdjax.files.eviction import parse_size
from sdjax.fitting import Wish, held, programs_of, remedies
from sdjax.models.precision import Precision
from sdjax.parallel import noting_programs
from sdjax.pipeline.request import pictures_of
from sdjax.reading import Reading, spent_on

SIZES = ("parameters", "arguments", "temporary", "outputs", "aliased")


def wish(model, batch=2, **precision):
    pictures = pictures_of(["a star"] * batch, {"width": 64, "height": 64})
    return Wish(model, pictures, Precision("float32", **precision))


@pytest.fixture(scope="module")
def planned(small):
    return programs_of(wish(small), jax.local_devices())


@pytest.mark.long
@pytest.mark.parametrize("weights", [None, "int8"])
def test_what_is_planned_is_what_is_run(small, planned, weights):
    pipe = sdjax.load(small, weights=weights)
    with noting_programs() as made:
        pipe.draw(pictures_of(["a red ring", "a star"], {"width": 64, "height": 64}))
    real = [Reading.of(program) for program in made]
    plan = planned if weights is None else programs_of(wish(small, weights=weights), jax.local_devices())
    assert [each.name for each in real] == [each.name for each in plan] == ["encode_text", "denoise", "decode"]
    for name in SIZES:
        assert [getattr(each, name) for each in real] == [getattr(each, name) for each in plan]


def test_estimates_are_told_apart_by_what_is_fused():
    program = """
%inner (p: f32[8]) -> f32[8] {
  %convolution.1 = f32[8]{0:T(8,128)} convolution(%p, %p), window={}
}
%product (p: f32[8]) -> f32[8] {
  %fusion.3 = f32[8]{0:T(8,128)} fusion(%p), calls=%inner
}
%norm (p: f32[8]) -> f32[] {
  %multiply.1 = f32[8]{0} multiply(%p, %p)
  %reduce.1 = f32[] reduce(%multiply.1, %zero), to_apply=%add
}
%move (p: f32[8]) -> f32[8] {
  %transpose.1 = f32[8]{0} transpose(%p), dimensions={0}
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %fusion.1 = f32[8]{0:T(8,128)} fusion(%p), calls=%product, backend_config={"estimated_cycles":"1000"}
  %fusion.2 = (f32[], f32[8]{0}) fusion(%p), calls=%norm, backend_config={"estimated_cycles":"200"}
  %fusion.4 = f32[8]{0} fusion(%p), calls=%move, backend_config={"estimated_cycles":"30"}
  %add.1 = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"4"}
  %flash.1 = bf16[2,8,40,1024]{3,2} custom-call(%q, %k), custom_call_target="tpu_custom_call", """
    program += 'backend_config={"custom_call_config":{"cost_estimate":{"flops":"5000","transcendentals":"7"}}}\n}\n'
    assert spent_on(program) == {"matrix": 1000, "reductions": 200, "copies": 30, "elementwise": 4, "kernels": 5000}


def test_what_a_loop_within_a_loop_spends_counts_as_often_as_it_turns():
    """The outer loop, whose turns are steps, counts once; what a branch of it calls is inside it."""
    program = """
%limit.3 (i: (s32[], f32[8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}
%blocks (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %add.1 = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"10"}
}
%guided (p: f32[8]) -> f32[8] {
  %while.2 = (s32[], f32[8]) while(%tuple.2), condition=%limit.3, body=%blocks
}
%limit.5 (i: (s32[], f32[8])) -> pred[] {
  %constant.2 = s32[] constant(5)
  ROOT %lt.2 = pred[] compare(%i, %constant.2), direction=LT
}
%steps (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %conditional = f32[8] conditional(%k, %p, %p), branch_computations={%guided, %plain}
  %add.2 = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"4"}
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[8]) while(%tuple.1), condition=%limit.5, body=%steps
  %add.3 = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"1"}
}
"""
    assert spent_on(program) == {"elementwise": 3 * 10 + 4 + 1}


@pytest.mark.long
def test_most_is_held_with_the_parameters_of_all_components(small, planned):
    text, unet, vae = (each.parameters for each in planned)
    assert held(wish(small), planned) >= text + unet + vae
    assert held(wish(small), planned) - held(wish(small, offload=True), planned) == text + vae


@pytest.mark.long
def test_remedies_fit_and_say_about_how_much_they_take(small, planned):
    now = held(wish(small), planned)
    assert remedies(wish(small), planned, now, jax.local_devices()).keys() == {
        "--batch 1",
        "--offload",
        "--weights int8",
        "--offload --weights int8",
    }
    found = remedies(wish(small), planned, now - 1, jax.local_devices())
    assert found.items() <= remedies(wish(small), planned, now, jax.local_devices()).items()
    assert not remedies(wish(small), planned, 1000, jax.local_devices())
    exact = {
        "--batch 1": wish(small, batch=1),
        "--offload": wish(small, offload=True),
        "--weights int8": wish(small, weights="int8"),
    }
    for options, size in found.items():
        if options in exact:
            real = held(exact[options], programs_of(exact[options], jax.local_devices()))
            assert abs(size - real) <= 0.1 * real


@pytest.mark.long
def test_a_directory_without_weights_is_enough(shared):
    folder = shared / "reference" / "hub" / "stabilityai" / "stable-diffusion-xl-base-1.0"
    model = outline(folder)
    assert set(model.components) == {"text_encoder", "text_encoder_2", "unet", "vae"}
    count = sum(leaf.size for leaf in jax.tree.leaves(model.unet.params))
    assert count == 2_567_463_684  # of the published UNet


@pytest.mark.long
def test_the_command_says_by_how_much_a_model_fits(small, capsys):
    arguments = ["info", str(small), "--size", "64x64", "--dtype", "float32"]
    assert main([*arguments, "--fit", "1GB"]) == 0
    printed = capsys.readouterr().out
    taken, left = re.search(r"fits 1GB: at most (\S+ MB) are held, by denoising; (\S+ MB) are left", printed).groups()
    assert abs(parse_size(taken, "") + parse_size(left, "") - 1e9) < 1e6
    assert main([*arguments, "--fit", "100KB"]) == 1
    said = capsys.readouterr().err
    assert re.search(r"does not fit 100KB: \S+ MB would be held, by denoising, \S+ MB too many; none of", said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "--fit", "much"], "--fit should be a size"),
        (["info", "--fit", "none"], "--fit should be a size"),
        (["info", "--fit", "1GB", "--size", "64"], "such as 512x768"),
        (["info", "--fit", "1GB", "--target", "tpu"], "unknown target 'tpu'; known: v5e-1, v5e-4"),
        (["compile", "--target", "v5e-3"], "unknown target 'v5e-3'; known: v5e-1, v5e-4"),
        (["compile", "--target", "v5e-1", "--vae", "taesd"], "--target"),
    ],
)
def test_what_cannot_be_planned_is_refused_at_once(arguments, message, capsys):
    assert main(arguments) == 1
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(bool(find_spec("libtpu")), reason="the compiler for TPUs is installed")
def test_a_missing_compiler_is_named_with_its_extra(capsys):
    assert main(["compile", "--target", "v5e-1"]) == 1
    assert 'pip install "sdjax[tpu]"' in capsys.readouterr().err
