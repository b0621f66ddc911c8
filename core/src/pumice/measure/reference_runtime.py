"""The reference runtime: the plan that core compiles, in NumPy. Slow, readable, and the definition of truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from numpy.typing import NDArray

from pumice.strategy import Runtime, Session

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.plan import Plan


@attrs.frozen(kw_only=True)
class ReferenceRuntime(Runtime):
    """Core's own plan over NumPy: always there, exact by definition, slow."""

    name = "reference"
    rank = 0

    def open(
        self, model: ir.Model | Path, *, outputs: Sequence[str] | None = None, threads: int | None = None
    ) -> Session:
        from pumice.model import load
        from pumice.plan import compile_plan

        loaded = load(model) if isinstance(model, str | Path) else model
        return _ReferenceSession(compile_plan(loaded, outputs))


@attrs.frozen
class _ReferenceSession:
    plan: Plan

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self.plan.run(feeds)

    @property
    def description(self) -> str:
        import numpy as np

        return f"pumice reference runtime, NumPy {np.__version__}"
