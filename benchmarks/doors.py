"""The doors of `python -m benchmarks fuzz`: what comes to each, and what a right result is."""

import json
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save

from benchmarks.fuzz import Door
from benchmarks.hostile import DAMAGES, JSON, TEXT, TEXTS, changed, damaged
from benchmarks.tensor_doors import tensor_doors
from sdjax import schedulers
from sdjax.a1111 import mentions_of, without_mentions
from sdjax.adapters.lora_files import read_lora
from sdjax.adapters.textual_inversion import read_embedding
from sdjax.batch.formats import read_rows
from sdjax.batch.journal import MANIFEST, read_state
from sdjax.batch.output import JPEG_ROOM
from sdjax.batch.rows import Naming, items_of, slug_of
from sdjax.cli import main
from sdjax.convert import ldm_kinds
from sdjax.convert.original_yaml import read_yaml
from sdjax.files.cache import cache_directory, cached
from sdjax.files.infotext import read_infotext, write_infotext
from sdjax.files.layout import embedded_models, read_json
from sdjax.files.pictures import DESCRIPTION, INFOTEXT_KEY, SETTINGS_KEY, read_settings
from sdjax.models import abstract_params, build
from sdjax.prompts import load_tokenizer, parse_emphasis, parts_of, schedule, weighted_chunks
from sdjax.prompts.dynamic import Wildcards, resolved
from sdjax.schedulers import SOLVERS, SPACINGS
from sdjax.schedulers.classes import CLASSES
from sdjax.settings import SETTINGS, Picture

SHAPES = embedded_models()["shapes"]


def _texts(text: str, _: Path) -> None:
    settings, _ = read_infotext(text)
    assert isinstance(settings["prompt"], str)
    said = {name: value for name, value in settings.items() if name in ("seed", "steps", "sampler")}
    again, _ = read_infotext(write_infotext({"prompt": "a cat", "sampler": "x", "seed": 1, "steps": 2} | said))
    assert again["prompt"] == "a cat"


def _prompts(text: str, _: Path) -> None:
    assert without_mentions(text).count("a") <= text.count("a")
    for part in parts_of(without_mentions(text)):
        for _, read in schedule(part.text, 20):
            assert all(isinstance(piece, str) for piece, _ in parse_emphasis(read))
    mentions_of(text)
    tokens = weighted_chunks(load_tokenizer(SHAPES / "tokenizer"), text[:2000], {})
    assert tokens.ids.shape == tokens.weights.shape and np.isfinite(tokens.weights).all()


def _wildcards(of: tuple[str, str], folder: Path) -> None:
    template, lines = of
    (folder / "a.txt").write_text(lines)
    prompt = resolved(template, 1, Wildcards(folder))
    assert prompt == resolved(template, 1, Wildcards(folder))


