"""The ``facerec reembed`` command: a gallery moves to another model, and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facerec.cli.common import (
    DeviceOption,
    GalleryOption,
    JsonOption,
    Progress,
    say,
    settings_for,
)
from facerec.errors import ConfigError, FacerecError

if TYPE_CHECKING:
    from facerec.config import Settings
    from facerec.packs import Pack
    from facerec.pipeline import Pipeline
    from gallery.generations import Generation, Unembedded
    from gallery.reembed import Moved, Status

_LISTED = 10
_LANDMARKS = ("auto", "stored", "detected")

NewPackOption = Annotated[
    str | None, typer.Option("--pack", "-p", metavar="NAME|DIR", help="The pack to move to.")
]


def reembed(
    gallery: GalleryOption = None,
    pack: NewPackOption = None,
    device: DeviceOption = None,
    photos: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Where photos lie now of which no crop was kept."),
    ] = None,
    landmarks: Annotated[
        str,
        typer.Option(
            metavar="auto|stored|detected",
            help="Align a crop by the landmarks stored with it, or by the new pack's detector; "
            "auto: stored if both packs have one detector.",
        ),
    ] = "auto",
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Switch even if most templates cannot be embedded.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Say where the gallery stands.")] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to the model from before the switch.")
    ] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="Drop a move under way, or what is kept to go back.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Move a gallery to another model: embed everybody anew, check, and switch at once.

    The gallery answers all the while, and people who are enrolled or removed meanwhile are not
    lost. Interrupted, the same command goes on. The old vectors stay for --rollback until
    --discard. Exit code 1 if a template could not be embedded: it is listed, and does not answer.

    Example: facerec reembed --pack packs/mine
    """
    chosen = [name for name, on in (("--status", status), ("--rollback", rollback),
                                    ("--discard", discard)) if on]  # fmt: skip
    if len(chosen) > 1 or (pack is not None and chosen in (["--status"], ["--discard"])):
        raise ConfigError("give one of --pack NEW, --status, --rollback and --discard")
    if landmarks not in _LANDMARKS:
        raise ConfigError(f"--landmarks is one of {', '.join(_LANDMARKS)}, not {landmarks!r}")
    settings = settings_for(gallery=gallery, pack=pack, device=device)
    if status:
        _show_status(settings, json)
    elif discard:
        _discard(settings, json)
    else:
        _move(settings, photos or [], landmarks, anyway=anyway, back=rollback, json=json)


def _show_status(settings: Settings, json: bool) -> None:
    from gallery.reembed import status

    now = status(settings.gallery)
    say(json, _status_json(now), *_status_lines(now))


def _discard(settings: Settings, json: bool) -> None:
    from gallery.reembed import discard

    with Progress("Removing", None) as progress:
        gone = discard(settings.gallery, progress)
    say(json, {"discarded": _generation_json(gone)}, f"Removed the vectors of {_called(gone)}.")


def _move(
    settings: Settings, photos: list[Path], landmarks: str, *, anyway: bool, back: bool, json: bool
) -> None:
    from gallery.reembed import move, roll_back, status

    for folder in photos:
        if not folder.is_dir():
            raise ConfigError(f"--photos {folder}: no such folder")
    before = status(settings.gallery)
    pack = _pack_to_go_back_to(settings, before) if back else _new_pack(settings)
    pipeline = _pipeline(settings, pack) if pack is not None else None
    options: dict[str, Any] = {
        "detect": pack is not None and _must_detect(settings, landmarks, before.active, pack),
        "photos": photos,
        "max_pixels": settings.max_pixels,
        "anyway": anyway,
    }
    with Progress("Embedding", None, rate="faces") as progress:
        if back:
            done = roll_back(settings.gallery, pipeline, progress=progress, **options)
        else:
            assert pipeline is not None
            done = move(settings.gallery, pipeline, progress=progress, **options)
    warnings = _warnings(settings, done)
    say(json, _moved_json(done, warnings), *_moved_lines(done))
    if not json:
        for warning in warnings:
            print(f"Warning: {warning}", file=sys.stderr)
    if done.unembedded:
        raise typer.Exit(1)


def _new_pack(settings: Settings) -> Pack:
    from facerec.packs import find_pack

    if settings.pack is None:
        raise ConfigError(
            "which pack is the gallery to move to? Name it with --pack; 'facerec packs' lists them"
        )
    return find_pack(settings.pack, search=settings.packs, cache=settings.cache)


