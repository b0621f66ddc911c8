"""A study: the trials of one search, on disk, so that a search that was killed goes on where it was.

SQLite in write-ahead mode: a trial is one row, written when it is finished, so a kill loses the trial in flight and
nothing else, and readers may look on. A study belongs to one question (model, data, limits, seed, plugins); asked
another one, it refuses. One search at a time goes on with it (`alone`), since trials are known by their numbers.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from pumice.errors import PumiceError
from pumice.search.machine import fcntl
from pumice.search.trial import Trial

_SCHEMA = (
    "create table if not exists question (key text primary key, value text not null)",
    "create table if not exists trials (number integer primary key, trial text not null)",
)


@attrs.frozen
class Study:
    """The trials kept in one folder."""

    folder: Path

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @classmethod
    def open(cls, folder: Path, question: Mapping[str, Any]) -> Study:
        """The study in a folder, begun if it is not there.

        Raises:
            PumiceError: the folder cannot be used, holds no study, or one of another question.
        """
        study = cls(folder)
        try:
            study.models.mkdir(parents=True, exist_ok=True)
            with study._connection() as connection:
                for statement in _SCHEMA:
                    connection.execute(statement)
                asked = {key: json.dumps(value, sort_keys=True, default=str) for key, value in question.items()}
                known = dict(connection.execute("select key, value from question"))
                if not known:
                    connection.executemany("insert into question values (?, ?)", asked.items())
        except (OSError, sqlite3.Error) as error:
            raise PumiceError(f"cannot keep a study in '{folder}': {error}; choose another folder") from None
        other = sorted(key for key in {*asked, *known} if known and asked.get(key) != known.get(key))
        if other:
            raise PumiceError(
                f"the study in '{folder}' was made for another search ({', '.join(other)} differ): "
                "choose another folder"
            )
        return study

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While one search goes on with it; a kill ends that too.

        Raises:
            PumiceError: another does.
        """
        with (self.folder / "study.lock").open("a") as lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise PumiceError(
                        f"another search goes on in '{self.folder}': wait for its end, or choose another folder"
                    ) from None
            yield

    def trials(self) -> list[Trial]:
        """All finished trials, in their order."""
        with self._connection() as connection:
            rows = connection.execute("select trial from trials order by number").fetchall()
        return [Trial.from_json(json.loads(row[0])) for row in rows]

    def add(self, trial: Trial) -> None:
        with self._connection() as connection:
            text = json.dumps(trial.to_json(), default=float)
            connection.execute("insert or replace into trials values (?, ?)", (trial.number, text))

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that commits, or rolls back, and is closed."""
        connection = sqlite3.connect(self.folder / "study.sqlite", timeout=60.0)
        try:
            connection.execute("pragma journal_mode=wal")
            with connection:
                yield connection
        finally:
            connection.close()
