"""What the tests of `sdjax batch` share: rows, and what a run leaves."""

import hashlib
import json
import random
from pathlib import Path

from sdjax.batch.groups import Placed, place
from sdjax.batch.rows import Item, Naming, items_of

SLOTS = 2
LARGE = 100  # rows
COLOURS = ("red", "blue", "green", "purple")


def items(*rows: dict) -> list[Item]:
    found, problems = items_of(rows, {"num_inference_steps": 2}, Naming(), Path())
    assert not problems
    return found


def placed(pipe, *rows: dict) -> list[Placed]:
    return [place(item, pipe.facts) for item in items(*rows)]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_rows(folder: Path, rows: list[dict]) -> Path:
    return write(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file of a run, times in the manifest aside."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "manifest.jsonl":
                entries = [json.loads(line) for line in data.splitlines()]
                data = json.dumps([{**entry, "time": 0, "seconds": 0} for entry in entries]).encode()
            found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def mixed(count: int) -> list[dict]:
    chosen = random.Random(0)
    return [
        {
            "prompt": f"a {chosen.choice(COLOURS)} {chosen.choice(['heart', 'star', 'ring'])}",
            "steps": chosen.randint(1, 4),
            "sampler": chosen.choice(["euler", "heun", "dpmpp_2m", "euler_ancestral"]),
            "guidance_scale": chosen.choice([1, 2.0, 7.5]),
            **({} if count < LARGE else {"width": 32, "height": 32}),  # faster
        }
        for _ in range(count)
    ]
