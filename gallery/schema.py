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
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 2

NAMED, UNNAMED, DISMISSED = "named", "unnamed", "dismissed"
"""States of an identity: a person somebody named; a face, or group of faces, that nobody has named
yet; one that somebody does not want to see."""
ACTIVE, STAGING, RETIRED = "active", "staging", "retired"
"""States of a generation; exactly one is active."""

# SQLite gives ids only to columns of type INTEGER.
_Id = BigInteger().with_variant(Integer, "sqlite")


# In the order of code points everywhere: a server sorts by its language otherwise.
_SortedText = Text().with_variant(Text(collation="C"), "postgresql")


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
    generation: Mapped[int] = mapped_column(_Id, ForeignKey("generations.id"))
    """The active one: its contract is the gallery's, its vectors answer."""
    revision: Mapped[int] = mapped_column(BigInteger)
    """Counts the writes; every write raises it by one."""
    removals_from: Mapped[int] = mapped_column(BigInteger)
    """The table of removals is complete for writes after this revision."""
    index_kind: Mapped[str] = mapped_column(String(8))
    """Type of the vector index: "auto", or what somebody chose."""
    vacuum_due: Mapped[bool]
    """Rows were removed, and the file was not compacted since."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class AlembicRow(Base):
    """Alembic's own note of the schema version; see :mod:`gallery.migrations`."""

    __tablename__ = "alembic_version"

    version_num: Mapped[str] = mapped_column(String(32))
    __table_args__ = (PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),)


class GenerationRow(Base):
    """The vectors of one model: what they mean, and whether they answer."""

    __tablename__ = "generations"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    contract: Mapped[str] = mapped_column(Text)
    pack_name: Mapped[str] = mapped_column(String(64))
    thresholds: Mapped[str | None] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(8))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class IdentityRow(Base):
    """A person, or somebody who has yet to be named; a name is there in the state NAMED only."""

    __tablename__ = "identities"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    state: Mapped[str] = mapped_column(String(9), index=True)
    name: Mapped[str | None] = mapped_column(Text)
    name_key: Mapped[str | None] = mapped_column(_SortedText, unique=True)
    """What names are compared by: see :func:`gallery.values.name_key`."""
    details: Mapped[str] = mapped_column(Text)
    """The caller's metadata, a JSON object."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ApartRow(Base):
    """Two identities that somebody said are two people; nothing takes them for one again."""

    __tablename__ = "apart"
    __table_args__ = (CheckConstraint("first_id < second_id", name="a_pair_once"),)

    first_id: Mapped[int] = mapped_column(
        _Id, ForeignKey("identities.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    second_id: Mapped[int] = mapped_column(
        _Id,
        ForeignKey("identities.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
        index=True,
    )


class TemplateRow(Base):
    """One view of a person; a face of a photo is theirs once."""

    __tablename__ = "templates"
    __table_args__ = (
        UniqueConstraint("identity_id", "content_sha256", "face", name="a_face_of_a_photo_once"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    identity_id: Mapped[int] = mapped_column(_Id, ForeignKey("identities.id"))
    source: Mapped[str] = mapped_column(Text)
    content_sha256: Mapped[str] = mapped_column(String(64), index=True)
    face: Mapped[int] = mapped_column(Integer)
    """Which of the photo's faces, as they were detected; 0 for an enrolment."""
    box: Mapped[bytes | None] = mapped_column(LargeBinary)
    """(4,) float32, little-endian, xyxy pixels of the photo; NULL where it was not kept."""
    photo_id: Mapped[int | None] = mapped_column(
        _Id, ForeignKey("photos.id", ondelete="SET NULL"), index=True
    )
    """Of the indexed photo that it came from; NULL for an enrolment."""
    det_score: Mapped[float] = mapped_column(Double)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revision: Mapped[int] = mapped_column(BigInteger, index=True)
    """Of the write that added the template, or last gave it to somebody else or a name."""


class EmbeddingRow(Base):
    """The vector of a template in one generation: d float32, little-endian."""

    __tablename__ = "embeddings"

    template_id: Mapped[int] = mapped_column(
        _Id, ForeignKey("templates.id", ondelete="CASCADE"), primary_key=True
    )
    generation: Mapped[int] = mapped_column(_Id, ForeignKey("generations.id"), primary_key=True)
    vector: Mapped[bytes] = mapped_column(LargeBinary)


class UnembeddedRow(Base):
    """A template that has no vector in a generation, and why; it does not answer there."""

    __tablename__ = "unembedded"

    template_id: Mapped[int] = mapped_column(
        _Id, ForeignKey("templates.id", ondelete="CASCADE"), primary_key=True
    )
    generation: Mapped[int] = mapped_column(_Id, ForeignKey("generations.id"), primary_key=True)
    reason: Mapped[str] = mapped_column(Text)


class PhotoRow(Base):
    """A photo that was indexed, by its content and whom it was to show: what became of it."""

    __tablename__ = "photos"
    __table_args__ = (
        UniqueConstraint("content_sha256", "label", name="a_photo_of_a_name_once"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    content_sha256: Mapped[str] = mapped_column(String(64))
    label: Mapped[str] = mapped_column(String(16))
    """Which name it was indexed under, as a digest; empty for none. See gallery.ledger."""
    outcome: Mapped[str] = mapped_column(String(12))
    details: Mapped[str] = mapped_column(Text)
    """Reasons, a JSON object."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class FileRow(Base):
    """Where an indexed photo was last seen; a photo may lie in several places."""

    __tablename__ = "files"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    path: Mapped[str] = mapped_column(Text, unique=True)
    size: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    photo_id: Mapped[int | None] = mapped_column(_Id, ForeignKey("photos.id"), index=True)
    """NULL for an archive, whose photos have rows of their own."""
    archive_id: Mapped[int | None] = mapped_column(
        _Id, ForeignKey("files.id", ondelete="CASCADE"), index=True
    )
    """The archive that it is a member of."""
    label: Mapped[str] = mapped_column(String(16))
    """Of an archive: where the names of its photos came from, as a digest."""


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
