"""Export and import: a whole gallery through one file, checksummed.

An export is of one moment, and appears whole or not at all. An import verifies all of
the file before the first write, and then is one transaction. How the file is laid out
is :mod:`gallery.archive`. Imports the core and this package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from facerec.errors import ContractMismatch, GalleryError, IdentityExists
from gallery.archive import Export, ExportedPerson, ExportManifest, open_export, write_export
from gallery.folder import lies_below
from gallery.gallery import Gallery
from gallery.location import Location
from gallery.records import WriteTransaction
from gallery.scratch import scratch_folder
from gallery.sqlite import sync_folder
from gallery.store import Store
from gallery.values import MAX_NAME_LENGTH, metadata_json

Conflict = Literal["error", "merge", "rename"]
"""What to do with a person whose name is taken: refuse all; add the templates to the one who
has it; or import them as "Name (2)"."""


@dataclass(frozen=True)
class ImportResult:
    """What an import did. renamed: name in the file -> name in the gallery."""

    people_added: int
    people_merged: int
    templates_added: int
    duplicates: int
    renamed: Mapping[str, str] = field(default_factory=dict)


def export_gallery(gallery: Gallery, path: Path, *, overwrite: bool = False) -> Path:
    """Write the gallery, as it is at this moment, to the file ``path``; returns the path.

    The file appears whole or not at all. Raises GalleryError where it exists already
    (unless ``overwrite``), lies in the gallery's own folder, or cannot be written.
    """
    try:
        if gallery.location.folder and lies_below(path, gallery.folder):
            raise GalleryError(
                f"{path}: lies in the gallery's own folder, where a removed person must leave "
                "nothing. Export to another folder."
            )
        if path.exists() and not overwrite:
            raise GalleryError(f"{path}: exists already; name another file")
        with scratch_folder(path) as folder, (folder / path.name).open("wb") as stream:
            with gallery.reading() as view:
                write_export(stream, view, gallery.contract, gallery.pack_name, gallery.thresholds)
            stream.flush()
            os.fsync(stream.fileno())
            (folder / path.name).replace(path)
            sync_folder(path.absolute().parent)
    except OSError as exc:
        raise GalleryError(f"{path}: cannot be written ({exc.strerror or exc})") from exc
    return path


def read_manifest(path: Path) -> ExportManifest:
    """What is in the file, without verifying the rest of it. Raises GalleryError."""
    with open_export(path) as export:
        return export.manifest


def import_into(gallery: Gallery, path: Path, *, on_conflict: Conflict = "error") -> ImportResult:
    """Add everybody in the file to the gallery, in one transaction.

    Raises GalleryError for a file that is damaged or of an unknown version, ContractMismatch
    for one of another contract, IdentityExists for a name that is taken (``on_conflict``
    "error"): the gallery is then unchanged.
    """
    if on_conflict not in ("error", "merge", "rename"):
        raise GalleryError(f"on_conflict is error, merge or rename, not {on_conflict!r}")
    with open_export(path) as export:
        theirs, ours = export.manifest.contract.contract_id, gallery.contract.contract_id
        if theirs != ours:
            raise ContractMismatch(
                f"{path}: holds embeddings of pack {export.manifest.pack_name!r} (contract "
                f"{theirs}), but this gallery of pack {gallery.pack_name!r} (contract {ours}). "
                "Import it into a new folder and move that with "
                f"'facerec reembed --pack {gallery.pack_name}'."
            )
        export.verify()
        return _add(gallery, export, on_conflict)


def from_export(path: Path, place: str | Path | Location) -> Gallery:
    """A new gallery at ``place`` with all that is in the file, open.

    Raises GalleryError for a file that is damaged, or a place that holds anything yet.
    """
    with open_export(path) as export:
        export.verify()
        location = Location.of(place)
        if Store.exists(location):
            raise GalleryError(f"{location}: holds a gallery already; open it and import into it")
        about = export.manifest
        gallery = Gallery.open(
            location,
            contract=about.contract,
            thresholds=about.thresholds,
            pack_name=about.pack_name,
        )
        try:
            _add(gallery, export, "error")
        except BaseException:
            gallery.close()
            raise
        return gallery


def _add(gallery: Gallery, export: Export, on_conflict: Conflict) -> ImportResult:
    merged, added, duplicates = 0, 0, 0
    renamed: dict[str, str] = {}
    with gallery.writing() as change:
        people = list(export.people())
        if on_conflict == "error":
            _refuse_taken(change, people, export.path)
        ids = []
        for person in people:
            taken = change.find(person.name)
            if taken and on_conflict == "merge":
                merged += 1
                ids.append(taken.id)
                details = {**json.loads(person.details), **taken.metadata}
                if details != taken.metadata:
                    change.set_details(taken.id, metadata_json(details))
                continue
            name = person.name
            if taken:
                name = renamed[person.name] = _free_name(change, person.name)
            ids.append(change.add_identity(name, person.details, person.created_at))
        for some in export.templates():
            new = change.add_templates([(ids[person], template) for person, template in some])
            duplicates += new.count(None)
            added += len(new) - new.count(None)
    return ImportResult(len(people) - merged, merged, added, duplicates, renamed)


def _refuse_taken(change: WriteTransaction, people: Iterable[ExportedPerson], path: Path) -> None:
    taken = [person.name for person in people if change.find(person.name)]
    if taken:
        more = f" and {len(taken) - 3} more" if len(taken) > 3 else ""
        raise IdentityExists(
            f"{path}: the gallery has people of the same name: {', '.join(taken[:3])}{more}. "
            "Choose to merge them, or to import them under another name. "
            "The gallery is unchanged."
        )


def _free_name(change: WriteTransaction, name: str) -> str:
    number = 2
    while True:
        ending = f" ({number})"
        candidate = name[: MAX_NAME_LENGTH - len(ending)] + ending
        if change.find(candidate) is None:
            return candidate
        number += 1
