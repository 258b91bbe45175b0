"""The server under load, against batches that wait until all pictures are done, one at a time, and a batch run."""

import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Annotated, Any
from urllib.request import Request, urlopen

import numpy as np
import typer

SAMPLERS = ("ddim", "euler", "euler_ancestral", "dpmpp_2m", "heun", "DPM++ 2M Karras")
SHORT = 8  # steps, at most, of a short request


def serving(
    model: Annotated[str, typer.Option(help="An embedded model, a directory, a file, or a hub id.")] = "shapes",
    clients: Annotated[int, typer.Option(min=1, help="Each asks again when it has its picture.")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="Of each client.")] = 8,
    size: Annotated[int, typer.Option(min=1, help="Pictures of a batch.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Of everything, in turn.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there.")] = None,
) -> None:
    """Pictures per second and latency of `sdjax serve`, for clients with mixed samplers, steps (4 to 50) and scales."""
    import sdjax

    pipe, wishes = sdjax.load(model), [_wishes(client, requests) for client in range(clients)]
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "continuous": lambda: _served(pipe, size, wishes),
        "waiting": lambda: _served(pipe, size, wishes, continuous=False),
        "one at a time": lambda: _served(pipe, 1, [list(chain(*wishes))]),
        "sdjax batch": lambda: _batch(pipe, size, list(chain(*wishes))),
    }
    for measure in ways.values():
        measure()  # compiles
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, measure in ways.items():
            found[way].append(measure())
            typer.echo(f"{way:15}" + "".join(f"  {name} {value:8.3f}" for name, value in found[way][-1].items()))
    middle = {
        way: {name: float(np.median([each[name] for each in runs])) for name in runs[0]} for way, runs in found.items()
    }
    typer.echo("medians")
    for way, numbers in middle.items():
        typer.echo(f"{way:15}" + "".join(f"  {name} {value:8.3f}" for name, value in numbers.items()))
    if json_file:
        json_file.write_text(json.dumps({"clients": clients, "requests": requests, "size": size, "runs": found}))


def _wishes(client: int, requests: int) -> list[dict[str, Any]]:
    """What a client asks for, the same every time; every other picture is short."""
    rng = random.Random(client)
    return [
        {
            "prompt": rng.choice(["a red heart", "a blue star", "a green ring"]),
            "seed": 100 * client + k,
            "num_inference_steps": rng.randint(4, SHORT) if k % 2 else rng.randint(20, 50),
            "sampler": rng.choice(SAMPLERS),
            "guidance_scale": rng.choice([2.0, 3.0, 5.0]),
        }
        for k in range(requests)
    ]


def _served(pipe, size: int, wishes: list[list[dict[str, Any]]], continuous: bool = True) -> dict[str, float]:
    from sdjax.server import lanes
    from sdjax.server.app import application
    from sdjax.server.engine import Engine
    from sdjax.server.hosting import Host
    from sdjax.server.journal import Journal
    from sdjax.server.limits import Limits
    from sdjax.server.models import Models
    from sdjax.server.slots import is_continuous

    lanes.is_continuous = is_continuous if continuous else lambda key: False
    engine = Engine(Models({"model": lambda: pipe}), [size], Limits(seconds=3600), Journal())
    host = Host(application(engine), engine)
    url = f"{host.url}/v1/images/generations"
    begun = time.perf_counter()
    with ThreadPoolExecutor(len(wishes)) as pool:
        latencies = list(chain(*pool.map(lambda own: [_ask(url, wish) for wish in own], wishes)))
    seconds = time.perf_counter() - begun
    host.stop()
    short = [latency for steps, latency in latencies if steps <= SHORT]
    every = [latency for _, latency in latencies]
    return {
        "pictures/s": len(latencies) / seconds,
        "median": float(np.median(every)),
        "99th": float(np.percentile(every, 99)),
        "short median": float(np.median(short)),
        "short 99th": float(np.percentile(short, 99)),
    }


def _ask(url: str, wish: dict[str, Any]) -> tuple[int, float]:
    begun = time.perf_counter()
    with urlopen(Request(url, json.dumps(wish).encode(), {"content-type": "application/json"})) as answer:
        json.load(answer)
    return wish["num_inference_steps"], time.perf_counter() - begun


def _batch(pipe, size: int, wishes: list[dict[str, Any]]) -> dict[str, float]:
    from sdjax.batch.drawing import Drawing, encode
    from sdjax.batch.groups import Placed, batches_of, place
    from sdjax.batch.output import Output
    from sdjax.batch.rows import Naming, items_of

    items, _ = items_of(wishes, {}, Naming(), Path())
    placed = [each for item in items if isinstance(each := place(item, pipe.facts), Placed)]
    output = Output(Path("unused"))
    begun = time.perf_counter()
    Drawing(pipe, size).run(
        batches_of(placed, size), lambda item, drawn: encode(output, {}, item, drawn), lambda *_: None, lambda _: None
    )
    return {"pictures/s": len(items) / (time.perf_counter() - begun)}
