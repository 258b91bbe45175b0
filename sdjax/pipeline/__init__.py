"""A request's way to pictures.

Read in this order: request, images, tasks, resolve, order, contexts, start, denoising; suspend, previews, hires; vae,
networks, pipeline. `unconditional` draws without prompts.
"""

from sdjax.pipeline.pipeline import Output, Pipeline
from sdjax.pipeline.suspend import load_state, save_state

__all__ = ["Output", "Pipeline", "load_state", "save_state"]
