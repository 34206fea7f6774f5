"""Commands that measure and look after: evaluate, doctor, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facerec.cli.common import (
    DeviceOption,
    GalleryOption,
    JsonOption,
    PackOption,
    Progress,
    check_target,
    gallery_exists,
    gallery_name,
    open_all,
    print_json,
    say,
    settings_for,
    writing_to,
)
from facerec.errors import ConfigError, FacerecError

if TYPE_CHECKING:
    from facerec.config import Settings
    from facerec.doctor import Finding

evaluate_app = typer.Typer(help="Measure a pack on labelled faces.", no_args_is_help=True)


@evaluate_app.command("lfw")
def evaluate_lfw_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="NAME/NAME_0001.jpg and pairs.txt.")
    ],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The protocol, if it is not DIR/pairs.txt.")
    ] = None,
    roc: Annotated[Path | None, typer.Option(metavar="PNG", help="Save the ROC picture.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the report.")] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the threshold table into the pack's pack.toml.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Run LFW's View 2 protocol from the raw photos, and measure thresholds on every pair.

    Example: facerec evaluate lfw lfw/ --roc roc.png
    """
    from facerec.evaluation import LFW_VIEW_2, evaluate_lfw
    from facerec.reporting import format_table, write_thresholds
    from gallery.opening import load_pipeline

    for target in (roc, out):
        check_target(target)
    pipeline = load_pipeline(settings_for(gallery=gallery, pack=pack, device=device))
    with Progress("Embedding", None) as progress:
        report = evaluate_lfw(pipeline, folder, pairs_file=pairs, progress=progress)
    print(report.to_json() if json else format_table(report))
    if out is not None:
        with writing_to(out):
            out.write_text(report.to_json(), encoding="utf-8")
    if roc is not None:
        from facerec.plots import save_roc

        save_roc(report, roc)
    if write:
        if report.thresholds is None:
            raise ConfigError(f"{folder}: too few pairs to measure two thresholds; nothing written")
        accuracy = report.accuracy.mean if report.data == LFW_VIEW_2 else None
        write_thresholds(pipeline.pack.folder, report.thresholds, lfw_accuracy=accuracy)
        if not json:
            print(f"Thresholds written to {pipeline.pack.folder / 'pack.toml'}.")


def doctor(
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Look for what usually breaks an installation; exit code 1 if something is broken.

    Example: facerec doctor --device cuda
    """
    from dataclasses import asdict

    from facerec.doctor import examine

    settings = settings_for(gallery=gallery, pack=pack, device=device)
    findings: list[Finding] = []
    marks = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}
    for finding in (*examine(settings), *_gallery_findings(settings)):
        findings.append(finding)
        if not json:
            print(f"{marks[finding.status]}  {finding.check}: {finding.detail}")
            if finding.remedy:
                print(f"         remedy: {finding.remedy}")
    if json:
        print_json([asdict(f) for f in findings])
    if any(f.status == "problem" for f in findings):
        raise typer.Exit(1)


def _gallery_findings(settings: Settings) -> list[Finding]:
    """Whether the gallery opens, where there is one, and what is left to do in it."""
    from facerec.config import is_url
    from facerec.doctor import Finding
    from gallery import Gallery
    from gallery.folder import require_empty
    from gallery.generations import generations
    from gallery.schema import STAGING

    try:
        if not gallery_exists(settings):
            if not is_url(settings.gallery):
                require_empty(Path(settings.gallery))
            return [Finding("gallery", "ok", f"none yet in {gallery_name(settings)}")]
        with Gallery.open(settings.gallery, create=False) as opened:
            people, templates = opened.count()
            due = opened.compaction_due
            with opened.reading() as view:
                other = generations(view)[1]
    except FacerecError as exc:
        return [Finding("gallery", "problem", str(exc))]
    found = [
        Finding("gallery", "ok", f"{people} people, {templates} views, pack {opened.pack_name}")
    ]
    if due:
        found.append(
            Finding(
                "gallery", "warning", "bytes of removed people may be left in its database",
                "run 'facerec compact' in a quiet hour",
            )
        )  # fmt: skip
    if other is not None and other.state == STAGING:
        found.append(
            Finding(
                "gallery", "warning",
                f"a move to pack {other.pack_name!r} is under way: {other.embedded} views embedded",
                f"'facerec reembed --pack {other.pack_name}' goes on with it, "
                "'facerec reembed --discard' drops it",
            )
        )  # fmt: skip
    return found


def demo(
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Fill a gallery with demo people, from photos that installed packages ship.

    Example: facerec demo --gallery /tmp/demo
    """
    from gallery.demo import GROUP_PHOTO, build_demo, demo_photo

    settings = settings_for(gallery=gallery, pack=pack, device=device)
    opened, pipeline = open_all(settings, create=True)
    with opened, Progress("Enrolling", 8) as progress:
        added = build_demo(opened, pipeline, progress)
        people, _ = opened.count()
    photo = demo_photo(*GROUP_PHOTO)
    say(
        json,
        {"gallery": gallery_name(settings), "added": added, "people": people, "photo": str(photo)},
        f"Added {len(added)} people; {people} are in {gallery_name(settings)}. Try:",
        f"  facerec identify --gallery {gallery_name(settings)} {photo}",
    )
