"""The command line, `sdjax` and `sdjax-convert`: the only place that prints.

Pictures' names go to standard output, everything else to standard error. What needs JAX is imported inside the
commands, so that `--help` answers at once.
"""

from sdjax.cli.app import convert_main, main

__all__ = ["convert_main", "main"]
