"""The tables of a gallery, one definition for every database. Imports SQLAlchemy only.

Ids are never reused: an id that was removed must not come to mean another person
or another vector, or an index that has yet to catch up would answer wrongly. Vectors
and crops have tables of their own, so that listing people reads neither.
"""

from __future__ import annotations

from datetime import datetime, timezone

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 1

# SQLite gives ids only to columns of type INTEGER.
_Id = BigInteger().with_variant(Integer, "sqlite")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, stored in UTC; SQLite itself keeps no zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(timezone.utc).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=timezone.utc)


class Base(DeclarativeBase):
    """Holds the metadata of all tables."""


class MetaRow(Base):
    """The gallery itself: exactly one row."""

    __tablename__ = "gallery"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    schema_version: Mapped[int]
    uuid: Mapped[str] = mapped_column(String(32))
    contract: Mapped[str] = mapped_column(Text)
    pack_name: Mapped[str] = mapped_column(String(64))
    thresholds: Mapped[str | None] = mapped_column(Text)
    revision: Mapped[int] = mapped_column(BigInteger)
    """Counts the writes; every write raises it by one."""
    vacuum_due: Mapped[bool]
    """Rows were removed, and the file was not compacted since."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class IdentityRow(Base):
    """A person."""

    __tablename__ = "identities"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    name_key: Mapped[str] = mapped_column(Text, unique=True)
    """What names are compared by: see :func:`gallery.values.name_key`."""
    details: Mapped[str] = mapped_column(Text)
    """The caller's metadata, a JSON object."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class TemplateRow(Base):
    """One enrolled view of a person; a photo gives a person at most one."""

    __tablename__ = "templates"
    __table_args__ = (
        UniqueConstraint("identity_id", "content_sha256", name="one_face_of_a_photo"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    identity_id: Mapped[int] = mapped_column(_Id, ForeignKey("identities.id"))
    source: Mapped[str] = mapped_column(Text)
    content_sha256: Mapped[str] = mapped_column(String(64))
    det_score: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revision: Mapped[int] = mapped_column(BigInteger, index=True)
    """Of the write that added the template, or last gave it to another person."""


class EmbeddingRow(Base):
    """The vector of a template: d float32, little-endian."""

    __tablename__ = "embeddings"

    template_id: Mapped[int] = mapped_column(
        _Id, ForeignKey("templates.id", ondelete="CASCADE"), primary_key=True
    )
    vector: Mapped[bytes] = mapped_column(LargeBinary)


class CropRow(Base):
    """The loose crop of a template, for a later model to align again."""

    __tablename__ = "crops"

    template_id: Mapped[int] = mapped_column(
        _Id, ForeignKey("templates.id", ondelete="CASCADE"), primary_key=True
    )
    jpeg: Mapped[bytes] = mapped_column(LargeBinary)
    landmarks: Mapped[bytes] = mapped_column(LargeBinary)
    """(5, 2) float32, little-endian, pixels of the crop."""


class RemovalRow(Base):
    """The id of a removed template, and nothing else of it: how other processes learn."""

    __tablename__ = "removals"

    template_id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(BigInteger, index=True)
