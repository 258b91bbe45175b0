"""How many steps a sampler may take for so many evaluations of the network."""

from sdjax.errors import InputError
from sdjax.schedulers import Plan, Scheduler


def affordable(scheduler: Scheduler, budget: int) -> tuple[int, Plan] | None:
    """The most steps whose plan has at most `budget` evaluations, and the plan; None where there is none."""
    cost = int(scheduler.plan(20).nfe) / 20  # of a step, about
    for steps in range(min(budget, int(budget / cost) + 2), 0, -1):
        try:
            plan = scheduler.plan(steps)
        except InputError:  # this solver takes no such number of steps
            continue
        if plan.nfe <= budget:
            return steps, plan
    return None
