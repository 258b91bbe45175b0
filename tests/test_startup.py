"""What answers without JAX, which takes seconds to import."""

import os
import re
import subprocess
import sys

import pytest

from sdjax.cli import main
from sdjax.cli.app import COMMANDS

SCRIPT = """
import sys
from sdjax.cli import main

for line in sys.argv[1:]:
    assert main(line.split()) == 0, line
slow = {"jax", "flax", "transformers", "scipy", "sdjax.models"} & sys.modules.keys()
assert not slow, slow
"""
LINES = ["--help", "samplers", "info", "info shapes", "models", "loras .", "cache", "generate --help", "train --help"]


def test_tables_and_help_are_shown_without_importing_jax():
    shown = subprocess.run([sys.executable, "-c", SCRIPT, *LINES], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    for word in ("compare", "dpmpp_2m", "11,167,915", "--negative-prompt"):
        assert word in shown.stdout


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["train", "lcm"]], ids=" ".join)
def test_help_fits_a_terminal_and_cuts_no_name(command, capsys):
    assert main([*command, "-h"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not re.search("…|bold|<str>|<int", "".join(lines))


def test_options_are_in_groups_and_the_usual_ones_are_short(capsys):
    assert main(["generate", "--help"]) == 0
    shown = capsys.readouterr().out
    for group in ("Options", "Prompt", "Sampling", "Guidance", "Model", "Stable Diffusion XL"):
        assert f"\n{group}\n" in shown
    for names in ("-n, --num-images", "-s, --seed", "-o, --output", "-m, --model", "-W, --width", "-H, --height"):
        assert names in shown
    assert "--negative-crops-coords-top-left" in shown and ".safetensors" in shown


@pytest.mark.parametrize(
    ("typed", "found"), [("sdjax gen", "generate"), ("sdjax generate --sampler dpmpp_3", "dpmpp_3m")]
)
def test_the_shell_completes(typed, found):
    asked = {"_SDJAX_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    code = "import sys; from sdjax.cli import main; sys.argv = ['sdjax']; sys.exit(main())"
    shown = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True)
    assert found in shown.stdout.split()
