"""The first schema: photos, encounters, annotations, embeddings, and the log of identity with its projections."""

import sqlalchemy as sa
from alembic import op

from reid.errors import CatalogueError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LOG = ("identity_event", "event_annotation")


def upgrade() -> None:
    """Create every table, the guards of the log, and the row that writers lock."""
    _individuals()
    _photos()
    _annotations()
    _log()
    _vectors()
    if op.get_bind().dialect.name == "postgresql":
        _guard_postgresql()
    else:
        _guard_sqlite()
    op.execute("INSERT INTO catalogue_state (id, revision, vectors_revision) VALUES (1, 0, 0)")


def _guard_sqlite() -> None:
    """The log refuses to be altered, whoever tries."""
    for table in LOG:
        for action in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER keep_{table}_{action.lower()} BEFORE {action} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, 'the log of identity is only added to'); END"
            )


def _guard_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION keep_identity_log() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the log of identity is only added to'; END $$"
    )
    for table in LOG:
        op.execute(
            f"CREATE TRIGGER keep_{table} BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION keep_identity_log()"
        )


def downgrade() -> None:
    """Refused: there is nothing below the first schema but an empty database."""
    raise CatalogueError("the first schema has nothing below it", next_step="delete the catalogue to be without one")


def _individuals() -> None:
    """Animals and their names."""
    op.create_table(
        "individual",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("first_name", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("merged_into_id", ID, nullable=True),
        sa.Column("live", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["merged_into_id"], ["individual.id"], name="fk_individual_merged_into_id"),
        sa.PrimaryKeyConstraint("id", name="pk_individual"),
    )
    op.create_index("ix_individual_first_name", "individual", ["first_name"], unique=False)
    op.create_index("ix_individual_merged_into_id", "individual", ["merged_into_id"], unique=False)
    op.create_index("ix_individual_name", "individual", ["name"], unique=False)
    op.create_index(
        "uq_individual_live_name",
        "individual",
        ["name"],
        unique=True,
        sqlite_where=sa.text("live"),
        postgresql_where=sa.text("live"),
    )
    op.create_table(
        "former_name",
        sa.Column("individual_id", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["individual_id"], ["individual.id"], name="fk_former_name_individual_id"),
        sa.PrimaryKeyConstraint("individual_id", "name", name="pk_former_name"),
    )
    op.create_index("ix_former_name_name", "former_name", ["name"], unique=False)


def _photos() -> None:
    """Photos, where they are and when they were taken together."""
    op.create_table(
        "encounter",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_encounter"),
        sa.UniqueConstraint("key", name="uq_encounter_key"),
    )
    op.create_table(
        "photo",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("phash", sa.BigInteger(), nullable=True),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=True),
        sa.Column("taken_at", sa.DateTime(), nullable=True),
        sa.Column("latitude", sa.Double(), nullable=True),
        sa.Column("longitude", sa.Double(), nullable=True),
        sa.Column("camera", sa.Text(), nullable=True),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("encounter_id", ID, nullable=True),
        sa.Column("added_at", sa.DateTime(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["encounter_id"], ["encounter.id"], name="fk_photo_encounter_id"),
        sa.PrimaryKeyConstraint("id", name="pk_photo"),
        sa.UniqueConstraint("sha256", name="uq_photo_sha256"),
    )
    op.create_index("ix_photo_encounter_id", "photo", ["encounter_id"], unique=False)
    op.create_index(
        "ix_photo_out_of_service",
        "photo",
        ["revision"],
        unique=False,
        sqlite_where=sa.text("state = 'changed'"),
        postgresql_where=sa.text("state = 'changed'"),
    )
    op.create_index("ix_photo_path", "photo", ["path"], unique=False)
    op.create_index("ix_photo_revision", "photo", ["revision"], unique=False)
    op.create_index("ix_photo_taken_at", "photo", ["taken_at"], unique=False)
    op.create_index(
        "ix_photo_ungrouped",
        "photo",
        ["id"],
        unique=False,
        sqlite_where=sa.text("encounter_id IS NULL"),
        postgresql_where=sa.text("encounter_id IS NULL"),
    )
    op.create_table(
        "photo_copy",
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("photo_id", ID, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=True),
        sa.Column("present", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["photo_id"], ["photo.id"], name="fk_photo_copy_photo_id"),
        sa.PrimaryKeyConstraint("path", name="pk_photo_copy"),
    )
    op.create_index("ix_photo_copy_photo_id", "photo_copy", ["photo_id"], unique=False)


def _annotations() -> None:
    """Boxes in photos."""
    op.create_table(
        "annotation",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("photo_id", ID, nullable=False),
        sa.Column("x0", sa.Double(), nullable=False),
        sa.Column("y0", sa.Double(), nullable=False),
        sa.Column("x1", sa.Double(), nullable=False),
        sa.Column("y1", sa.Double(), nullable=False),
        sa.Column("confidence", sa.Double(), nullable=False),
        sa.Column("origin", sa.String(length=8), nullable=False),
        sa.Column("side", sa.String(length=8), nullable=False),
        sa.Column("species", sa.Text(), nullable=True),
        sa.Column("quality", sa.Double(), nullable=True),
        sa.Column("superseded_by_id", ID, nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("given_id", ID, nullable=True),
        sa.Column("individual_id", ID, nullable=True),
        sa.ForeignKeyConstraint(["given_id"], ["individual.id"], name="fk_annotation_given_id"),
        sa.ForeignKeyConstraint(["individual_id"], ["individual.id"], name="fk_annotation_individual_id"),
        sa.ForeignKeyConstraint(["photo_id"], ["photo.id"], name="fk_annotation_photo_id"),
        sa.ForeignKeyConstraint(["superseded_by_id"], ["annotation.id"], name="fk_annotation_superseded_by_id"),
        sa.PrimaryKeyConstraint("id", name="pk_annotation"),
    )
    op.create_index("ix_annotation_given_id", "annotation", ["given_id"], unique=False)
    op.create_index("ix_annotation_individual_id", "annotation", ["individual_id"], unique=False)
    op.create_index(
        "ix_annotation_out_of_service",
        "annotation",
        ["revision"],
        unique=False,
        sqlite_where=sa.text("superseded_by_id IS NOT NULL"),
        postgresql_where=sa.text("superseded_by_id IS NOT NULL"),
    )
    op.create_index("ix_annotation_photo_id", "annotation", ["photo_id"], unique=False)


def _log() -> None:
    """The events of identity."""
    op.create_table(
        "identity_event",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("individual_id", ID, nullable=True),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("other_id", ID, nullable=True),
        sa.Column("other_label", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("undoes_id", ID, nullable=True),
        sa.ForeignKeyConstraint(["individual_id"], ["individual.id"], name="fk_identity_event_individual_id"),
        sa.ForeignKeyConstraint(["other_id"], ["individual.id"], name="fk_identity_event_other_id"),
        sa.ForeignKeyConstraint(["undoes_id"], ["identity_event.id"], name="fk_identity_event_undoes_id"),
        sa.PrimaryKeyConstraint("id", name="pk_identity_event"),
    )
    op.create_index("ix_identity_event_individual_id", "identity_event", ["individual_id"], unique=False)
    op.create_index("ix_identity_event_other_id", "identity_event", ["other_id"], unique=False)
    op.create_index("ix_identity_event_undoes_id", "identity_event", ["undoes_id"], unique=False)
    op.create_table(
        "event_annotation",
        sa.Column("annotation_id", ID, nullable=False),
        sa.Column("event_id", ID, nullable=False),
        sa.Column("from_id", ID, nullable=True),
        sa.ForeignKeyConstraint(["annotation_id"], ["annotation.id"], name="fk_event_annotation_annotation_id"),
        sa.ForeignKeyConstraint(["event_id"], ["identity_event.id"], name="fk_event_annotation_event_id"),
        sa.ForeignKeyConstraint(["from_id"], ["individual.id"], name="fk_event_annotation_from_id"),
        sa.PrimaryKeyConstraint("annotation_id", "event_id", name="pk_event_annotation"),
    )
    op.create_index("ix_event_annotation_event_id", "event_annotation", ["event_id"], unique=False)
    op.create_index("ix_event_annotation_from_id", "event_annotation", ["from_id"], unique=False)
    op.create_table(
        "undone_event",
        sa.Column("event_id", ID, nullable=False),
        sa.ForeignKeyConstraint(["event_id"], ["identity_event.id"], name="fk_undone_event_event_id"),
        sa.PrimaryKeyConstraint("event_id", name="pk_undone_event"),
    )


def _vectors() -> None:
    """Embeddings, and the row of state."""
    op.create_table(
        "catalogue_state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("vectors_revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_catalogue_state"),
    )
    op.create_table(
        "embedding_model",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_embedding_model"),
        sa.UniqueConstraint("fingerprint", name="uq_embedding_model_fingerprint"),
    )
    op.create_table(
        "embedding",
        sa.Column("model_id", ID, nullable=False),
        sa.Column("annotation_id", ID, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["annotation_id"], ["annotation.id"], name="fk_embedding_annotation_id"),
        sa.ForeignKeyConstraint(["model_id"], ["embedding_model.id"], name="fk_embedding_model_id"),
        sa.PrimaryKeyConstraint("model_id", "annotation_id", name="pk_embedding"),
    )
    op.create_index("ix_embedding_model_id_revision", "embedding", ["model_id", "revision"], unique=False)
