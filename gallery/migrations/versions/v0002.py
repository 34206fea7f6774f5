"""Version 2: identities without a name, generations of vectors, a ledger of indexed photos.

SQLite only: there was no gallery on a server before. SQLite changes few things about a table
in place, so those that change are made anew and filled from the old ones.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Keep everything, under the ids that it has."""
    _generations()
    _gallery()
    _identities()
    _ledger()
    _templates()
    _embeddings()


def _remake(name: str, columns: dict[str, str], *parts: Any, **options: Any) -> None:
    """Make the table anew of ``parts``. columns: name -> where its values come from, in SQL.

    Ids that were used once stay used: the table's counter is kept.
    """
    counters = sa.table("sqlite_sequence", sa.column("name"), sa.column("seq"))
    used = op.get_bind().scalar(sa.select(counters.c.seq).where(counters.c.name == name))
    op.create_table(f"new_{name}", *parts, **options)
    op.execute(
        f"INSERT INTO new_{name} ({', '.join(columns)}) "
        f"SELECT {', '.join(columns.values())} FROM {name}"
    )
    op.drop_table(name)
    op.rename_table(f"new_{name}", name)
    if used is not None:
        op.execute(counters.delete().where(counters.c.name == name))
        op.execute(counters.insert().values(name=name, seq=used))


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _generations() -> None:
    op.create_table(
        "generations",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("contract", sa.Text(), nullable=False),
        sa.Column("pack_name", sa.String(64), nullable=False),
        sa.Column("thresholds", sa.Text(), nullable=True),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.execute(
        "INSERT INTO generations (id, contract, pack_name, thresholds, state, created_at) "
        "SELECT 1, contract, pack_name, thresholds, 'active', created_at FROM gallery"
    )


def _gallery() -> None:
    kept = _same("id", "uuid", "revision", "vacuum_due", "created_at")
    _remake(
        "gallery",
        kept
        | {"schema_version": "2", "generation": "1", "removals_from": "0", "index_kind": "'auto'"},
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("uuid", sa.String(32), nullable=False),
        sa.Column("generation", sa.Integer(), sa.ForeignKey("generations.id"), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("removals_from", sa.BigInteger(), nullable=False),
        sa.Column("index_kind", sa.String(8), nullable=False),
        sa.Column("vacuum_due", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint("id = 1", name="one_row"),
    )


def _identities() -> None:
    kept = _same("id", "name", "name_key", "details", "created_at")
    _remake(
        "identities",
        kept | {"state": "'named'"},
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("state", sa.String(9), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("name_key", sa.Text(), nullable=True, unique=True),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_identities_state", "identities", ["state"])
    op.create_table(
        "apart",
        *(
            sa.Column(
                name,
                sa.Integer(),
                sa.ForeignKey("identities.id", ondelete="CASCADE"),
                primary_key=True,
                autoincrement=False,
            )
            for name in ("first_id", "second_id")
        ),
        sa.CheckConstraint("first_id < second_id", name="a_pair_once"),
    )
    op.create_index("ix_apart_second_id", "apart", ["second_id"])


def _ledger() -> None:
    op.create_table(
        "photos",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.Column("label", sa.String(16), nullable=False),
        sa.Column("outcome", sa.String(12), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.UniqueConstraint("content_sha256", "label", name="a_photo_of_a_name_once"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "files",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("path", sa.Text(), nullable=False, unique=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("photo_id", sa.Integer(), sa.ForeignKey("photos.id"), nullable=True),
        sa.Column(
            "archive_id", sa.Integer(), sa.ForeignKey("files.id", ondelete="CASCADE"), nullable=True
        ),
        sa.Column("label", sa.String(16), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_files_photo_id", "files", ["photo_id"])
    op.create_index("ix_files_archive_id", "files", ["archive_id"])


def _templates() -> None:
    kept = _same(
        "id", "identity_id", "source", "content_sha256", "det_score", "created_at", "revision"
    )
    _remake(
        "templates",
        kept | {"face": "0"},
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("identity_id", sa.Integer(), sa.ForeignKey("identities.id"), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.Column("face", sa.Integer(), nullable=False),
        sa.Column("box", sa.LargeBinary(), nullable=True),
        sa.Column(
            "photo_id", sa.Integer(), sa.ForeignKey("photos.id", ondelete="SET NULL"), nullable=True
        ),
        sa.Column("det_score", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("identity_id", "content_sha256", "face", name="a_face_of_a_photo_once"),
        sqlite_autoincrement=True,
    )
    for column in ("content_sha256", "photo_id", "revision"):
        op.create_index(f"ix_templates_{column}", "templates", [column])


def _embeddings() -> None:
    _remake(
        "embeddings",
        _same("template_id", "vector") | {"generation": "1"},
        *_template_and_generation(),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "unembedded",
        *_template_and_generation(),
        sa.Column("reason", sa.Text(), nullable=False),
    )


def _template_and_generation() -> tuple[sa.Column[int], sa.Column[int]]:
    template = sa.ForeignKey("templates.id", ondelete="CASCADE")
    return (
        sa.Column("template_id", sa.Integer(), template, primary_key=True),
        sa.Column("generation", sa.Integer(), sa.ForeignKey("generations.id"), primary_key=True),
    )
