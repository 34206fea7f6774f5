"""From the tables of an earlier facerec to those of this one, with Alembic.

``versions`` holds one step for each version of the schema; Alembic's revision "0002" leads to
schema version 2. A new database is made from :mod:`gallery.schema` at once and marked as being
at the last step; a test sees to it that both ways lead to the same tables. Whoever changes
gallery/schema.py after a release raises SCHEMA_VERSION and adds a step.

Imports this package's database and schema; Alembic where it is needed.
"""

from __future__ import annotations

import logging

from sqlalchemy import Connection, insert, select

from gallery.database import Database
from gallery.schema import SCHEMA_VERSION, AlembicRow, MetaRow

_log = logging.getLogger(__name__)


def revision_of(schema_version: int) -> str:
    """Alembic's name of a version of the schema."""
    return f"{schema_version:04d}"


def mark_as_new(connection: Connection) -> None:
    """Note for Alembic that the tables, just made, are those of this version."""
    connection.execute(insert(AlembicRow).values(version_num=revision_of(SCHEMA_VERSION)))


def upgrade(database: Database) -> None:
    """Bring an earlier version's tables up to this one, in one transaction.

    Of several processes one does it, and the others wait. Cut short, it has changed nothing.
    No copy of the old database is kept: whoever is removed later would still be in it.
    """
    with database.migrating() as connection:
        before = connection.execute(select(MetaRow.schema_version)).scalar_one()
        if before >= SCHEMA_VERSION:
            return
        _log.warning(
            "%s: from an earlier facerec; upgrading it (schema %d to %d), which that one cannot "
            "read any more",
            database.name, before, SCHEMA_VERSION,
        )  # fmt: skip
        run(connection, from_version=before, to_version=SCHEMA_VERSION)


def run(connection: Connection, *, from_version: int, to_version: int) -> None:
    """Take the steps, inside the transaction that ``connection`` is in. 0: without tables."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "gallery:migrations")
    config.attributes["connection"] = connection
    if from_version == 1:  # which did not know of Alembic
        command.stamp(config, revision_of(1))
    command.upgrade(config, revision_of(to_version))
