"""The programs of a picture at the size of Stable Diffusion 1.5, compiled for four chips of a TPU that is not there.

XLA's compiler for TPUs needs no TPU, but a wheel of 140 MB: `make devices` installs it. Level O0 of its optimisations
takes a fifth of the default's time; kernels and collectives are the same, and memory is about the same.
"""

from collections.abc import Callable, Iterator
from functools import cache

import jax
import pytest

from sdjax.convert import outline
from sdjax.fitting import Wish, programs_of
from sdjax.models.platform import target_devices
from sdjax.models.precision import Precision
from sdjax.parallel import Made, noting_programs
from sdjax.pipeline import Pipeline
from sdjax.pipeline.request import pictures_of
from sdjax.reading import Reading, most_held
from sdjax.targets import describe

pytest.importorskip("libtpu", reason="XLA's compiler for TPUs is not installed; `make devices` brings it")

CHIPS = 4
MEMORY = 16e9  # of a chip
STATE = 2  # the argument of the denoising loop that it gives back


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    level = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", "O0")
    yield
    jax.config.update("jax_optimization_level", level)


@pytest.fixture(scope="module")
def made(shared) -> Callable[[int], dict[str, Made]]:
    """The programs that so many pictures take, by name; those that others made before are theirs."""
    devices = describe(f"v5e-{CHIPS}")
    found: dict[str, Made] = {}
    with target_devices(devices):
        model = outline(shared / "reference" / "hub" / "runwayml" / "stable-diffusion-v1-5")
        pipe = Pipeline(model, Precision.of("bfloat16"), checks=False)

    @cache
    def of(pictures: int) -> dict[str, Made]:
        with target_devices(devices), noting_programs() as new:
            pipe.compile(pictures_of(["a star"] * pictures, {}))
        found.update({program.name: program for program in new})
        return dict(found)

    return of


def test_pictures_that_are_shared_out_need_no_word_between_chips(made):
    readings = {name: Reading.of(program) for name, program in made(CHIPS).items()}
    assert set(readings) == {"encode_text", "denoise", "decode"}
    assert {name: reading.collectives for name, reading in readings.items()} == dict.fromkeys(readings, 0)
    assert most_held(list(readings.values()))[1] < MEMORY


def test_the_largest_attentions_are_kernels(made):
    assert Reading.of(made(CHIPS)["denoise"]).kernels == 10  # of 16 self-attentions, those of 1024 tokens and more


def test_the_state_of_the_loop_is_changed_in_place(made):
    denoise = made(CHIPS)["denoise"]
    state = jax.tree.leaves(denoise.arguments[STATE])
    assert Reading.of(denoise).aliased >= sum(leaf.size * leaf.dtype.itemsize for leaf in state) / CHIPS


def test_one_picture_has_the_halves_of_its_guidance_side_by_side(made):
    shared_out, side_by_side = (Reading.of(made(count)["denoise"]) for count in (CHIPS, 1))
    assert side_by_side.collectives == 1
    assert "all-gather" in made(1)["denoise"].executable.as_text()
    assert side_by_side.kernels == shared_out.kernels
    assert side_by_side.peak < MEMORY


def test_two_hosts_need_no_word_between_them():
    chips = describe("v5e-8")
    assert len({chip.process_index for chip in chips}) == 2
    wish = Wish("shapes", pictures_of(["a star"] * len(chips), {}), Precision("bfloat16"))
    readings = programs_of(wish, chips)
    assert {each.name: each.collectives for each in readings} == {"encode_text": 0, "denoise": 0, "decode": 0}
