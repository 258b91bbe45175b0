"""What the painting commands share: their options, and what they do once these are read."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sdjax.cli import options
from sdjax.cli.by_batches import draw_by_batches
from sdjax.cli.from_schema import setting_options
from sdjax.cli.options import files_and_scales
from sdjax.cli.output import check_output
from sdjax.cli.progress import progress_bars
from sdjax.cli.saving import Saving
from sdjax.cli.signature import extended, option
from sdjax.cli.watching import Watching
from sdjax.errors import InputError
from sdjax.settings import SETTINGS
from sdjax.settings.unit import read_unit

if TYPE_CHECKING:
    from sdjax.pipeline import Pipeline
    from sdjax.settings import Picture


@dataclass(frozen=True)
class Loading:
    """What is loaded before anything is painted: the arguments of `sdjax.load`, and files of textual inversion.

    single_file: the fields of `sdjax.convert.Choices` that were given.
    """

    model: str | None
    dtype: str | None = None
    weights: str | None = None
    offload: bool = False
    shard_parameters: bool = False
    vae: str | None = None
    vae_tiling: bool | None = None
    refiner: str | None = None
    embeddings: Sequence[Path] = ()
    loras: Sequence[tuple[str, float]] = ()
    lora_dir: Path | None = None
    safety_checker: bool = True
    upscaler_dir: Path | None = None
    single_file: Mapping[str, Any] = field(default_factory=dict)
    preview_vae: str | None = None

    def open(self, report: Callable[..., None] | None, task: str | None = None) -> "Pipeline":
        """The pipeline. Raises InputError for a model of another task, where one is wanted."""
        import sdjax
        from sdjax.convert import Choices

        assert self.model is not None
        pipe = sdjax.load(
            self.model,
            dtype=self.dtype,
            weights=self.weights,
            offload=self.offload,
            shard_parameters=self.shard_parameters,
            vae=self.vae,
            vae_tiling=self.vae_tiling,
            refiner=self.refiner,
            preview_vae=self.preview_vae,
            loras=self.loras,
            lora_dir=self.lora_dir,
            safety_checker="own" if self.safety_checker else None,
            upscaler_dir=self.upscaler_dir,
            single_file=Choices(**self.single_file),
            progress=report,
        )
        own = pipe.facts.task.name
        if task not in (None, own):
            raise InputError(f"{self.model} is made for another task, {own}: this command wants a model for {task}")
        for embedding in self.embeddings:
            pipe.load_textual_inversion(embedding)
        return pipe

    def settings(self) -> dict[str, Any]:
        """The part of it that a picture depends on; the pipeline adds the LoRAs."""
        files = {"embeddings": [str(path) for path in self.embeddings]} if self.embeddings else {}
        choices = {name: str(value) if isinstance(value, Path) else value for name, value in self.single_file.items()}
        others = {name: value for name, value in (("vae", self.vae), ("refiner", self.refiner)) if value}
        return {"model": self.model, **others, **choices, **files}


OF_LOADING = (
    *("model", "dtype", "weights", "offload", "shard_parameters", "vae", "vae_tiling"),
    *("refiner", "lora_dir", "upscaler_dir", "safety_checker"),
)
OF_FILES = {
    "ema": options.Ema,
    "prediction_type": options.PredictionType,
    "config": options.Config,
    "tokenizer": options.TokenizerFolder,
}


def loading_options(model: str | None) -> list[Parameter]:
    """The options of `Loading`."""
    return [
        option("model", options.Model if model else options.AnyModel, model),
        option("control", options.Control, None),
        option("embedding", options.Embedding, None),
        option("lora", options.Loras, None),
        option("lora_dir", options.LoraDir, None),
        option("upscaler_dir", options.UpscalerDir, None),
        option("vae", options.Vae, None),
        option("vae_tiling", options.VaeTiling, None),
        option("refiner", options.Refiner, None),
        option("dtype", options.Dtype, None),
        option("weights", options.Weights, None),
        option("offload", options.Offload, False),
        option("shard_parameters", options.ShardParameters, False),
        option("safety_checker", options.SafetyChecker, True),
        *(option(name, kind, None) for name, kind in OF_FILES.items()),
    ]


def configured(
    *there: str, without: Collection[str] = (), model: str | None = "shapes"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the options of settings and of the model to a command, and passes them as `settings` and `loading`.

    settings are those that were given, by name. there, without: see `setting_options`. model: the default.
    """
    settings, loading = setting_options(there, without), loading_options(model)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**values: Any) -> None:
            given = {each.name: values.pop(each.name) for each in settings}
            named = {name: values.pop(name) for name in OF_LOADING}
            choices = {name: value for name in OF_FILES if (value := values.pop(name)) is not None}
            embeddings, loras = values.pop("embedding") or (), files_and_scales(values.pop("lora"))
            if (file := Path(given.get("hires_upscaler") or "")).is_file():  # settings have names, and no paths
                given["hires_upscaler"], named["upscaler_dir"] = file.stem, file
            if (units := values.pop("control")) is not None:
                given["conditions"] = tuple(map(read_unit, units))
            command(
                **values,
                settings={name: value for name, value in given.items() if value is not None},
                loading=Loading(**named, embeddings=embeddings, loras=loras, single_file=choices),
            )

        return extended(run, command, {"settings", "loading"}, [*settings, *loading])

    return decorate


