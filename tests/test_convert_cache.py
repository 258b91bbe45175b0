"""Models by name: the embedded one, directories, the cache of conversions, and the hub, played by a local server."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from checkpoints import UNET, rewrite, tensors_of

from sdjax.checkpoint import embedded_models, read_json, read_model
from sdjax.convert import convert, resolve
from sdjax.convert.hub import needed_files
from sdjax.errors import CheckpointError
from sdjax.models import MODELS

# The cache


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SDJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_names_and_directories_resolve(tiny, tmp_path, cache):
    assert resolve("shapes") == embedded_models()["shapes"]
    model = convert(tiny, tmp_path / "model")
    assert resolve(model) == resolve(str(model)) == model
    assert not cache.exists()


def test_a_source_is_converted_once_until_it_changes(tiny, cache):
    first = resolve(tiny)
    assert first.parent == cache
    assert first.name.startswith("tiny-sd-")
    written = (first / "unet" / "model.safetensors").stat().st_mtime_ns
    assert resolve(tiny) == first
    assert (first / "unet" / "model.safetensors").stat().st_mtime_ns == written
    assert resolve(tiny, dtype="float16") != first
    os.utime(tiny / UNET, ns=(0, 0))
    changed = resolve(tiny)
    assert changed != first
    assert tensors_of(changed) == tensors_of(first)
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_files_that_conversion_does_not_read_do_not_matter(tiny, cache):
    first = resolve(tiny)
    (tiny / "README.md").write_text("new")
    (tiny / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    assert resolve(tiny) == first


def test_a_process_that_was_faster_is_believed(tiny, cache):
    """Another process finishes the same conversion while ours is under way."""
    other = []

    def progress(component, done, total):
        if not other:
            other.append(None)
            other[0] = resolve(tiny)

    assert resolve(tiny, progress=progress) == other[0]
    assert list(cache.iterdir()) == other
    read_model(other[0])


def test_a_failed_conversion_is_not_cached(tiny, cache):
    rewrite(tiny / UNET, lambda tensors: tensors["conv_in.bias"].fill(np.nan))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="NaN"):
            resolve(tiny)
    assert list(cache.iterdir()) == []


# The hub

SMALL = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"tokenizer/{name}" for name in ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")),
    *(f"{component}/config.json" for component in ("text_encoder", "unet", "vae")),
]
# What the repository of Stable Diffusion 1.5 is like: two formats, three variants, and much that nobody needs.
REPOSITORY = [
    *SMALL,
    *("README.md", "v1-5-pruned.ckpt", "v1-5-pruned-emaonly.safetensors", "v1-inference.yaml"),
    *("feature_extractor/preprocessor_config.json", "safety_checker/config.json", "safety_checker/model.safetensors"),
    *(f"text_encoder/{name}" for name in ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin")),
    *(
        f"{component}/diffusion_pytorch_model{variant}.{suffix}"
        for component, variants in (("unet", ["", ".fp16", ".non_ema"]), ("vae", ["", ".fp16"]))
        for variant in variants
        for suffix in ("bin", "safetensors")
    ),
]


@pytest.mark.parametrize(
    ("variant", "weights"),
    [
        (None, ["text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"]),
        ("fp16", ["text_encoder/model.fp16", "unet/diffusion_pytorch_model.fp16", "vae/diffusion_pytorch_model.fp16"]),
        ("non_ema", ["text_encoder/model", "unet/diffusion_pytorch_model.non_ema", "vae/diffusion_pytorch_model"]),
    ],
)
def test_only_the_files_that_are_needed_are_downloaded(shared, variant, weights):
    index = read_json(shared / "reference/hub/runwayml/stable-diffusion-v1-5/model_index.json")
    files = needed_files(REPOSITORY, index, variant, "runwayml/stable-diffusion-v1-5")
    assert sorted(files) == sorted(SMALL + [f"{name}.safetensors" for name in weights])


def test_shards_are_downloaded_with_their_index_and_nothing_deeper():
    index = {"unet": ["diffusers", "UNet2DConditionModel"]}
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    wanted = ["unet/config.json", "unet/diffusion_pytorch_model.safetensors.index.json", *shards]
    others = ["unet/old/config.json", "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "x.safetensors"]
    assert sorted(needed_files(wanted + others, index, None, "a/b")) == sorted(["model_index.json", *wanted])


def test_a_hub_model_that_sdjax_lacks_is_refused_before_the_download(shared):
    index = read_json(shared / "reference/hub/stabilityai/stable-diffusion-xl-base-1.0/model_index.json")
    with pytest.raises(CheckpointError, match="text_encoder_2"):
        needed_files([], index, None, "stabilityai/stable-diffusion-xl-base-1.0")


@pytest.mark.parametrize("class_name", MODELS)
def test_every_model_is_reachable_from_an_index(class_name):
    files = ["x/config.json", "x/model.safetensors"]
    assert needed_files(files, {"x": ["any", class_name]}, None, "a/b") == ["model_index.json", *files]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub():
    """Starts a small server that speaks as much of the hub's protocol as its own client needs for one public model."""
    servers = []

    def start(repo: str, folder: Path) -> tuple[str, list[str]]:
        (folder / "README.md").write_text("not needed")
        files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
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
                    self.reply(files[name].read_bytes(), "application/octet-stream")
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
                "size": files[name].stat().st_size,
                "oid": hashlib.sha1(files[name].read_bytes()).hexdigest(),
            }

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", served

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(model: str, home: Path, endpoint: str, offline: bool = False) -> str:
    """What `resolve` answers in a process of its own, whose hub is the server at `endpoint`."""
    code = "import sys, sdjax.convert as c\ntry: print(c.resolve(sys.argv[1]))\nexcept ValueError as e: print(e)"
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "SDJAX_CACHE": str(home / "sdjax")}
    environment |= {"HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1", "no_proxy": "*"}
    run = subprocess.run([sys.executable, "-c", code, model], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_hub_is_asked_once_and_then_not_needed(tiny, tmp_path, hub):
    endpoint, served = hub("org/tiny", tiny)
    model = Path(ask("org/tiny", tmp_path / "home", endpoint))
    assert model.name.startswith("org--tiny-")
    assert read_model(model).index["sdjax"]["source"].startswith("org/tiny@")
    assert tensors_of(model) == tensors_of(convert(tiny, tmp_path / "model"))
    assert Path(ask("org/tiny", tmp_path / "home", endpoint, offline=True)) == model
    assert Path(ask("org/tiny", tmp_path / "home", "http://127.0.0.1:9")) == model
    assert not any("README" in path for path in served)


def test_a_hub_that_does_not_have_it_or_is_not_there_is_one_line(tiny, tmp_path, hub):
    endpoint, _ = hub("org/tiny", tiny)
    for answer, expected in (
        (ask("org/other", tmp_path / "home", endpoint), "no directory org/other, and no such model on the hub"),
        (ask("org/tiny", tmp_path / "home", "http://127.0.0.1:9"), "hub cannot be reached"),
        (ask("org/tiny", tmp_path / "home", endpoint, offline=True), "hub cannot be reached"),
    ):
        assert expected in answer
        assert "\n" not in answer