def _pack_to_go_back_to(settings: Settings, before: Status) -> Pack | None:
    """The pack that was named, else that of the generation that is kept, if it is here."""
    from facerec.packs import find_pack

    if settings.pack is not None:
        return _new_pack(settings)
    if before.other is None:
        return None
    try:
        found = find_pack(before.other.pack_name, search=settings.packs, cache=settings.cache)
        return found if found.contract == before.other.contract else None
    except FacerecError:
        return None


def _pipeline(settings: Settings, pack: Pack) -> Pipeline:
    from facerec.pipeline import Pipeline

    return Pipeline.load(pack, device=settings.device, threads=settings.threads)


def _must_detect(settings: Settings, landmarks: str, active: Generation, new: Pack) -> bool:
    """Whether the crops' landmarks, which the gallery's own pack found, are not the new pack's."""
    from facerec.packs import find_pack
    from gallery.stored_faces import same_detector

    if landmarks != "auto":
        return landmarks == "detected"
    try:
        old = find_pack(active.pack_name, search=settings.packs, cache=settings.cache)
        return not same_detector(old, new)
    except FacerecError:
        return True


def _warnings(settings: Settings, done: Moved) -> list[str]:
    from facerec.packs import find_pack

    name, found = done.active.pack_name, []
    if done.active.thresholds is None:
        found.append(
            f"pack {name!r} has no threshold table, so nothing is known of its false matches: "
            "identify asks for a cosine with --threshold until you measure it with 'facerec "
            "evaluate lfw DIR --write'."
        )
    try:
        find_pack(name, search=settings.packs, cache=settings.cache)
    except FacerecError:
        found.append(
            f"pack {name!r} is in none of the folders that are searched: name its folder with "
            "--pack from now on, or name the folder that it is in with FACEREC_PACKS."
        )
    return found


def _called(generation: Generation) -> str:
    return f"pack {generation.pack_name!r} (contract {generation.contract.contract_id})"


def _moved_lines(done: Moved) -> list[str]:
    rate = f", {done.embedded / done.seconds:.0f} a second" if done.embedded else ""
    lines = [f"Embedded {done.embedded:,} templates in {done.seconds:.0f} s{rate}."]
    if done.switched:
        lines.append(
            f"The gallery now answers with {_called(done.active)}. The old vectors are kept: "
            "'facerec reembed --rollback' goes back to them, --discard removes them."
        )
    else:
        lines.append(f"The gallery was of {_called(done.active)} already.")
    return [*lines, *_unembedded_lines(done.unembedded)]


def _unembedded_lines(unembedded: tuple[Unembedded, ...]) -> list[str]:
    if not unembedded:
        return []
    lines = [
        (
            f"{len(unembedded):,} templates have no vector and do not answer; their people are "
            "kept. Once their photos are found, 'facerec reembed --pack' with --photos tries again:"
        )
    ]
    lines += [f"  {u.name}, #{u.template_id}: {u.reason}" for u in unembedded[:_LISTED]]
    if len(unembedded) > _LISTED:
        lines.append(f"  and {len(unembedded) - _LISTED:,} more; --json lists them all")
    return lines


def _status_lines(now: Status) -> list[str]:
    lines = [
        f"Answers: {_called(now.active)}, {now.active.embedded:,} of {now.templates:,} templates."
    ]
    other = now.other
    if other is not None and other.state == "staging":
        lines.append(
            f"Under way: a move to {_called(other)}, {other.embedded:,} templates embedded, "
            f"{now.missing:,} to go. 'facerec reembed --pack {other.pack_name}' goes on, "
            "--discard drops it."
        )
    elif other is not None:
        lines.append(
            f"Kept: the vectors of {_called(other)}, without {now.missing:,} templates that came "
            "since. --rollback goes back to them, --discard removes them."
        )
    return [*lines, *_unembedded_lines(now.unembedded)]


def _generation_json(generation: Generation) -> dict[str, Any]:
    return {
        "pack": generation.pack_name,
        "contract_id": generation.contract.contract_id,
        "state": generation.state,
        "created_at": generation.created_at.isoformat(),
        "embedded": generation.embedded,
        "unembedded": generation.unembedded,
        "has_thresholds": generation.thresholds is not None,
    }


def _status_json(now: Status) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "active": _generation_json(now.active),
        "other": _generation_json(now.other) if now.other else None,
        "templates": now.templates,
        "missing": now.missing,
        "unembedded": [asdict(u) for u in now.unembedded],
        "unembedded_there": [asdict(u) for u in now.unembedded_there],
    }


def _moved_json(done: Moved, warnings: list[str]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "active": _generation_json(done.active),
        "embedded": done.embedded,
        "switched": done.switched,
        "seconds": round(done.seconds, 3),
        "unembedded": [asdict(u) for u in done.unembedded],
        "warnings": warnings,
    }
