"""The steps, one module for each version of the schema. Alembic loads them by their files."""
