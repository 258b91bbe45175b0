"""A request's way to pictures.

Read in this order: request, images, resolve, contexts, start, denoising, hires, previews, vae, networks, pipeline.
"""

from sdjax.pipeline.pipeline import Output, Pipeline

__all__ = ["Output", "Pipeline"]
