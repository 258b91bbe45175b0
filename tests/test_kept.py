"""What is kept on disk between processes: the same results, without the work."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax import programs
from sdjax.files.cache import kept
from sdjax.parallel import pmap, shard

HEART = "a red heart on a blue background"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SDJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_made_is_not_made_again_but_for_something_else():
    made = iter([b"one", b"two"])
    assert [kept("kind", what, lambda: next(made)) for what in ("a", "b", "a", "b")] == [b"one", b"two"] * 2


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: content + b"!"])
def test_a_damaged_file_is_made_anew(cache, damage):
    kept("kind", "a", lambda: b"right")
    (file,) = (cache / "kept" / "kind").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert kept("kind", "a", lambda: b"right again") == b"right again"
    assert kept("kind", "a", lambda: b"not made") == b"right again"


def test_where_nothing_can_be_kept_all_works(cache):
    cache.write_text("a file, where a folder is wanted")
    assert [kept("kind", "a", lambda made=made: made) for made in (b"one", b"two")] == [b"one", b"two"]


def test_the_next_pipeline_traces_no_network(tmp_path, monkeypatch):
    settings = {"num_inference_steps": 2, "output_type": "np"}
    first = sdjax.load()(HEART, **settings).images

    def traced(*arguments):
        raise AssertionError("was traced again")

    monkeypatch.setattr(programs, "guided", traced)
    assert np.array_equal(sdjax.load()(HEART, **settings).images, first)
    monkeypatch.setenv("SDJAX_CACHE", str(tmp_path / "empty"))
    with pytest.raises(AssertionError, match="traced again"):
        sdjax.load()(HEART, **settings)


def test_a_program_that_cannot_be_kept_runs_all_the_same(caplog):
    def twice(factor: int, x: jax.Array) -> jax.Array:
        return jax.pure_callback(lambda x: factor * x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    run = pmap(partial(twice, 2), in_axes=(0,))
    assert np.asarray(run(shard(jnp.arange(3.0)))).ravel().tolist() == [0, 2, 4]
    assert "cannot be kept" in caplog.text
