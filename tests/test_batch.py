"""`sdjax batch`: rows in, pictures out, the same whatever happens on the way.

`pytest tests/test_batch.py -k killed --kills 20 --rows 2000` kills a large run, and `-k devices --rows 100` does one on
2 and 4 devices, and in 2 processes.
"""

import csv
import hashlib
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

import sdjax
from sdjax.batch.drawing import Drawing, draw
from sdjax.batch.formats import kind_of, read_rows
from sdjax.batch.groups import Group, Grouping, Placed, batches_of
from sdjax.batch.hosts import Hosts
from sdjax.batch.journal import Journal, lock, read_state
from sdjax.batch.output import Output
from sdjax.batch.rows import Item, Naming, Problem, complain, fingerprint, items_of
from sdjax.batch.runner import Run, run
from sdjax.cli import main
from sdjax.errors import InputError
from sdjax.images import encoded, read_settings

SLOTS = 2
LARGE = 100  # rows
SDJAX = [sys.executable, "-c", "import sys, sdjax.cli; sys.exit(sdjax.cli.main())"]
COLOURS = ("red", "blue", "green", "purple")


@pytest.fixture(scope="module")
def pipe():
    return sdjax.load()


def items(*rows: dict) -> list[Item]:
    found, problems = items_of(rows, {"num_inference_steps": 2}, Naming(), Path())
    assert not problems
    return found


def placed(pipe, *rows: dict) -> list[Placed]:
    return [Grouping(pipe).place(item) for item in items(*rows)]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path, **options) -> tuple[list[Item], list[Problem]]:
    return items_of(read_rows(path, kind_of(path, None)), {}, Naming(**options), path.parent)


# --- rows


def test_every_format_says_the_same(tmp_path):
    rows = [
        {"prompt": 'a "red", round\nheart', "steps": 12, "seed": 2**64 - 1, "guidance_scale": 2.5},
        {"prompt": "ein blaues Herz mit Ü", "sampler": "euler", "num_images": 2, "name": "blue"},
        {"prompt": "a star", "width": 32, "cfg_plus_plus": True, "sampler": "ddim"},
    ]
    columns = sorted({name for row in rows for name in row})
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    types = {"seed": pyarrow.uint64()}
    cells = {name: pyarrow.array([row.get(name) for row in rows], types.get(name)) for name in columns}
    table = pyarrow.table(cells)
    parquet.write_table(table, tmp_path / "rows.parquet")
    as_csv, as_json, as_parquet = (read(tmp_path / f"rows.{kind}") for kind in ("csv", "jsonl", "parquet"))
    assert as_csv == as_json == as_parquet
    found, problems = as_csv
    assert not problems
    assert [item.name for item in found] == ["00000000", "blue-1", "blue-2", "00000003"]
    assert [item.settings["seed"] for item in found] == [2**64 - 1, 1, 2, 3]
    assert found[0].settings["prompt"] == rows[0]["prompt"] and found[0].settings["num_inference_steps"] == 12


