"""`sdjax samplers`: what `--sampler` and `--spacing` may be."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sdjax.errors import InputError
from sdjax.limits import STEPS

FEW, MORE = 2, 4  # steps of two plans, off which is read what a further step costs


def samplers(
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="SAMPLER", help="Print what this sampler, or a file of `sdjax tune`, computes, row by row."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=STEPS, help="Steps of the explained plan.")] = 4,
    spacing: Annotated[str | None, typer.Option(help="Spacing of the explained plan.", show_default="leading")] = None,
) -> None:
    """List the samplers and the spacings of their noise levels, or explain one.

    Any sampler and any spacing runs any model, at any number of steps, without another compilation. Names are those of
    the field. A1111's ("DPM++ 2M Karras") and ComfyUI's ("ComfyUI dpm_2") are run as there; they are listed at the end.

    [bold]Examples[/bold]

    sdjax samplers

    sdjax samplers --explain "DPM++ 2M Karras" --steps 3
    """
    from sdjax import a1111, comfyui, compvis, schedulers
    from sdjax.schedulers.tuned import is_tuned

    console = Console(emoji=False)  # whose names take a while to be read
    if explain is not None and explain.endswith(".json"):
        console.print(_explained(explain), markup=False, highlight=False)
        return
    if explain is not None and is_tuned(explain):
        raise InputError(f"{explain} is a model's own: give the file of the plan, as FILE.json")
    if explain is not None:
        console.print(
            schedulers.explain(schedulers.create(explain, spacing).plan(steps)), markup=False, highlight=False
        )
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, justify in (("sampler", "left"), ("order", "right"), ("NFE/step", "right"), ("noise", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("from")
    for name, solver in schedulers.SOLVERS.items():
        few, more = (int(schedulers.create(name).plan(steps).nfe) for steps in (FEW, MORE))
        evaluations = f"{(more - few) / (MORE - FEW):.3g}"
        table.add_row(name, str(solver.order), evaluations, "yes" if solver.stochastic else "", solver.source)
    console.print(table)
    console.print("\n[bold]tuned[/bold]  the model's own, for few evaluations: `sdjax tune` fits them; or such a file")
    console.print(f"\n[bold]spacings[/bold]  {', '.join(schedulers.SPACINGS)}")
    names = [label.removeprefix("ComfyUI ") for label in comfyui.SAMPLERS]
    console.print(f"\n[bold]as in A1111[/bold]  {', '.join(a1111.SAMPLERS)}")
    console.print(f"\n[bold]as in ComfyUI, after the word ComfyUI[/bold]  {', '.join(names)}")
    console.print(f"\n[bold]as in the original code[/bold]  {', '.join(compvis.SAMPLERS)}")


def _explained(file: str) -> str:
    """A tuned plan in words, at each of its guidance scales. Raises InputError for a file that is none."""
    import numpy as np

    from sdjax import schedulers
    from sdjax.files.plans import read_plan

    tuned = read_plan(file)
    low, high = (float(tuned.noise[name]) for name in ("sigma_min", "sigma_max"))
    levels = np.geomspace(
        low, high, int(tuned.noise["trained"])
    )  # of which rows that say their timesteps need the ends
    noise = schedulers.NoiseSchedule(levels, str(tuned.noise["prediction_type"]), float(tuned.noise["data_std"]))
    parts = []
    for scale in tuned.scales:
        scheduler = schedulers.Scheduler(noise, "ddim").with_table(tuned, float(scale))
        plan = scheduler.plan(sigmas=[*tuned.at(float(scale)).levels, 0.0])
        own = ", ".join(f"{each:.3g}" for each in scheduler.guidance(np.full(tuned.nfe, scale), plan.sigmas))
        parts.append(f"at guidance {scale:g}, {own} at its rows: {schedulers.explain(plan)}")
    return "\n\n".join(parts)
