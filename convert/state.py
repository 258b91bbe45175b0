"""Opening a single file, and separating its networks' tensors from what else may be in it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdjax.convert.weights import load_pickle
from sdjax.errors import CheckpointError
from sdjax.files.layout import shorten
from sdjax.files.tensors import open_tensors

PICKLES = (".ckpt", ".pt", ".pth", ".bin")

# What a file may hold besides the networks: the tables of the noise schedule, marks, and networks of training.
IGNORED = re.compile(
    r"(betas|\w*alphas_cumprod(_prev)?|posterior_\w+|lvlb_weights|logvar|scale_factor|v_pred|ztsnr|edm_(mean|std)"
    r"|denoiser\.(sigmas|log_sigmas))$"
    r"|model_ema\.|(first_stage_model\.)?loss\.|depth_model\.|low_scale_model\."
    r"|(cond_stage_model|conditioner\.embedders\.\d)\.(logit_scale$|model\.(visual\.|logit_scale$|attn_mask$))"
    r"|(cond_stage_model|conditioner\.embedders\.\d)\.transformer"
    r"\.(vision_model\.|visual_projection\.|text_projection\.|logit_scale$)"
    r"|cond_stage_model\.model\.text_projection$"
)
# What PyTorch Lightning keeps beside `state_dict`.
OF_TRAINING = re.compile(
    r"epoch|global_step|pytorch-lightning_version|optimizer_states|lr_schedulers|callbacks|loops|hparams_\w+"
    r"|hyper_parameters|\w*amp_scaling_state|\w*MixedPrecisionPlugin|sampler_random_state"
)


@dataclass(frozen=True)
class State:
    """The tensors of a single file, and what it says about itself."""

    path: Path
    tensors: Mapping[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    global_step: int | None
    metadata: Mapping[str, str]

    def has(self, prefix: str) -> bool:
        """Whether any tensor's name begins with a prefix."""
        return any(name.startswith(prefix) for name in self.shapes)


def open_state(path: Path) -> State:
    """Opens a single file. Raises CheckpointError when it is damaged or asks for more than tensors."""
    if path.suffix == ".safetensors":
        file = open_tensors(path)
        return State(path, file, {name: shape for name, (_, shape, _) in file.entries.items()}, None, file.metadata)
    if path.suffix not in PICKLES:
        known = ", ".join((".safetensors", *PICKLES))
        raise CheckpointError(f"{path} is no checkpoint that sdjax knows: those are folders, or end in {known}")
    tensors, others = load_pickle(path)
    step = others.get("global_step")
    shapes = {name: tensors[name].shape for name in tensors}
    if unknown := [str(name) for name in others if not OF_TRAINING.fullmatch(str(name))]:
        raise CheckpointError(f"{path} holds something else than tensors: {shorten(unknown)}")
    return State(path, tensors, shapes, step if isinstance(step, int) else None, {})


def check_claimed(state: State, prefixes: tuple[str, ...]) -> None:
    """Raises CheckpointError for tensors that belong to none of the networks, nor are known to be of no use."""
    strays = [name for name in state.shapes if not name.startswith(prefixes) and not IGNORED.match(name)]
    if strays:
        raise CheckpointError(f"{state.path}: {len(strays)} unexpected ({shorten(sorted(strays))})")
