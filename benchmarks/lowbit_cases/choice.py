"""Mixed precision: points lost and the share of weights in integers, against all layers in INT8; and how far the choice
is from the best of all, found by trying every one on a small model."""

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import Case, case, reference
from tables import Table

from .attempts import Row, attempt, floating, points, tell
from .techniques import compressor

CASES = (
    "fashion_mobile",
    "fashion_resnet",
    "ocr_cls",
    "crepe_tiny",
    "magika",
    "char_gpt",
    "effnet_lite0",
    "ocr_rec_v4",
)
QUICK = ("fashion_resnet",)
SMALL = "digits_cnn"
FORMATS = ("int4", "int8", "float32")
QUANTIZERS: Mapping[str, Mapping[str, Any]] = {
    "all INT8": {"name": "int8"},
    "mixed": {"name": "mixed", "formats": ("int8", "float16", "float32")},
}
DROP = 0.005
"""The budget of `mixed`."""
COLUMNS = {
    "case": 14, "variant": 12, "metric [95%]": 34, "points": -7, "in 8 bits or fewer": -18, "kB": -7, "note": 8,
}  # fmt: skip


def run(chosen: Sequence[Case], limit: float, keep: Callable[..., None]) -> bool:
    """Measure; `keep` is told a case's entries and details. Whether something failed."""
    table = Table(COLUMNS)
    for found in chosen:
        against, feeds = reference(found), [dict(feed) for feed in found.calibration()]
        first = floating(found, against)
        for name, quantizer in QUANTIZERS.items():
            with tempfile.TemporaryDirectory() as work:
                own = name == "mixed"
                make = compressor(found, quantizer, feeds, own=own, **({"max_drop": DROP} if own else {}))
                row = attempt(found, name, make, against, Path(work) / "model.onnx", limit)
                share = _narrow_share(found.path, row)
            table.row(_cells(found, row, first, share))
            lost = row.evaluation and points(row, first)
            kept = {"points_lost": lost, "narrow_share": share, "bytes": row.nbytes, "note": row.note}
            keep([], [{"case": found.id, "variant": f"{name}, choice", **kept}])
    return False


def _narrow_share(path: Path, row: Row) -> float:
    """Of all weights of layers, those stored in eight bits or fewer."""
    from pumice.diagnose.pairing import pairs
    from pumice.model import load
    from pumice.quantize.weight_matrices import weight_matrices

    if row.path is None:
        return float("nan")
    original = load(path)
    every = sum(int(np.prod(m.shape)) for m in weight_matrices(iter(original.graph)))
    narrow = [p.weights_after for p in pairs(original, load(row.path))]
    return sum(w.values.size for w in narrow if w.nbytes < 1.5 * w.values.size) / every


def _cells(found: Case, row: Row, against: Row, share: float) -> list[str]:
    if row.evaluation is None:
        return [found.id, row.variant, "", "", "", "", row.note]
    low, high = row.evaluation.interval()
    return [
        found.id, row.variant, f"{row.evaluation.metric} {row.evaluation.value:.4f} [{low:.4f}, {high:.4f}]",
        f"{points(row, against):+.2f}", f"{100 * share:.1f}%", f"{row.nbytes / 1000:.0f}", row.note,
    ]  # fmt: skip


# --- every choice there is --------------------------------------------------------------------------------------------


@attrs.frozen
class Tried:
    """One assignment of formats."""

    nbytes: float
    noise: float
    """Measured, of the outputs, relative to their signal."""


def exhaustive(keep: Callable[..., None]) -> None:
    """Print, for each point of the curve, the fewest bytes of any choice that is measured to be as exact."""
    from pumice.model import load
    from pumice_quant_mixed.choice import pareto
    from pumice_quant_mixed.formats import bytes_of
    from pumice_quant_mixed.sensitivity import by_measurement

    found = case(SMALL)
    model, context = load(found.path), _context(found)
    layers = _layers(model)
    noise = by_measurement(model, layers, FORMATS[:-1], context, 1) | {(name, "float32"): 0.0 for name in layers}
    curve = pareto(layers, FORMATS, noise)
    every = list(itertools.product(FORMATS, repeat=len(layers)))
    tell(f"{SMALL}: all {len(every)} choices of {', '.join(FORMATS)} for {len(layers)} layers")
    tried = {}
    for choice in every:
        formats = dict(zip(layers, choice, strict=True))
        nbytes = sum(bytes_of(f, m) for name, f in formats.items() for m in layers[name])
        tried[choice] = Tried(nbytes, _measured(model, formats, context))
    table = Table({"bytes chosen": -12, "measured noise": -14, "fewest bytes as exact": -21, "above the optimum": -17})
    for point in curve:
        own = tried[tuple(point.formats[name] for name in layers)]
        best = min(t.nbytes for t in tried.values() if t.noise <= own.noise)
        table.row([f"{own.nbytes:.0f}", f"{own.noise:.3g}", f"{best:.0f}", f"{100 * (own.nbytes / best - 1):.1f}%"])
        keep([], [{"case": SMALL, "variant": "exhaustive", "bytes": own.nbytes, "noise": own.noise, "optimum": best}])


def _layers(model: Any) -> Mapping[str, Sequence[Any]]:
    from pumice.quantize.weight_matrices import weight_matrices

    found: dict[str, list[Any]] = {}
    for matrix in weight_matrices(iter(model.graph)):
        found.setdefault(str(matrix.readers[0][0].name), []).append(matrix)
    return found


def _context(found: Case) -> Any:
    from pumice.data import open_dataset
    from pumice.measure import pick_runtime
    from pumice.model import load
    from pumice.quantize.context import QuantizeContext
    from pumice.quantize.target import Target

    feeds = [dict(feed) for feed in found.calibration()]
    return QuantizeContext(
        calibration=open_dataset(feeds, load(found.path)),
        runtime=pick_runtime(),
        target=Target.named("ort-cpu"),
        samples=32,
    )


def _measured(model: Any, formats: Mapping[str, str], context: Any) -> float:
    from pumice.ledger import Ledger
    from pumice_quant_mixed.formats import apply_formats

    around = attrs.evolve(context, ledger=Ledger(), notes=[])
    return float(context.drift(model, apply_formats(model, formats, around, smallest=1), 32).ratio)
