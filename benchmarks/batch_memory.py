"""Whether `sdjax batch` holds more memory the longer it runs."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.batch import PROMPTS
from benchmarks.processes import memory
from benchmarks.report import JsonOption, publish

# One evaluation of 32 x 32 pixels: what may grow does so by the picture, not by the work that it is.
SETTINGS = {"num_inference_steps": 1, "guidance_scale": 1.0, "width": 32, "height": 32}


def batch_memory(
    rows: Annotated[int, typer.Option(min=1, help="Pictures of the run.")] = 10_000,
    every: Annotated[int, typer.Option(min=1, help="Pictures between two looks.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Of `sdjax batch`.")] = 8,
    json_file: JsonOption = None,
) -> None:
    """The memory that a run of the embedded model holds, behind every thousand pictures."""
    import sdjax
    from sdjax.batch.drawing import Drawing, Meter
    from sdjax.batch.groups import place
    from sdjax.batch.hosts import Hosts
    from sdjax.batch.output import Output
    from sdjax.batch.rows import Naming, items_of
    from sdjax.batch.runner import Run, run

    pipe = sdjax.load()
    prompts = [{"prompt": f"{PROMPTS[i % len(PROMPTS)]}, {i}"} for i in range(rows)]
    items, _ = items_of(prompts, SETTINGS, Naming(), Path())
    placed = [place(item, pipe.facts) for item in items]
    seen = [{"pictures": 0, "held MB": memory() / 1e6}]

    def look(meter: Meter, total: int) -> None:
        if meter.drawn >= seen[-1]["pictures"] + every or meter.drawn == total:
            seen.append({"pictures": meter.drawn, "held MB": memory() / 1e6})

    with tempfile.TemporaryDirectory() as folder:
        this = Run(placed, {}, Output(Path(folder)), {"model_hash": ""}, {})
        run(Drawing(pipe, batch_size), this, lambda *_: None, look, Hosts())
    publish("batch-memory", seen, json_file, f"a run of {rows} pictures in batches of {batch_size}; the first compiles")
