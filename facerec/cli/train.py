"""Commands around training: export. They need torch, and load it only when they run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from facerec.cli.common import (
    DeviceOption,
    GalleryOption,
    JsonOption,
    PackOption,
    say,
    settings_for,
)
from facerec.errors import ConfigError


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A training run's folder, or a checkpoint.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PACK", help="The new pack's folder.")
    ],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    name: Annotated[
        str | None, typer.Option(help="The pack's name.  [default: its folder's]")
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR", help="Pack whose detector is copied.  [default: --pack, bundled]"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The run's data, if it is not where it was."),
    ] = None,
    unmeasured: Annotated[
        bool,
        typer.Option("--unmeasured", help="Do without the run's data: no thresholds, no int8."),
    ] = False,
    variants: Annotated[
        str, typer.Option(metavar="LIST", help="Of float16 and int8, or none.")
    ] = "float16,int8",
    licence: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Of the weights.  [default: yours]")
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip/--no-flip", help="Average with the mirror image's embedding.")
    ] = True,
    json: JsonOption = False,
) -> None:
    """Make a model pack of a trained network: ONNX checked against torch, with thresholds.

    People that the recipe kept aside (data.holdout) are measured on, every pair of them.

    Example: facerec export runs/first -o packs/mine
    """
    require_training()
    from facerec.packs import find_pack
    from facerec.runtime import resolve_device
    from training.export import default_licence, export_pack, load_trained
    from training.run_data import reopen_data

    settings = settings_for(gallery=gallery, pack=pack, device=device)
    wanted = _variants(variants, unmeasured)
    if output.exists():
        raise ConfigError(f"{output} exists; a pack is never written over. Name another folder.")
    lender = detector or settings.pack or "bundled"
    found = find_pack(lender, search=settings.packs, cache=settings.cache)
    with Status("Reading the run") as status:
        backbone, provenance = load_trained(run)
        learnt = kept_aside = None
        recipe = provenance.recipe
        if not unmeasured and recipe is not None:
            status("Reading the run's data")
            learnt, kept_aside = reopen_data(recipe, provenance.data, data, pack=lender)
        report = export_pack(
            backbone,
            output,
            detector=found,
            name=name or output.resolve().name,
            licence=licence or default_licence(provenance),
            source=f"facerec export of a run of the recipe {recipe.name!r}" if recipe else "",
            description=f"{backbone.name}, {backbone.embedding_dim}-d",
            flip=flip,
            provenance=provenance,
            measure_on=kept_aside,
            calibrate_on=learnt,
            variants=wanted,
            device=resolve_device(settings.device),
            progress=lambda text: status(text[:1].upper() + text[1:]),
        )
    say(json, report.to_dict(), *report.lines())


class Status:
    """A line on standard error, if that is a terminal, that says what is going on."""

    def __init__(self, text: str) -> None:
        from rich.console import Console

        self._status = Console(stderr=True).status(text)

    def __enter__(self) -> Status:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def __call__(self, text: str) -> None:
        self._status.update(text)


def require_training() -> None:
    """Raises ConfigError where what training needs is not installed."""
    missing = [module for module in ("torch", "onnxscript") if find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"this command needs {' and '.join(missing)}, not installed: "
            "pip install 'facerec[train]'"
        )


def _variants(text: str, unmeasured: bool) -> tuple[str, ...]:
    """The names in a list with commas; with nothing to calibrate on int8 leaves the default."""
    names = tuple(word.strip() for word in text.split(",") if word.strip() not in ("", "none"))
    if unmeasured and text == "float16,int8":
        return ("float16",)
    return names
