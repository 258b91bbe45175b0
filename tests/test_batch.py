"""`sdjax batch`: rows in, pictures out, the same whatever happens on the way.

`pytest tests/test_batch.py -k killed --kills 20 --rows 2000` kills a large run, fills its disk and damages its files;
`-m long` does one on 2 and 4 devices and in 2 processes, and changes their number on the way.
"""

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

import pytest
from batch_runs import LARGE, SLOTS, contents, mixed, placed, write, write_rows
from command import SDJAX
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from sdjax.batch.drawing import Drawing
from sdjax.batch.groups import batches_of
from sdjax.batch.hosts import Hosts
from sdjax.batch.journal import Journal, lock, read_state
from sdjax.batch.output import Output
from sdjax.batch.runner import Run, run
from sdjax.cli import main
from sdjax.errors import InputError
from sdjax.files.pictures import read_settings

ROWS = [
    {"prompt": "a red heart"},
    {"prompt": "a blue star", "sampler": "heun", "num_images": 2},
    {"prompt": "a ring", "guidance_scale": 1e38},  # overflows
    {"prompt": "a green ring", "steps": 3, "sampler": "euler_ancestral"},
    {"prompt": "ein Würfel", "guidance_scale": 2.0},
]


def run_in(pipe, output: Output, rows=ROWS):
    this = Run(placed(pipe, *rows), {9: "bad"}, output, {"rows": repr(rows), "model_hash": "m"}, {"model": "shapes"})
    return run(Drawing(pipe, SLOTS), this, lambda *_: None, lambda *_: None, Hosts())


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


@pytest.mark.few(1)
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


@pytest.mark.parametrize("container", ["tar", "parquet"])
def test_what_has_failed_is_tried_again_and_nothing_else_in_its_shard(pipe, container, tmp_path):
    image = tmp_path / "start.png"
    Image.effect_noise((64, 64), 50).save(image)
    whole = image.read_bytes()
    rows = [{"prompt": "a star"}, {"prompt": "a heart", "image": str(image)}, {"prompt": "a ring"}]
    expected, tried = (Output(tmp_path / name, container, shard_size=2) for name in ("expected", "tried"))
    assert run_in(pipe, expected, rows).meter.drawn == 3
    image.write_bytes(whole[:-1000])  # its size can be read, its pixels cannot
    assert run_in(pipe, tried, rows).failed.keys() == {2}
    image.write_bytes(whole)
    assert run_in(pipe, tried, rows).meter.drawn == 1
    assert contents(tried.folder) == contents(expected.folder)


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