def test_lines_are_prompts_and_the_last_blank_ones_are_none(tmp_path):
    found, problems = read(write(tmp_path / "rows.txt", "a heart\r\n a star \n\n\n"))
    assert [item.settings["prompt"] for item in found] == ["a heart", " a star "]
    assert not problems


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.txt", "a\n\nb", "row 2: it is empty"),
        ("rows.txt", b"a\n\xff\xfe\nb", "row 2: prompt is not valid UTF-8"),
        ("rows.jsonl", '{"prompt": "a", "sed": 1}', r"row 1: unknown column 'sed' \(is it seed\?\)"),
        (
            "rows.jsonl",
            '{"prompt": "a"}\n{"prompt": "b", "steps": "many"}',
            "row 2: num_inference_steps must be a whole",
        ),
        ("rows.jsonl", '{"prompt": "a", "steps": 2.5}', "row 1: num_inference_steps must be a whole number, not 2.5"),
        ("rows.jsonl", '{"prompt": "a", "steps": true}', "row 1: num_inference_steps must be a whole number, not True"),
        ("rows.jsonl", '{"prompt": "a", "guidance_scale": NaN}', "row 1: guidance_scale must be a finite number"),
        ("rows.jsonl", '{"prompt": "a", "seed": -1}', "row 1: a seed is a whole number from 0"),
        ("rows.jsonl", '{"prompt": "a", "num_images": 0}', "row 1: num_images must be"),
        ("rows.jsonl", '{"prompt": "a", "sampler": "oiler"}', "row 1: unknown sampler"),
        ("rows.jsonl", '{"prompt": 7}', "row 1: prompt must be a text, not 7"),
        ("rows.jsonl", '{"steps": 7}', "row 1: it has no prompt"),
        ("rows.jsonl", "[1]\n{", "row 1: it is no JSON object; row 2: it is no JSON"),
        ("rows.jsonl", "{}", "row 1: it is empty"),
        ("rows.jsonl", '{"prompt": "a", "image": "nowhere.png"}', "row 1: image: there is no file .*nowhere.png"),
        ("rows.jsonl", '{"prompt": "a", "image": "rows.jsonl"}', "row 1: image: .* is no picture"),
        (
            "rows.jsonl",
            '{"prompt": "a", "name": "A"}\n{"prompt": "a", "name": "a"}',
            "row 2: the name 'a' is that of row 1",
        ),
        ("rows.jsonl", '{"prompt": "a", "name": "../a"}', "row 1: '../a' is no name for a file"),
        ("rows.jsonl", '{"prompt": "a", "name": "/etc/a"}', "row 1: '/etc/a' is no name for a file"),
        ("rows.csv", "prompt,steps\na,1\nb\n,\n", "row 2: it has 1 cells for 2 columns; row 3: it is empty"),
        ("rows.csv", "prompt,steps\na,x\n", "row 1: num_inference_steps must be a whole number, not 'x'"),
    ],
)
def test_bad_rows_are_named(name, content, said, tmp_path):
    _, problems = read(write(tmp_path / name, content))
    import re

    assert re.match(said, complain(problems))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", "prompt,prompt\na,b\n", "each once"),
        ("rows.csv", 'prompt\n"a', "is no CSV"),
        ("rows.xls", "a", "does not end in"),
        ("rows.parquet", "a", "cannot be read as Parquet"),
    ],
)
def test_files_of_another_kind_are_refused(name, content, said, tmp_path):
    with pytest.raises(InputError, match=said):
        read(write(tmp_path / name, content))


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_a_name_that_is_taken_stays_in_its_folder(tmp_path_factory, names):
    found, problems = items_of([{"prompt": "a", "name": name} for name in names], {}, Naming(), Path())
    assert len(found) + len(problems) == len(names)
    output = Output(Path("/out"))
    paths = [os.path.normpath(output.path_of(item)) for item in found]
    assert all(Path(path).parent == Path("/out/00000") for path in paths)
    assert len({path.casefold() for path in paths}) == len(paths)


@pytest.mark.parametrize("template", ["{index.__class__}", "{other}", "{index", "{0}"])
def test_templates_with_other_fields_are_refused(template):
    with pytest.raises(InputError, match="the name"):
        Naming(template)


