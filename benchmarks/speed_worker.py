"""One framework with a model, in a process of its own: `python -m benchmarks.speed_worker FRAMEWORK FOLDER DTYPE`.

FOLDER is a model directory of that framework. Each line of standard input is a `Case`, as JSON; the answer says how
long running it once took, the most memory that was held so far, and what PyTorch counts of its arithmetic. The first
output of each case is left in FOLDER.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.processes import peak_memory

STEPS, TOKENS, GUIDANCE = 20, 77, 7.5
PROMPT = "a lighthouse in a storm"
MATMUL, TIME_IDS = 4096, 6


class Case(NamedTuple):
    """What is run: a part of PARTS, or "matmul"; so many pictures of so many pixels a side.

    The UNet gets `batch` samples, which with guidance are half as many pictures.
    """

    part: str
    batch: int
    pixels: int

    @property
    def file(self) -> str:
        return f"{self.part}-{self.batch}-{self.pixels}.npy"


PARTS = ("text_encoder", "unet", "vae", "picture")
Run = Callable[[], Any]  # until all of it is computed


class Framework(NamedTuple):
    """prepare: what runs a case with these arrays. gigabytes: the most memory held so far. counted: a context in which
    arithmetic is counted, or None."""

    prepare: Callable[[Case, dict[str, np.ndarray]], Run]
    gigabytes: Callable[[], float]
    counted: Callable[[], Any] | None = None


def inputs(configs: dict[str, dict], case: Case) -> dict[str, np.ndarray]:
    """The same arrays for every framework; samples are [batch, height, width, channels]."""
    random = np.random.default_rng(case.pixels)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    side = case.pixels // 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    latents = (case.batch, side, side, configs["vae"]["latent_channels"])
    if case.part == "matmul":
        return {"a": normal(MATMUL, MATMUL), "b": normal(MATMUL, MATMUL)}
    if case.part == "text_encoder":
        ids = random.integers(0, configs["text_encoder"]["vocab_size"] - 1, (case.batch, TOKENS))
        ids[:, -1] = configs["text_encoder"]["vocab_size"] - 1  # the end, which both look for
        return {"ids": ids.astype(np.int32)}
    if case.part == "unet":
        unet = configs["unet"]
        context = normal(case.batch, TOKENS, unet["cross_attention_dim"])
        arrays = {"sample": normal(*latents), "timesteps": np.full(case.batch, 500, np.int32), "context": context}
        if unet.get("addition_embed_type"):
            pooled = unet["projection_class_embeddings_input_dim"] - TIME_IDS * unet["addition_time_embed_dim"]
            arrays |= {"pooled": normal(case.batch, pooled)}
            arrays |= {"time_ids": np.full((case.batch, TIME_IDS), case.pixels, np.float32)}
        return arrays
    return {"latents": normal(*latents)}


def sdjax(folder: Path, dtype: str, weights: str | None = None) -> Framework:
    """As the pipeline runs it; weights: what kernels are kept in, where that is another dtype."""
    import jax
    import jax.numpy as jnp

    from sdjax import load, programs
    from sdjax.models.unet_encoder import Added
    from sdjax.parallel import compiled

    pipe = load(folder, dtype, weights=weights)
    apply = programs.full_precision_matmul(lambda module, params, *x: module.apply({"params": params}, *x))
    unet = compiled(partial(apply, pipe.networks.modules["unet"]))

    def prepare(case: Case, arrays: dict[str, np.ndarray]) -> Run:
        placed = {
            name: jnp.asarray(x, dtype if x.dtype == np.float32 and case.part != "picture" else x.dtype)
            for name, x in arrays.items()
        }
        if case.part == "picture":
            told = {"sampler": "dpmpp_2m", "spacing": "karras", "height": case.pixels, "width": case.pixels}
            told |= {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
            return lambda: pipe([PROMPT] * case.batch, latents=arrays["latents"], **told).images
        if case.part == "text_encoder":
            ids, skip = arrays["ids"][:, None, None], np.zeros(case.batch, np.int32)
            encode = partial(pipe.networks.encode_text, pipe.params)
            texts = (ids, np.ones(ids.shape, np.float32), skip, skip != 0)
            return lambda: jax.block_until_ready(encode(*texts)["context"])
        if case.part == "vae":
            return lambda: pipe.networks.autoencoder.decode(arrays["latents"])
        if case.part == "unet":
            first = [placed[name] for name in ("sample", "timesteps", "context")]
            added = Added(placed["pooled"], placed["time_ids"]) if "pooled" in placed else None
            return lambda: jax.block_until_ready(unet(pipe.params["unet"], *first, None, added))
        multiply = jax.jit(jnp.matmul)
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            return lambda: jax.block_until_ready(multiply(**placed))

    def gigabytes() -> float:
        stats = jax.local_devices()[0].memory_stats()  # None on the CPU
        return (stats["peak_bytes_in_use"] if stats else peak_memory()) / 1e9

    return Framework(prepare, gigabytes)


def pytorch(folder: Path, dtype: str, compiled: bool = False) -> Framework:
    """As diffusers runs it when left alone; or its networks through torch.compile."""
    import torch
    from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
    from torch.utils.flop_counter import FlopCounterMode

    torch.backends.cudnn.allow_tf32 = False  # float32 is meant, as with sdjax
    device, kind = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, dtype)
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=kind).to(device)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    pipe.set_progress_bar_config(disable=True)
    if compiled:
        pipe.unet, pipe.text_encoder = torch.compile(pipe.unet), torch.compile(pipe.text_encoder)
        pipe.vae.decode = torch.compile(pipe.vae.decode)

    def prepare(case: Case, arrays: dict[str, np.ndarray]) -> Run:
        placed = {
            name: torch.from_numpy(x.transpose(0, 3, 1, 2).copy() if x.ndim == 4 else x).to(
                device, kind if x.dtype == np.float32 else torch.int64
            )
            for name, x in arrays.items()
        }

        def output() -> Any:
            if case.part == "picture":
                told = {"height": case.pixels, "width": case.pixels, "num_inference_steps": STEPS}
                told |= {"guidance_scale": GUIDANCE, "output_type": "np", "latents": placed["latents"].clone()}
                return pipe([PROMPT] * case.batch, **told).images
            if case.part == "text_encoder":
                return pipe.text_encoder(placed["ids"]).last_hidden_state
            if case.part == "vae":
                decoded = pipe.vae.decode(placed["latents"] / pipe.vae.config.scaling_factor).sample
                return (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
            if case.part == "unet":
                is_xl = "pooled" in placed
                added = {"text_embeds": placed["pooled"], "time_ids": placed["time_ids"]} if is_xl else None
                first = (placed[name] for name in ("sample", "timesteps", "context"))
                return pipe.unet(*first, added_cond_kwargs=added).sample.permute(0, 2, 3, 1)
            return placed["a"] @ placed["b"]

        @torch.inference_mode()
        def run() -> Any:
            result = output()
            if device == "cuda":
                torch.cuda.synchronize()
            return result if isinstance(result, np.ndarray) else result.float().cpu().numpy()

        return run

    def gigabytes() -> float:
        return (torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()) / 1e9

    return Framework(prepare, gigabytes, None if compiled else lambda: FlopCounterMode(display=False))


FRAMEWORKS: dict[str, Callable[[Path, str], Framework]] = {
    "sdjax": sdjax,
    "sdjax.bfloat16": lambda folder, dtype: sdjax(folder, dtype, "bfloat16"),
    "sdjax.int8": lambda folder, dtype: sdjax(folder, dtype, "int8"),
    "pytorch": pytorch,
    "torch.compile": lambda folder, dtype: pytorch(folder, dtype, compiled=True),
}


def main(name: str, folder: Path, dtype: str) -> None:
    parts = ("text_encoder", "unet", "vae")
    configs = {part: json.loads((folder / part / "config.json").read_text()) for part in parts}
    framework = FRAMEWORKS[name](folder, dtype)
    prepared = lru_cache(lambda case: framework.prepare(case, inputs(configs, case)))
    for line in sys.stdin:
        case = Case(*json.loads(line))
        run, saved = prepared(case), folder / case.file
        is_first = not saved.exists()
        with framework.counted() if framework.counted and is_first else nullcontext() as counter:
            start = time.perf_counter()
            output = run()
            seconds = time.perf_counter() - start
        if is_first:
            np.save(saved, np.asarray(output, np.float32))
        answer = {"seconds": seconds, "GB": framework.gigabytes()}
        print(json.dumps(answer | ({"flops": counter.get_total_flops()} if counter else {})), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
