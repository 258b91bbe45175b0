"""A request's way to pictures.

Read in this order: request, images, looks, hints, tasks, resolve, order, contexts, conditions, start, denoising;
suspend, previews, hires; vae, networks, pipeline. `unconditional` draws without prompts.
"""

from sdjax.pipeline.hints import ConditionNet, Hint
from sdjax.pipeline.looks import Look, PictureNet
from sdjax.pipeline.pipeline import Output, Pipeline
from sdjax.pipeline.suspend import load_state, save_state

__all__ = ["ConditionNet", "Hint", "Look", "Output", "PictureNet", "Pipeline", "load_state", "save_state"]
