"""What type a file has, told by its first and last kilobyte: files of Python's standard library, typed by extension.

A type gives at most 200 files, those whose path under the library has the smallest digest, so that the list depends on
the Python release alone and a file more or less does not move the others. Every fifth file calibrates. Compiled files,
and packages installed beside the library, are left out. A Python stripped of its own tests has fewer types.
"""

import functools
import hashlib
import json
import os
import sysconfig
from pathlib import Path

import numpy as np

from .records import Case, Evaluation, Feed, Run, accuracy, first_output
from .store import package_folder

MODEL = "magika/models/standard_v3_3"
EDGE, BLOCK, PADDING = 1024, 4096, 256
MOST_PER_TYPE, LEAST_BYTES, BATCH = 200, 64, 32
OTHER_FOLDERS = ("site-packages", "dist-packages", "lib-dynload", "__pycache__")
TYPES = {
    "bat": "batch",
    "bz2": "bzip",
    "c": "c",
    "cpp": "cpp",
    "css": "css",
    "gif": "gif",
    "gz": "gzip",
    "h": "c",
    "html": "html",
    "ico": "ico",
    "ini": "ini",
    "jpg": "jpeg",
    "json": "json",
    "md": "markdown",
    "pem": "pem",
    "pickle": "pickle",
    "png": "png",
    "ps1": "powershell",
    "py": "python",
    "rst": "rst",
    "sh": "shell",
    "svg": "svg",
    "toml": "toml",
    "wav": "wav",
    "webp": "webp",
    "whl": "zip",
    "xml": "xml",
    "xz": "xz",
    "zip": "zip",
}
"""Extension to the network's name of the type."""

C_FAMILY = {"c", "cpp"}
"""One type where right answers are counted: a header's language is not decidable by extension."""


def _library_files() -> dict[str, list[Path]]:
    """The chosen files of every type, by ascending digest of their paths."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, list[Path]] = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in OTHER_FOLDERS and not name.startswith("config-")]
        for path in (Path(folder, name) for name in names):
            kind = TYPES.get(path.suffix[1:])
            if kind and not path.is_symlink() and path.stat().st_size >= LEAST_BYTES:
                found.setdefault(kind, []).append(path)

    def rank(path: Path) -> bytes:
        return hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()

    return {kind: sorted(paths, key=rank)[:MOST_PER_TYPE] for kind, paths in sorted(found.items())}


def edges(content: bytes) -> np.ndarray:
    """(2048,) int32: the first and last 1024 bytes without outer white space, padded towards the middle with 256."""
    row = np.full(2 * EDGE, PADDING, np.int32)
    first, last = content[:BLOCK].lstrip()[:EDGE], content[-BLOCK:].rstrip()[-EDGE:]
    row[: len(first)] = list(first)
    row[len(row) - len(last) :] = list(last)
    return row


@functools.cache
def _sets() -> tuple[np.ndarray, list[str], np.ndarray]:
    """Test rows (n, 2048) and their types; calibration rows."""
    chosen = [(kind, edges(path.read_bytes())) for kind, paths in _library_files().items() for path in paths]
    test = [entry for number, entry in enumerate(chosen) if number % 5]
    return np.stack([row for _, row in test]), [kind for kind, _ in test], np.stack([row for _, row in chosen[::5]])


@functools.cache
def _labels() -> list[str]:
    place = package_folder("magika") / MODEL / "config.min.json"
    return json.loads(place.read_text(encoding="utf8"))["target_labels_space"]


def _calibrate() -> list[Feed]:
    rows = _sets()[2]
    return [{"bytes": rows[start : start + 16]} for start in range(0, len(rows), 16)]


def _judge(run: Run) -> Evaluation:
    rows, kinds, _ = _sets()
    scores = np.concatenate([first_output(run({"bytes": rows[at : at + BATCH]})) for at in range(0, len(rows), BATCH)])
    answers = [_labels()[number] for number in scores.argmax(axis=1)]
    right = [answer == kind or {answer, kind} <= C_FAMILY for answer, kind in zip(answers, kinds, strict=True)]
    return accuracy(right, np.array(answers))


MAGIKA = Case(
    id="magika",
    summary="byte embedding, 1-D convolution and written-out GELU, accuracy on files of Python's standard library",
    packages=("magika",),
    locate=lambda: package_folder("magika") / MODEL / "model.onnx",
    calibrate=_calibrate,
    sample=lambda: {"bytes": _sets()[0][:1]},
    judge=_judge,
)
