"""The benchmarks run from a checkout, and write down what their numbers depend on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.long
def test_a_benchmark_prints_a_table_and_writes_json(tmp_path):
    file = tmp_path / "loop.json"
    command = [sys.executable, "-m", "benchmarks", "loop", "--repeats", "1", "--json", str(file)]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    written = json.loads(file.read_text())
    assert {"benchmark", "command", "date", "machine", "versions", "rows"} <= written.keys()
    assert written["command"] == f"python -m benchmarks loop --repeats 1 --json {file}"
    assert {"python", "jax", "jaxlib", "sdjax"} <= written["versions"].keys()
    for row in written["rows"]:
        assert row["what"] in printed
        assert 0 < row["min"] <= row["median"] <= row["max"]


@pytest.mark.long
def test_what_speed_measured_in_several_runs_becomes_one_table_and_plot(tmp_path):
    row = {"part": "unet", "batch": 2, "pixels": 512, "dtype": "float32", "beside": "pytorch", "range": "0.8-0.9"}
    row |= {"sdjax s": 8.9, "other s": 10.7, "ratio": 0.83, "TFLOP/s": 0.2, "of peak": 0.88, "error": 1.7e-6}
    held = row | {"pixels": 256, "sdjax GB": 3.92, "pytorch GB": 4.2}
    encoder = row | {"part": "text_encoder"}
    for name, rows in (("large", [row]), ("small", [held, encoder])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    files = [tmp_path / "large.json", tmp_path / "small.json"]
    command = [sys.executable, "-m", "benchmarks", "speed-table", *files, "--plot", tmp_path / "speed.png"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    lines = [line.split() for line in printed.splitlines()]
    assert [" ".join(line[:4]) for line in lines[1:]] == ["text_encoder, 2 of 512", "unet, 2 of 256", "unet, 2 of 512"]
    assert lines[0][-4:] == ["sdjax", "GB", "pytorch", "GB"] and lines[2][-2:] == ["3.92", "4.2"]
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    files[0].write_text(json.dumps({"rows": [{"sampler": "ddim"}]}))
    refused = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr == f"benchmarks: {files[0]} is not what `speed` has written\n"
