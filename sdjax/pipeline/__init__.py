"""A request's way to pictures.

Read in this order: request, images, tasks, resolve, order, contexts, start, denoising; previews, hires; vae, networks,
pipeline. `unconditional` draws without prompts.
"""

from sdjax.pipeline.pipeline import Output, Pipeline

__all__ = ["Output", "Pipeline"]
