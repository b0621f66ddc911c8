"""The teacher: what it answers to a batch, computed on the fly or remembered on disk.

The cache is a table from content to content. The key of a row is a hash of the teacher, of the values asked for and of
what the teacher is fed, so nothing outdated can be found, and several trainings may share one file, at the same time as
well. Every epoch reads every row once; then replacing rows would only ever throw out one that comes up again before the
one that replaced it. So a full cache stays as it is, and what does not fit is computed again.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.errors import DataError

if TYPE_CHECKING:
    from pumice.ops.record import Placement
    from pumice.plan import Plan

Array = NDArray[Any]
Values = dict[str, Array]


class Answers(Protocol):
    """Anything that gives the teacher's values for what it is fed."""

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Values by name."""
        ...


@attrs.frozen(eq=False)
class OnDevice:
    """A teacher on a device, which answers where it was asked."""

    plan: Plan
    placement: Placement

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        found = self.plan.run({name: self.placement.bring(x) for name, x in feeds.items()})
        here = all(isinstance(x, np.ndarray) for x in feeds.values())
        return {name: self.placement.fetch(y) for name, y in found.items()} if here else found


@attrs.define(eq=False)
class Cached:
    """Answers remembered row by row in a file of at most `megabytes`."""

    source: Answers
    path: Path
    megabytes: float
    identity: str
    """Of the teacher and the values asked for."""
    computed: int = 0
    """Rows that the teacher was run for."""
    _table: sqlite3.Connection = attrs.field(init=False)
    _bytes: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._table = sqlite3.connect(self.path, timeout=60.0)
            self._table.execute("PRAGMA journal_mode = WAL")  # readers and a writer do not wait for each other
            self._table.execute("PRAGMA synchronous = NORMAL")
            self._table.execute("CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID")
            (self._bytes,) = self._table.execute("SELECT COALESCE(SUM(LENGTH(row)), 0) FROM rows").fetchone()
        except (sqlite3.Error, OSError) as error:
            raise DataError(
                f"'{self.path}' cannot hold the teacher's answers ({error}): delete it, or name another file"
            ) from None

    def run(self, feeds: Mapping[str, Array]) -> Values:
        rows = _rows(feeds)
        keys = [self._key(row) for row in rows]
        known = [self._known(key) for key in keys]
        missing = [i for i, found in enumerate(known) if found is None]
        if missing:
            fed = {name: np.concatenate([rows[i][name] for i in missing]) for name in feeds}
            for i, answer in zip(missing, _rows(self.source.run(fed), len(missing)), strict=True):
                known[i] = answer
                self._keep(keys[i], answer)
            self.computed += len(missing)
            self._table.commit()
        found = [answer for answer in known if answer is not None]
        return {name: np.concatenate([answer[name] for answer in found]) for name in found[0]}

    def _key(self, row: Mapping[str, Array]) -> bytes:
        digest = hashlib.sha256(self.identity.encode())
        for name, array in sorted(row.items()):
            digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.digest()

    def _known(self, key: bytes) -> Values | None:
        found = self._table.execute("SELECT row FROM rows WHERE key = ?", (key,)).fetchone()
        return None if found is None else _unpacked(found[0])

    def _keep(self, key: bytes, answer: Values) -> None:
        row = _packed(answer)
        if self._bytes + len(row) <= self.megabytes * 1e6:
            self._table.execute("INSERT OR IGNORE INTO rows VALUES (?, ?)", (key, row))
            self._bytes += len(row)


def _packed(row: Values) -> bytes:
    """A line of JSON that describes the arrays, and their bytes."""
    head = json.dumps([[name, array.dtype.str, array.shape] for name, array in row.items()])
    return b"".join([head.encode(), b"\n", *(np.ascontiguousarray(array).tobytes() for array in row.values())])


def _unpacked(row: bytes) -> Values:
    at = row.index(b"\n")
    head, found, at = json.loads(row[:at]), Values(), at + 1
    for name, kind, shape in head:
        count = math.prod(shape)
        found[name] = np.frombuffer(row, kind, count, at).reshape(shape)
        at += found[name].nbytes
    return found


def _rows(arrays: Mapping[str, Array], count: int | None = None) -> list[Values]:
    """Sample by sample, each with an axis of length 1 in front; as one where something has no axis of samples."""
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    size = count or max(lengths)
    if lengths != {size}:
        if count and count > 1:
            raise DataError(
                "the teacher's answers cannot be told apart by sample, so they cannot be remembered: leave cache out"
            )
        return [dict(arrays)]
    return [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(size)]


@attrs.define(eq=False)
class Remembered:
    """The answers to the last batch, for objectives that ask twice (mixed pictures)."""

    source: Answers
    _feeds: Mapping[str, Array] | None = None
    _answers: Mapping[str, Array] = attrs.field(factory=dict)

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        same = self._feeds is not None and all(self._feeds.get(name) is array for name, array in feeds.items())
        if not same:
            self._answers, self._feeds = self.source.run(feeds), dict(feeds)
        return self._answers


def identity(fingerprint: str, values: Sequence[str]) -> str:
    """Of a teacher and what is asked of it."""
    return hashlib.sha256("\n".join([fingerprint, *sorted(values)]).encode()).hexdigest()
