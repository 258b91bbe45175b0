"""The benchmarks run from a checkout, and write down what their numbers depend on."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
