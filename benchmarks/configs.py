"""The published configs that benchmarks take when none is named: they lie beside the checkout."""

from pathlib import Path
from typing import Annotated

import typer

HUB = Path(__file__).parents[2] / "shared" / "reference" / "hub"
SD15 = HUB / "runwayml" / "stable-diffusion-v1-5"
SD15_UNET = SD15 / "unet" / "config.json"
XL = HUB / "stabilityai" / "stable-diffusion-xl-base-1.0"
XL_UNET = XL / "unet" / "config.json"

ConfigOption = Annotated[Path, typer.Option("--config", help="A UNet's config.json.", exists=True, dir_okay=False)]
