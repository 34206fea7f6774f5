"""The ``facerec evaluate identification`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from facerec.cli.common import (
    DeviceOption,
    GalleryOption,
    JsonOption,
    PackOption,
    Progress,
    check_target,
    settings_for,
    writing_to,
)
from facerec.errors import ConfigError


def evaluate_identification(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder per person: NAME/photo.jpg.")
    ],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="People enrolled.  [default: 10,30,100,... and everybody]"
        ),
    ] = None,
    draws: Annotated[
        int, typer.Option(metavar="N", help="Galleries drawn for each size.", min=1)
    ] = 20,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the draws.", min=0)] = 2007,
    embeddings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the embeddings there, or read them (.npz)."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Save a picture of the curves.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the report.")] = None,
    json: JsonOption = False,
) -> None:
    """Measure open-set error as a gallery grows: who is missed, and which strangers match.

    Also whether the thresholds that the pack's table gives for a target FPIR keep it.

    Example: facerec evaluate identification people/ --plot growth.png
    """
    from facerec.growth import evaluate_identification as measure
    from facerec.reporting import format_growth
    from gallery.opening import load_pipeline

    for target in (plot, out):
        check_target(target)
    wanted = None if sizes is None else _whole_numbers(sizes)
    pipeline = load_pipeline(settings_for(gallery=gallery, pack=pack, device=device))
    with Progress("Embedding", None) as progress:
        report = measure(
            pipeline,
            folder,
            sizes=wanted,
            draws=draws,
            seed=seed,
            progress=progress,
            embeddings_file=embeddings,
        )
    print(report.to_json() if json else format_growth(report))
    if out is not None:
        with writing_to(out):
            out.write_text(report.to_json(), encoding="utf-8")
    if plot is not None:
        from facerec.plots import save_growth

        save_growth(report, plot)


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as exc:
        raise ConfigError(f"--sizes: whole numbers such as 10,100,1000, got {text!r}") from exc
