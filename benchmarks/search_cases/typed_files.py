"""magika's files, typed by their extensions as the case's are: the system's and those of installed packages.

A quarter of every type's files, by the digests of their paths, judges, besides the case's own set; a quarter is to
choose by, and half to calibrate and to train: what judges is of the types that the search has seen. Of each part every
type gives as many as any other, as long as it has some, and no content is there twice or in two parts. A header's
language is not decidable by its extension, so the search, which counts class by class, is given none.
"""

import functools
import hashlib
import itertools
import json
import os
import sysconfig
from collections.abc import Iterator, Mapping, Sequence, Set as AbstractSet
from pathlib import Path

import numpy as np
from models import Evaluation, Run, case, file_types
from models.records import accuracy, first_output
from models.store import package_folder

SYSTEM = ("/usr/share", "/usr/include", "/usr/lib", "/etc")
CALIBRATING, CHOOSING, JUDGING, QUICK = 2000, 1600, 2400, 300
JUDGES, CHOOSES, CALIBRATES = (0,), (1,), (2, 3)
"""Ranks of a type's files, modulo four, that are in a part."""
BATCH = 32

Data = dict[str, np.ndarray]


def calibrating(quick: bool) -> Data:
    """Files and the numbers of their types."""
    return _labelled(CALIBRATES, QUICK if quick else CALIBRATING, _contents(choosing(False)["bytes"]))


def choosing(quick: bool) -> Data:
    """As `calibrating`: other files."""
    return _labelled(CHOOSES, QUICK if quick else CHOOSING)


def judge(run: Run) -> Evaluation:
    """Accuracy on the case's files and those of the system."""
    known = case("magika").evaluate(run)
    rows, kinds = _judging()
    scores = np.concatenate([first_output(run({"bytes": rows[at : at + BATCH]})) for at in range(0, len(rows), BATCH)])
    answers = [_types()[number] for number in scores.argmax(axis=1)]
    right = [one == kind or {one, kind} <= file_types.C_FAMILY for one, kind in zip(answers, kinds, strict=True)]
    return accuracy(np.concatenate([known.scores, right]), np.concatenate([known.answers, answers]))


@functools.cache
def _types() -> list[str]:
    place = package_folder("magika") / file_types.MODEL / "config.min.json"
    return json.loads(place.read_text(encoding="utf8"))["target_labels_space"]


def _labelled(part: Sequence[int], count: int, known: AbstractSet[bytes] = frozenset()) -> Data:
    """Files of a part that is for the search, shuffled; none that judges or whose content is known."""
    files = {kind: [path for path in paths if path.suffix != ".h"] for kind, paths in _part(part).items()}
    rows, kinds = _distinct(files, count, known | _contents(_judging()[0]))
    order = np.random.default_rng(0).permutation(len(rows))
    labels = np.array([_types().index(kind) for kind in kinds], np.int64)
    return {"bytes": rows[order], "labels": labels[order]}


@functools.cache
def _judging() -> tuple[np.ndarray, list[str]]:
    return _distinct(_part(JUDGES), JUDGING, set())


def _part(ranks: Sequence[int]) -> dict[str, list[Path]]:
    """Type to its files of these ranks."""
    return {kind: [path for at, path in enumerate(paths) if at % 4 in ranks] for kind, paths in _files().items()}


def _contents(rows: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in rows}


def _distinct(files: Mapping[str, list[Path]], count: int, known: AbstractSet[bytes]) -> tuple[np.ndarray, list[str]]:
    """Rows (count, 2048) that are not known, and their types: a file of each type in turn."""
    turns = itertools.zip_longest(*([(path, kind) for path in paths] for kind, paths in sorted(files.items())))
    seen, rows, kinds = set(known), [], []
    for path, kind in (entry for turn in turns for entry in turn if entry is not None):
        row = file_types.edges(path.read_bytes())
        if row.tobytes() not in seen and len(rows) < count:
            seen.add(row.tobytes())
            rows.append(row)
            kinds.append(kind)
    return np.stack(rows), kinds


@functools.cache
def _files() -> dict[str, list[Path]]:
    """Type to files by ascending digest of their paths."""
    found: dict[str, list[Path]] = {}
    for root in (*SYSTEM, sysconfig.get_paths()["purelib"]):
        for path, kind in _typed(Path(root)):
            found.setdefault(kind, []).append(path)
    return {kind: sorted(paths, key=_digest) for kind, paths in found.items()}


def _typed(root: Path) -> Iterator[tuple[Path, str]]:
    """The files of a type that the case knows."""
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names):
            kind = file_types.TYPES.get(path.suffix[1:])
            if kind and path.is_file() and not path.is_symlink() and path.stat().st_size >= file_types.LEAST_BYTES:
                yield path, kind


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.as_posix().encode()).digest()
