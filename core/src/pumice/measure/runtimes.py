"""Which runtime measures, and sessions of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pumice.errors import PumiceError
from pumice.strategy import Runtime, Session


def pick_runtime(spec: str | Mapping[str, Any] | Runtime | None = None) -> Runtime:
    """The runtime asked for, or the highest-ranked one that is available here.

    Raises:
        PumiceError: the one asked for is not installed or cannot run here.
    """
    from pumice.registry import registry

    if spec is not None:
        runtime: Runtime = registry().make(Runtime, spec)
        reason = runtime.available()
        if reason:
            raise PumiceError(f"runtime '{runtime.name}' cannot run here: {reason}")
        return runtime
    installed = [registry().make(Runtime, name) for name in registry().strategies("runtime")]
    usable = [runtime for runtime in installed if runtime.available() is None]
    return max(usable, key=lambda runtime: runtime.rank)


def as_session(
    model: Any,
    *,
    runtime: str | Mapping[str, Any] | Runtime | None = None,
    outputs: Sequence[str] | None = None,
    threads: int | None = None,
) -> Session:
    """An open `Session` as it is; a model or the path of one, opened.

    Raises:
        ModelError: the runtime does not accept the model.
    """
    if hasattr(model, "run") and hasattr(model, "description"):
        return model  # type: ignore[no-any-return]
    source = Path(model) if isinstance(model, str | Path) else model
    return pick_runtime(runtime).open(source, outputs=outputs, threads=threads)
