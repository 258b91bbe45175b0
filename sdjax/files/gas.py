"""Solvers that were trained with GAS, from their authors' checkpoints: Oganov et al. (2025), arXiv:2510.17699.

The generalized solver adds what it has learned to the coefficients of DPM-Solver++ (Lu et al., 2022, arXiv:2211.01095),
and weighs all earlier samples and estimates. Time t runs from 1 to `END`; timestep k is t = (k + 1) / 1000.
"""

from pathlib import Path

import numpy as np

from sdjax.errors import CheckpointError, InputError
from sdjax.files.pickles import read_pickle
from sdjax.schedulers import NoiseSchedule
from sdjax.schedulers.linear import MOST_ROWS, LinearTable
from sdjax.schedulers.tuned import TunedPlan, described

END = 1e-3
INSIDE = 1e-5  # how far the shares of time stay from 0 and 1
GUIDANCE = 7.5  # that the published ones were trained at


def read_gas(path: Path, noise: NoiseSchedule) -> TunedPlan:
    """The averaged solver of a checkpoint as a plan, for a model with the noise schedule that it was trained on.

    Raises CheckpointError for a file that is none, InputError for more rows than can be run, and for a model that does
    not predict noise at discrete times.
    """
    if noise.continuous or noise.prediction_type != "epsilon":
        raise InputError("GAS' solvers are for models that predict noise, at 1000 times: Stable Diffusion 1")
    content = read_pickle(path)
    averaged = content.get("ema")
    tensors = averaged.get("shadow_params") if isinstance(averaged, dict) else None
    try:
        numbers = [np.asarray(each, np.float64) for each in tensors[: 2 + 2 * MOST_ROWS]]  # type: ignore[index]
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint of GAS: it holds no averaged solver") from error
    rows = numbers[0].size + 1 if numbers else 0
    learned = numbers[1 : 2 + 2 * rows]
    if rows < 2 or len(learned) != 1 + 2 * rows or any(each.shape != (rows,) for each in learned):
        raise CheckpointError(f"{path} is no checkpoint of GAS with 2 to {MOST_ROWS} rows that weigh all earlier ones")
    if not all(np.isfinite(each).all() for each in numbers[: 2 + 2 * rows]):
        raise CheckpointError(f"{path}: its numbers are not all finite")
    table = linear_table(numbers[0], learned[0], np.stack(learned[1::2]), np.stack(learned[2::2]), noise)
    about = {"method": "GAS", "nfe": rows, "file": path.name}
    return TunedPlan(np.array([GUIDANCE]), LinearTable(*(leaf[None] for leaf in table)), described(noise), about)


def linear_table(
    logits: np.ndarray, shifts: np.ndarray, of_estimates: np.ndarray, of_samples: np.ndarray, noise: NoiseSchedule
) -> LinearTable:
    """What was learned as a plan.

    logits: [rows - 1], of the shares of time that are left from row to row. shifts: [rows], of the time that the
    network reads. of_estimates, of_samples: [rows, rows], of the i-th last one at each row, added to DPM-Solver++'s.
    """
    shares = INSIDE + (1 - 2 * INSIDE) / (1 + np.exp(-logits))
    times = np.concatenate([[1.0], 1 - (1 - END) * np.cumprod(shares)[::-1], [END]])
    trained = len(noise.sigmas)
    log_alphas = np.interp(times, np.arange(1, trained + 1) / trained, -0.5 * np.log1p(noise.sigmas**2))
    alphas = np.exp(log_alphas)
    sigmas = np.sqrt(1 - alphas**2)  # of unit variance
    count = len(times) - 1
    samples, estimates = np.zeros((2, count, count))
    log_snr = log_alphas - np.log(sigmas)
    for k in range(count):
        own, mixed = np.zeros((2, count))
        own[k] = sigmas[k + 1] / sigmas[k]
        mixed[: k + 1] = solver_weights(log_snr[max(k - 2, 0) : k + 2], alphas[k + 1], of_estimates[:3, k], k)
        for i in range(k + 1):
            own[k - i] += of_samples[i, k]
            mixed[k - i] += of_estimates[i, k] if i >= 3 else 0
        scale = 1 if k + 1 == count else alphas[k + 1]  # of what the network sees; the last one is the result
        samples[k], estimates[k] = own * alphas[:count] / scale, mixed / scale
    levels = (sigmas / alphas)[:-1]
    return LinearTable(levels, (times[:-1] + shifts - 1 / trained) * 1000, samples, estimates)


def solver_weights(log_snr: np.ndarray, alpha: float, learned: np.ndarray, k: int) -> np.ndarray:
    """[k + 1], of the estimates so far: DPM-Solver++ of order 1, 2 or 3, whose coefficients have something added.

    log_snr: at the last rows, up to three, and where the step leads. alpha: there. learned: [3], what is added.
    """
    h = log_snr[-1] - log_snr[-2]
    phi = np.expm1(-h)
    last, *before = np.eye(k + 1)[::-1]
    if k == 0:
        return -(alpha * phi + learned[0]) * last
    near = (last - before[0]) * h / (log_snr[-2] - log_snr[-3])
    if k == 1:
        return -(alpha * phi + learned[0]) * last - (alpha * phi / 2 + learned[1]) * near
    far = (before[0] - before[1]) * h / (log_snr[-3] - log_snr[-4])
    to_near, to_far = (log_snr[-2] - log_snr[-3]) / h, (log_snr[-3] - log_snr[-4]) / h
    slope, curve = near + to_near / (to_near + to_far) * (near - far), (near - far) / (to_near + to_far)
    phi_2 = phi / h + 1
    weights = alpha * np.array([phi, phi_2, phi_2 / h - 0.5]) + learned
    return -weights[0] * last + weights[1] * slope - weights[2] * curve
