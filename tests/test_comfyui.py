"""ComfyUI's samplers, called by its names: the levels, the steps and the ends that ComfyUI gives them."""

from pathlib import Path

import plain_comfyui
import pytest
from plain_comfyui import NAMES, SCHEDULERS, STEPS, error

from sdjax import schedulers


@pytest.mark.few(90)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", NAMES)
def test_each_sampler_on_each_scheduler_ends_where_comfyuis_does(name, scheduler):
    for steps in STEPS:
        found = error(name, scheduler, steps)
        assert found is None or found <= 1e-6, steps  # the first sample is float32


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "dpm_2", "uni_pc", "seeds_2", "heunpp2"])
@pytest.mark.parametrize(("steps", "denoise"), [(20, 0.5), (10, 0.73), (7, 0.2), (5, 0.8)])
def test_from_an_image_all_steps_are_taken_of_a_longer_run(name, steps, denoise):
    for scheduler in ("normal", "karras", "ddim_uniform"):
        assert error(name, scheduler, steps, denoise) <= 1e-6


def test_the_page_has_every_cell_and_every_difference():
    page = (Path(__file__).parents[1] / "docs" / "comfyui.md").read_text()
    rows = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in page.splitlines() if row.startswith("| ")}
    assert all(len(rows[name]) == len(SCHEDULERS) for name in NAMES)
    for name in NAMES:
        for scheduler, cell in zip(SCHEDULERS, rows[name]):
            differs = plain_comfyui.theirs(name, scheduler, 5) is None
            assert cell.strip() == "differs" if differs else float(cell) <= 1e-6
    for what, how in plain_comfyui.DIFFERENT.items():
        assert f"- {what}: {how}." in page.replace("\n  ", " ")


def test_names_without_the_word_are_run_as_elsewhere():
    theirs, ours = schedulers.create("comfyui dpm_2 karras"), schedulers.create("dpm_2", "karras")
    assert (theirs.label, ours.label, theirs.solver) == ("ComfyUI dpm_2", None, ours.solver)
    assert (
        len(theirs.plan(10).sigmas) == len(ours.plan(10).sigmas)
        and (theirs.plan(10).sigmas != ours.plan(10).sigmas)[-1]
    )
    assert schedulers.create("ComfyUI sa_solver").label == "ComfyUI sa_solver"
    assert schedulers.create("ComfyUI dpmpp_2m_sde_gpu").label == "ComfyUI dpmpp_2m_sde"
