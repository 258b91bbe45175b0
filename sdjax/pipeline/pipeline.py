"""The pipeline: a model, ready to draw."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from os import PathLike
from types import MappingProxyType
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image

from sdjax.a1111 import Mention
from sdjax.adapters.lora import Lora, kernels_of, lora_for, rescaled, with_another, with_loras
from sdjax.adapters.lora_files import read_lora
from sdjax.adapters.lora_folder import LoraFolder
from sdjax.adapters.textual_inversion import learn
from sdjax.errors import InputError
from sdjax.files.checkpoint import Component, Model
from sdjax.models.precision import Precision
from sdjax.parallel import fitting_in_memory, placed
from sdjax.pipeline.adaptive import adaptive_steps
from sdjax.pipeline.call import documented
from sdjax.pipeline.conditions import Conditions, looks_of, nets_of, styles_of, wishes_of
from sdjax.pipeline.contexts import contexts_of, contexts_of_pictures
from sdjax.pipeline.denoising import Advance, Batch, Progress, Step, compile_for, silent, steps
from sdjax.pipeline.drawing import Output, Wanted, blackened, draw, in_memory
from sdjax.pipeline.facts import Facts
from sdjax.pipeline.hints import ConditionNet
from sdjax.pipeline.images import to_pil
from sdjax.pipeline.looks import PictureNet
from sdjax.pipeline.networks import Networks, check_finite
from sdjax.pipeline.order import Order
from sdjax.pipeline.ordering import order_of
from sdjax.pipeline.previews import OnPreview, Previews, previews_of
from sdjax.pipeline.refining import check_refiner, for_refiner, refined_steps
from sdjax.pipeline.request import OUTPUT_TYPES, pictures_of
from sdjax.pipeline.start import batch_start, checked_noise, image_inputs
from sdjax.pipeline.wishes import JudgeNet
from sdjax.prompts import Words
from sdjax.random import noise_of
from sdjax.schedulers import State
from sdjax.settings import Picture
from sdjax.sight.checker import Checker
from sdjax.sight.embedder import Embedder
from sdjax.upscaling import UpscalerFolder


class Pipeline:
    """A model, ready to draw. Made by `sdjax.load`.

    The parameters are placed on every local device once. Programs are compiled at the first call of each batch size
    and resolution; other prompts, weights, clip skips, seeds, samplers, spacings, steps, strengths, masks and guidance
    scales use the same. Prompts beyond 75 tokens, guidance 1 and noise from the host have programs of their own.

    model: as it was opened, on the host. networks: its programs. params: by component, on the devices; never changed,
    but replaced as a whole. facts: what preparing a batch needs to know. loras: by name. checker: the safety checker.
    embedder: of a model that varies pictures, what sees them.
    """

    def __init__(
        self,
        model: Model,
        precision: Precision,
        vae_tiling: bool | None = None,
        preview: Component | Literal["linear"] | None = None,
        words: Words = MappingProxyType({}),
        lora_dir: str | PathLike[str] | None = None,
        checks: bool = True,
        upscalers: UpscalerFolder | None = None,
    ):
        """The arguments are those of `sdjax.load`, opened; `words` are learned ones that the model holds already.

        checks: whether the model's safety checker looks at the pictures, where it has one.
        """
        self.model = model
        self.precision = precision.upcast(getattr(model.vae.module.config, "force_upcast", False))
        modules = {name: component.module for name, component in model.components.items()}
        folder = None if lora_dir is None else LoraFolder(lora_dir, modules)
        facts = Facts.of(model)
        readers = tuple(reader._replace(words=words) for reader in facts.readers)
        self.facts = replace(facts, readers=readers, loras=folder, upscalers=upscalers)
        self.loras: dict[str, Lora] = {}
        self.refiner: Pipeline | None = None
        self._nets: WeakKeyDictionary[ConditionNet | PictureNet | JudgeNet, Any] = WeakKeyDictionary()
        with fitting_in_memory(f"the parameters of {model.path} in {self.precision}"):
            self.checker = Checker.of(model, self.precision.offload) if checks else None
            self.embedder = Embedder.of(model, self.precision)
            self.networks = Networks.of(model, self.precision, vae_tiling, preview)
            networks = {**model.text_encoders, "unet": model.unet}
            own = {name: placed(name, network.params, self.precision) for name, network in networks.items()}
        self._latest: tuple[Any, tuple[Mention, ...], Mapping[str, Any]] = (None, (), {})
        self.params: Mapping[str, Any] = {**own, "vae": self.networks.autoencoder.params}

    @documented
    def __call__(
        self,
        prompt: str | Iterable[str],
        *,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        latents: np.ndarray | None = None,
        output_type: str = "pil",
        preview_every: int | None = None,
        on_preview: OnPreview | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Output:
        """Draw pictures: from a prompt alone, or from an image, or a part of it.

        prompt: one or several; each gives `num_images_per_prompt` pictures.
        seed: one number, counted up over the pictures, or one per picture, each in [0, 2**64).
        latents: standard-normal start noise [pictures, height / factor, width / factor, channels] in place of the
            seeds' own.
        output_type: "pil", "np" (float32 in [0, 1], [pictures, height, width, 3]) or "latent" (the denoised latents,
            before division by the scaling factor).
        preview_every, on_preview: after every so many steps, `on_preview` is called with the number of steps taken and
            a list of PIL images, the x0 estimates of the pictures. Of a picture of which only a part is worked on, it
            is that part.
        progress: called on the way; see `Progress`.

        Each of the following settings is one value for all pictures or a list of one for each; texts and images are one
        for all prompts, or a list of one for each. An image is a path, a PIL image, an array [height, width, 3] (8
        bits, or floats in [0, 1]), or latents [h, w, channels] as output_type "latent" gives them.

        {settings}

        Raises InputError, before any work, for arguments that cannot work, and CheckpointError where the model's
        numbers overflow or are not finite.
        """
        pictures = pictures_of(prompt, settings, num_images_per_prompt, seed)
        previews = previews_of(preview_every, on_preview)
        return self.draw(pictures, latents=latents, output_type=output_type, previews=previews, progress=progress)

    def draw(
        self,
        pictures: Sequence[Picture],
        *,
        latents: np.ndarray | None = None,
        output_type: str = "pil",
        previews: Previews | None = None,
        progress: Progress | None = None,
    ) -> Output:
        """Draw pictures of one size, each with settings of its own, in one batch. Arguments as in a call."""
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"unknown output_type {output_type!r}; known: {', '.join(OUTPUT_TYPES)}")
        return draw(self, self.prepare(pictures), latents, Wanted(output_type, previews, progress))

    def prepare(self, pictures: Sequence[Picture], first: Order | None = None) -> Order:
        """The order for a batch of pictures, resolved without a device; first: of a second pass, that of the first.

        Raises InputError for what cannot be drawn.
        """
        return order_of(pictures, self.facts, first)

    def begin(self, order: Order, latents: np.ndarray | None = None) -> Batch:
        """Encodes texts and images and puts all that the loop needs on the devices. latents: as in a call."""
        latents = checked_noise(latents, order)
        images = [image_inputs(picture, self.facts.task, order.size) for picture in order.pictures]
        looks = looks_of(order, images, self._encode_look)
        styles = styles_of(order, self._encode_look)
        wishes = wishes_of(order, self._judge_params, self.params["vae"])
        nets = Conditions(nets_of(order, images, self._encode_hint), looks, styles, wishes)
        noise = noise_of(
            order.pictures[0].rng,
            [picture.seed for picture in order.pictures],
            [(picture.seed + picture.eta_noise_seed_delta) % 2**64 for picture in order.pictures],
        )
        params = self._params_with(order.loras)
        if self.embedder is None:
            contexts = contexts_of(order, partial(self.networks.encode_text, params))
        else:
            contexts = contexts_of_pictures(order, self.embedder)
        start = batch_start(order, images, latents, noise, self.networks.autoencoder.encode)
        return Batch.of(order, images, contexts, noise, start, params["unet"], nets)

    def _encode_hint(self, net: ConditionNet, *seen: np.ndarray) -> tuple[Any, Any]:
        """A net's parameters on the devices, where they stay as long as the net is in use, and features of hints."""
        params = self._params_of(net, "unet", lambda: net.params)
        return params, self.networks.encode_hint(net.module, params, *seen)

    def _encode_look(self, net: PictureNet, pixels: np.ndarray, blank: np.ndarray) -> Any:
        """Keys and values for the UNet's layers, on the host; see `Networks`."""
        params = self._params_of(net, "vision_encoder", lambda: net.params_for(self.facts.unet))
        return self.networks.encode_look(net, params, pixels, blank)

    def _judge_params(self, net: JudgeNet) -> Any:
        return self._params_of(net, "judge", lambda: net.params)

    def _params_of(self, net: ConditionNet | PictureNet | JudgeNet, component: str, params: Callable[[], Any]) -> Any:
        if net not in self._nets:
            # Scores of any module are in float32, as the samples that it is given.
            precision = Precision("float32") if component == "judge" else self.precision
            with fitting_in_memory(f"the parameters of {net.name} in {precision}"):
                self._nets[net] = placed(component, params(), precision)
        return self._nets[net]

    def denoise(self, batch: Batch, stops: Iterable[int] = (), state: State | None = None) -> Iterator[Step]:
        """Yields a batch after each row in `stops` and after its last one; see `denoising.steps`.

        Progress, previews, cancelling and suspending are the caller's loop: `batch.on_host(step)` is a state that can
        be kept, saved (`save_state`) and handed in again as `state`, also in another process or with other settings.
        """
        if batch.order.switch is not None:
            return refined_steps(batch, self.advance_for(batch), self._refine, set(stops), state)
        if not batch.order.adaptive:
            return steps(batch, self.advance_for(batch), set(stops), state)
        if state is not None:
            raise InputError("dpm_adaptive cannot go on from a state: it does not say how long the next step is")
        return adaptive_steps(batch, self.advance_for(batch))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Denoised latents [batch, h, w, channels] to pictures [batch, height, width, 3] in [0, 1]."""
        self.check_finite(latents)
        drawn = self.networks.autoencoder.decode(latents)
        self.check_finite(drawn)
        return drawn

    def preview(self, latents: np.ndarray) -> list[Image.Image]:
        """Latents on the way as pictures, by what was chosen for previews; black where they are withheld."""
        self.check_finite(latents)
        pictures = to_pil(self.networks.autoencoder.preview(latents))
        return pictures if self.checker is None else blackened(pictures, self.checker(pictures))

    def check_finite(self, values: np.ndarray) -> None:
        """Raises CheckpointError, which says where from, for values that are not finite."""
        check_finite(values, self.params, self.model, self.precision)

    def compile(self, pictures: Sequence[Picture], progress: Progress | None = None) -> None:
        """Make all programs that `draw` runs for such pictures, and keep them in the cache; no step is taken.

        Their number, their size, which rows are guided, and the kinds of their images count; see the class. Errors are
        those of `draw`.
        """
        report, order = progress or silent, self.prepare(pictures)
        with in_memory(order):
            report("encode", 0, 1)
            batch = self.begin(order)
            report("encode", 1, 1)
            report("compile", 0, 1)
            latents = batch.latents(compile_for(batch, self.advance_for(batch)))
            if order.switch is not None:
                compile_for(*self._refine(batch))
            report("compile", 1, 1)
            report("decode", 0, 1)
            drawn = self.networks.autoencoder.decode(latents)
            if self.checker is not None:
                self.checker(to_pil(drawn[:1]))
            report("decode", 1, 1)

    def load_lora_weights(self, path: str | PathLike[str], adapter_name: str | None = None, scale: float = 1.0) -> str:
        """Add a LoRA file to the model, beside those that are loaded already; returns its name.

        path: a .safetensors file of kohya's trainers (LoRA or LoCon), diffusers or PEFT.
        adapter_name: its name for `set_adapters`; where None, the file's name without its ending, followed by a number
            where that is taken.
        scale: how strongly; 1 is what it was trained for, and at 0 the model is as it was, bit for bit.
        Nothing is compiled again, for any LoRA and any scale. Raises CheckpointError for a file that is no LoRA, or one
        for another model, and InputError for a name that is taken or a scale that is not finite.
        """
        lora = lora_for(read_lora(path), self.networks.modules, scale)
        loras = with_another(self.loras, lora, adapter_name)
        self.use_loras(loras)
        return list(loras)[-1]

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] = 1.0) -> None:
        """Set the scales of loaded LoRAs, one for all that are named or one for each; those not named get 0."""
        self.use_loras(rescaled(self.loras, adapter_names, adapter_weights))

    def unload_lora_weights(self) -> None:
        """Take all LoRAs out: the model is as it was, bit for bit."""
        self.use_loras({})

    def use_loras(self, loras: Mapping[str, Lora]) -> None:
        """Use these LoRAs, by name, and no others. A draw that is under way keeps the parameters that it began with."""
        kernels = kernels_of([*self.loras.values(), *loras.values()])
        with fitting_in_memory("the parameters that the LoRAs change"):
            self.params = with_loras(self.params, self.model, loras.values(), kernels, self.precision)
        self.loras = dict(loras)
        known = Facts.of(self.model, [lora.path.stem for lora in loras.values() if lora.scale])
        own = {name: getattr(known, name) for name in ("scheduler", "defaults", "family", "native")}
        self.facts = replace(self.facts, **own)

    def load_textual_inversion(self, path: str | PathLike[str], token: str | None = None) -> str:
        """Learn a word from a file of vectors; prompts may use it from then on. Returns the word.

        path: a file of diffusers ({token: vectors}) or A1111 ("string_to_param", "emb_params"), .safetensors, .pt or
            .bin. token: the word; where None, the token in the file, or the name of A1111's file.
        Raises CheckpointError for a file that holds no embedding and InputError for one that does not fit the model.
        """
        encoders = {name: self.networks.modules[name] for name in self.model.text_encoders}
        word, larger, params, readers = learn(encoders, self.params, self.facts.readers, path, token)
        self.networks = self.networks.with_text_encoders(larger)
        self.params = {**self.params, **params}
        self.facts = replace(self.facts, readers=readers)
        return word

    def with_params(self, params: Mapping[str, Any]) -> "Pipeline":
        """The same pipeline with other parameters for some components, from the host. Nothing is compiled again."""
        other = copy(self)
        other.params = {**self.params, **{name: placed(name, tree, self.precision) for name, tree in params.items()}}
        return other

    def _params_with(self, mentions: tuple[Mention, ...]) -> Mapping[str, Any]:
        """The parameters with the LoRAs that prompts name. The latest are kept: the next batch mostly has the same."""
        if not mentions:
            return self.params
        plain, latest, params = self._latest
        if plain is not self.params or latest != mentions:
            assert self.facts.loras is not None  # which the order has asked for
            self._latest = (None, (), {})  # first, for the memory
            loras = self.facts.loras.open(mentions)
            with fitting_in_memory("the parameters that the LoRAs of the prompt change"):
                kernels = kernels_of(loras)
                params = with_loras(self.params, self.model, [*self.loras.values(), *loras], kernels, self.precision)
            self._latest = (self.params, mentions, params)
        return params

    def advance_for(self, batch: Batch) -> Advance:
        """The program that denoises a batch, and others of its group; see `denoising.Advance`."""
        return partial(self.networks.denoise, batch.unet, batch.nets, len(batch.first))

    def _refine(self, batch: Batch) -> tuple[Batch, Advance]:
        """A batch as the refiner reads it, and its program."""
        refiner = self.refiner
        assert refiner is not None
        encode = partial(refiner.networks.encode_text, refiner.params)
        refined = for_refiner(batch, refiner.facts, encode, refiner.params["unet"])
        return refined, refiner.advance_for(refined)

    def use_refiner(self, refiner: "Pipeline | None") -> None:
        """Let another model take over where little noise is left (`denoising_end`, else at 0.8), or none.

        Raises InputError for one that cannot go on with the latents of this one.
        """
        if refiner is not None:
            check_refiner(self.facts, refiner.facts)
        self.refiner = refiner
        self.facts = replace(self.facts, refiner=None if refiner is None else refiner.facts)
