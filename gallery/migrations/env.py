"""What Alembic runs to take the steps, on the connection that it was handed.

See :mod:`gallery.migrations`, which calls it; it is no module to import.
"""

from __future__ import annotations

from alembic import context

from gallery.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,  # of SQLite, too, where transactions are begun explicitly
)
with context.begin_transaction():
    context.run_migrations()
