"""Version 1 of the schema: people, and the vectors of one model. SQLite only.

Alembic's own table is the one thing here that galleries of version 1 did not have.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    _make_gallery()
    op.create_table(
        "identities",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("name_key", sa.Text(), nullable=False, unique=True),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "templates",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("identity_id", sa.Integer(), sa.ForeignKey("identities.id"), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.Column("det_score", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("identity_id", "content_sha256", name="one_face_of_a_photo"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_templates_revision", "templates", ["revision"])
    _make_what_templates_have()


def _make_gallery() -> None:
    op.create_table(
        "gallery",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("uuid", sa.String(32), nullable=False),
        sa.Column("contract", sa.Text(), nullable=False),
        sa.Column("pack_name", sa.String(64), nullable=False),
        sa.Column("thresholds", sa.Text(), nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("vacuum_due", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint("id = 1", name="one_row"),
    )


def _make_what_templates_have() -> None:
    op.create_table(
        "embeddings",
        _template_id(),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "crops",
        _template_id(),
        sa.Column("jpeg", sa.LargeBinary(), nullable=False),
        sa.Column("landmarks", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "removals",
        sa.Column("template_id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_removals_revision", "removals", ["revision"])


def _template_id() -> sa.Column[int]:
    return sa.Column(
        "template_id",
        sa.Integer(),
        sa.ForeignKey("templates.id", ondelete="CASCADE"),
        primary_key=True,
    )
