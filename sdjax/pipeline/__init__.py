"""A request's way to pictures.

Read in this order: request, images, looks, wishes, hints, tasks, facts, recipe, resolve, guiding, order, ordering,
contexts, conditions, start, denoising; suspend, previews, hires; vae, networks,
pipeline. `unconditional` draws without prompts.
"""

from sdjax.pipeline.hints import ConditionNet, Hint
from sdjax.pipeline.looks import Look, PictureNet
from sdjax.pipeline.pipeline import Output, Pipeline
from sdjax.pipeline.suspend import load_state, save_state
from sdjax.pipeline.wishes import JudgeNet, PictureWish

__all__ = [
    "ConditionNet",
    "Hint",
    "JudgeNet",
    "Look",
    "Output",
    "PictureNet",
    "PictureWish",
    "Pipeline",
    "load_state",
    "save_state",
]
