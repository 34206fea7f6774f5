"""Files that are gone take their templates with them, unless their content lies elsewhere.

Imports the core and this package.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from facerec.types import Failure
from gallery.gallery import Gallery
from gallery.index_report import IndexReport
from gallery.items import displayable
from gallery.ledger import (
    FileEntry,
    files_at,
    files_below,
    is_below,
    members_of,
    remove_files,
    remove_photos,
    unheld,
)
from gallery.sources import Sources

_PAGE = 1000


def prune(gallery: Gallery, sources: Sources, report: IndexReport) -> None:
    """Go through the files that were indexed below the roots of ``sources``, and drop those gone.

    Of a manifest, its own folder is looked through. A root below which nothing was found in this
    run is left alone, and reported: a disk that is not mounted looks just like a folder that was
    emptied. Raises GalleryError.
    """
    if sources.only is not None:
        for path in sources.only:
            if not os.path.lexists(path):
                prune_below(gallery, path, report)
        return
    for root, found in sources.found_below.items():
        below = root.parent if root in sources.manifests else root
        if found:
            prune_below(gallery, below, report)
            continue
        with gallery.reading() as view:
            some = files_below(view, str(below), 0, _PAGE)
        if any(is_below(entry.key, str(below)) for entry in some):
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


def prune_below(gallery: Gallery, root: Path, report: IndexReport) -> None:
    """Drop what is gone at or below ``root``, whatever else is there. Raises GalleryError."""
    last = 0
    while True:
        with gallery.reading() as view:
            page = files_below(view, str(root), last, _PAGE)
        if not page:
            return
        last = page[-1].id
        gone = [e for e in page if is_below(e.key, str(root)) and e.is_gone()]
        if gone:
            report.add_pruned(*_drop(gallery, gone))


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
