"""The tables of the task-history database, one function a version; sqlite-utils applies each once, in a transaction."""

from __future__ import annotations

from contextlib import closing

from sqlite_utils import Database, Migrations

migrations = Migrations("automl_tl")


@migrations()
def m001_tables(db: Database) -> None:
    """The first schema. `hash` is 40 bits of what the ranker learns from a row; sums of it name a state of the history."""
    for statement in (
        "CREATE TABLE tasks (fingerprint TEXT PRIMARY KEY, name TEXT, source_dataset TEXT, classes INTEGER, train INTEGER,"
        " validation INTEGER, test INTEGER) WITHOUT ROWID",
        "CREATE TABLE backbones (name TEXT PRIMARY KEY, source_dataset TEXT, params INTEGER, macs INTEGER, facts TEXT,"
        " hash INTEGER) WITHOUT ROWID",
        "CREATE TABLE profiles (task TEXT PRIMARY KEY REFERENCES tasks, facts TEXT, hash INTEGER) WITHOUT ROWID",
        "CREATE TABLE meta_features (task TEXT REFERENCES tasks, name TEXT, value REAL, PRIMARY KEY (task, name)) WITHOUT ROWID",
        "CREATE TABLE sources (name TEXT PRIMARY KEY) WITHOUT ROWID",
        "CREATE TABLE distances (task TEXT REFERENCES tasks, source TEXT REFERENCES sources, metric TEXT, value REAL,"
        " PRIMARY KEY (task, source, metric)) WITHOUT ROWID",
        "CREATE TABLE scores (task TEXT REFERENCES tasks, backbone TEXT REFERENCES backbones, metric TEXT, value REAL,"
        " PRIMARY KEY (task, backbone, metric)) WITHOUT ROWID",
        "CREATE TABLE trials (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, task TEXT NOT NULL REFERENCES tasks,"
        " backbone TEXT NOT NULL REFERENCES backbones, strategy TEXT, hyperparameters TEXT, seed INTEGER, status TEXT,"
        " accuracy REAL, validation TEXT, test TEXT, seconds REAL, memory_mb REAL, artefact TEXT, error TEXT,"
        " provenance TEXT, speed REAL, hash INTEGER)",
        "CREATE INDEX trials_by_task ON trials (task, status)",
        "CREATE TABLE points (trial TEXT REFERENCES trials (id), position INTEGER, epoch REAL, seconds REAL, loss REAL,"
        " score REAL, memory_mb REAL, note TEXT, PRIMARY KEY (trial, position)) WITHOUT ROWID",
        "CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID",
    ):
        db.execute(statement)


@migrations()
def m002_objectives(db: Database) -> None:
    """Scores of tasks that ask for something else than accuracy are not learnt from together with those that do."""
    db.execute("ALTER TABLE tasks ADD COLUMN objective TEXT NOT NULL DEFAULT 'accuracy'")


@migrations()
def m003_other_results(db: Database) -> None:
    """What else came of a trial: the same work with another result, on another machine or in another version.

    `facts` is the whole trial as JSON, provenance and curve included; `result` is a hash of what came out. A trial's row is
    replaced when more is known of it, so the reference is checked at the end of the transaction.
    """
    db.execute(
        "CREATE TABLE other_results (trial TEXT REFERENCES trials (id) DEFERRABLE INITIALLY DEFERRED, result TEXT,"
        " status TEXT, accuracy REAL, seconds REAL, memory_mb REAL, speed REAL, hash INTEGER, facts TEXT,"
        " PRIMARY KEY (trial, result)) WITHOUT ROWID"
    )


def newer(db: Database) -> list[str]:
    """What a later version has changed in the tables of this database already, which nobody can read here."""
    with closing(Database(memory=True)) as empty:
        ours = {migration.name for migration in migrations.pending(empty)}
    return [migration.name for migration in migrations.applied(db) if migration.name not in ours]
