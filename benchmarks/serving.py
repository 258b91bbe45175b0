"""The server under load, against batches that wait until all pictures are done, one at a time, and a batch run."""

import base64
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import typer

from benchmarks.processes import forget_peak, memory, peak_memory
from benchmarks.report import JsonOption, publish

SAMPLERS = ("ddim", "euler", "euler_ancestral", "dpmpp_2m", "heun", "DPM++ 2M Karras")
SHORT = 8  # steps, at most, of a short request
TOKEN = "secret"
LONG = {"prompt": "a red heart", "num_inference_steps": 20, "sampler": "euler"}
QUICK = {**LONG, "num_inference_steps": 4}

Wishes = list[list[dict[str, Any]]]  # of each client


def serving(
    model: Annotated[str, typer.Option(help="An embedded model, a directory, a file, or a hub id.")] = "shapes",
    clients: Annotated[int, typer.Option(min=1, help="Each asks again when it has its picture.")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="Of each client.")] = 8,
    size: Annotated[int, typer.Option(min=1, help="Pictures of a batch.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Of everything, in turn.")] = 3,
    queue: Annotated[int, typer.Option(min=0, help="Pictures that wait, in a measurement of its own; 0: none.")] = 500,
    json_file: JsonOption = None,
) -> None:
    """Pictures per second and latency of `sdjax serve`, for clients with mixed samplers, steps (4 to 50) and scales."""
    import sdjax

    pipe, wishes = sdjax.load(model), [_wishes(client, requests) for client in range(clients)]
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "continuous": lambda: _served(pipe, size, wishes),
        "until all are done": lambda: _served(pipe, size, wishes, continuous=False),
        "one at a time": lambda: _served(pipe, 1, [list(chain(*wishes))]),
        "sdjax batch": lambda: _batch(pipe, size, list(chain(*wishes))),
    }
    for measure in ways.values():
        measure()  # compiles
    rows = []
    for repeat in range(repeats):
        rows += [{"way": way, "run": repeat, **measure()} for way, measure in ways.items()]
    note = f"{clients} clients, {clients * requests} pictures of 4 to 50 steps, batches of {size}; seconds"
    rows += [{"way": way, "run": "median", **_medians([row for row in rows if row["way"] == way])} for way in ways]
    publish("serving", rows, json_file, f"{note}. {_compared(rows, repeats)}")
    if queue:
        publish("serving", [_crowded(pipe, size, queue)], None, f"{queue} pictures of 20 steps wait; seconds")


def _medians(rows: list[dict[str, Any]]) -> dict[str, float]:
    names = [name for name in rows[0] if name not in ("way", "run")]
    return {name: statistics.median(row[name] for row in rows) for name in names}


def _compared(rows: list[dict[str, Any]], repeats: int) -> str:
    """What the figures of one repeat are to one another, and of these the median."""
    runs = [{row["way"]: row for row in rows if row["run"] == repeat} for repeat in range(repeats)]

    def times(of: str, name: str, base: str = "continuous") -> float:
        return statistics.median(run[base][name] / run[of][name] for run in runs)

    return (
        f"pictures/s: {times('sdjax batch', 'pictures/s'):.2f} of sdjax batch, "
        f"{times('one at a time', 'pictures/s'):.2f} x one at a time; the short requests' 99th percentile: "
        f"{times('until all are done', 'short 99th'):.2f} of that where batches wait until all are done"
    )


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


@contextmanager
def _server(pipe, size: int, **limits: Any) -> Iterator[tuple[str, Any]]:
    """The address and the engine of a server."""
    from sdjax.server.app import application
    from sdjax.server.engine import Engine
    from sdjax.server.hosting import Host
    from sdjax.server.journal import Journal
    from sdjax.server.limits import Limits
    from sdjax.server.models import Models

    engine = Engine(Models({"model": lambda: pipe}), [size], Limits(seconds=3600, **limits), Journal())
    host = Host(application(engine, (TOKEN,)), engine)
    try:
        yield host.url, engine
    finally:
        host.stop(patience=0)


def _served(pipe, size: int, wishes: Wishes, continuous: bool = True) -> dict[str, float]:
    from sdjax.server import lanes
    from sdjax.server.slots import is_continuous

    lanes.is_continuous = is_continuous if continuous else lambda key: False
    with _server(pipe, size) as (url, _), ThreadPoolExecutor(len(wishes)) as pool:
        begun = time.perf_counter()
        latencies = list(chain(*pool.map(lambda own: [_ask(url, wish) for wish in own], wishes)))
        seconds = time.perf_counter() - begun
    lanes.is_continuous = is_continuous
    short = [latency for steps, latency in latencies if steps <= SHORT]
    every = [latency for _, latency in latencies]
    return {
        "pictures/s": len(latencies) / seconds,
        "median": float(np.median(every)),
        "99th": float(np.percentile(every, 99)),
        "short median": float(np.median(short)),
        "short 99th": float(np.percentile(short, 99)),
    }


def _ask(url: str, wish: dict[str, Any], name: str = "me") -> tuple[int, float]:
    """The steps that a client of a name asks for, and the seconds until it has its pictures."""
    begun = time.perf_counter()
    basic = base64.b64encode(f"{name}:{TOKEN}".encode()).decode()
    headers = {"content-type": "application/json", "authorization": f"Basic {basic}"}
    with urlopen(Request(f"{url}/v1/images/generations", json.dumps(wish).encode(), headers)) as answer:
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
    seconds = time.perf_counter() - begun
    return {"pictures/s": len(items) / seconds} | dict.fromkeys(
        ("median", "99th", "short median", "short 99th"), float("nan")
    )


def _crowded(pipe, size: int, queue: int) -> dict[str, Any]:
    """A queue that is full: what it takes, what is refused, and what others have of it who ask for a picture each.

    alone: a short picture where nobody else asks. behind: the same, behind all that wait, the median and the longest of
    five one after the other. share: of what was drawn while two clients had pictures waiting, the second one's.
    """
    limits = {"queue": queue, "pictures": queue + size}
    # The server ends first: nobody waits for what is left of the queue.
    with ThreadPoolExecutor(4) as pool, _server(pipe, size, **limits) as (url, engine):
        alone = statistics.median(_ask(url, QUICK, "second")[1] for _ in range(5))
        forget_peak()
        begun, before = time.perf_counter(), memory()
        pool.submit(_ask, url, {**LONG, "n": queue - size}, "first")
        while engine.waiting < queue - 2 * size:
            time.sleep(0.01)
        accepted, waiting = time.perf_counter() - begun, memory() - before
        behind = [_ask(url, QUICK, "second")[1] for _ in range(5)]
        try:
            refused = str(_ask(url, {**QUICK, "n": queue}, "third"))
        except HTTPError as error:
            refused = f"{error.code}, again in {error.headers['retry-after']} s"
        count = 4 * size
        done = engine.metrics.registry.get_sample_value
        start = done("sdjax_pictures_total", {"outcome": "done"})
        _ask(url, {**LONG, "n": count}, "second")
        drawn = done("sdjax_pictures_total", {"outcome": "done"}) - start
        peak = peak_memory() - before
    return {
        "accepted in": accepted,
        "MB while they wait": waiting / 1e6,
        "MB at most": peak / 1e6,
        "one more": refused,
        "alone": alone,
        "behind": statistics.median(behind),
        "behind, longest": max(behind),
        "share": count / drawn,
    }
