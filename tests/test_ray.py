"""`sdjax batch --engine ray`: what a Ray cluster draws is what this machine draws."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from batch_runs import SLOTS, contents, mixed, write_rows
from command import SDJAX

from sdjax.cli import main

pytest.importorskip("ray")

# A machine that is busy, or was suspended, is no machine that is lost; workers run at the niceness of the tests beside.
PATIENT = {"RAY_health_check_failure_threshold": "100", "RAY_worker_niceness": "0"}


def options(rows: Path, model: Path) -> list[str]:
    return ["batch", str(rows), "--model", str(model), "--batch-size", str(SLOTS), "--shard-size", "10", "-o"]


@pytest.mark.long
def test_ray_leaves_the_files_of_a_local_run_and_either_goes_on_with_the_others(small, tmp_path):
    rows = write_rows(tmp_path, [*mixed(5), {"prompt": "a ring", "guidance_scale": 1e38}])  # the last one overflows
    local, cluster = tmp_path / "local", tmp_path / "cluster"
    assert main([*options(rows, small), str(local)]) == 3
    ray = [*options(rows, small), str(cluster), "--engine", "ray", "--workers", "1"]
    assert subprocess.run([*SDJAX, *ray], env=os.environ | PATIENT, check=False).returncode == 3
    assert contents(cluster) == contents(local)
    next(cluster.rglob("*.png")).unlink()
    assert main([*options(rows, small), str(cluster)]) == 3
    assert contents(cluster) == contents(local)


@pytest.mark.long
def test_a_cluster_that_loses_a_worker_loses_no_picture(small, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    rows = write_rows(tmp_path, mixed(24))
    assert main([*options(rows, small), str(tmp_path / "local")]) == 0
    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    nodes = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        second = nodes.add_node(**node)
        ray = ["--engine", "ray", "--address", nodes.address, "--workers", "2"]
        with subprocess.Popen([*SDJAX, *options(rows, small), str(tmp_path / "cluster"), *ray]) as run:
            while len(list((tmp_path / "cluster").rglob("*.png"))) < 5:
                assert run.poll() is None
                time.sleep(0.02)
            (worker,) = workers_of(second.all_processes["raylet"][0].process.pid)
            os.kill(worker, 9)
            assert run.wait() == 0
    finally:
        nodes.shutdown()
    assert contents(tmp_path / "cluster") == contents(tmp_path / "local")


def workers_of(raylet: int) -> list[int]:
    """The processes of a node that draw."""
    children = [
        int(pid) for tasks in Path(f"/proc/{raylet}/task").iterdir() for pid in (tasks / "children").read_text().split()
    ]
    return [int(pid) for pid in children if "MapWorker" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--engine", "ray", "--coordinator", "auto"], "no --coordinator"),
        (["--workers", "2"], "are for --engine ray"),
    ],
)
def test_what_cannot_be_is_said_first(given, said, small, tmp_path):
    rows = write_rows(tmp_path, mixed(1))
    ended = subprocess.run(
        [*SDJAX, *options(rows, small), str(tmp_path / "out"), *given], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1 and said in ended.stderr
    assert not (tmp_path / "out").exists()
