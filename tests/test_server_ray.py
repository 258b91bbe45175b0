"""`sdjax serve --engine ray` with two nodes, of which one dies: every picture comes, as the library draws it."""

import base64
import io
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image
from serving import SLOTS

from sdjax.settings import Picture

cluster_utils = pytest.importorskip("ray.cluster_utils")
pytest.importorskip("ray.serve")
PATIENCE = 300.0  # seconds
PICTURES = 12


@pytest.fixture
def cluster():
    """A head that draws nothing, and two nodes with room for a replica each."""
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.mark.long
def test_a_node_that_dies_loses_nothing(cluster, small, pipe, tmp_path):
    command = [
        sys.executable, "-c", "import sys, sdjax.cli; sys.exit(sdjax.cli.main())", "serve", "--port", "0", "--folder",
        str(tmp_path), "--model", f"small={small}", "--batch-sizes", str(SLOTS), "--engine", "ray", "--address",
        cluster.address,
    ]  # fmt: skip
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said: list[str] = []
    threading.Thread(target=lambda: said.extend(server.stderr), daemon=True).start()
    try:
        until = time.time() + PATIENCE
        while not (urls := [line for line in said if line.startswith("OpenAI's API: ")]):
            assert server.poll() is None and time.time() < until, "".join(said)
            time.sleep(0.1)
        url = urls[0].split()[2]
        answers: dict[int, np.ndarray] = {}

        def ask(seed: int) -> None:
            request = Request(
                f"{url}/images/generations", json.dumps(how(seed)).encode(), {"content-type": "application/json"}
            )
            with urlopen(request, timeout=PATIENCE) as answer:
                data = json.load(answer)["data"][0]["b64_json"]
            answers[seed] = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))

        with ThreadPoolExecutor(PICTURES) as pool:
            asked = [pool.submit(ask, seed) for seed in range(PICTURES)]
            while len(answers) < 2:  # both nodes have others by now
                assert time.time() < until, "".join(said)
                time.sleep(0.05)
            cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
            for each in asked:
                each.result(PATIENCE)
        assert any("a replica is lost" in line for line in said)
        for seed in range(PICTURES):
            np.testing.assert_array_equal(answers[seed], drawn(pipe, seed))
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130
    finally:
        server.kill()
        server.wait()


def how(seed: int) -> dict[str, object]:
    return {"prompt": "a ring", "seed": seed, "num_inference_steps": 100 + seed, "sampler": "euler"}


def drawn(pipe, seed: int) -> np.ndarray:
    return np.asarray(pipe.draw([Picture(**how(seed))] * SLOTS).images[0])
