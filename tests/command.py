"""The command line, for tests that need a process of its own."""

import sys

SDJAX = [sys.executable, "-m", "sdjax"]
