"""The runtime strategy `native`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from pumice.knobs import Choice, knob
from pumice.ops.record import Array
from pumice.strategy import Runtime

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice_cpu.runtime.session import NativeSession
    from pumice_cpu.runtime.stored import StoredSession


@attrs.frozen(kw_only=True)
class NativeRuntime(Runtime):
    """The model compiled to one flat program of C kernels."""

    name = "native"
    rank = 50
    channel_multiple = 8  # vectors of 8 and 16 floats; pixels of other sizes lie across the lines of the cache

    mode: str = knob(
        "exact",
        Choice("exact", "fast"),
        help="exact: ONNX Runtime's integers; fast: what is quantized while running has a scale a row, not one for all",
    )

    def available(self) -> str | None:
        if importlib.util.find_spec("pumice_cpu._native") is None:
            return "the kernels of pumice-cpu are not compiled: install pumice-cpu again"
        return None

    def open(
        self, model: ir.Model | Path | str, *, outputs: Sequence[str] | None = None, threads: int | None = None
    ) -> NativeSession | StoredSession:
        """Open a model; programs are compiled for the shapes that come.

        Args:
            model: a model in memory, or the path of one or of a program that a session saved.
            outputs: values to return, in this order; any value of the main graph. None returns the graph's outputs.
            threads: threads of one run; None means all cores.

        Raises:
            ModelError: the model cannot be read, or a value does not exist.
            UnsupportedOp: an operator that core does not know either.
        """
        if isinstance(model, str | Path):
            from pumice_cpu.runtime import stored

            if stored.is_stored(Path(model)):
                return stored.StoredSession(stored.load(Path(model)), threads, f"'{model}'")
        from pumice.model import load
        from pumice_cpu.runtime.session import NativeSession

        loaded = load(model) if isinstance(model, str | Path) else model
        return NativeSession(loaded, outputs=outputs, threads=threads, exact=self.mode == "exact")

    def profile(
        self, model: ir.Model | Path | str, feeds: Mapping[str, Array], *, threads: int | None = None
    ) -> list[tuple[str, str, float]]:
        """Time of everything that runs: (last node, operator, microseconds), in the order of execution.

        Raises:
            ModelError: as `open`.
            DataError: the feeds do not fit.
        """
        lines = self.open(model, threads=threads).profile(feeds)
        return [(line.node, line.op, line.microseconds) for line in lines]
