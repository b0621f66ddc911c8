"""The runtime strategy `cuda`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from pumice.knobs import Int, knob
from pumice.strategy import Runtime

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice_cuda.placing import OnDevice
    from pumice_cuda.runtime.session import CudaSession


@attrs.frozen(kw_only=True)
class CudaRuntime(Runtime):
    """The model on an NVIDIA GPU: 32-bit floats, 8-bit integers as ONNX Runtime computes them, or both."""

    name = "cuda"
    rank = 40
    channel_multiple = 16  # bytes that the loads of a matrix product take at once

    graphs: bool = knob(True, help="record the work of a shape when it comes again, and replay it with one launch")
    streams: int = knob(4, Int(1, 64), help="runs of one shape at once, each with memory of its own; others wait")

    def available(self) -> str | None:
        from pumice_cuda import device

        return device.unavailable()

    def placement(self) -> OnDevice:
        from pumice_cuda.placing import OnDevice

        return OnDevice()

    def open(
        self, model: ir.Model | Path | str, *, outputs: Sequence[str] | None = None, threads: int | None = None
    ) -> CudaSession:
        """Open a model on the current GPU.

        Args:
            model: a model in memory, or the path of one; left unchanged.
            outputs: values to return, any of the main graph; None means the graph's outputs.
            threads: of no meaning on a GPU.

        Raises:
            ModelError: the model cannot be read, or a value does not exist.
            UnsupportedOp: an operator that core does not know either.
            PumiceError: there is no GPU to use; the text says why.
        """
        from pumice.model import load
        from pumice_cuda.runtime.session import CudaSession

        loaded = load(model) if isinstance(model, str | Path) else model
        return CudaSession(loaded, outputs=outputs, graphs=self.graphs, streams=self.streams)
