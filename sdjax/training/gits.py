"""Noise levels by calculation: the shortest way over a teacher's trajectories, in steps of first order.

GITS: Chen et al. (2024), arXiv:2405.11326. The teacher visits many levels. From each of its samples, a step of Euler's
method to each later level lands at some distance from the teacher's sample there; dynamic programming finds the levels
whose distances add up to the least. It takes no gradient, and no more evaluations than the teacher's.
"""

import numpy as np

from sdjax.pipeline import Pipeline
from sdjax.schedulers.tuned import ORDER, Table, TunedPlan, described
from sdjax.training.fit import Report
from sdjax.training.teacher import Lesson, check_tunable, trajectories


def gits_plan(pipe: Pipeline, lesson: Lesson, nfe: int, batch_size: int, report: Report) -> TunedPlan:
    """A plan of `nfe` evaluations for each of the lesson's scales: levels by GITS, weights of DPM++ 2M.

    Raises InputError for models that do not draw from prompts alone.
    """
    check_tunable(pipe)
    noise, pictures = pipe.facts.scheduler.noise, lesson.drawn()
    tables = []
    for scale in lesson.scales:
        own = [picture for picture in pictures if picture.guidance_scale == scale]
        costs = []
        for start in range(0, len(own), batch_size):
            report("encode", start, len(own), f"the teacher draws at guidance {scale:g}, {start}/{len(own)}")
            levels, samples, estimates = trajectories(pipe, own[start : start + batch_size])
            costs.append(distances(levels, samples, estimates))
        chosen = levels[shortest(np.mean(costs, axis=0), nfe)]
        tables.append(Table(chosen, noise.timestep(chosen), multistep_weights(np.log(chosen)), np.ones(nfe)))
    stacked = Table(*(np.stack(leaves) for leaves in zip(*tables)))
    about = {"method": "gits", "nfe": nfe, "pictures": lesson.pictures, "evaluations": lesson.evaluations}
    return TunedPlan(np.array(lesson.scales), stacked, described(noise), about)


def multistep_weights(log_levels: np.ndarray) -> np.ndarray:
    """Those of DPM++ 2M, Lu et al. (2022), arXiv:2211.01095: [rows, ORDER]. The last step, to 0, is of first order."""
    weights = np.eye(1, ORDER).repeat(len(log_levels), 0)
    steps = -np.diff(log_levels)
    for k in range(1, len(log_levels) - 1):
        weights[k, :2] += np.array([1, -1]) * steps[k] / steps[k - 1] / 2
    return weights


def distances(levels: np.ndarray, samples: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """[rows, rows + 1]: how far a step of Euler's method from one level to a later one lands from the sample there."""
    rows, targets = len(levels), np.append(levels, 0.0)
    found = np.full((rows, rows + 1), np.inf)
    for i in range(rows):
        direction = (samples[i] - estimates[i]) / levels[i]
        for j in range(i + 1, rows + 1):
            apart = estimates[i] + targets[j] * direction - samples[j]
            found[i, j] = np.sqrt((apart**2).mean(tuple(range(1, apart.ndim)))).mean()
    return found


def shortest(costs: np.ndarray, steps: int) -> np.ndarray:
    """[steps], the rows that a way of so many steps from the first row to the end goes through at the least cost."""
    rows = len(costs)
    best, before = np.full((steps + 1, rows + 1), np.inf), np.zeros((steps + 1, rows + 1), int)
    best[0, 0] = 0
    for k in range(1, steps + 1):
        through = best[k - 1, :rows, None] + costs
        before[k], best[k] = through.argmin(0), through.min(0)
    way = [rows]
    for k in range(steps, 0, -1):
        way.append(before[k, way[-1]])
    return np.array(way[:0:-1])
