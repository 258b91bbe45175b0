"""A server that is killed under load, again and again: what it had accepted is drawn, once, by the next.

`pytest tests/test_server_kill.py --kills 20` kills more of them.
"""

import base64
import io
import json
import multiprocessing
import random
import sqlite3
import threading
import time
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image
from serving import SLOTS

from sdjax.settings import Picture

CLIENTS, PATIENCE = 4, 900


def serve(model: Path, folder: Path, ready) -> None:
    """A server on a free port, in a process of its own, which goes on with what its journal holds."""
    import sdjax
    from sdjax.loading import keep_compiled_programs
    from sdjax.server.app import application
    from sdjax.server.engine import Engine
    from sdjax.server.hosting import Host
    from sdjax.server.journal import Journal
    from sdjax.server.limits import Limits
    from sdjax.server.models import Models

    keep_compiled_programs()
    pipe = sdjax.load(model)
    engine = Engine(
        Models({"small": lambda: pipe}), [SLOTS], Limits(seconds=PATIENCE), Journal(folder / "journal.sqlite")
    )
    left = engine.resume()
    ready.send((Host(application(engine), engine).url, left))
    threading.Event().wait()


class Load:
    """Clients that ask for one picture after another, each under a key, again until it is answered."""

    def __init__(self) -> None:
        self.url, self.answers, self.stop = "", dict[str, tuple[int, bytes]](), threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(k,), daemon=True) for k in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self, client: int) -> None:
        number = 0
        while True:  # what has been asked is asked until it is answered
            key, seed = f"{client}-{number}", 1000 * client + number
            how = {"prompt": "a ring", "seed": seed, "num_inference_steps": 3 + seed % 20, "sampler": "euler"}
            headers = {"content-type": "application/json", "idempotency-key": key}
            try:
                request = Request(f"{self.url}/v1/images/generations", json.dumps(how).encode(), headers)
                with urlopen(request, timeout=PATIENCE) as answer:
                    data = json.load(answer)["data"][0]
                self.answers[key] = data["seed"], base64.b64decode(data["b64_json"])
                if self.stop.is_set():
                    return
                number += 1
            except (OSError, ValueError, HTTPException):
                time.sleep(0.05)  # nobody is there: again

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.long
def test_what_was_accepted_is_drawn_once_whatever_is_killed(small, pipe, tmp_path, request):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sdjax", "sdjax.loading", "sdjax.server.app"])
    rng, left, load = random.Random(0), [], None
    for round in range(request.config.getoption("--kills") + 1):
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(small, tmp_path, theirs), daemon=True)
        process.start()
        assert ours.poll(PATIENCE), "the server does not start"
        url, count = ours.recv()
        left.append(count)
        load = load or Load()
        load.url = url
        if round < request.config.getoption("--kills"):
            answered = len(load.answers)
            while len(load.answers) <= answered:
                time.sleep(0.01)
            time.sleep(rng.random())
            process.kill()
            process.join()
    load.end()
    process.kill()
    process.join()
    with sqlite3.connect(tmp_path / "journal.sqlite") as base:
        jobs = base.execute("SELECT id, count FROM jobs").fetchall()
        reasons = base.execute("SELECT reason FROM results WHERE reason IS NOT NULL").fetchall()
        results = base.execute("SELECT job, number FROM results").fetchall()
    wanted = {(job, number) for job, count in jobs for number in range(count)}
    lost, doubled = len(wanted - {*results}), len(jobs) - len(load.answers) + len(results) - len({*results})
    print(
        f"{request.config.getoption('--kills')} x kill -9: {len(jobs)} jobs accepted, {len(load.answers)} answered, "
        f"{lost} lost, {doubled} doubled; {sum(left)} times one was left to a later server"
    )
    assert not reasons and sum(left) > 0
    assert not lost and not doubled and {*results} == wanted
    for key in rng.sample(sorted(load.answers), 3):
        seed, data = load.answers[key]
        how = {"prompt": "a ring", "seed": seed, "num_inference_steps": 3 + seed % 20, "sampler": "euler"}
        image = np.asarray(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(image, np.asarray(pipe.draw([Picture(**how)] * SLOTS).images[0]))
