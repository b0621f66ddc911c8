"""Models after the first steps of recipes, kept on disk, so that recipes that begin alike compute their beginning once.

A prefix is known by its content: the hash of the model it starts from, the settings of its steps, the fingerprint of
the data, the seed, and the versions of all plugins. An entry is a folder that is renamed into place when it is whole,
so a killed run leaves none half written and concurrent writers of one entry do no harm; what cannot be read is computed
again. When the entries take more than `BOUND` bytes, those that were not used for longest go; so does what a killed
run left half written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pumice.ledger import Entry, Ledger
from pumice.registry import registry

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.steps import Step

BOUND = 2_000_000_000
ABANDONED = 3600.0
"""Seconds after which an entry that is not whole is one of a run that was killed."""


@attrs.frozen
class Prefix:
    """A model after some steps, and its account."""

    model: ir.Model
    ledger: Ledger
    notes: list[str]


@attrs.frozen
class Prefixes:
    """The prefixes kept in one folder."""

    folder: Path
    origin: str
    """What all of them start from: a hash of model, data and seed."""
    bound: int = BOUND

    def key(self, steps: Sequence[Step], trains: bool) -> str:
        """Names the result of the steps; `trains` says whether a later step trains, which decides what is folded."""
        plugins = sorted(str(origin) for origin in registry().plugins)
        told = [{"use": step.name, **step.settings()} for step in steps]
        text = json.dumps([self.origin, plugins, told, trains], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str) -> Prefix | None:
        """What is kept under a key, None if there is nothing or it cannot be read."""
        from pumice.model import load

        entry = self.folder / key
        try:
            account = json.loads((entry / "account.json").read_text(encoding="utf-8"))
            model = load(entry / "model.onnx")
            os.utime(entry)
        except Exception:  # whatever is wrong with what lies there, it is computed again
            return None
        return Prefix(model, Ledger([Entry(**line) for line in account["ledger"]]), account["notes"])

    def put(self, key: str, prefix: Prefix) -> None:
        """Keep a prefix, and make room for it."""
        from pumice.model import save

        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self.folder) as new:
            place = Path(new, "entry")
            place.mkdir()
            save(prefix.model, place / "model.onnx")
            account: dict[str, Any] = {"ledger": prefix.ledger.to_json(), "notes": prefix.notes}
            (place / "account.json").write_text(json.dumps(account, default=float), encoding="utf-8")
            with contextlib.suppress(OSError):  # another run has just kept the same
                place.rename(self.folder / key)
        self._make_room()

    def _make_room(self) -> None:
        entries = {path: _used(path) for path in self.folder.iterdir()}
        total = sum(size for _, size in entries.values())
        for path, (used, size) in sorted(entries.items(), key=lambda item: item[1]):
            whole = not path.name.startswith(".")
            if total > self.bound if whole else time.time() - used > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
                total -= size


def _used(entry: Path) -> tuple[float, int]:
    """When an entry was used last, and its bytes; nothing where another run is just removing it."""
    try:
        return entry.stat().st_mtime, sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
    except FileNotFoundError:
        return 0.0, 0
