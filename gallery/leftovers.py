"""Photos that no file holds any more when a run has gone through everything.

Imports SQLAlchemy and this package's gallery, ledger, records and schema.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import aliased

from gallery.gallery import Gallery
from gallery.ledger import DUPLICATE, ENROLLED, REMOVED, remove_photos
from gallery.records import ReadTransaction
from gallery.schema import FileRow, PhotoRow

_AT_ONCE = 1000


def remove_left_over(gallery: Gallery) -> int:
    """Remove them, at the end of a run; returns how many templates. Raises GalleryError.

    No sooner: a file further on may hold what another held before. What a run leaves that does
    not get here, the next one finds.
    """
    removed = last = 0
    while True:
        with gallery.reading() as view:
            if not _left_over(view, last, 1):
                return removed
        with gallery.writing() as change:
            if some := _left_over(change, last, _AT_ONCE):
                gallery.mark_removal(change)
                removed += remove_photos(change, some)
                last = some[-1]


def _left_over(view: ReadTransaction, after_id: int, limit: int) -> list[int]:
    """At most ``limit`` of their ids above ``after_id``, ascending.

    Who was removed and is to stay so is remembered, and so is what was refused under a name
    while a file goes on holding the same content under another.
    """
    held = select(FileRow.id).where(FileRow.photo_id == PhotoRow.id).exists()
    other = aliased(PhotoRow)
    alike = (
        select(FileRow.id)
        .join(other, other.id == FileRow.photo_id)
        .where(other.content_sha256 == PhotoRow.content_sha256)
        .exists()
    )
    kept = PhotoRow.outcome.in_((ENROLLED, DUPLICATE))
    query = select(PhotoRow.id).where(
        PhotoRow.id > after_id, PhotoRow.outcome != REMOVED, ~held, kept | ~alike
    )
    return list(view.connection.execute(query.order_by(PhotoRow.id).limit(limit)).scalars())
