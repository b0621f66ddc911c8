"""magika's files, typed by their extensions as the case's are: the system's and those of installed packages.

Of every type the first 200 files of the system, by the digests of their paths, judge, besides the case's own set. What
is left of the system and the packages are for the search: a third to choose by, the rest to calibrate and to train. Of
each part every type gives as many as any other, as long as it has some, and no content is there twice or in two parts.
A header's language is not decidable by its extension, so the search, which counts class by class, is given none.
"""

import functools
import hashlib
import itertools
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from models import Evaluation, Run, case, file_types
from models.records import accuracy, first_output
from models.store import package_folder

SYSTEM = ("/usr/share", "/usr/include", "/usr/lib", "/etc")
CALIBRATING, CHOOSING, QUICK = 2000, 1600, 300
BATCH = 32

Data = dict[str, np.ndarray]


def calibrating(quick: bool) -> Data:
    """Files and the numbers of their types."""
    return _labelled(1, QUICK if quick else CALIBRATING)


def choosing(quick: bool) -> Data:
    """As `calibrating`: other files."""
    return _labelled(0, QUICK if quick else CHOOSING)


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


def _labelled(part: int, count: int) -> Data:
    """Every third file that does not judge (part 0) or the others, shuffled."""
    files = {
        kind: [path for number, path in enumerate(paths) if (number % 3 > 0) == part and path.suffix != ".h"]
        for kind, paths in _searched().items()
    }
    rows, kinds = _distinct(files, count, {row.tobytes() for row in _judging()[0]})
    order = np.random.default_rng(0).permutation(len(rows))
    labels = np.array([_types().index(kind) for kind in kinds], np.int64)
    return {"bytes": rows[order], "labels": labels[order]}


@functools.cache
def _judging() -> tuple[np.ndarray, list[str]]:
    files = {kind: paths[: file_types.MOST_PER_TYPE] for kind, paths in _system().items()}
    return _distinct(files, sum(map(len, files.values())), set())


def _distinct(files: Mapping[str, list[Path]], count: int, known: set[bytes]) -> tuple[np.ndarray, list[str]]:
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
def _system() -> dict[str, list[Path]]:
    return _ranked(entry for root in SYSTEM for entry in _typed(Path(root)))


@functools.cache
def _searched() -> dict[str, list[Path]]:
    left = ((path, kind) for kind, paths in _system().items() for path in paths[file_types.MOST_PER_TYPE :])
    return _ranked(itertools.chain(left, _typed(Path(sysconfig.get_paths()["purelib"]))))


def _ranked(entries: Iterable[tuple[Path, str]]) -> dict[str, list[Path]]:
    """Type to files by ascending digest of their paths."""
    found: dict[str, list[Path]] = {}
    for path, kind in entries:
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
