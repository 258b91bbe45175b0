"""What `sdjax serve` and `sdjax ui` can be told, and the server that follows from it."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from sdjax.cli import options
from sdjax.cli.options import files_and_scales
from sdjax.cli.painting import Loading
from sdjax.cli.signature import extended, option
from sdjax.errors import InputError

DOORS, ENGINE, MODELS, CLUSTER = "Who may ask", "Batches and limits", "Models", "More than one machine"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
TOKEN = "SDJAX_TOKEN"


@dataclass(frozen=True)
class Serving:
    """The options of a server."""

    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MODEL",
            help="A model that may be asked for, by this name or that of its file; the first is the default.",
            show_default="shapes",
            rich_help_panel=MODELS,
        ),
    ] = None
    models_dir: Annotated[
        Path | None,
        typer.Option(help="All models in a folder may be asked for: files and folders.", rich_help_panel=MODELS),
    ] = None
    keep_models: Annotated[int, typer.Option(min=1, help="Models on the devices at once.", rich_help_panel=MODELS)] = 1
    lora_dir: options.LoraDir = None
    embedding: options.Embedding = None
    lora: options.Loras = None
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]NET",
            help="A ControlNet or T2I adapter that may be asked for, as `sdjax.load_condition` takes it.",
            rich_help_panel=MODELS,
        ),
    ] = None
    upscaler_dir: options.UpscalerDir = None
    vae: options.Vae = None
    dtype: options.Dtype = None
    weights: options.Weights = None
    offload: options.Offload = False
    shard_parameters: options.ShardParameters = False
    preview_vae: Annotated[
        str | None,
        typer.Option(
            help="What decodes pictures on their way: a VAE, as for --vae, or `linear`, a guess that costs nothing.",
            show_default="the model's own",
            rich_help_panel=MODELS,
        ),
    ] = None
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 is all of this machine's.", rich_help_panel=DOORS)
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any.", rich_help_panel=DOORS)] = 7860
    token: Annotated[
        list[str] | None,
        typer.Option(
            help="Whoever asks must say it, as Bearer or as the password of Basic.",
            envvar=TOKEN,
            rich_help_panel=DOORS,
        ),
    ] = None
    open_to_all: Annotated[
        bool,
        typer.Option(
            "--open-to-all",
            help="Let whoever reaches another address than loopback ask without a token.",
            rich_help_panel=DOORS,
        ),
    ] = False
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Scripts of this site's pages may ask.", rich_help_panel=DOORS),
    ] = None
    batch_sizes: Annotated[
        str,
        typer.Option(
            help="How many pictures are drawn at once; the smallest that holds what waits is taken.",
            rich_help_panel=ENGINE,
        ),
    ] = "1,4"
    max_pixels: Annotated[int, typer.Option(min=1, help="Of a picture.", rich_help_panel=ENGINE)] = 2048 * 2048
    max_steps: Annotated[int, typer.Option(min=1, help="Of a picture.", rich_help_panel=ENGINE)] = 150
    max_pictures: Annotated[int, typer.Option(min=1, help="Of a request.", rich_help_panel=ENGINE)] = 16
    max_body: Annotated[int, typer.Option(min=1, help="Megabytes of a request.", rich_help_panel=ENGINE)] = 64
    max_queue: Annotated[int, typer.Option(min=1, help="Pictures that wait.", rich_help_panel=ENGINE)] = 500
    max_seconds: Annotated[float, typer.Option(min=1, help="Until a request is answered.", rich_help_panel=ENGINE)] = (
        600
    )
    warm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WIDTHxHEIGHT[:SIZES]",
            help="Compile for pictures of this size before the first request, such as 512x512:1,4.",
            rich_help_panel=ENGINE,
        ),
    ] = None
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where accepted requests and results are kept, so that a killed server goes on.",
            show_default="in the cache, by port",
            rich_help_panel=ENGINE,
        ),
    ] = None
    keep_seconds: Annotated[
        float, typer.Option(min=0, help="How long results can be fetched.", rich_help_panel=ENGINE)
    ] = 3600
    keep_megabytes: Annotated[int, typer.Option(min=1, help="Of results.", rich_help_panel=ENGINE)] = 1024
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="What draws: this machine's devices, or replicas in a Ray cluster.", rich_help_panel=CLUSTER),
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(
            help="Of the Ray cluster, or `auto`.", show_default="one of this machine", rich_help_panel=CLUSTER
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Replicas, each of which holds the models.",
            show_default="one for each GPU, else for each machine",
            rich_help_panel=CLUSTER,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.engine != "ray" and (self.address or self.workers):
            raise InputError("--address and --workers are for --engine ray")
        if not self.is_local and not self.tokens and not self.open_to_all:
            raise InputError(
                f"--host {self.host} lets others ask: give a --token that they must say ({TOKEN}), "
                "or --open-to-all if all may"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can ask."""
        return self.host in LOOPBACK

    @property
    def tokens(self) -> list[str]:
        """Those that are no empty texts."""
        return [each for each in self.token or () if each]

    @property
    def sizes(self) -> list[int]:
        """Of batches. Raises InputError for what is none."""
        if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", self.batch_sizes) or "0" in self.batch_sizes.split(","):
            raise InputError(
                f"--batch-sizes should be whole numbers from 1 with commas between them, not {self.batch_sizes!r}"
            )
        return sorted(set(map(int, self.batch_sizes.split(","))))

    def loading(self) -> Loading:
        """What is the same for all models."""
        return Loading(
            None,
            self.dtype,
            self.weights,
            self.offload,
            self.shard_parameters,
            self.vae,
            embeddings=self.embedding or (),
            loras=files_and_scales(self.lora),
            lora_dir=self.lora_dir,
            upscaler_dir=self.upscaler_dir,
            preview_vae=self.preview_vae,
        )

    def allowed(self) -> dict[str, str]:
        """Models by name. Raises InputError for a name that comes twice and a folder that is not there."""
        given = [*map(_named, self.model or ()), *_in_folder(self.models_dir)]
        return _unique("model", given or [("shapes", "shapes")])

    def nets(self) -> dict[str, str]:
        """ControlNets and adapters by name. Raises InputError for a name that comes twice."""
        return _unique("control", map(_named, self.control or ()))


def _unique(option: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, path in pairs:
        if name in found:
            raise InputError(f"there are two of the name {name!r}: name them, as in --{option} NAME={path}")
        found[name] = path
    return found


def _named(given: str) -> tuple[str, str]:
    name, equals, path = given.partition("=")
    return (name, path) if equals else (Path(given).stem, given)


def _in_folder(folder: Path | None) -> list[tuple[str, str]]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} of models")
    return [
        (path.stem, str(path))
        for path in sorted(folder.iterdir())
        if path.suffix in (".safetensors", ".ckpt") or (path / "model_index.json").exists()
    ]


def with_serving(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the options of a server to a command, and passes them as `serving`.

    defaults: those in which the command differs from the others.
    """
    kinds = get_type_hints(Serving, include_extras=True)
    shared = [option(each.name, kinds[each.name], defaults.get(each.name, each.default)) for each in fields(Serving)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            own = {each.name: given.pop(each.name) for each in shared}
            command(**given, serving=Serving(**own))

        return extended(run, command, {"serving"}, shared)

    return decorate
