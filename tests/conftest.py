"""What several tests need: the reference data beside the checkout, and a tiny diffusers checkpoint made on the spot."""

import gc
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import jax
import pytest
from checkpoints import write_tiny
from tiny_training import PAINTING, XL, write_tiny_model

import sdjax
from sdjax.loading import keep_compiled_programs
from sdjax.pipeline import Pipeline

SHARED = Path(__file__).parents[2] / "shared"

# How long an example takes says something of the machine only; speed is measured in benchmarks.
hypothesis.settings.register_profile("sdjax", deadline=None)
hypothesis.settings.load_profile("sdjax")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--damaged", type=int, default=12, help="how many damaged checkpoints test_fuzz tries")
    parser.addoption("--kills", type=int, default=3, help="how often test_fuzz and test_batch kill a process")
    parser.addoption("--requests", type=int, default=100, help="how many requests test_server_fuzz makes up")
    parser.addoption("--rows", type=int, default=24, help="how many pictures the run has that test_batch kills")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is marked `few(n)`, n of its cases remain, spread evenly; `make long` runs the others."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few") and not item.get_closest_marker("long"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for own in cases.values():
        count = own[0].get_closest_marker("few").args[0]
        kept = {round(i * (len(own) - 1) / max(1, count - 1)) for i in range(count)}
        for i, item in enumerate(own):
            if i not in kept:
                item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests leave the user's own cache alone, and need not compile what another has, also in another process."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            folder = folder.parent  # one for all workers
        folder = folder / "sdjax-cache"
        patch.setenv("SDJAX_CACHE", str(folder))
        keep_compiled_programs()
        yield folder


@pytest.fixture(scope="module", autouse=True)
def programs_of_the_module() -> Iterator[None]:
    """Compiled programs are let go with their module: each is many pieces of mapped memory, and a process may have
    65,530 of those. XLA's compiler crashes without a word when there are no more."""
    yield
    gc.collect()
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models and configs, which lies beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"the reference data are not there: {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def shapes_sd(shared: Path) -> Path:
    """A small trained Stable Diffusion in diffusers layout."""
    return shared / "models" / "shapes-sd"


@pytest.fixture(scope="session")
def tiny_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in diffusers layout; read it only."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny-sd")


@pytest.fixture
def tiny(tiny_original: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be damaged at will."""
    return Path(shutil.copytree(tiny_original, tmp_path / "tiny-sd"))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory that takes and makes what the embedded model does, a tenth as long; it has learned nothing."""
    return write_tiny_model(tmp_path_factory.mktemp("small") / "small", PAINTING)


@pytest.fixture(scope="session")
def small_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a Stable Diffusion XL."""
    return write_tiny_model(tmp_path_factory.mktemp("small") / "small-xl", XL)


@pytest.fixture(scope="module")
def pipe(small: Path) -> Pipeline:
    return sdjax.load(small)


@pytest.fixture
def compilations():
    """Counts XLA compilations (and loads of compiled programs) while it is used."""
    count = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            count.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield count
    jax.monitoring.unregister_event_duration_listener(listen)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub() -> Iterator[Callable[[str, Path], tuple[str, list[str]]]]:
    """Starts a small server that speaks as much of the hub's protocol as its own client needs for one public model."""
    servers = []

    def start(repo: str, folder: Path) -> tuple[str, list[str]]:
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        files["README.md"] = b"not needed"
        served: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = re.sub(rf"^/{repo}/resolve/(main|{COMMIT})/", "", self.path)
                if self.path.startswith(f"/api/models/{repo}/tree/"):
                    self.reply(json.dumps([entry(name) for name in files]).encode(), "application/json")
                elif self.path.startswith(f"/api/models/{repo}"):
                    siblings = [{"rfilename": name} for name in files]
                    info = {"id": repo, "sha": COMMIT, "siblings": siblings}
                    self.reply(json.dumps(info).encode(), "application/json")
                elif name in files:
                    served.append(name)
                    self.reply(files[name], "application/octet-stream")
                else:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "RepoNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            do_HEAD = do_GET

            def reply(self, body: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *args):
                pass

        def entry(name: str) -> dict:
            return {
                "type": "file",
                "path": name,
                "size": len(files[name]),
                "oid": hashlib.sha1(files[name]).hexdigest(),
            }

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", served

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def ask_hub() -> Callable[..., str]:
    """What `resolve` answers about a model in a process of its own, whose hub is the server at an endpoint."""
    return _ask


def _ask(model: str, home: Path, endpoint: str, offline: bool = False) -> str:
    code = "import sys, sdjax.convert as c\ntry: print(c.resolve(sys.argv[1]))\nexcept ValueError as e: print(e)"
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "SDJAX_CACHE": str(home / "sdjax")}
    environment |= {"HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1", "no_proxy": "*"}
    run = subprocess.run([sys.executable, "-c", code, model], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()
