"""Published checkpoints to plain ONNX (opset 17), with NumPy alone: one module an architecture, no training framework.

Each module offers `convert(source, target)`: read the checkpoint at `source`, write the ONNX file `target`. The graphs
are what an ordinary export gives: batch normalisation, bias additions and GELU are left unfused. `converted` keeps the
results in the cache; their names carry a digest of this folder, so that a changed converter converts again.
"""

import functools
import hashlib
import importlib
from pathlib import Path

from ..store import cache_folder, package_folder, written_whole


def converted(architecture: str, package: str, member: str) -> Path:
    """The ONNX file that module `architecture` makes of `member` of `package`."""
    target = cache_folder() / "onnx" / f"{architecture}-{_sources_digest()}.onnx"
    if not target.exists():
        module = importlib.import_module(f"{__name__}.{architecture}")
        with written_whole(target) as work:
            module.convert(package_folder(package) / member, work)
    return target


@functools.cache
def _sources_digest() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
