"""The history of the schema, for Alembic: one file per version, never altered once released."""
