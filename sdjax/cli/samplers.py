"""`sdjax samplers`: what `--sampler` and `--spacing` may be."""

from rich.console import Console
from rich.table import Table


def samplers() -> None:
    """List the samplers and the spacings of their noise levels.

    Any sampler and any spacing runs any model, at any number of steps, without another compilation.
    """
    from sdjax.schedulers import SOLVERS, SPACINGS

    table = Table("sampler", "order", "noise", "from", box=None, pad_edge=False, header_style="bold")
    for name, solver in SOLVERS.items():
        table.add_row(name, str(solver.order), "yes" if solver.stochastic else "no", solver.source)
    console = Console()
    console.print(table)
    console.print(f"\n[bold]spacings[/bold]  {', '.join(SPACINGS)}")
