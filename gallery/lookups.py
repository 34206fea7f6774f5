"""Vectors of chosen templates and people: what an index on a server asks of the store.

Only people's: those without a name are not on a server.

Imports the core, SQLAlchemy, and this package's schema and records.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from sqlalchemy import Executable, Row, func, select

from gallery.records import ReadTransaction, VectorBatch
from gallery.schema import NAMED, EmbeddingRow, IdentityRow, RemovalRow, TemplateRow

_AT_ONCE = 4096
"""Ids of one statement."""


class Lookups:
    """Of one view of the store."""

    def __init__(self, view: ReadTransaction) -> None:
        self._view = view

    def of_templates(self, ids: Iterable[int]) -> VectorBatch:
        """Those of the templates that exist and have a vector, ids ascending."""
        rest = iter(ids)
        rows: list[Row[Any]] = []
        while some := list(islice(rest, _AT_ONCE)):
            rows += self._rows(self._vectors().where(TemplateRow.id.in_(some)))
        return self._view.batch(rows)

    def of_identity(self, identity_id: int) -> VectorBatch:
        """All that somebody has, ids ascending."""
        return self._view.batch(
            self._rows(self._vectors().where(TemplateRow.identity_id == identity_id))
        )

    def after(self, template_id: int, count: int) -> VectorBatch:
        """The next ``count`` behind an id, ids ascending."""
        query = self._vectors().where(TemplateRow.id > template_id).limit(count)
        return self._view.batch(self._rows(query))

    def count_people(self) -> int:
        """People with at least one vector. This takes a second for a million."""
        vector = select(EmbeddingRow.template_id).join(
            TemplateRow, TemplateRow.id == EmbeddingRow.template_id
        ).where(
            TemplateRow.identity_id == IdentityRow.id,
            EmbeddingRow.generation == self._view.generation,
        )  # fmt: skip
        query = select(func.count()).where(IdentityRow.state == NAMED, vector.exists())
        return int(self._view.connection.execute(query).scalar_one())

    def count_changes(self, revision: int) -> int:
        """Templates that writes after ``revision`` added, removed, or gave to somebody else."""
        added = select(func.count()).where(TemplateRow.revision > revision).scalar_subquery()
        gone = select(func.count()).where(RemovalRow.revision > revision).scalar_subquery()
        return int(self._view.connection.execute(select(added + gone)).scalar_one())

    def _vectors(self) -> Any:
        columns = select(TemplateRow.id, TemplateRow.identity_id, EmbeddingRow.vector)
        return self._of_ours(columns).order_by(TemplateRow.id)

    def _of_ours(self, columns: Any) -> Any:
        return (
            columns.join(IdentityRow, IdentityRow.id == TemplateRow.identity_id)
            .join(EmbeddingRow, EmbeddingRow.template_id == TemplateRow.id)
            .where(
                IdentityRow.state == NAMED,
                EmbeddingRow.generation == self._view.generation,
            )
        )

    def _rows(self, query: Executable) -> list[Row[Any]]:
        return list(self._view.connection.execute(query))
