"""Measuring in processes of their own: memory can be told apart, and nothing is warm that should not be."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer


def run_python(*arguments: str | os.PathLike) -> dict[str, Any]:
    """The JSON object that `python ARGUMENTS` prints as its last line; what it writes to standard error is shown."""
    done = subprocess.run([sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise typer.Exit(1)
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory() -> int:
    """The most bytes of memory that this process has ever held, files mapped into it included."""
    return _memory("VmHWM")  # Linux's own mark; getrusage would count the process that started this one


def forget_peak() -> None:
    """Let `peak_memory` begin anew, with what this process holds now; compiling often takes the most."""
    Path("/proc/self/clear_refs").write_text("5")


def memory() -> int:
    """The bytes of memory that this process holds now, files mapped into it included."""
    return _memory("VmRSS")


def _memory(line: str) -> int:
    return 1024 * int(re.search(rf"{line}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


class Worker:
    """A Python process that answers each line with a JSON object, and waits in between.

    JAX keeps in the folder `compiled` what it compiles there, and finds it again.
    """

    def __init__(self, *arguments: str | os.PathLike, compiled: Path):
        command = [sys.executable, *map(str, arguments)]
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(compiled)}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: object) -> dict[str, Any]:
        """The answer to a line, which is printed as it is. Ends the benchmark where the process has ended."""
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise typer.Exit(1)  # its own words are on standard error
        return json.loads(answer)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
