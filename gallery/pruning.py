"""Files that are gone take their templates with them, unless their content lies elsewhere.

Imports the core and this package.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from facerec.types import Failure
from gallery.gallery import Gallery
from gallery.index_report import IndexReport
from gallery.items import ArchiveStart, Item, displayable, path_key
from gallery.ledger import (
    FileEntry,
    files_at,
    files_below,
    members_of,
    remove_files,
    remove_photos,
    starts_below,
    unheld,
)
from gallery.sources import Sources

_PAGE = 1000


def prune(gallery: Gallery, sources: Sources, report: IndexReport) -> None:
    """Go through the files that were indexed below the roots of ``sources``, and drop those gone.

    Of a manifest, its own folder is looked through; where ``sources`` look at some paths only,
    those. A root below which there is nothing to index any more is left alone, and reported: a
    disk that is not mounted looks just like a folder that was emptied. Raises GalleryError.
    """
    if sources.only is not None:
        _prune_only(gallery, sources.only, sources.roots, report)
        return
    for root, found in sources.found_below.items():
        below = root.parent if root in sources.manifests else root
        if found:
            prune_below(gallery, below, report)
        else:
            _leave_alone(gallery, root, below, report)


def prune_below(gallery: Gallery, root: Path, report: IndexReport) -> None:
    """Drop what is gone at or below ``root``, whatever else is there. Raises GalleryError."""
    _prune_files(gallery, [root], report)
    for start in starts_below(str(root)):
        after = ""
        while True:
            with gallery.reading() as view:
                page = files_below(view, start, after, _PAGE)
            if not page:
                break
            after = page[-1].key
            _drop_gone(gallery, page, report)


def _prune_only(
    gallery: Gallery, only: Iterable[Path], roots: Iterable[Path], report: IndexReport
) -> None:
    """Those of the paths that are gone, unless all of their root is."""
    known = set(roots)
    gone: dict[Path, list[Path]] = {}
    for path in only:
        root = next((p for p in (path, *path.parents) if p in known), None)
        if root is not None and not os.path.lexists(path):
            gone.setdefault(root, []).append(path)
    for root, paths in gone.items():
        if not _holds_any(root):
            _leave_alone(gallery, root, root, report)
            continue
        folders = _prune_files(gallery, paths, report)
        for folder in folders:
            if folders.isdisjoint(folder.parents):
                prune_below(gallery, folder, report)


def _prune_files(gallery: Gallery, paths: Iterable[Path], report: IndexReport) -> set[Path]:
    """Drop those that are gone; the paths at which no file was indexed: maybe folders."""
    others: set[Path] = set()
    rest = iter(paths)
    while some := list(islice(rest, _PAGE)):
        with gallery.reading() as view:
            files = files_at(view, [path_key(path) for path in some])
        _drop_gone(gallery, files.values(), report)
        others.update(path for path in some if path_key(path) not in files)
    return others


def _drop_gone(gallery: Gallery, entries: Iterable[FileEntry], report: IndexReport) -> None:
    gone = [entry for entry in entries if entry.is_gone()]
    if gone:
        report.add_pruned(*_drop(gallery, gone))


def _holds_any(root: Path) -> bool:
    """Whether there is a photo, video or archive at or below ``root``; looks no further."""
    return any(isinstance(found, (Item, ArchiveStart)) for found in Sources([root]))


def _leave_alone(gallery: Gallery, root: Path, below: Path, report: IndexReport) -> None:
    """Say so, if there is anything that might have been dropped."""
    with gallery.reading() as view:
        some = files_at(view, [path_key(below)]) or any(
            files_below(view, start, "", 1) for start in starts_below(str(below))
        )
    if some:
        where = displayable(root)
        report.add_failure(
            Failure(
                where,
                "nothing_left",
                f"{where}: no photo was found where there were some; is a disk not mounted? "
                "Nothing was removed for it. If they are meant to be gone, index the folder "
                "above with --prune.",
            )
        )


def _drop(gallery: Gallery, gone: Sequence[FileEntry]) -> tuple[int, int]:
    """(files, templates) that were dropped."""
    with gallery.writing() as change:
        still = files_at(change, [entry.key for entry in gone])
        photo_ids: set[int] = set()
        for entry in still.values():
            if entry.photo_id is not None:
                photo_ids.add(entry.photo_id)
                continue
            members = members_of(change, entry.id).values()
            photo_ids |= {m.photo_id for m in members if m.photo_id is not None}
        change.touch()
        remove_files(change, [entry.id for entry in still.values()])
        left = unheld(change, photo_ids)
        if left:
            gallery.mark_removal(change)
        return len(still), remove_photos(change, left)
