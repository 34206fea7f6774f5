"""Pairs of identities that somebody said are two people. Imports SQLAlchemy and this package's
records and schema.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, delete, insert, or_, select

from gallery.records import ReadTransaction, WriteTransaction
from gallery.schema import ApartRow


def all_pairs(view: ReadTransaction) -> list[tuple[int, int]]:
    """Every pair, the lower id first."""
    query = select(ApartRow.first_id, ApartRow.second_id)
    return [(row[0], row[1]) for row in view.connection.execute(query.order_by(*_KEY))]


def others_than(view: ReadTransaction, identity_id: int) -> set[int]:
    """Who is known not to be that one."""
    query = select(ApartRow.first_id, ApartRow.second_id).where(_holds(identity_id))
    rows = view.connection.execute(query)
    return {row[1] if row[0] == identity_id else row[0] for row in rows}


def keep_apart(change: WriteTransaction, identity_id: int, others: Iterable[int]) -> None:
    """Note that an identity is none of ``others``."""
    wanted = set(others) - others_than(change, identity_id) - {identity_id}
    if wanted:
        change.touch()
        rows = [
            {"first_id": min(identity_id, other), "second_id": max(identity_id, other)}
            for other in sorted(wanted)
        ]
        change.connection.execute(insert(ApartRow), rows)


def let_together(change: WriteTransaction, a: int, b: int) -> None:
    """Forget that two were kept apart: somebody says now that they are one."""
    change.touch()
    this = (ApartRow.first_id == min(a, b)) & (ApartRow.second_id == max(a, b))
    change.connection.execute(delete(ApartRow).where(this))


def inherit(change: WriteTransaction, from_id: int, to_id: int) -> None:
    """Whoever was none of ``from_id``'s is none of ``to_id``'s, whom those become part of."""
    keep_apart(change, to_id, others_than(change, from_id) - {to_id})


_KEY = (ApartRow.first_id, ApartRow.second_id)


def _holds(identity_id: int) -> ColumnElement[bool]:
    return or_(ApartRow.first_id == identity_id, ApartRow.second_id == identity_id)
