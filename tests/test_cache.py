"""Results cached on disk between processes, their exact keys, the limit of the cache, and `sdjax cache`."""

import os
import re
import subprocess
import sys
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdjax
from sdjax import programs
from sdjax.cli import main
from sdjax.errors import InputError
from sdjax.files.cache import cached, exact_key
from sdjax.files.eviction import drop, entries, format_size, hold, keep_to_limit, limit, parse_size
from sdjax.models import CLIPTextConfig, CLIPTextModel
from sdjax.models.platform import platform, target_platform
from sdjax.parallel import compiled, pmap, shard

HEART = "a red heart on a blue background"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SDJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SDJAX_CACHE_LIMIT", raising=False)
    return tmp_path / "cache"


def test_a_result_is_made_once_for_each_key():
    made = iter([b"one", b"two"])
    assert [cached("shapes", key, lambda: next(made)) for key in ("a", "b", "a", "b")] == [b"one", b"two"] * 2


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: content + b"!"])
def test_a_damaged_file_is_made_anew(cache, damage):
    cached("shapes", "a", lambda: b"right")
    (file,) = (cache / "shapes").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert cached("shapes", "a", lambda: b"right again") == b"right again"
    assert cached("shapes", "a", lambda: b"not made") == b"right again"


def test_where_nothing_can_be_written_all_works(cache):
    cache.write_text("a file, where a folder is wanted")
    assert [cached("shapes", "a", lambda made=made: made) for made in (b"one", b"two")] == [b"one", b"two"]


def test_the_next_pipeline_traces_no_network(small, tmp_path, monkeypatch):
    settings = {"num_inference_steps": 2, "output_type": "np"}
    first = sdjax.load(small)(HEART, **settings).images

    def traced(*arguments):
        raise AssertionError("was traced again")

    monkeypatch.setattr(programs, "denoiser", traced)
    assert np.array_equal(sdjax.load(small)(HEART, **settings).images, first)
    monkeypatch.setenv("SDJAX_CACHE", str(tmp_path / "empty"))
    with pytest.raises(AssertionError, match="traced again"):
        sdjax.load(small)(HEART, **settings)


# Keys


def ours(function):
    """The function as if it were one of sdjax's own: only those are cached."""
    function.__module__, function.__qualname__ = "sdjax.programs", function.__name__
    return function


def for_platform(x: jax.Array) -> jax.Array:
    return x + {"cpu": 1, "tpu": 2}[platform()]


def add_first(table: object, x: jax.Array) -> jax.Array:
    return x + jnp.asarray(table)[0]


def test_a_program_traced_for_another_platform_is_not_the_one_that_runs_here(cache):
    """In one `pmap`, in another one that finds the first one's trace on disk, and in what jit itself caches."""
    program = partial(ours(for_platform))
    runs = [pmap(program, in_axes=(0,)), pmap(program, in_axes=(0,)), compiled(for_platform), jax.jit(for_platform)]
    x = shard(np.zeros(jax.local_device_count()))
    for run in runs:
        with target_platform("tpu"):
            assert np.all(np.asarray(run(x)) == 2)
        assert np.all(np.asarray(run(x)) == 1)
    assert len(list((cache / "programs").iterdir())) == 2


def test_a_bound_array_is_refused_however_long_it_is():
    """numpy's repr shortens tables of more than 1,000 entries: as a key it would give one's program to the other."""
    for table in (np.zeros(2000), jnp.zeros(3), [np.float32(1)]):
        for function in (add_first, programs.decode):
            with pytest.raises(TypeError, match=r"cannot be part of a cache key.*pass arrays as arguments"):
                pmap(partial(function, table), in_axes=(0,))


def test_long_tables_that_differ_in_one_entry_are_told_apart():
    tables = [[0.0] * 2000, [0.0] * 1999 + [1.0]]
    assert len({exact_key(partial(programs.decode, table)) for table in tables}) == 2


def test_modules_are_told_apart_by_class_and_config():
    small, large = (CLIPTextModel(CLIPTextConfig(hidden_size=size)) for size in (64, 128))
    assert exact_key(small) == exact_key(CLIPTextModel(CLIPTextConfig(hidden_size=64))) != exact_key(large)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def typed(value) -> object:
    """Values that compare equal but are not alike, such as 1, 1.0 and True, or 0.0 and -0.0, apart."""
    if isinstance(value, list):
        return [typed(entry) for entry in value]
    if isinstance(value, dict):
        return {name: typed(entry) for name, entry in value.items()}
    return type(value).__name__, repr(value)


@given(PLAIN, PLAIN)
def test_keys_are_equal_exactly_for_equal_values(one, other):
    assert (exact_key(one) == exact_key(other)) == (typed(one) == typed(other))


def test_programs_of_other_packages_run_and_leave_nothing_in_the_cache(cache):
    """Two scripts may have a function of one name: no key covers their code."""
    x = shard(np.arange(4.0))
    first = pmap(partial(lambda factor, x: factor * x, 2), in_axes=(0,))(x)
    second = pmap(partial(lambda factor, x: factor + x, 2), in_axes=(0,))(x)
    assert np.asarray(first)[:4].tolist() == [0, 2, 4, 6] and np.asarray(second)[:4].tolist() == [2, 3, 4, 5]
    assert not (cache / "programs").exists()


