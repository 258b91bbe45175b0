"""`sdjax info`: what a model consists of, or how a picture was made."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdjax.cli import options
from sdjax.cli.compile import parsed
from sdjax.cli.fitting import compiled_for, precision_of, say_whether_it_fits, show
from sdjax.cli.progress import progress_bars
from sdjax.cli.safe import safe
from sdjax.errors import InputError
from sdjax.files.atomic import within
from sdjax.files.eviction import parse_size
from sdjax.files.layout import SCHEDULER, WEIGHTS, component_classes, embedded_models, is_model, read_index, read_json
from sdjax.files.pictures import read_settings
from sdjax.files.tensors import open_tensors
from sdjax.limits import BATCH

if TYPE_CHECKING:
    from sdjax.files.checkpoint import Component
    from sdjax.fitting import Wish

SCHEDULER_KEYS = (
    "prediction_type",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "num_train_timesteps",
    "timestep_spacing",
)

SHOWN_METADATA = ("modelspec.title", "modelspec.architecture", "ss_network_dim", "ss_base_model_version")

LEFT = ("component", "class", "dtype", "unet block")  # columns of words


def info(
    model: Annotated[
        str, typer.Argument(help="An embedded model, a directory, a file, a hub id, or a PNG.")
    ] = "shapes",
    blocks: Annotated[bool, typer.Option("--blocks", help="Also the UNet, block by block.")] = False,
    fit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Whether it fits into so much memory of a device, such as 16GB."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="With --fit: of the pictures.", show_default="the model's own"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=BATCH, help="With --fit: pictures drawn at once.")] = 1,
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    offload: options.Offload = False,
    shard_parameters: options.ShardParameters = False,
    vae_tiling: options.VaeTiling = None,
    target: options.Target = None,
) -> None:
    """Say what a model consists of (components, parameters, scheduler), what a file is, or how a picture was made.

    With --fit, whether drawing with it fits into a device's memory, by program: they are compiled for it, in a minute
    or two, before anything large is downloaded or loaded.
    """
    if fit is not None:
        memory = parse_size(fit, "--fit")
        if memory is None:
            raise InputError("--fit should be a size such as 16GB")
        from sdjax.fitting import Wish
        from sdjax.pipeline.request import pictures_of

        width, height = (None, None) if size is None else parsed(size)
        pictures = pictures_of(["a picture"] * batch, {"width": width, "height": height})
        precision = precision_of(dtype, weights, offload, shard_parameters, target)
        _say_fit(Wish(model, pictures, precision, vae_tiling), memory, target, fit)
        return
    if Path(model).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") and Path(model).is_file():
        _show_picture(Path(model))
        return

    if Path(model).is_file():
        _describe_file(Path(model))
        return
    path = _directory_of(model)
    index, console = read_index(path), Console()
    console.print(_components_table(path, component_classes(index, path)))
    console.print()
    if (path / "scheduler" / SCHEDULER).is_file():  # not of a net or a VAE by itself
        scheduler = read_json(path / "scheduler" / SCHEDULER)
        settings = {key: scheduler[key] for key in SCHEDULER_KEYS if key in scheduler}
        _line(console, "scheduler", f"{scheduler.get('_class_name')}, {_listing(settings)}")
    if defaults := index["sdjax"].get("defaults"):
        _line(console, "defaults", _listing(defaults))
    _line(console, "source", str(index["sdjax"].get("source")))
    _line(console, "path", str(path))
    if blocks and not (path / "unet").is_dir():
        raise InputError(f"{model} has no UNet to show block by block")
    if blocks:
        from sdjax.files.checkpoint import read_model

        console.print()
        console.print(_blocks_table(read_model(path).unet))


def _directory_of(model: str) -> Path:
    """The directory of a model, which is converted first where it has to be; only then JAX is imported."""
    if model in (embedded := embedded_models()):
        return embedded[model]
    if is_model(Path(model)):
        return Path(model)
    from sdjax.convert import resolve

    with progress_bars(of_bytes=True) as report:
        return resolve(model, progress=report)


def _say_fit(wish: "Wish", memory: int, target: str | None, said: str) -> None:
    import jax

    from sdjax.targets import describe

    devices = describe(target) if target else jax.local_devices()
    jax.config.update("jax_optimization_level", "O0")  # a fifth of the time, and about the same memory
    readings = compiled_for(wish, devices)
    show(readings)
    say_whether_it_fits(wish, readings, memory, said, devices)


def _show_picture(path: Path) -> None:
    settings = read_settings(path)
    if settings is None:
        raise InputError(f"{path} does not say how it was made: neither sdjax nor A1111 wrote its settings into it")
    console = Console(highlight=False)
    for name, value in settings.items():
        if name != "not_followed":
            console.print(Text.assemble((f"{safe(name):<18}", "bold"), _lines(value)), soft_wrap=True)
    for field in settings.get("not_followed", ()):
        console.print(Text.assemble(("not followed      ", "bold"), safe(field)), soft_wrap=True)


def _lines(value: object) -> str:
    """A value, whose lines after the first are below it, so that none looks like another value."""
    return f"\n{'':<18}".join(safe(line) for line in str(value).split("\n"))


def _describe_file(path: Path) -> None:
    """What a file is, read off the names of its tensors."""
    from sdjax.convert import inspect_file

    found = inspect_file(path)
    console = Console()
    table = _table("component", "parameters", "dtype", "size")
    for name, network in found.networks.items():
        table.add_row(name, f"{network.parameters:,}", network.dtypes, _megabytes(network.size))
    console.print(table)
    console.print()
    _line(console, "file", found.what)
    if "unet" in found.networks:
        _line(console, "predicts", found.prediction_type or "epsilon or v_prediction: it does not say")
    for key in sorted(found.metadata.keys() & set(SHOWN_METADATA)):
        _line(console, key.rpartition(".")[2], " ".join(found.metadata[key].split())[:200])


def _components_table(path: Path, classes: Mapping[str, str]) -> Table:
    """The networks of a model directory, by the headers of their files; that they fit is found out by loading them."""
    table = _table("component", "class", "parameters", "dtype", "size")
    totals = [0, 0]
    for name, class_name in classes.items():
        if not (weights := path / name / WEIGHTS).is_file():
            continue  # a scheduler, a tokenizer
        tensors = open_tensors(within(path, weights)).entries.values()
        sizes = [(math.prod(shape), dtype.itemsize) for dtype, shape, _ in tensors]
        count, size = sum(size for size, _ in sizes), sum(map(math.prod, sizes))
        dtypes = ", ".join(sorted({dtype.name for dtype, _, _ in tensors}))
        table.add_row(Text(safe(name)), Text(safe(class_name)), f"{count:,}", dtypes, _megabytes(size))
        totals = [totals[0] + count, totals[1] + size]
    table.add_row("total", "", f"{totals[0]:,}", "", _megabytes(totals[1]), style="bold")
    return table


def _blocks_table(unet: "Component") -> Table:
    """The UNet from its input to its output; `scale` is a block's resolution against that of the latents."""
    levels = unet.module.config.levels
    depths = range(len(levels))
    blocks = [(f"down_blocks_{depth}", depth) for depth in depths]
    blocks += [("mid_block", depths[-1])]
    blocks += [(f"up_blocks_{i}", depth) for i, depth in enumerate(reversed(depths))]

    table = _table("unet block", "scale", "channels", "resnets", "transformers", "heads", "parameters")
    for name, depth in blocks:
        params, level = unet.params[name], levels[depth]
        resnets, transformers = (sum(key.startswith(part) for key in params) for part in ("resnets", "attentions"))
        shape = (f"1/{2**depth}", str(level.channels), str(resnets), str(transformers or "-"))
        table.add_row(name, *shape, str(level.heads if transformers else "-"), f"{_count(params):,}")
    for name in sorted(unet.params.keys() - dict(blocks).keys()):
        table.add_row(name, *[""] * 5, f"{_count(unet.params[name]):,}")
    return table


def _table(*columns: str) -> Table:
    """A plain table, its numbers to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in LEFT else "right")
    return table


def _line(console: Console, label: str, value: str) -> None:
    console.print(Text.assemble((f"{label:<11}", "bold"), safe(value)), soft_wrap=True)


def _count(params: Any) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _listing(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())
