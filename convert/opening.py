"""A source opened as the model that it is going to be, before anything is written: what could not draw is no model."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import flax.linen as nn

from sdjax import schedulers
from sdjax.errors import CheckpointError, ConfigError
from sdjax.files.checkpoint import IMAGE_ENCODER, TEXT_ENCODERS, Component, model_of
from sdjax.files.layout import SCHEDULER, read_json
from sdjax.pipeline.facts import Facts


def check_opens(
    where: object,
    index: Mapping[str, Any],
    small_files: Mapping[str, bytes],
    modules: Mapping[str, nn.Module],
    defaults: Mapping[str, Any],
) -> None:
    """Opens the scheduler, the tokenizers and all that preparing a picture asks of a model.

    where: what errors name. small_files: by their place in the model. What has no UNet or no text encoder, such as a
    VAE alone, is a part of a model, and opened as far as it goes. Raises CheckpointError and ConfigError.
    """
    with TemporaryDirectory(prefix="sdjax-") as name:
        folder = Path(name)
        for place, content in small_files.items():
            (folder / place).parent.mkdir(exist_ok=True)
            (folder / place).write_bytes(content)
        try:
            _open(folder, {**index, "sdjax": {"source": str(where), "defaults": dict(defaults)}}, modules)
        except (CheckpointError, ConfigError) as error:
            said = str(error).replace(name, str(where))
            raise type(error)(said if str(where) in said else f"{where}: {said}") from None


def _open(folder: Path, index: dict[str, Any], modules: Mapping[str, nn.Module]) -> None:
    if not modules.keys() >= {"unet", "vae"} or not modules.keys() & {*TEXT_ENCODERS, IMAGE_ENCODER}:
        if (config := folder / "scheduler" / SCHEDULER).is_file():
            schedulers.from_config(read_json(config))
        return
    model = model_of(folder, index, lambda name: Component(modules[name], {}))
    for reader, encoder in zip(Facts.of(model).readers, model.text_encoders.values()):
        words, known = reader.tokenizer.backend.get_vocab_size(), encoder.module.config.vocab_size
        if words > known:
            raise CheckpointError(f"the tokenizer in {folder} has {words:,} words, and the text encoder {known:,}")
