"""Recurrent networks in integers: ranges found at every step, ranges fixed by calibration, and onnxruntime's own.

`static` is the network as static quantization would have it, computed by core's plan (no runtime has such a layer): a
scale for all weights of a matrix, and the projected input, the hidden and the cell state in 8 bits with ranges that
calibration fixed. `ort dynamic` is onnxruntime's `quantize_dynamic` with its LSTM, a scale an output.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import Case, case, reference
from runs import Record, Run

from pumice.model import load
from pumice.ops.record import Kernel, Node
from pumice.ops.recurrent import Cell, State, lstm_cells, run_cells

from .attempts import Row, TookTooLongError, at_most, attempted, compressed, judged, original, show, timing

PART = "recurrent"
CASES = ("char_lstm", "fashion_lstm", "g2p", "silero_vad", "resemblyzer", "easyocr_en_g2")
QUICK = ("fashion_lstm",)
OPS = ["MatMul", "Gemm", "LSTM"]
TIMED = ("dynamic", "ort dynamic")


def runs(cases: Sequence[str], limit: float, seconds: float) -> list[Run]:
    """Of all cases; the most wanted first."""
    found = []
    for case_id in cases:
        first = original(case_id)
        ours, theirs, fixed = (
            Run(name=f"{PART}/{case_id}/{name}", function=function, arguments=(case_id, limit), after=(first.name,))
            for name, function in (("dynamic", dynamic), ("ort dynamic", theirs_dynamic), ("static", static))
        )
        found += [first, ours, theirs, timing(PART, case_id, [ours, theirs], TIMED, seconds), fixed]
    return found


def shown(cases: Sequence[str], records: Mapping[str, Record]) -> list[Row]:
    """Print the table."""
    return show(PART, cases, (*TIMED, "static"), records)


def dynamic(case_id: str, limit: float, folder: Path) -> Row:
    """Ours."""
    return attempted(case_id, "dynamic", _dynamic, limit, folder)


def _dynamic(found: Case, target: Path) -> str:
    return compressed(found, {"name": "dynamic"}, target)


def theirs_dynamic(case_id: str, limit: float, folder: Path) -> Row:
    """onnxruntime's."""
    return attempted(case_id, "ort dynamic", _onnxruntime, limit, folder)


def _onnxruntime(found: Case, target: Path) -> str:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(found.path, target, op_types_to_quantize=OPS, per_channel=True, weight_type=QuantType.QInt8)
    return ""


def static(case_id: str, limit: float, _folder: Path) -> Row:
    """Fixed ranges."""
    found = case(case_id)
    if "LSTM" not in {node.op_type for node in load(found.path).graph}:
        return Row(case=case_id, variant="static", note="it has no LSTM")
    feeds = [dict(feed) for feed in found.calibration()]
    try:
        with at_most(limit):
            evaluation = found.evaluate(static_run(found, feeds))
    except TookTooLongError as error:
        return Row(case=case_id, variant="static", note=str(error))
    return judged(found, "static", evaluation, reference(found), "ranges of the states are fixed")


# --- ranges that are fixed --------------------------------------------------------------------------------------------


@attrs.define
class Range:
    """The least and the greatest number of calibration, and 255 steps between them."""

    low: float = 0.0
    high: float = 0.0

    def see(self, numbers: np.ndarray) -> None:
        self.low, self.high = min(self.low, float(numbers.min())), max(self.high, float(numbers.max()))

    def round_trip(self, numbers: np.ndarray) -> np.ndarray:
        scale = (self.high - self.low) / 255 or 1.0
        zero = np.rint(-self.low / scale)
        return np.asarray((np.clip(np.rint(numbers / scale) + zero, 0, 255) - zero) * scale, np.float32)


@attrs.define
class StaticLstm:
    """LSTM of core's plan with states of fixed ranges; while `calibrating` it computes in float and looks."""

    calibrating: bool = True

    def kernel(self) -> Kernel:
        return Kernel(
            op_type="LSTM", rank=1000, run=lambda node, *arrays: self.bind(node, ())(node, *arrays), bind=self.bind
        )

    def bind(self, _node: Node, _constants: Sequence[Any]) -> Callable[..., Any]:
        ranges = [Range(), Range(), Range()]  # of the projected input, the hidden and the cell state

        def forward(node: Node, x: np.ndarray, w: np.ndarray, r: np.ndarray, *rest: Any) -> Any:
            b, lengths, first_h, first_c, peepholes = (*rest, *[None] * 5)[:5]
            assert not node.get("layout", 0), "no case has its batch first"
            w, r = (numbers if self.calibrating else _of_tensor(numbers) for numbers in (w, r))
            cells_of = lstm_cells(node, x, w, r, b, lengths, first_h, first_c, peepholes)

            def direction(i: int) -> Cell:
                cell = cells_of(i)

                def step(projected: np.ndarray, state: State) -> State:
                    if self.calibrating:
                        after = cell.step(projected, state)
                        for found, numbers in zip(ranges, (projected, *after), strict=True):
                            found.see(numbers)
                        return after
                    given = (projected, *state)
                    seen = [found.round_trip(numbers) for found, numbers in zip(ranges, given, strict=True)]
                    return cell.step(seen[0], tuple(seen[1:]))

                return attrs.evolve(cell, step=step)

            return run_cells(node, x, w, lengths, (first_h, first_c), direction)

        return forward


def _of_tensor(weights: np.ndarray) -> np.ndarray:
    """Rounded to 8 bits with one scale."""
    scale = float(np.abs(weights).max()) / 127 or 1.0
    return np.asarray(np.rint(weights / scale) * scale, np.float32)


def static_run(found: Case, feeds: Sequence[dict[str, np.ndarray]]) -> Callable[[Any], dict[str, np.ndarray]]:
    """The case's model with recurrent layers of fixed ranges, as a `Run`."""
    from pumice.plan import compile_plan
    from pumice.registry import registry

    known, lstm = registry(), StaticLstm()
    plan = compile_plan(load(found.path), ops=known.ops, kernels=(*known.kernels, lstm.kernel()))
    for feed in feeds[:64]:
        plan.run(feed)
    lstm.calibrating = False
    return lambda feed: plan.run(dict(feed))
