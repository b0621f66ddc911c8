"""Peers' results on disk, so that a second run of a table takes minutes less.

A quantized file is known by everything it depends on: the bytes of the float model, the calibration feeds, the
variant's options and the versions of onnxruntime and onnx. Failures are remembered too; to try again, delete the
folder `int8-peers` of the benchmark cache. Only peers are cached, never what this project makes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models.store import cache_folder, file_sha256, written_whole

from .isolation import Failed, isolated
from .stock_onnxruntime import Feeds, Variant


@attrs.frozen(kw_only=True)
class Quantized:
    """A model some quantizer wrote, or why it did not."""

    path: Path
    error: str = ""
    seconds: float = 0.0
    peak_megabytes: float = 0.0


def quantized(variant: Variant, source: Path, feeds: Feeds) -> Quantized:
    """The model `source` as `variant` quantizes it; made in a process of its own the first time."""
    stem = digest(
        file_sha256(source), attrs.asdict(variant), version("onnxruntime"), version("onnx"), *_flattened(feeds)
    )
    path = _folder() / f"{stem}.onnx"

    def make() -> dict[str, Any]:
        try:
            with written_whole(path) as work:
                done = isolated(variant.quantize, source, feeds, work)
        except Failed as failure:
            return {"error": str(failure)}
        return {"seconds": done.seconds, "peak_megabytes": done.peak_megabytes}

    return Quantized(path=path, **remembered(stem, make))


def remembered(key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` once returned under `key`, a digest; it must fit in JSON."""
    path = _folder() / f"{key}.json"
    if not path.exists():
        made = make()
        with written_whole(path) as work:
            work.write_text(json.dumps(made))
    return json.loads(path.read_text())


def digest(*parts: Any) -> str:
    """A short name for arrays, and for whatever JSON can hold."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            whole.update(f"{part.dtype}{part.shape}".encode())
            whole.update(np.ascontiguousarray(part).tobytes())
        else:
            whole.update(json.dumps(part, sort_keys=True).encode())
    return whole.hexdigest()[:24]


def _flattened(feeds: Iterable[Mapping[str, np.ndarray]]) -> Iterable[Any]:
    for feed in feeds:
        for name in sorted(feed):
            yield name
            yield feed[name]


def _folder() -> Path:
    folder = cache_folder() / "int8-peers"
    folder.mkdir(exist_ok=True)
    return folder
