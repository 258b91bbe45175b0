"""What A1111's API says of pictures that are done, and of those that are not yet."""

import base64
import io
import json
import time
from collections.abc import Mapping
from typing import Any

from sdjax.files.infotext import write_infotext
from sdjax.server.refusals import Stopped
from sdjax.server.work import Job, Unit
from sdjax.version import __version__


def answer_of_job(job: Job, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request whose job is done. Raises what went wrong where there is no picture at all."""
    results = [unit.future.result() for unit in job.units if not unit.future.exception()]
    errors = [error for unit in job.units if (error := unit.future.exception())]
    if errors and not results and not isinstance(errors[0], Stopped):
        raise errors[0]
    told = {name: value for name, value in fields.items() if name not in ("init_images", "mask")}
    images = [base64.b64encode(result.data).decode() for result in results]
    return {
        "images": images if fields.get("send_images", True) else [],
        "parameters": fields if fields.get("include_init_images") else told,
        "info": json.dumps(_info(job, [result.settings for result in results])),
    }


def _info(job: Job, made: list[dict[str, Any]]) -> dict[str, Any]:
    """What A1111 says of the pictures."""
    pictures = [unit.picture for unit in job.units]
    first = made[0] if made else {}
    return {
        "prompt": pictures[0].prompt,
        "all_prompts": [picture.prompt for picture in pictures],
        "negative_prompt": pictures[0].negative_prompt,
        "all_negative_prompts": [picture.negative_prompt for picture in pictures],
        "seed": pictures[0].seed,
        "all_seeds": [picture.seed for picture in pictures],
        "subseed": pictures[0].subseed,
        "all_subseeds": [picture.subseed for picture in pictures],
        "subseed_strength": pictures[0].subseed_strength,
        "seed_resize_from_w": 0,
        "seed_resize_from_h": 0,
        "width": first.get("width"),
        "height": first.get("height"),
        "sampler_name": first.get("sampler"),
        "cfg_scale": first.get("guidance_scale"),
        "steps": first.get("steps"),
        "batch_size": len(pictures),
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.units[0].group.model,
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "denoising_strength": first.get("strength", first.get("hires_strength")),
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [write_infotext(settings) for settings in made],
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.came)),
        "clip_skip": (pictures[0].clip_skip or 0) + 1,
        "is_using_inpainting_conditioning": False,
        "version": f"sdjax {__version__}",
    }


def progress_of(units: list[Unit], without_image: bool) -> dict[str, Any]:
    """How far pictures are, and what the one that is drawn looks like by now."""
    done = sum(unit.nfe if unit.future.done() else unit.done for unit in units)
    total = sum(unit.nfe for unit in units)
    began = min((unit.begun for unit in units if unit.begun), default=None)
    share = done / total if total else 0.0
    eta = (time.time() - began) * (1 - share) / share if began and share else 0.0
    running = next((unit for unit in units if unit.begun and not unit.future.done()), None)
    state = {
        "skipped": False,
        "interrupted": any(unit.stop for unit in units),
        "stopping_generation": False,
        "job": running.job.id if running else "",
        "job_count": len(units),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(min((u.job.came for u in units), default=0))),
        "job_no": sum(unit.future.done() for unit in units),
        "sampling_step": running.done if running else 0,
        "sampling_steps": running.nfe if running else 0,
    }
    image = None
    if running and not without_image:
        running.wants_preview = True  # the next request shows it
    if running and running.preview and not without_image:
        file = io.BytesIO()
        running.preview.save(file, "PNG")
        image = base64.b64encode(file.getvalue()).decode()
    return {"progress": share, "eta_relative": eta, "state": state, "current_image": image, "textinfo": None}
