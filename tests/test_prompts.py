"""The tokenizer, as a user meets it."""

import subprocess
import sys

OPEN_TOKENIZER = """
from sdjax.files.layout import embedded_models
from sdjax.prompts import load_tokenizer
load_tokenizer(embedded_models()["shapes"] / "tokenizer")
"""


def test_opening_a_tokenizer_says_nothing():
    # Where PyTorch is not installed, transformers would say at its import that models are not available.
    done = subprocess.run([sys.executable, "-c", OPEN_TOKENIZER], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
