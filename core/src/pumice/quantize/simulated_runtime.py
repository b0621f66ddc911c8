"""The simulation as a runtime: accuracy on CPUs that are not at hand, known before the model ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from numpy.typing import NDArray

from pumice.knobs import knob
from pumice.strategy import Runtime, Session

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.plan import Plan


@attrs.frozen(kw_only=True)
class SimulatedRuntime(Runtime):
    """Computes the integers of ONNX Runtime on an x86 CPU without VNNI (or with it), on any CPU; exact, slow."""

    name = "simulated"
    rank = -1

    pair_saturation: bool = knob(True, help="add pairs of 8-bit products in 16 bits, as CPUs without VNNI do")

    def open(
        self, model: ir.Model | Path, *, outputs: Sequence[str] | None = None, threads: int | None = None
    ) -> Session:
        from pumice.model import load
        from pumice.quantize.simulation import simulate

        loaded = load(model) if isinstance(model, str | Path) else model
        return _Simulated(simulate(loaded, outputs, pair_saturation=self.pair_saturation), self.pair_saturation)


@attrs.frozen
class _Simulated:
    plan: Plan
    pair_saturation: bool

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self.plan.run(feeds)

    @property
    def description(self) -> str:
        return f"simulated ONNX Runtime on an x86 CPU with{'out' if self.pair_saturation else ''} VNNI"