def damage(files: list[Path]) -> None:
    """Five files, each in another way."""
    first, second, third, fourth, fifth = files[:4] + files[-1:]
    write(first, b"damaged")
    write(second, b"")
    write(third, third.read_bytes()[:-1])
    data = bytearray(fourth.read_bytes())
    data[len(data) // 2] ^= 1
    write(fourth, bytes(data))
    fifth.unlink()


def on_a_full_disk(command: list, folder: Path, scratch: Path) -> subprocess.CompletedProcess:
    """Run `command FOLDER` where the folder lies on a disk with room for a few files more."""
    page = 4096
    used = sum(-(-path.stat().st_size // page) * page for path in folder.rglob("*") if path.is_file())
    script = """
    mount -t tmpfs -o size=$1 small "$2" && cp -a "$3/." "$2"
    small=$2 folder=$3; shift 3
    "$@" "$small"; ended=$?
    cp -a "$small/." "$folder"; exit $ended
    """
    (scratch / "small").mkdir()
    disk = [str(used + 8 * page), scratch / "small", folder]
    mounted = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *disk]
    return subprocess.run([*mounted, *command], capture_output=True, text=True, check=False)


@pytest.mark.long
def test_a_run_that_is_killed_ends_like_one_that_is_not(small, tmp_path, request, capsys):
    kills, count = (request.config.getoption(name) for name in ("kills", "rows"))
    rows = write_rows(tmp_path, mixed(count))
    options = [
        "batch",
        str(rows),
        "--model",
        str(small),
        "--batch-size",
        str(SLOTS if count < LARGE else 8),
        "--shard-size",
        "10",
        "-o",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*options, str(whole)]) == 0
    chosen = random.Random()
    for _ in range(kills):
        before = len(list(killed.rglob("*.png")))
        wanted = before + chosen.randint(2, max(2, count // (2 * (kills + 1))))  # so few that the run is never done
        with subprocess.Popen(
            [*SDJAX, *options, killed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            while not killed.exists() or len(list(killed.rglob("*.png"))) < wanted:
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(chosen.uniform(0, 0.05))
            assert process.poll() is None
            process.kill()
    if count >= LARGE:
        ended = on_a_full_disk([*SDJAX, *options], killed, tmp_path)
        assert ended.returncode == 1 and "No space left on device" in ended.stderr
    made = sorted(killed.rglob("*.png"))
    assert kills < len(made) <= count
    damage(made)
    assert main([*options, str(killed)]) == 0
    assert contents(killed) == contents(whole)
    assert f"{count} pictures drawn" not in capsys.readouterr().out.splitlines()[-1]  # the others were there
    assert main([*options[:-1], "--seed", "1", "-o", str(killed)]) == 1
    assert "belongs to another run: rows is" in capsys.readouterr().err


@pytest.mark.long
def test_devices_and_processes_make_no_difference(small, tmp_path):
    rows = write_rows(tmp_path, mixed(LARGE))
    options = [
        "batch",
        str(rows),
        "--model",
        str(small),
        "--batch-size",
        "8",
        "--shard-size",
        "10",
        "--container",
        "tar",
        "-o",
    ]
    assert main([*options, str(tmp_path / "one")]) == 0
    for devices in (2, 4):
        given_flags = os.environ.get("XLA_FLAGS", "")
        flags = {"XLA_FLAGS": f"{given_flags} --xla_force_host_platform_device_count={devices}"}
        subprocess.run([*SDJAX, *options, tmp_path / str(devices)], env=os.environ | flags, check=True)
    assert [process.wait() for process in processes(2, [*options, tmp_path / "two"])] == [0, 0]
    expected = contents(tmp_path / "one")
    assert all(contents(tmp_path / other) == expected for other in ("2", "4", "two"))


@pytest.mark.long
@pytest.mark.parametrize("then", [1, 3])
def test_another_number_of_processes_goes_on(then, small, tmp_path):
    rows = write_rows(tmp_path, mixed(24))
    options = ["batch", str(rows), "--model", str(small), "--batch-size", str(SLOTS), "--shard-size", "10", "-o"]
    assert main([*options, str(tmp_path / "whole")]) == 0
    first = processes(2, [*options, tmp_path / "changed"])
    while len(list((tmp_path / "changed").rglob("*.png"))) < 5:
        assert [process.poll() for process in first] == [None, None]
        time.sleep(0.02)
    for process in first:
        process.kill()
        process.wait()
    before = len(list((tmp_path / "changed").rglob("*.png")))
    assert [process.wait() for process in processes(then, [*options, tmp_path / "changed"])] == [0] * then
    assert 5 <= before < 24 and contents(tmp_path / "changed") == contents(tmp_path / "whole")


def processes(count: int, command: list) -> list[subprocess.Popen]:
    """`command` of sdjax as so many processes that know each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        together = ["--coordinator", f"127.0.0.1:{free.getsockname()[1]}", "--processes", str(count), "--process"]
    return [subprocess.Popen([*SDJAX, *command, *together, str(k)]) for k in range(count)]


def test_ray_that_is_not_there_is_named_with_its_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    rows = write_rows(tmp_path, mixed(1))
    assert main(["batch", str(rows), "-o", str(tmp_path / "out"), "--engine", "ray", "--model", "nowhere"]) == 1
    assert "pip install 'sdjax[ray]'" in capsys.readouterr().err


def test_bad_rows_are_said_before_anything_is_loaded_and_left_out_where_wanted(tmp_path, capsys):
    rows = write(tmp_path / "rows.csv", "prompt,steps\na heart,1\n\n,\na star,1")
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "diary.txt", "mine")
    assert main(["batch", str(rows), "-o", str(tmp_path / "out"), "--model", "nowhere"]) == 1
    assert "row 3: it is empty (--skip-bad goes on without)" in capsys.readouterr().err
    assert main(["batch", str(rows), "-o", str(tmp_path / "other"), "--skip-bad", "--model", "nowhere"]) == 1
    assert "is not empty, and no run of sdjax batch" in capsys.readouterr().err


def test_drawing_ends_when_a_picture_cannot_be_kept(pipe):
    def keep(*_):
        raise OSError(28, "No space left on device")

    batches = batches_of(placed(pipe, ROWS[0]), SLOTS)
    with pytest.raises(OSError, match="No space left"):
        Drawing(pipe, SLOTS).run(batches, lambda item, drawn: drawn, keep, lambda _: None)