def test_a_program_that_cannot_be_serialized_runs_all_the_same(caplog):
    @ours
    def twice(factor: int, x: jax.Array) -> jax.Array:
        return jax.pure_callback(lambda x: factor * x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    run = pmap(partial(twice, 2), in_axes=(0,))
    assert np.asarray(run(shard(jnp.arange(3.0))))[:3].tolist() == [0, 2, 4]
    assert "cannot be cached" in caplog.text


# The limit


def fill(*keys: str, size: int = 1000) -> None:
    """Entries that were last used long ago, in this order."""
    for i, key in enumerate(keys):
        before = {entry.path for entry in entries()}
        cached("programs", key, lambda: bytes(size))
        (path,) = {entry.path for entry in entries()} - before
        os.utime(path, (i + 1, i + 1))


def made_again(*keys: str) -> list[str]:
    """Those of the keys that are not in the cache any more."""
    missing = []
    for key in keys:
        cached("programs", key, lambda key=key: missing.append(key) or b"")
    return missing


def test_the_least_recently_used_is_dropped_first(monkeypatch):
    fill("a", "b", "c", "d")
    cached("programs", "a", lambda: b"not made")  # used now
    monkeypatch.setenv("SDJAX_CACHE_LIMIT", "2500")
    assert len(keep_to_limit()) == 2
    assert made_again("a", "b", "c", "d") == ["b", "c"]


def test_nothing_is_dropped_within_the_limit(monkeypatch):
    fill("a", "b")
    for text in ("1GB", "none"):
        monkeypatch.setenv("SDJAX_CACHE_LIMIT", text)
        assert keep_to_limit() == []
    assert made_again("a", "b") == []


@pytest.mark.long
def test_a_model_that_a_process_has_open_is_not_dropped(tiny, cache, monkeypatch):
    code = "import sys, sdjax.convert as c; print(c.resolve(sys.argv[1]), flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code, tiny], stdin=-1, stdout=-1, text=True)
    model = other.stdout.readline().strip()
    monkeypatch.setenv("SDJAX_CACHE_LIMIT", "0")
    keep_to_limit()
    assert [str(entry.path) for entry in entries()] == [model]
    other.communicate()
    keep_to_limit()
    assert entries() == [] and not any((cache / "models").iterdir())


def test_links_are_neither_followed_nor_removed(cache, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    (outside / "model").mkdir(parents=True)
    (outside / "model" / "weights").write_bytes(bytes(100))
    (cache / "models" / "own").mkdir(parents=True)
    (cache / "models" / "own" / "link").symlink_to(outside)
    (cache / "models" / "linked").symlink_to(outside / "model")
    (cache / "compiled").symlink_to(outside)
    assert [entry.path.name for entry in entries()] == ["own"]
    monkeypatch.setenv("SDJAX_CACHE_LIMIT", "0")
    assert main(["cache", "--clear"]) == 0
    assert (outside / "model" / "weights").exists() and (cache / "models" / "linked").is_symlink()
    assert not (cache / "models" / "own").exists()


def test_processes_that_drop_and_make_at_once_do_not_disturb_each_other(monkeypatch):
    monkeypatch.setenv("SDJAX_CACHE_LIMIT", "3000")
    wrong = []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, 8, 60).tolist():
            if cached("programs", i, lambda i=i: bytes([i]) * 1000) != bytes([i]) * 1000:
                wrong.append(i)
            keep_to_limit()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and sum(entry.size for entry in entries()) <= 3000


def test_what_is_not_there_cannot_be_held_and_counts_as_dropped(cache):
    fill("a")
    (entry,) = entries()
    assert drop(entry) and drop(entry)
    assert not hold(cache / "models" / "missing")


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 5 * 10**8), ("20 gb", 2 * 10**10), ("1.5TB", 15 * 10**11), ("7", 7), ("none", None)]
)
def test_sizes_as_people_write_them(text, size):
    assert parse_size(text, "--limit") == size
    if size and size > 7:
        assert parse_size(format_size(size), "") == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "20 GiB", "1e9", "٣GB"])
def test_what_is_no_size_is_one_line(text, capsys):
    assert main(["cache", f"--limit={text}"]) == 1
    assert re.fullmatch(r"sdjax: --limit should be a size such as 500MB .*\n", capsys.readouterr().err)


def test_a_wrong_limit_is_known_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setenv("SDJAX_CACHE_LIMIT", "lots")
    with pytest.raises(InputError, match="SDJAX_CACHE_LIMIT should be a size such as 500MB or 20GB, or none"):
        sdjax.load()


# The command


def test_the_command_shows_limits_and_clears(capsys, monkeypatch):
    fill("a", "b", "c")
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert "at most 50.0 GB" in shown and re.search(r"programs +3 +3\.1 KB +1970-01-01", shown)
    assert main(["cache", "--limit", "2.2KB"]) == 0
    assert limit() == 2200 and made_again("a", "b", "c") == ["a"]
    monkeypatch.setenv("SDJAX_CACHE_LIMIT", "1GB")
    assert limit() == 10**9  # the variable goes before what is stored
    assert main(["cache", "--clear", "shapes"]) == 0 and entries()
    assert main(["cache", "--clear"]) == 0 and not entries()
    assert main(["cache", "--clear", "programmes"]) == 1
    assert "the cache has no 'programmes'; it has models, programs" in capsys.readouterr().err


def test_the_command_does_not_wait_for_jax():
    code = "import sys, sdjax.cli; assert sdjax.cli.main(['cache']) == 0; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
