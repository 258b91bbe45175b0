"""Damaged checkpoints of every form: each is refused by an error of ours, and nothing is left, run or read into memory.

`pytest tests/test_fuzz.py --damaged 2000 --kills 20` does more of the same.
"""

import itertools
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import damage
import numpy as np
import pytest
from checkpoints import TEXT, UNET, VAE, models_in, rewrite_as_flax, tensors_of, write_tiny

from sdjax.convert import Choices, convert, export, resolve
from sdjax.errors import SdjaxError

SLACK = 1 << 20  # bytes that reading any checkpoint takes: names, shapes, configurations


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    """One tiny checkpoint in every layout."""
    folder = tmp_path_factory.mktemp("originals")
    tiny = write_tiny(folder / "diffusers")
    (folder / "single").mkdir()
    export(convert(tiny, folder / "model"), folder / "single" / "x.safetensors", to="single-file")
    shutil.copytree(tiny, folder / "flax")
    rewrite_as_flax(folder / "flax")
    (folder / "pickle").mkdir()
    (folder / "pickle" / "x.ckpt").touch()
    return {name: folder / name for name in ("diffusers", "single", "flax", "pickle")}


def cases() -> list[tuple[str, str, Callable]]:
    """Layout, file, and what is done to it."""
    found = [("diffusers", file, how) for how in damage.SAFETENSORS for file in (TEXT, UNET, VAE)]
    found += [("single", "x.safetensors", how) for how in damage.SAFETENSORS for _ in range(3)]
    msgpack = (
        "text_encoder/flax_model.msgpack",
        "unet/diffusion_flax_model.msgpack",
        "vae/diffusion_flax_model.msgpack",
    )
    found += [("flax", file, how) for how in damage.MSGPACK for file in msgpack]
    configs = [f"{name}/config.json" for name in ("text_encoder", "unet", "vae")]
    found += [("diffusers", file, how) for how in (damage.cut_json, damage.retype_json) for file in configs]
    found += [("diffusers", "model_index.json", how) for how in (damage.cut_json, damage.point_outside)]
    with suppress(ImportError):
        import torch  # noqa: F401 its own memory is not what is measured

        found += [("pickle", "x.ckpt", damage.pickle_with_code)] * 4
    return found


def test_every_damaged_checkpoint_is_refused(originals, tmp_path, request):
    random = np.random.default_rng(0)
    options = {"single": Choices(config=originals["diffusers"])}
    for original in originals.values():  # traces the models, whose memory is not what is measured
        if original.name != "pickle":
            source = original / "x.safetensors" if original.name == "single" else original
            choices = options.get(original.name, Choices())
            convert(source, tmp_path / f"whole-{original.name}", single_file=choices)
    tracemalloc.start()
    for i, (layout, name, how) in zip(range(request.config.getoption("damaged")), itertools.cycle(cases())):
        place = tmp_path / str(i)
        shutil.copytree(originals[layout], place / layout)
        file = place / layout / name
        done = f"case {i}, {layout}/{name}: {how(file, random)}"
        before = sorted(place.rglob("*"))
        source = file if layout in ("single", "pickle") else place / layout
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0]
        try:
            convert(source, place / "model", single_file=options.get(layout, Choices()))
            pytest.fail(f"{done}: converted")
        except SdjaxError as error:
            message = str(error)
        assert "\n" not in message, done
        used = tracemalloc.get_traced_memory()[1] - held
        assert used < 2 * max(path.stat().st_size for path in (place / layout).rglob("*")) + SLACK, done
        assert sorted(place.rglob("*")) == before, done
        shutil.rmtree(place)
    tracemalloc.stop()


# Converts slowly, so that it can be killed in the middle.
SLOW = """
import sys, time
import sdjax.convert
def report(*done):
    print(flush=True)
    time.sleep(0.002)
sdjax.convert.resolve(sys.argv[1], progress=report)
"""


@pytest.mark.long
def test_a_conversion_that_is_killed_is_never_taken_for_whole(tiny, tmp_path, monkeypatch, request):
    """With SIGKILL at random moments; once to the end then finds nothing of the others."""
    random = np.random.default_rng(0)
    cache = tmp_path / "cache"
    monkeypatch.setenv("SDJAX_CACHE", str(cache))
    whole = tensors_of(convert(tiny, tmp_path / "whole"))
    for _ in range(request.config.getoption("kills")):
        process = subprocess.Popen([sys.executable, "-c", SLOW, str(tiny)], env=os.environ, stdout=subprocess.PIPE)
        process.stdout.readline()  # the first tensor is written
        time.sleep(random.uniform(0, 0.7))
        was_writing = process.poll() is None
        process.kill()
        process.communicate()
        (left,) = models_in(cache)
        if left.name.startswith("."):
            assert was_writing
        else:  # it was faster
            assert tensors_of(left) == whole
            shutil.rmtree(left)
    made = resolve(tiny)
    assert tensors_of(made) == whole
    assert models_in(cache) == [made]