def _file(
    name: str, content: bytes, read: Callable[[Path], Any]
) -> tuple[Any, Callable[[tuple[list[Any], Any], Path], None]]:
    """A file that is damaged, and read: the whole one gives what it gave before."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        whole = repr(read(Path(folder) / name))

    def work(damages: list[Any], folder: Path) -> None:
        path = folder / name
        path.write_bytes(damaged(content, damages))
        found = read(path)
        assert damages or repr(found) == whole

    return DAMAGES, work


def _picture(kind: str, settings: dict[str, Any], infotext: str) -> bytes:
    """A picture with texts that anybody may have written."""
    file, image = BytesIO(), Image.new("RGB", (16, 16), "red")
    if kind == "png":
        info = PngInfo()
        info.add_text(SETTINGS_KEY, json.dumps(settings))
        info.add_itxt(INFOTEXT_KEY, infotext)
        image.save(file, kind, pnginfo=info)
    else:
        exif = Image.Exif()
        exif[DESCRIPTION] = json.dumps(settings)[:JPEG_ROOM]
        image.save(file, kind, exif=exif)
    return file.getvalue()


def _pictures(kind: str) -> tuple[Any, Callable[[Any, Path], None]]:
    def work(of: tuple[dict[str, Any], str, list[Any]], folder: Path) -> None:
        settings, infotext, damages = of
        settings = {"prompt": "a cat", **settings}
        path = folder / f"x.{kind}"
        path.write_bytes(damaged(_picture(kind, settings, infotext), damages))
        found = read_settings(path)
        assert damages or kind != "png" or json.dumps(found) == json.dumps(settings)
        said = StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            main(["info", str(path)])
        assert "fault of sdjax" not in said.getvalue() and "\x1b" not in said.getvalue()

    labels = st.sampled_from([setting.label for setting in SETTINGS.values()]) | TEXT
    return st.tuples(st.dictionaries(labels, JSON | TEXT, max_size=3), TEXT, DAMAGES), work


def _rows(of: tuple[list[dict[str, Any]], list[Any], str], folder: Path) -> None:
    rows, damages, template = of
    path = folder / "rows.jsonl"
    path.write_bytes(damaged("".join(json.dumps(row) + "\n" for row in rows).encode(), damages))
    items, problems = items_of(read_rows(path, "jsonl"), {"num_inference_steps": 2}, Naming(template), folder, True)
    assert len({item.name.casefold() for item in items}) == len(items)
    assert all(isinstance(item.outline(), Picture) for item in items[:20])
    assert all("\n" not in problem.reason and len(problem.reason) < 3000 for problem in problems)
    for kind in ("csv", "txt"):
        items_of(read_rows(path, kind), {}, Naming(), folder)


def _names(of: tuple[str, str], _: Path) -> None:
    template, prompt = of
    name = Naming(template).of(3, 1, 0, 1, {"seed": 2**64 - 1, "prompt": prompt})
    assert len(name) < 3000 + len(template) and len(slug_of(prompt).encode()) <= 60


def _networks(of: tuple[str, dict[str, Any]], _: Path) -> None:
    class_name, config = of
    abstract_params(build(class_name, config))


def _schedulers(config: dict[str, Any], _: Path) -> None:
    plan = schedulers.from_config(config).plan(4)
    assert np.isfinite(plan.rows.weights).all() and np.isfinite(plan.timesteps).all()


def _plans(settings: dict[str, Any], _: Path) -> None:
    picture = Picture(**{"prompt": "x"} | settings)
    plan = schedulers.create(picture.sampler or "ddim", picture.spacing).plan(picture.num_inference_steps or 5)
    assert np.isfinite(plan.rows.weights).all() and plan.nfe >= 1


def _cache(damages: list[Any], _: Path) -> None:
    key = "fuzz"
    cached("fuzz", key, lambda: b"right")
    (file,) = (cache_directory() / "fuzz").iterdir()
    file.write_bytes(damaged(file.read_bytes(), damages))
    assert cached("fuzz", key, lambda: b"right") == b"right"


def _journals(of: tuple[list[Any], list[Any]], folder: Path) -> None:
    entries, damages = of
    lines = "".join(json.dumps(entry) + "\n" for entry in [{"index": 1, "sha256": "a"}, *entries])
    (folder / MANIFEST).write_bytes(damaged(lines.encode(), damages))
    state = read_state(folder)
    assert damages or state.made("index").keys() >= ({1} if not entries else set())


def _tokenizer(of: tuple[str, list[Any]], folder: Path) -> None:
    name, damages = of
    for path in (SHAPES / "tokenizer").iterdir():
        (folder / path.name).write_bytes(damaged(path.read_bytes(), damages if path.name == name else []))
    tokenizer = load_tokenizer(folder)
    assert weighted_chunks(tokenizer, "a red heart", {}).ids.shape[1] == tokenizer.length


def _model(of: tuple[dict[str, Any], dict[str, Any]], folder: Path) -> None:
    (folder / "scheduler").mkdir()
    (folder / "model_index.json").write_text(json.dumps(of[0]))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(of[1]))
    for name in ("unet", "vae", "text_encoder", "tokenizer"):
        (folder / name).symlink_to(SHAPES / name)
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main(["info", str(folder)])
    assert code in (0, 1) and "fault of sdjax" not in said.getvalue() and "\x1b" not in said.getvalue(), said.getvalue()


def _read_tensors(path: Path) -> Any:
    file = read_lora(path)
    return sorted(file.changes), file.family


def _read_vectors(path: Path) -> Any:
    word, vectors = read_embedding(path)
    assert all(np.isfinite(each).all() for each in vectors)
    return word, [each.shape for each in vectors]


def _read_yaml(path: Path) -> Any:
    return read_yaml(path, ldm_kinds.SD1)


TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")
YAML = b"""model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params: {linear_start: 0.00085, linear_end: 0.0120, timesteps: 1000, parameterization: "eps"}
"""


def doors() -> list[Door]:
    """All doors."""
    random = np.random.default_rng(0)
    lora = {
        f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn{i}.to_q.lora_{part}.weight": random.random(
            (4, 8) if part == "A" else (8, 4), np.float32
        )
        for i in (1, 2)
        for part in "AB"
    }
    index = read_json(SHAPES / "model_index.json")
    configs = {name: read_json(SHAPES / name / "config.json") for name in ("unet", "vae", "text_encoder")}
    networks = st.one_of([st.tuples(st.just(index[name][1]), changed(config)) for name, config in configs.items()])
    scheduler = read_json(SHAPES / "scheduler" / "scheduler_config.json")
    names = st.sampled_from(sorted(CLASSES))
    labels = st.sampled_from([*(setting.label for setting in SETTINGS.values()), "name", "num_images"]) | TEXT
    row = st.dictionaries(labels, JSON | TEXT, max_size=4).map(lambda values: {"prompt": "a cat", **values})
    small = row.map(lambda values: values | ({"num_images": 3} if values.get("num_images") == 10**6 else {}))
    templates = TEXT | st.sampled_from(["{index:08d}", "{row}-{prompt}", "{index:0999999999d}", "{seed:{row}}"])
    plans = st.dictionaries(st.sampled_from(sorted(SETTINGS.keys() - {"prompt", "image"})), JSON, max_size=3)
    samplers = st.fixed_dictionaries(
        {"sampler": st.sampled_from(sorted(SOLVERS)), "spacing": st.sampled_from([None, *SPACINGS])},
        optional={"num_inference_steps": st.integers(-1, 1001)},
    )
    entries = st.dictionaries(st.sampled_from(["index", "shard", "sha256"]), JSON)
    return [
        Door("infotext", TEXTS, _texts),
        Door("prompt", TEXTS, _prompts),
        Door("wildcards", st.tuples(TEXTS, TEXT), _wildcards),
        *(Door(kind, *_pictures(kind)) for kind in ("png", "jpeg", "webp")),
        Door("rows", st.tuples(st.lists(small, max_size=4), DAMAGES, templates), _rows),
        Door("names", st.tuples(templates, TEXTS), _names),
        Door("networks", networks, _networks),
        Door(
            "schedulers", st.builds(lambda of, own: {**of, "_class_name": own}, changed(scheduler), names), _schedulers
        ),
        Door("plans", plans | samplers, _plans),
        Door("tokenizer", st.tuples(st.sampled_from(TOKENIZER), DAMAGES), _tokenizer),
        Door("lora", *_file("x.safetensors", save(lora), _read_tensors)),
        Door("embedding", *_file("x.safetensors", save({"emb_params": random.random((3, 8))}), _read_vectors)),
        Door("yaml", *_file("x.yaml", YAML, _read_yaml)),
        Door("cache", DAMAGES, _cache),
        Door("journal", st.tuples(st.lists(JSON | entries, max_size=4), DAMAGES), _journals),
        Door("model", st.tuples(changed(index), changed(scheduler)), _model),
        *tensor_doors(),
    ]
