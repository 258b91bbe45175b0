"""Files of rows: a prompt per line, JSON Lines, CSV and Parquet, each row as a dict of its columns.

Text that is no UTF-8 is handed on as Python holds such bytes (`surrogateescape`), so that its row can be named.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sdjax.errors import InputError, brief

STANDARD_INPUT = Path("-")
KINDS = ("txt", "jsonl", "csv", "parquet")
SUFFIXES = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}

# The values of a row by column, or what is wrong with it, or None for a blank line. Values of text are texts still.
Read = dict[str, Any] | str | None


def kind_of(source: Path, kind: str | None) -> str:
    """The kind of a file of rows: the one given, else by its name's ending; lines of prompts on standard input.

    Raises InputError where it cannot be known, or is none of KINDS.
    """
    if kind is not None:
        if kind not in KINDS:
            raise InputError(f"unknown kind of rows {kind!r}; known: {', '.join(KINDS)}")
        return kind
    if source == STANDARD_INPUT:
        return "txt"
    if source.suffix.lower() not in SUFFIXES:
        raise InputError(f"{source}: its name does not end in {', '.join(SUFFIXES)}: say what it holds (--from)")
    return SUFFIXES[source.suffix.lower()]


def read_rows(source: Path, kind: str) -> Iterator[Read]:
    """The rows of a file in their order. "-" is standard input.

    A row is a line (txt, jsonl), a record after the header (csv), or a row of the table (parquet). Blank lines are
    None, so that rows are counted as editors count lines.
    Raises InputError for a file that is not there or not of the kind, or a header that has a column twice.
    """
    if kind == "parquet":
        yield from _parquet(source)
        return
    try:
        if source == STANDARD_INPUT:
            yield from READERS[kind](_lines(sys.stdin.buffer))
        else:
            with source.open("rb") as file:
                yield from READERS[kind](_lines(file))
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from error


def _lines(file: BinaryIO) -> Iterator[str]:
    """Lines with their ends, without a mark of byte order before the first."""
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    for i, line in enumerate(text):
        yield line.removeprefix("\ufeff") if i == 0 else line
    text.detach()


def _txt(lines: Iterable[str]) -> Iterator[Read]:
    for line in lines:
        yield {"prompt": line.rstrip("\r\n")} if line.strip() else None


def _jsonl(lines: Iterable[str]) -> Iterator[Read]:
    for line in lines:
        yield _json_object(line) if line.strip() else None


def _json_object(line: str) -> Read:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"it is no JSON ({error})"
    if not isinstance(row, dict):
        return "it is no JSON object"
    return {name: value for name, value in row.items() if value is not None} or "it is empty"


def _csv(lines: Iterable[str]) -> Iterator[Read]:
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) < len(header) or not all(header):
            raise InputError(f"the first line names the columns, each once, not {brief(','.join(header))}")
        for cells in reader:
            if not cells:
                yield None
            elif not any(cells):
                yield "it is empty"
            elif len(cells) != len(header):
                yield f"it has {len(cells)} cells for {len(header)} columns"
            else:
                yield {name: cell for name, cell in zip(header, cells) if cell != ""}
    except csv.Error as error:
        raise InputError(f"line {reader.line_num} is no CSV ({error})") from error


def _parquet(source: Path) -> Iterator[Read]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError("Parquet needs pyarrow: pip install 'sdjax[parquet]'") from None
    if source == STANDARD_INPUT:
        raise InputError("Parquet is read from a file, not from standard input")
    try:
        with parquet.ParquetFile(source) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield {name: value for name, value in row.items() if value is not None} or "it is empty"
    except (OSError, ArrowException) as error:
        raise InputError(f"{source} cannot be read as Parquet ({error})") from error


READERS: dict[str, Callable[[Iterable[str]], Iterator[Read]]] = {"txt": _txt, "jsonl": _jsonl, "csv": _csv}