def test_any_change_of_a_row_is_another_run():
    rows = [{"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 2}]
    prints = {fingerprint(items(*changed), Path()) for changed in (rows, rows[::-1], rows[:1], [*rows, rows[0]])}
    assert len(prints) == 4


# --- groups


def test_rows_of_one_size_share_a_batch_where_it_makes_no_difference(pipe):
    first, *others = [
        each.group
        for each in placed(
            pipe,
            {"prompt": "a"},
            {"prompt": "b", "sampler": "heun", "steps": 9, "guidance_scale": 3.0, "seed": 5},
            {"prompt": "c", "sampler": "euler_ancestral", "spacing": "karras", "negative_prompt": "d"},
            {"prompt": "a", "guidance_scale": 1},  # from here on each needs shapes of its own
            {"prompt": "a", "guidance_interval": [0.5, 1]},
            {"prompt": "a " * 100},
            {"prompt": "[a:b:1]"},
            {"prompt": "a", "rng": "torch"},
            {"prompt": "a", "width": 32},
        )
    ]
    assert others[:2] == [first, first]
    assert len({first, *others[2:]}) == 7


def test_what_the_model_cannot_draw_is_a_problem(pipe):
    (size,), (skip,) = placed(pipe, {"prompt": "a", "width": 33}), placed(pipe, {"prompt": "a", "clip_skip": 99})
    assert isinstance(size, Problem) and "multiple of" in size.reason
    assert isinstance(skip, Problem) and "clip_skip" in skip.reason


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), max_size=30), st.integers(1, 7))
def test_batches_hold_every_picture_once_and_full(given_groups, slots):
    group = Group(8, 8, 128, 1, 0, (True,), "jax", None)
    ordered = [
        Placed(group._replace(width=8 * k), nfe, Item(i, i + 1, str(i), {}, {}))
        for i, (k, nfe) in enumerate(given_groups)
    ]
    batches = list(batches_of(ordered, slots))
    assert sorted(item.index for batch in batches for item in batch.items) == list(range(len(ordered)))
    for group in {batch.group for batch in batches}:
        sizes = [len(batch.items) for batch in batches if batch.group == group]
        assert all(size == slots for size in sizes[:-1])


