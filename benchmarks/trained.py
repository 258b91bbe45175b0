"""Evaluations of the network against quality, on a trained model: the embedded one, or any other with prompts."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

import sdjax
from benchmarks.batches import in_batches
from benchmarks.plots import READ, PlotOption, quality_curves
from benchmarks.readings import of_ones_own, of_scenes, rendered
from benchmarks.report import JsonOption, console, publish, table_of
from benchmarks.runs import Kind, converged, errors, latents_of, planned, seconds_of
from benchmarks.scenes import draw_scene
from sdjax.errors import InputError

SAMPLERS = (
    "ddim leading,ddim trailing,heun trailing,dpmpp_2m karras,dpmpp_2m trailing,unipc trailing,dpmpp_2m_sde trailing"
)
OWN = "A model of your own"


def trained(
    model: Annotated[str, typer.Option(help="As for `sdjax generate`.", rich_help_panel=OWN)] = "",
    prompts: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A prompt in each line.", rich_help_panel=OWN),
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Also CLIP scores, with this model: a folder of transformers' CLIPModel with its tokenizer.",
            rich_help_panel=OWN,
        ),
    ] = None,
    inception: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Also FID, with these weights: pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or its tensors as "
            "safetensors.",
            rich_help_panel=OWN,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            exists=True,
            help="What FID is measured from: a folder of pictures, or an .npz of pytorch-fid, with mu and sigma.",
            rich_help_panel=OWN,
        ),
    ] = None,
    samplers: Annotated[
        str,
        typer.Option(
            help="Samplers with their spacings, with commas between them; `tuned` for the model's own plans. With "
            "cache=3 only each third evaluation is whole (DeepCache), with gate=0.5 half of the steps are guided "
            "(T-GATE)."
        ),
    ] = SAMPLERS,
    budgets: Annotated[str, typer.Option(help="Evaluations that a picture may take.")] = "5,10,20,50",
    guidance: Annotated[str, typer.Option(help="The scales at which errors are measured.")] = "1,3,7.5",
    read_at: Annotated[
        float | None,
        typer.Option(help="The scale at which pictures are read.", show_default="3, and 7.5 for a model of your own"),
    ] = None,
    pictures: Annotated[int, typer.Option(min=16, help="How many are read, of each sampler and budget.")] = 48,
    references: Annotated[int, typer.Option(min=1, help="How many are compared with converged ones.")] = 4,
    reference_steps: Annotated[int, typer.Option(min=100, max=999, help="Evaluations of the converged ones.")] = 999,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 16,
    turns: Annotated[
        int, typer.Option(min=0, help="Also seconds per picture: turns of all runs, of which the median.")
    ] = 0,
    json_file: JsonOption = None,
    plot_file: PlotOption = None,
) -> None:
    """Samplers and numbers of evaluations on a trained model.

    RMSE: how far latents are from those of a converged run from the same noise, the median over pictures, in units of
    the latents; of samplers that draw no noise. Facts: the share of captions all of whose facts hold in the picture.
    Fréchet: the distance of the pictures, as a set, from rendered scenes; what as many rendered ones have is its floor.
    With as many --references as --pictures, both are said of the converged ones too.

    For a model of your own, RMSE alone: --model DIR --prompts FILE. With --clip, how well pictures fit their prompts;
    with --inception and --against, how far they are, as a set, from yours. Converged runs are kept in the cache.

    With --turns, all is drawn over seconds in place of evaluations, which cost less with cache= and gate=.
    """
    if bool(model) != (prompts is not None):
        raise InputError(
            "a model of your own needs --prompts too, and the embedded one has captions: give both, or none"
        )
    if prompts is None and (clip or inception or against):
        raise InputError("--clip, --inception and --against are for a model of your own: give --model and --prompts")
    scales, sizes = numbers("--guidance", guidance), [int(budget) for budget in numbers("--budgets", budgets)]
    kinds = [Kind.of(name) for name in samplers.split(",")]
    if prompts is None:
        scenes = [draw_scene(np.random.default_rng([0, i])) for i in range(pictures)]
        texts, readers = [str(scene.facts) for scene in scenes], [of_scenes(scenes)]
    else:
        scenes, lines = [], lines_of(prompts)
        texts = [lines[i % len(lines)] for i in range(pictures)]
        readers = of_ones_own(texts, clip, inception, against)
        references = min(references, len(lines))
    read_at = (read_at or (7.5 if model else 3.0)) if readers else None
    scales = sorted({*scales, *([read_at] if read_at else [])})
    pipe = sdjax.load(model or "shapes")
    runs = planned(pipe, kinds, sizes, scales, read_at)
    first = min(references, pictures)
    count = {run: pictures if run.guidance == read_at else first for run in runs}
    latents = latents_of(pipe, count, texts, batch)
    endless = converged(pipe, scales, reference_steps, texts[:first])
    rows = [errors(run, latents[run], endless[run.guidance]) for run in runs]
    if turns:
        spent = seconds_of(pipe, runs, texts, batch, turns)
        rows = [row | {"seconds": spent[run]} for row, run in zip(rows, runs)]
    note = f"{model or 'shapes'}; errors: {first} pictures, against {reference_steps} evaluations"
    decode = partial(in_batches, pipe.networks.autoencoder.decode, batch)
    for row, run in track(list(zip(rows, runs)), "reading") if readers else ():
        if run.guidance == read_at:
            pixels = decode(latents[run])
            row |= {what: value for reader in readers for what, value in reader(pixels).items()}
    if scenes:
        bounds = {"rendered": rendered(scenes)}
        if first == pictures:
            bounds["converged"] = decode(endless[read_at])
        for name, pixels in bounds.items():
            rows.append({"sampler": name, "spacing": "", "budget": 0} | readers[0](pixels))
            share, distance = rows[-1]["all"], rows[-1]["frechet"]
            note += f"; of {name} pictures {share:.1%} hold, their Fréchet distance is {distance:.1f}"
    for what, title in READ.items():
        if lines_read := table(rows, what):
            console().print(table_of(lines_read, f"{title[0].upper()}{title[1:]}"))
    if turns:
        console().print(table_of(table(rows, "seconds"), "Seconds per picture"))
    told = next(found for what in ("rmse", *READ) if (found := table(rows, what)))
    publish("trained", told, json_file, note, rows)
    if plot_file is not None:
        quality_curves(rows, plot_file)


def numbers(option: str, named: str) -> list[float]:
    """The numbers in a list with commas. Raises InputError for what is none."""
    try:
        found = [float(part) for part in named.split(",")]
    except ValueError:
        raise InputError(f"{option} is a list of numbers with commas between them, not {named!r}") from None
    if not all(number > 0 for number in found):
        raise InputError(f"{option} has numbers above 0, not {named!r}")
    return found


def lines_of(file: Path) -> list[str]:
    """The lines of a file that hold anything."""
    lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{file} holds no prompt: write one in each line")
    return lines


def table(rows: Sequence[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """A line for each sampler and scale, with a column for each budget."""
    rows = [row for row in rows if what in row and "guidance" in row]
    budgets = sorted({row["budget"] for row in rows})
    lines: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        key = (row["sampler"], row["spacing"], row["guidance"])
        empty = dict(zip(("sampler", "spacing", "guidance"), key)) | {f"{budget} NFE": "" for budget in budgets}
        lines.setdefault(key, empty)[f"{row['budget']} NFE"] = row[what]
    return list(lines.values())