@dataclass(frozen=True)
class Painting:
    """What was said to a painting command, besides its arguments.

    seeds: one or one per picture, None where none were given. settings: those that were given, by name.
    dynamic: whether prompts have choices. wildcards: the folder that they may be in.
    batch_size: pictures that are drawn at once, None for what suits the platform.
    """

    output: Path
    saving: Saving
    num_images: int
    seeds: Sequence[int] | None
    settings: Mapping[str, Any]
    loading: Loading
    watching: Watching
    task: str | None
    dynamic: bool = False
    wildcards: Path | None = None
    batch_size: int | None = None


OPTIONS = (
    option("output", options.Output, Path(".")),
    option("num_images", options.NumImages, 1),
    option("seed", options.Seed, None),
    option("batch_size", options.BatchSize, None),
    option("dynamic", options.Dynamic, False),
    option("wildcards", options.Wildcards, None),
    option("grid", options.Grid, None),
    option("metadata", options.Metadata, True),
    option("quality", options.Quality, 90),
    option("preview_every", options.PreviewEvery, None),
    option("preview_vae", options.PreviewVae, None),
    option("animate", options.Animate, None),
)


def painting(
    *there: str, without: Collection[str] = (), model: str | None = "shapes", task: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the options of all painting commands to a command, which takes them as one argument `painting`.

    task: of the models that the command is for. The others are those of `configured`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(*, settings: Mapping[str, Any], loading: Loading, **values: Any) -> None:
            said = {each.name: values.pop(each.name) for each in OPTIONS}
            request = Painting(
                output=said["output"],
                saving=Saving(said["grid"], said["metadata"], said["quality"]),
                num_images=said["num_images"],
                seeds=said["seed"],
                settings=settings,
                loading=replace(loading, preview_vae=said["preview_vae"]),
                watching=Watching(said["output"], said["preview_every"], said["animate"]),
                task=task,
                dynamic=said["dynamic"] or said["wildcards"] is not None,
                wildcards=said["wildcards"],
                batch_size=said["batch_size"],
            )
            command(**values, painting=request)

        placeholders = [option("settings", Any, None), option("loading", Any, None)]
        taking_all = extended(run, command, {"painting"}, [*OPTIONS, *placeholders])
        return configured(*there, without=without, model=model)(taking_all)

    return decorate


def paint(prompts: Sequence[str], painting: Painting, images: Mapping[str, Path]) -> None:
    """Paints, saves and names pictures. Everything that can be wrong is looked at before the model is.

    images: files by the names of the settings that they are for.
    """
    check_output(painting.output)
    painting.watching.check()
    painting.saving.check(painting.output, prompts, painting.settings)

    from sdjax.pipeline.request import pictures_of
    from sdjax.version import __version__

    count = len(prompts) * painting.num_images
    settings = {name: _for_all(name, value, count) for name, value in {**painting.settings, **images}.items()}
    seeds = painting.seeds or [0]
    seed = seeds[0] if len(seeds) == 1 else seeds
    templates: list[dict[str, str]] = [{}] * count
    if painting.dynamic:
        pictures, templates = _with_choices(prompts, painting, settings, seed)
    else:
        pictures = pictures_of(prompts, settings, painting.num_images, seed)
    with progress_bars(of_bytes=True) as report:
        pipe = painting.loading.open(report, painting.task)
    files = {
        name: str(path) for name, path in {**painting.settings, **images}.items() if SETTINGS[name].kind == "image"
    }
    of_sheet: dict[int, tuple[Image.Image, dict[str, Any]]] = {}

    def keep(numbers: Sequence[int], drawn: Sequence[Image.Image], hows: Sequence[dict[str, Any]]) -> None:
        paths = painting.watching.paths(count)
        for number, image, how in zip(numbers, drawn, hows):
            told = {**painting.loading.settings(), **how, **files, **templates[number], "version": __version__}
            painting.saving.save(image, told, paths[number])
            painting.watching.finish(number, image, count)
            if painting.saving.grid is not None:
                of_sheet[number] = image, told

    with progress_bars() as report:
        previews = partial(painting.watching.previews, count)
        draw_by_batches(pipe, pictures, painting.batch_size, previews, report, keep)
    painting.saving.save_sheet([of_sheet[number] for number in sorted(of_sheet)])


def _with_choices(
    prompts: Sequence[str], painting: Painting, settings: dict[str, Any], seed: int | Sequence[int]
) -> "tuple[list[Picture], list[dict[str, str]]]":
    """The pictures, with the choices of their prompts made, and the templates of each."""
    from sdjax.pipeline.request import pictures_of
    from sdjax.prompts.dynamic import Wildcards, with_choices
    from sdjax.random import image_seeds

    texts = [prompt for prompt in prompts for _ in range(painting.num_images)]
    seeds, negative = image_seeds(seed, len(texts)), settings.get("negative_prompt")
    wildcards = Wildcards(painting.wildcards)
    made = [
        with_choices({"prompt": text, "negative_prompt": negative, "seed": own}, wildcards)
        for text, own in zip(texts, seeds)
    ]
    settings["negative_prompt"] = [chosen["negative_prompt"] for chosen, _ in made] if negative else None
    pictures = pictures_of([chosen["prompt"] for chosen, _ in made], settings, seed=seeds)
    return pictures, [template for _, template in made]


def _for_all(name: str, value: Any, count: int) -> Any:
    """A value with parts, such as a guidance scale for each step, for every picture."""
    return [value] * count if SETTINGS[name].kind == "numbers" and isinstance(value, tuple) else value
