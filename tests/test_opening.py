"""Conversion opens what it is about to write: no scheduler, tokenizer or factor that draws nothing is let through."""

import json
import os
import shutil

import pytest
from checkpoints import edit_json

from sdjax.convert import convert
from sdjax.errors import CheckpointError, ConfigError


def in_json(place, **changes):
    return lambda folder: edit_json(folder / place, **changes)


def cut_tokenizer(folder):
    for path in (folder / "tokenizer").iterdir():
        path.write_bytes(path.read_bytes()[:40])


def shorter_vocabulary(folder):
    (folder / "tokenizer" / "tokenizer.json").unlink()
    words = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(words | {f"w{i}": len(words) + i for i in range(99)}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (in_json("scheduler/scheduler_config.json", beta_start=-1), "betas must be"),
        (in_json("scheduler/scheduler_config.json", num_train_timesteps=10**12), "num_train_timesteps"),
        (in_json("scheduler/scheduler_config.json", _class_name="FlowMatchScheduler"), "not implemented"),
        (in_json("model_index.json", scheduler=[None, None]), "lacks scheduler"),
        (in_json("vae/config.json", scaling_factor=0.0), "scaling_factor = 0.0 should be above 0"),
        (in_json("vae/config.json", scaling_factor=float("nan")), "scaling_factor = nan should be finite"),
        (in_json("unet/config.json", norm_eps=-1e-5), "norm_eps = -1e-05 should be above 0"),
        (cut_tokenizer, "the tokenizer in .* cannot be read"),
        (shorter_vocabulary, "the tokenizer in .* has 720 words, and the text encoder 621"),
    ],
)
def test_what_cannot_draw_is_refused_before_anything_is_written(tiny, tmp_path, monkeypatch, damage, says):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    damage(tiny)
    with pytest.raises((CheckpointError, ConfigError), match=says) as refused:
        convert(tiny, tmp_path / "model", progress=lambda *_: pytest.fail("it writes"))
    assert str(tmp_path / "temporary") not in str(refused.value)
    assert not (tmp_path / "model").exists() and not os.listdir(tmp_path / "temporary")


def test_a_vae_alone_needs_nothing_else(tiny, tmp_path):
    shutil.copytree(tiny / "vae", tmp_path / "vae")
    edit_json(tmp_path / "vae" / "config.json", _class_name="AutoencoderKL")
    assert (convert(tmp_path / "vae", tmp_path / "model") / "vae").is_dir()
