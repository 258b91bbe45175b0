"""A small training run in a process of its own: `python small_run.py FOLDER STEPS`. Prints a digest of its end."""

import hashlib
import sys
import warnings
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from sdjax.loading import keep_compiled_programs
from sdjax.models.layers import Conv3x3
from sdjax.schedulers import create
from sdjax.training.fit import Intervals, Run, Task, fit
from sdjax.training.forward import ForwardProcess
from sdjax.training.losses import Denoising
from sdjax.training.models import fresh
from sdjax.training.step import Settings

PICTURES = np.random.default_rng(0).uniform(-1, 1, (10, 4, 4, 3)).astype(np.float32)


class Network(nn.Module):
    """Two convolutions."""

    def example_inputs(self):
        return (jax.ShapeDtypeStruct((1, 4, 4, 3), np.float32),)

    @nn.compact
    def __call__(self, x):
        return Conv3x3(3, name="conv2")(nn.silu(Conv3x3(8, name="conv1")(x)))


NETWORK = Network()
DENOISING = Denoising(ForwardProcess(create("ddim").noise))


def loss(params, frozen, batch, keys):
    dtype = jax.tree.leaves(params)[0].dtype
    return DENOISING.loss(lambda x, _: NETWORK.apply({"params": params}, x), batch, keys, dtype)


def run(folder: Path, settings: Settings, intervals: Intervals):
    """The state after the last step."""
    task = Task(
        about={},
        init=partial(fresh, NETWORK),
        frozen={},
        loss=loss,
        count=len(PICTURES),
        open=lambda run: PICTURES.__getitem__,
        show=lambda state, folder: None,
        result="",
        write=lambda state, path: None,
    )
    return fit(task, Run(folder, settings, intervals, lambda *_: None))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    keep_compiled_programs()
    settings = Settings(steps=int(sys.argv[2]), batch_size=8, learning_rate=1e-2, warmup_steps=5, accumulate=2)
    state = run(Path(sys.argv[1]), settings, Intervals(log=1, save=9))
    print(hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))).hexdigest())
