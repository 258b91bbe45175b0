"""What answers without JAX, which takes seconds to import."""

import subprocess
import sys

SCRIPT = """
import sys
from sdjax.cli import main

for line in sys.argv[1:]:
    assert main(line.split()) == 0, line
slow = {"jax", "flax", "transformers", "scipy", "sdjax.models"} & sys.modules.keys()
assert not slow, slow
"""
LINES = ["--help", "samplers", "info", "info shapes", "cache", "generate --help", "train --help"]


def test_tables_and_help_are_shown_without_importing_jax():
    shown = subprocess.run([sys.executable, "-c", SCRIPT, *LINES], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    for word in ("compare", "dpmpp_2m", "11,167,915", "--negative-prompt"):
        assert word in shown.stdout
