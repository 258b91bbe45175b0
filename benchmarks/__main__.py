"""`python -m benchmarks`, from a checkout: lists the benchmarks; each says with --help what it measures and needs."""

import sys

import typer

from benchmarks.accuracy import accuracy
from benchmarks.batch import batch
from benchmarks.batch_memory import batch_memory
from benchmarks.bits import bits
from benchmarks.check import check
from benchmarks.compile import compile_program
from benchmarks.conditions import conditions
from benchmarks.conversion import conversion
from benchmarks.device import device
from benchmarks.devices import devices, devices_table
from benchmarks.few_steps import few_steps
from benchmarks.fit import fit
from benchmarks.forms import forms
from benchmarks.full_size import full_size
from benchmarks.fuzz import fuzz
from benchmarks.guiding import guiding
from benchmarks.judge import judge
from benchmarks.judged import judged
from benchmarks.kills import kills
from benchmarks.loop import loop
from benchmarks.nfe import nfe
from benchmarks.pixels import pixels
from benchmarks.prompts import prompts
from benchmarks.recommend import recommend
from benchmarks.reuse import reuse
from benchmarks.scenes import scenes
from benchmarks.serving import serving
from benchmarks.showcase import showcase
from benchmarks.sketches import sketches
from benchmarks.slots import slots
from benchmarks.speed import speed, speed_table
from benchmarks.stacked import stacked
from benchmarks.start import start
from benchmarks.trained import trained
from benchmarks.training import training
from benchmarks.transfer import transfer
from benchmarks.tuned import tuned
from benchmarks.vae import vae
from sdjax.errors import SdjaxError

app = typer.Typer(
    help="What sdjax costs, time and memory, and what samplers give for it. Each prints a table, and writes it as JSON "
    "with --json FILE.",
    epilog="Close everything else first: `load` in the JSON tells whether other processes were busy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
QUICK = "Quick: two minutes at most, and nothing is needed"
LONG = "Longer: half an hour"
READ = "Of what others have written with --json"
LARGE = "At the size of Stable Diffusion 1.5: minutes and gigabytes"
app.command("bits", rich_help_panel=QUICK)(bits)
app.command("nfe", rich_help_panel=QUICK)(nfe)
app.command("loop", rich_help_panel=QUICK)(loop)
app.command("start", rich_help_panel=QUICK)(start)
app.command("training", rich_help_panel=QUICK)(training)
app.command("batch", rich_help_panel=QUICK)(batch)
app.command("slots", rich_help_panel=QUICK)(slots)
app.command("fuzz", rich_help_panel=LONG)(fuzz)
app.command("kills", rich_help_panel=LONG)(kills)
app.command("batch-memory", rich_help_panel=LONG)(batch_memory)
app.command("serving", rich_help_panel=LONG)(serving)
app.command("trained", rich_help_panel=LONG)(trained)
app.command("tuned", rich_help_panel=LONG)(tuned)
app.command("pixels", rich_help_panel=LONG)(pixels)
app.command("transfer", rich_help_panel=LONG)(transfer)
app.command("accuracy", rich_help_panel=LONG)(accuracy)
app.command("judged", rich_help_panel=LONG)(judged)
app.command("forms", rich_help_panel=LONG)(forms)
app.command("guiding", rich_help_panel=LONG)(guiding)
app.command("few-steps", rich_help_panel=LONG)(few_steps)
app.command("sketches", rich_help_panel=LONG)(sketches)
app.command("recommend", rich_help_panel=READ)(recommend)
app.command("judge", rich_help_panel=READ)(judge)
app.command("check", rich_help_panel=READ)(check)
app.command("speed-table", rich_help_panel=READ)(speed_table)
app.command("devices-table", rich_help_panel=READ)(devices_table)
app.command("showcase", rich_help_panel="Pictures")(showcase)
app.command("scenes", rich_help_panel="Pictures")(scenes)
app.command("prompts", rich_help_panel="Pictures")(prompts)
app.command("speed", rich_help_panel=LARGE)(speed)
app.command("device", rich_help_panel=LARGE)(device)
app.command("devices", rich_help_panel=LARGE)(devices)
app.command("conditions", rich_help_panel=LARGE)(conditions)
app.command("reuse", rich_help_panel=LARGE)(reuse)
app.command("vae", rich_help_panel=LARGE)(vae)
app.command("compile", rich_help_panel=LARGE)(compile_program)
app.command("conversion", rich_help_panel=LARGE)(conversion)
app.command("stacked", rich_help_panel=LARGE)(stacked)
app.command("fit", rich_help_panel=LARGE)(fit)
app.command("full-size", rich_help_panel=LARGE)(full_size)

if __name__ == "__main__":
    try:
        app(prog_name="python -m benchmarks")
    except SdjaxError as error:
        sys.exit(f"benchmarks: {error}")
