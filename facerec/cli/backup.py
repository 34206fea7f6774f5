"""Commands for the gallery's database as a whole: backup, restore, compact."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from facerec.cli.common import (
    DeviceOption,
    GalleryOption,
    JsonOption,
    PackOption,
    Progress,
    open_gallery,
    say,
    settings_for,
)
from facerec.errors import GalleryError


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write, outside of the gallery.")],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    json: JsonOption = False,
) -> None:
    """Write the whole gallery to one file, checked and with a checksum, while others use it.

    A backup is the gallery to the last row, to go back to; 'people export' is its people, to
    add to any gallery of the same model. Whom you remove later is still in both: they are
    yours to delete.

    Example: facerec backup /mnt/backups/people.backup --overwrite
    """
    from gallery.backup import back_up

    settings = settings_for(gallery=gallery, pack=pack, device=device)
    with Progress("Backing up", None) as progress:
        made = back_up(settings.gallery, file, overwrite=overwrite, progress=progress)
    say(
        json,
        {"file": str(file)} | asdict(made),
        f"{made.identities} identities with {made.templates} views are in {file}, "
        f"{made.database_bytes / 1e6:.1f} MB, checked.",
    )


def restore(
    file: Annotated[Path, typer.Argument(help="A file that 'facerec backup' wrote.")],
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="In the place of the gallery that is there.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make the gallery what it was when a backup was written.

    With --replace the gallery that is there is lost, once the backup has proved whole; no
    program may have it open. Whom you removed since is there again: remove them again.

    Example: facerec restore /mnt/backups/people.backup --gallery restored
    """
    from gallery.backup import restore as restore_backup

    settings = settings_for(gallery=gallery, pack=pack, device=device)
    with Progress("Restoring", None) as progress:
        made = restore_backup(file, settings.gallery, replace=replace, progress=progress)
    say(
        json,
        {"gallery": settings.gallery} | asdict(made),
        f"{settings.gallery} is as of {made.created_at}: {made.identities} identities with "
        f"{made.templates} views.",
    )


def compact(
    gallery: GalleryOption = None,
    pack: PackOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Rewrite the gallery's database, so that no byte of removed people is left in it.

    A removal does that itself in a database of up to 256 MB. In a larger one it overwrites what
    it removes, but fragments may stay until this command has run; it needs room for a second
    copy, and others can read meanwhile, but not write.

    Example: facerec compact
    """
    with open_gallery(gallery, pack, device) as opened:
        problem, residue = opened.compact(now=True), opened.residue
    if problem is not None:
        raise GalleryError(problem)
    lines = ["Compacted; nothing is left of what was removed."]
    if residue is not None:
        lines = ["The database is compacted; nothing is left there of what was removed.", residue]
    say(json, {"compacted": True, "residue": residue}, *lines)
