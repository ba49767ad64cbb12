"""What a device keeps of the rounds it took part in: models, and what it answered.

A question that comes twice, since the connection broke or the server was started again, is answered
the same without training twice.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from penstock.errors import FormatError, PenstockError
from penstock.federated.array_file import pack_arrays, unpack_arrays
from penstock.federated.arrays import Arrays, digest
from penstock.federated.client.database import Database
from penstock.federated.client.room import make_room
from penstock.federated.protocol import TrainResult

GLOBAL, TEACHER = "global", "teacher"  # names of models: last received; before this chunk
ANSWERS_KEPT = 4  # of each kind, with their arrays


@dataclass(frozen=True)
class StoredModel:
    """A model of the federation, as it was when it was stored."""

    arrays: Arrays
    options: str
    ratio: float
    run: str
    round_number: int
    chunk: int


class Rounds:
    """Models and answers in a store's database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.path = database.path

    def save_model(self, name: str, model: StoredModel) -> None:
        """Keep a model under a name; the one before goes."""
        blob = pack_arrays(model.arrays)
        with self.database.writing() as db:
            make_room(self.database, len(blob))
            db.execute(
                "INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    name,
                    model.run,
                    model.round_number,
                    model.chunk,
                    model.options,
                    model.ratio,
                    blob,
                    digest(model.arrays),
                    time.time(),
                ),
            )

    def model(self, name: str) -> StoredModel | None:
        """A model; None where there is none, or it is damaged: the server sends it again."""
        with self.database.reading() as db:
            row = db.execute(
                "SELECT arrays, options, ratio, run, round_number, chunk, sha256 FROM models "
                "WHERE name = ?",
                (name,),
            ).fetchone()
        if row is None:
            return None
        try:
            arrays = unpack_arrays(row[0], f"{self.path}: model {name}")
        except FormatError:
            return None
        return StoredModel(arrays, *row[1:6]) if digest(arrays) == row[6] else None

    def answer(
        self, kind: str, run: str, round_number: int, asked: str
    ) -> tuple[TrainResult, Arrays | None] | None:
        """What this very question was answered before; None where it was not."""
        with self.database.reading() as db:
            row = db.execute(
                "SELECT result, arrays FROM answers "
                "WHERE kind = ? AND run = ? AND round_number = ? AND asked = ?",
                (kind, run, round_number, asked),
            ).fetchone()
        if row is None:
            return None
        try:
            result = TrainResult.from_record(json.loads(row[0]), str(self.path))
            arrays = None if row[1] is None else unpack_arrays(row[1], str(self.path))
        except (PenstockError, ValueError):
            return None
        if arrays is not None and digest(arrays) != result.sha256:
            return None
        return result, arrays

    def save_answer(
        self, kind: str, asked: str, result: TrainResult, arrays: Arrays | None
    ) -> None:
        """Keep an answer; the oldest go."""
        blob = None if arrays is None else pack_arrays(arrays)
        with self.database.writing() as db:
            make_room(self.database, len(blob or b""))
            db.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    kind,
                    result.run,
                    result.round_number,
                    asked,
                    json.dumps(result.to_record()),
                    blob,
                    time.time(),
                ),
            )
            db.execute(
                # By number, not by time: a clock may be set back.
                "DELETE FROM answers WHERE kind = ? AND rowid NOT IN "
                "(SELECT rowid FROM answers WHERE kind = ? ORDER BY rowid DESC LIMIT ?)",
                (kind, kind, ANSWERS_KEPT),
            )

    def last_answer(self) -> TrainResult | None:
        """The last one to a train message, for the status."""
        with self.database.reading() as db:
            row = db.execute(
                "SELECT result FROM answers WHERE kind = 'train' ORDER BY rowid DESC LIMIT 1"
            ).fetchone()
        if row is None:
            return None
        try:
            return TrainResult.from_record(json.loads(row[0]), str(self.path))
        except (PenstockError, ValueError):
            return None
