"""Run by Alembic inside the transaction that `schema.upgrade` opened and handed over; never imported otherwise."""

from __future__ import annotations

from alembic import context

from reid.catalogue.tables import METADATA, spell_out_partial_indexes

spell_out_partial_indexes(METADATA)
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
