"""How many rows of the network `sdjax batch` computes for pictures that are done, by how they are put into batches."""

import random
from typing import Annotated

import typer

from benchmarks.report import JsonOption, publish

STEPS = (15, 20, 20, 20, 25, 28, 30, 30, 40, 50)
SAMPLERS = {"euler": 1, "dpmpp_2m": 1, "unipc": 1, "euler_ancestral": 1, "heun": 2, "dpmpp_sde": 2}  # NFE of a step


def slots(
    pictures: Annotated[int, typer.Option(min=1, help="Of one size.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Slots of a batch.")] = 8,
    json_file: JsonOption = None,
) -> None:
    """Arithmetic, nothing is drawn: a mix of steps and samplers in batches, each as long as its longest picture."""
    chosen = random.Random(0)
    mixes = {
        "steps and samplers at random": [
            chosen.choice(STEPS) * chosen.choice(list(SAMPLERS.values())) for _ in range(pictures)
        ],
        "steps from 1 to 100 at random": [chosen.randint(1, 100) for _ in range(pictures)],
        "20 steps, but 50 for one in ten": [50 if chosen.random() < 0.1 else 20 for _ in range(pictures)],
    }
    rows = []
    for mix, nfe in mixes.items():
        ways = {
            "in the order of the rows": in_batches(nfe, batch_size),
            "sorted by NFE (sdjax batch)": in_batches(sorted(nfe, reverse=True), batch_size),
            "slots refilled every 4 rows": refilled(nfe, batch_size, 4),
        }
        for way, computed in ways.items():
            rows.append({"mix": mix, "pictures": way, "NFE": sum(nfe), "computed": computed})
            rows[-1]["wasted"] = f"{1 - sum(nfe) / computed:.1%}"
    publish("slots", rows, json_file, f"{pictures} pictures in batches of {batch_size}")


def in_batches(nfe: list[int], size: int) -> int:
    """The rows computed where a batch lasts until its longest picture is done."""
    return sum(max(nfe[i : i + size]) * size for i in range(0, len(nfe), size))


def refilled(nfe: list[int], size: int, chunk: int) -> int:
    """The rows computed where a slot whose picture is done gets the next one, the longest first, every `chunk` rows."""
    waiting = sorted(nfe)
    slots, computed = [0] * size, 0
    while waiting or any(slots):
        slots = [left or (waiting.pop() if waiting else 0) for left in slots]
        slots = [max(left - chunk, 0) for left in slots]
        computed += chunk * size
    return computed