@given(st.sets(st.integers(0, 60), max_size=40), st.integers(1, 5), st.integers(1, 9))
def test_processes_share_all_and_nothing_twice(indices, count, unit):
    group = Group(8, 8, 128, 1, 0, (True,), "jax", None)
    all_ = [Placed(group, 1, Item(i, i + 1, str(i), {}, {})) for i in indices]
    shares = [[each.item.index for each in Hosts(k, count).share(all_, unit)] for k in range(count)]
    assert sorted(index for share in shares for index in share) == sorted(indices)
    owners = [{i // unit for i in share} for share in shares]
    assert sum(map(len, owners)) == len(set().union(*owners))


def test_a_picture_is_the_same_bits_in_any_company_and_slot(pipe):
    one, other, third = (
        item.picture()
        for item in items(
            {"prompt": "a red heart", "steps": 3},
            {"prompt": "a star, (big:1.3)", "steps": 2, "sampler": "euler_ancestral", "guidance_scale": 2.0},
            {"prompt": "a ring", "steps": 4, "sampler": "heun", "negative_prompt": "blue"},
        )
    )
    drawn = [draw(pipe, pictures, SLOTS) for pictures in ([one], [one, other], [third, one])]
    pixels = [np.asarray(image) for image, _ in (drawn[0][0], drawn[1][0], drawn[2][1])]
    assert (pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all()


# --- runs


ROWS = [
    {"prompt": "a red heart"},
    {"prompt": "a blue star", "sampler": "heun", "num_images": 2},
    {"prompt": "a ring", "guidance_scale": 1e38},  # overflows
    {"prompt": "a green ring", "steps": 3, "sampler": "euler_ancestral"},
    {"prompt": "ein Würfel", "guidance_scale": 2.0},
]


def run_in(pipe, output: Output, rows=ROWS):
    this = Run(
        placed(pipe, *rows), {9: "bad"}, output, {"rows": repr(rows), "model_hash": "m"}, {"model": "shapes"}, SLOTS
    )
    return run(pipe, this, lambda *_: None, lambda *_: None, Hosts())


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file of a run, times in the manifest aside."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "manifest.jsonl":
                entries = [json.loads(line) for line in data.splitlines()]
                data = json.dumps([{**entry, "time": 0, "seconds": 0} for entry in entries]).encode()
            found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def test_a_run_leaves_pictures_and_a_manifest(pipe, tmp_path):
    summary = run_in(pipe, Output(tmp_path, kind="webp"))
    assert summary.failed.keys() == {3} and "overflowed" in summary.failed[3]
    assert summary.meter.drawn == 5 and summary.meter.failed == 1
    entries = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [entry["status"] for entry in entries] == ["made"] * 3 + ["failed"] + ["made"] * 2 + ["left out"]
    for entry in entries:
        if entry["status"] == "made":
            data = (tmp_path / entry["file"]).read_bytes()
            assert entry["sha256"] == hashlib.sha256(data).hexdigest() and entry["bytes"] == len(data)
            assert read_settings(tmp_path / entry["file"]) == entry["settings"]
    assert entries[5]["settings"]["prompt"] == "ein Würfel"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000", "manifest.jsonl", "run.json"]


def test_other_rows_compile_nothing(pipe, tmp_path, compilations):
    run_in(pipe, Output(tmp_path / "one"), ROWS[3:4])
    compilations.clear()
    run_in(
        pipe, Output(tmp_path / "other"), [*ROWS[:2], {"prompt": "(a):2", "steps": 5, "sampler": "lcm", "strength": 1}]
    )
    assert not compilations


@pytest.mark.parametrize("container", ["tar", "parquet"])
def test_a_damaged_shard_is_made_again(pipe, container, tmp_path):
    output = Output(tmp_path, container, shard_size=2)
    run_in(pipe, output)
    whole = contents(tmp_path)
    assert {f"0000{k}.{container}" for k in range(3)} | {"manifest.jsonl", "shards.jsonl", "run.json"} == whole.keys()
    if container == "tar":
        with tarfile.open(tmp_path / "00001.tar") as tar:
            assert tar.getnames() == ["00000002.png", "00000002.json", "00000002.txt"]  # 3 has failed
            assert tar.extractfile("00000002.txt").read() == b"a blue star"
            assert Image.open(tar.extractfile("00000002.png")).size == (64, 64)
    else:
        rows = parquet.read_table(tmp_path / "00002.parquet").to_pylist()
        assert [row["prompt"] for row in rows] == ["a green ring", "ein Würfel"]
        assert rows[0]["image"]["bytes"].startswith(b"\x89PNG")
    write(tmp_path / f"00000.{container}", b"damaged")
    assert run_in(pipe, output).meter.drawn == 2
    assert contents(tmp_path) == whole


def test_nobody_else_writes_meanwhile(tmp_path):
    held = lock(tmp_path, 0)
    os.close(lock(tmp_path, 1))  # another process of the same run
    with pytest.raises(InputError, match="another process is writing"):
        lock(tmp_path, 0)
    os.close(held)
    os.close(lock(tmp_path, 0))


def test_what_a_disk_without_room_does_not_take_is_told_and_leaves_nothing(tmp_path):
    journal = Journal(tmp_path, 1, 0)
    journal.add({"index": 0, "sha256": "a"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match=str(journal.path)):
            journal.add({"index": 1, "sha256": "b"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.add({"index": 2, "sha256": "c"})
    journal.close()
    assert read_state(tmp_path).made("index") == {0: "a", 2: "c"}


@given(st.binary(max_size=40), st.integers(0, 200))
def test_a_torn_or_damaged_journal_forgets_and_never_invents(tmp_path_factory, damage, at):
    folder = tmp_path_factory.mktemp("run")
    journal = Journal(folder, 1, 0)
    for k in range(4):
        journal.add({"index": k, "sha256": f"{k:040d}"})
    journal.close()
    data = journal.path.read_bytes()
    journal.path.write_bytes(data[:at] + b"\n" + damage + b"\n" + data[at + len(damage) :])
    for index, digest in read_state(folder).made("index").items():
        assert digest == f"{index:040d}" or digest.encode() in damage
    shutil.rmtree(folder)


def mixed(count: int) -> list[dict]:
    chosen = random.Random(0)
    return [
        {
            "prompt": f"a {chosen.choice(COLOURS)} {chosen.choice(['heart', 'star', 'ring'])}",
            "steps": chosen.randint(1, 4),
            "sampler": chosen.choice(["euler", "heun", "dpmpp_2m", "euler_ancestral"]),
            "guidance_scale": chosen.choice([1, 2.0, 7.5]),
            **({} if count < LARGE else {"width": 32, "height": 32}),  # faster
        }
        for _ in range(count)
    ]


def test_a_run_that_is_killed_ends_like_one_that_is_not(tmp_path, request, capsys):
    kills, count = (request.config.getoption(name) for name in ("kills", "rows"))
    rows = write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in mixed(count)))
    options = ["batch", str(rows), "--batch-size", str(SLOTS if count < LARGE else 8), "--shard-size", "10", "-o"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*options, str(whole)]) == 0
    chosen = random.Random()
    for kill in range(kills):
        with subprocess.Popen(
            [*SDJAX, *options, killed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            before = len(list(killed.rglob("*.png")))
            while len(list(killed.rglob("*.png"))) < before + 1 + kill and process.poll() is None:
                time.sleep(0.01)
            time.sleep(chosen.uniform(0, 0.1 if count < LARGE else 200 / kills))
            process.kill()
    made = sorted(killed.rglob("*.png"))
    assert kills < len(made) <= count
    write(made[0], b"damaged")
    made[-1].unlink()
    assert main([*options, str(killed)]) == 0
    assert contents(killed) == contents(whole)
    assert f"{count} pictures drawn" not in capsys.readouterr().out.splitlines()[-1]  # the others were there
    assert main([*options[:-1], "--seed", "1", "-o", str(killed)]) == 1
    assert "belongs to another run: rows is" in capsys.readouterr().err


@pytest.mark.long
def test_devices_and_processes_make_no_difference(tmp_path):
    rows = write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in mixed(LARGE)))
    options = ["batch", str(rows), "--batch-size", "8", "--shard-size", "10", "--container", "tar", "-o"]
    assert main([*options, str(tmp_path / "one")]) == 0
    for devices in (2, 4):
        given_flags = os.environ.get("XLA_FLAGS", "")
        flags = {"XLA_FLAGS": f"{given_flags} --xla_force_host_platform_device_count={devices}"}
        subprocess.run([*SDJAX, *options, tmp_path / str(devices)], env=os.environ | flags, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        several = ["--coordinator", f"127.0.0.1:{free.getsockname()[1]}", "--processes", "2", "--process"]
    started = [subprocess.Popen([*SDJAX, *options, tmp_path / "two", *several, str(k)]) for k in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    expected = contents(tmp_path / "one")
    assert all(contents(tmp_path / other) == expected for other in ("2", "4", "two"))


def test_bad_rows_are_said_before_anything_is_loaded_and_left_out_where_wanted(tmp_path, capsys):
    rows = write(tmp_path / "rows.txt", "a heart\n\na star")
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "diary.txt", "mine")
    assert main(["batch", str(rows), "-o", str(tmp_path / "out"), "--model", "nowhere"]) == 1
    assert "row 2: it is empty (--skip-bad goes on without)" in capsys.readouterr().err
    assert main(["batch", str(rows), "-o", str(tmp_path / "other"), "--skip-bad", "--model", "nowhere"]) == 1
    assert "is not empty, and no run of sdjax batch" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_every_kind_of_picture_tells_how_it_was_made(kind, tmp_path):
    how = {"prompt": "Größe 大\n<b>", "seed": 2**64 - 1, "steps": 3}
    path = write(tmp_path / f"picture.{kind}", encoded(Image.new("RGB", (8, 8), "red"), kind, how))
    assert read_settings(path) == how
    with Image.open(path) as image:
        assert image.format == kind.upper() and np.abs(np.asarray(image, int) - (255, 0, 0)).max() < 8


def test_drawing_ends_when_a_picture_cannot_be_kept(pipe):
    def keep(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        Drawing(pipe, SLOTS, keep, lambda _: None).run(batches_of(placed(pipe, ROWS[0]), SLOTS))
