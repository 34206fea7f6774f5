"""Commands that look at photos: enroll, identify, verify, and the web UI."""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facerec.cli.common import (
    DeviceOption,
    FmrOption,
    FpirOption,
    GalleryOption,
    JsonOption,
    PackOption,
    Progress,
    ThresholdOption,
    gallery_exists,
    open_all,
    print_json,
    settings_for,
    writing_to,
)
from facerec.errors import ConfigError, FacerecError

if TYPE_CHECKING:
    from facerec.config import Settings
    from facerec.pipeline import Pipeline
    from facerec.types import Decision, Face
    from gallery import Gallery


def app_command(
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    host: Annotated[
        str, typer.Option(help="Address to bind; another than loopback needs --auth.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    auth: Annotated[
        str | None, typer.Option(metavar="USER:PASS", help="Ask every visitor for these.")
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Fill an empty gallery with demo people.")
    ] = False,
    fmr: FmrOption = None,
) -> None:
    """Start the web UI.

    Example: facerec app --demo
    """
    from facerec.web import serve

    settings = settings_for(gallery=gallery, pack=pack, device=device, fmr=fmr)
    serve(settings, host=host, port=port, auth=auth, demo=demo)


def enroll(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whom the photos show.")],
    photos: Annotated[
        list[Path],
        typer.Argument(metavar="PHOTO...", help="Photos of that person."),
    ],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Enrol what the quality gate refuses; of several faces, the largest."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Enrol a person from photos; what the gate refuses is reported with its reason.

    Exit code 1 if a photo was refused or failed.

    Example: facerec enroll "Ada Lovelace" ada1.jpg ada2.jpg
    """
    from gallery.enrolment import enrol_photos

    settings = settings_for(gallery=gallery, pack=pack, device=device)
    opened, pipeline = open_all(settings, create=True)
    with opened, Progress("Enrolling", len(photos)) as progress:
        result = enrol_photos(
            opened,
            pipeline,
            name,
            [(str(photo), photo) for photo in photos],
            force=force,
            keep_crops=settings.keep_crops,
            max_pixels=settings.max_pixels,
            progress=progress,
        )
    from facerec.answers import enrolment_lines, enrolment_to_dict

    if json:
        print_json(enrolment_to_dict(result))
    else:
        for line in enrolment_lines(result):
            print(line)
    if result.rejected or result.failed:
        raise typer.Exit(1)


def identify(
    photos: Annotated[
        list[Path],
        typer.Argument(metavar="PHOTO...", help="Every face is looked up."),
    ],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, help="Candidates per face.")] = 5,
    fmr: FmrOption = None,
    fpir: FpirOption = None,
    threshold: ThresholdOption = None,
    draw: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Save the photo with names; a folder for several photos."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say who is in photos, or that they are unknown.

    Exit code 1 if a photo could not be read.

    Example: facerec identify party.jpg --draw named.png
    """
    from facerec.answers import decision_to_dict, face_to_dict, identification_lines

    settings = settings_for(gallery=gallery, pack=pack, device=device, fmr=fmr)
    opened, pipeline = open_all(settings)
    targets = _draw_targets(photos, draw)
    report: list[dict[str, Any]] = []
    failed = False
    with opened, Progress("Identifying", len(photos)) as progress:
        rates = _rates(settings, fmr, fpir, threshold)
        for photo, target in zip(photos, targets, strict=True):
            try:
                faces, decisions = _identify_one(
                    opened, pipeline, photo, k, rates, target, settings.max_pixels
                )
            except FacerecError as exc:
                failed = True
                report.append({"photo": str(photo), "error": str(exc)})
                if not json:
                    print(f"facerec: {exc}", file=sys.stderr)
                continue
            finally:
                progress(str(photo))
            report.append(
                {
                    "photo": str(photo),
                    "faces": [
                        face_to_dict(f) | decision_to_dict(d)
                        for f, d in zip(faces, decisions, strict=True)
                    ],
                }
            )
            if not json:
                for line in identification_lines(str(photo), faces, decisions):
                    print(line)
    if json:
        print_json(report)
    if failed:
        raise typer.Exit(1)


def _rates(
    settings: Settings, fmr: float | None, fpir: float | None, threshold: float | None
) -> dict[str, float]:
    """The one way of deciding that was asked for; the settings' FMR if none was."""
    given = {"fmr": fmr, "fpir": fpir, "threshold": threshold}
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) > 1:
        flags = " and ".join(f"--{name}" for name in chosen)
        raise ConfigError(f"{flags} exclude each other; give one")
    return chosen or {"fmr": settings.fmr}


def _identify_one(
    opened: Gallery,
    pipeline: Pipeline,
    photo: Path,
    k: int,
    rates: dict[str, float],
    target: Path | None,
    max_pixels: int,
) -> tuple[tuple[Face, ...], list[Decision]]:
    import numpy as np

    from facerec.image import load_image

    image = load_image(photo, max_pixels=max_pixels)
    [faces] = pipeline.extract([image])
    if not faces:
        decisions: list[Decision] = []
    else:
        decisions = opened.identify(np.stack([f.embedding for f in faces]), k, **rates)
    if target is not None:
        from facerec.draw import draw_decisions, save_picture

        save_picture(draw_decisions(image, faces, decisions), target)
    return faces, decisions


def _draw_targets(photos: list[Path], draw: Path | None) -> list[Path | None]:
    """Where each photo's picture goes; never over a photo, never two to one file."""
    if draw is None:
        return [None] * len(photos)
    if len(photos) == 1 and not draw.is_dir():
        if os.path.realpath(draw) == os.path.realpath(photos[0]):
            raise ConfigError(f"--draw {draw} would overwrite the photo itself; name another file")
        return [draw]
    if draw.exists() and not draw.is_dir():
        raise ConfigError(f"--draw {draw}: several photos need a folder, and this is a file")
    with writing_to(draw):
        draw.mkdir(parents=True, exist_ok=True)
    targets: list[Path | None] = []
    taken = {os.path.realpath(photo) for photo in photos}
    for photo in photos:
        names = (f"{photo.stem}{f'-{n}' if n > 1 else ''}.png" for n in count(1))
        target = next(t for t in map(draw.joinpath, names) if os.path.realpath(t) not in taken)
        taken.add(os.path.realpath(target))
        targets.append(target)
    return targets


def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="A photo.")],
    b: Annotated[str, typer.Argument(metavar="B", help="A photo, or an enrolled person.")],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    fmr: FmrOption = None,
    threshold: ThresholdOption = None,
    json: JsonOption = False,
) -> None:
    """Say whether two photos show one person; of several faces, the largest counts.

    Exit code 0 for the same person, 1 for different people.

    Example: facerec verify passport.jpg "Ada Lovelace"
    """
    from facerec.answers import comparison_lines, comparison_to_dict
    from gallery.verification import verify_photos, verify_with_person

    settings = settings_for(gallery=gallery, pack=pack, device=device, fmr=fmr)
    rates = _rates(settings, fmr, None, threshold)
    # A folder of the person's name, as in a collection, is no photo.
    if os.path.isfile(b) or not gallery_exists(settings):  # noqa: PTH113, never raises
        from gallery.opening import load_pipeline

        pipeline = load_pipeline(settings)
        result = verify_photos(
            pipeline,
            a,
            Path(b),
            max_pixels=settings.max_pixels,
            fmr=rates.get("fmr"),
            threshold=rates.get("threshold"),
        )
    else:
        opened, pipeline = open_all(settings)
        with opened:
            result = verify_with_person(
                opened,
                pipeline,
                a,
                b,
                max_pixels=settings.max_pixels,
                fmr=rates.get("fmr"),
                threshold=rates.get("threshold"),
            )
    if json:
        print_json(comparison_to_dict(result))
    else:
        for line in comparison_lines(result):
            print(line)
    if not result.same:
        raise typer.Exit(1)
