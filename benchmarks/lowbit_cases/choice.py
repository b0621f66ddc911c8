"""Mixed precision: points lost and the share of weights in integers, against all layers in INT8; and how far the choice
is from the best of all, found by trying every one on a small model."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import Case, case
from runs import Record, Run
from tables import Table

from .attempts import Row, attempted, compressed, file_of, original, tell

PART, EVERY = "choice", "choice/every one"
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
DROP = 0.005
"""The budget of `mixed`."""
QUANTIZERS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "all INT8": ({"name": "int8"}, {}),
    "mixed": ({"name": "mixed", "formats": ("int8", "float16", "float32")}, {"max_drop": DROP}),
}
"""With what else is said of the step."""
COLUMNS = {
    "case": 14, "variant": 12, "metric [95%]": 34, "points": -7, "in 8 bits or fewer": -18, "file kB": -8, "note": 8,
}  # fmt: skip


def runs(cases: Sequence[str], limit: float, *, exhaustive: bool) -> list[Run]:
    """Of all cases, and of every choice for the small one."""
    found = [Run(name=EVERY, function=every_choice, arguments=())] if exhaustive else []
    for case_id in cases:
        first = original(case_id)
        found += [first] + [
            Run(
                name=f"{PART}/{case_id}/{name}", function=chosen, after=(first.name,),
                arguments=(case_id, name, dict(quantizer), dict(step), limit),
            )
            for name, (quantizer, step) in QUANTIZERS.items()
        ]  # fmt: skip
    return found


def chosen(
    case_id: str, variant: str, quantizer: Mapping[str, Any], step: Mapping[str, Any], limit: float, folder: Path
) -> Record:
    """A row, and the share of the weights in few bits."""
    make = functools.partial(_make, quantizer, step)
    row = attempted(case_id, f"{variant}, choice", make, limit, folder)
    return {"row": attrs.asdict(row), "narrow": _narrow_share(case_id, file_of(folder, case_id, f"{variant}, choice"))}


def _make(quantizer: Mapping[str, Any], step: Mapping[str, Any], found: Case, target: Path) -> str:
    return compressed(found, quantizer, target, **step)


def _narrow_share(case_id: str, path: Path) -> float | None:
    """Of all weights of layers, those stored as integers of eight bits or fewer; vectors are zero points."""
    from pumice.model import load
    from pumice.quantize.weight_matrices import weight_matrices

    if not path.exists():
        return None
    every = sum(int(np.prod(m.shape)) for m in weight_matrices(iter(load(case(case_id).path).graph)))
    held = [value.const_value for value in load(path).graph.initializers.values() if value.const_value is not None]
    return sum(t.size for t in held if t.dtype.is_integer() and t.dtype.bitwidth <= 8 and len(t.shape) > 1) / every


def shown(cases: Sequence[str], records: Mapping[str, Record]) -> list[Record]:
    """Print both tables, and return what there is."""
    table, found = Table(COLUMNS), []
    for case_id in cases:
        for name in QUANTIZERS:
            record = records.get(f"{PART}/{case_id}/{name}")
            if record is not None:
                row = Row(**record["row"])
                table.row(_cells(row, name, record["narrow"]))
                found.append({**record["row"], "narrow_share": record["narrow"]})
    return found + _every_choice_shown(records)


def _cells(row: Row, name: str, narrow: float | None) -> list[str]:
    if row.value is None or narrow is None:
        return [row.case, name, "", "", "", "", row.note]
    low, high = row.interval
    return [
        row.case, name, f"{row.metric} {row.value:.4f} [{low:.4f}, {high:.4f}]",
        f"{row.points:+.2f}", f"{100 * narrow:.1f}%", f"{row.file_bytes / 1000:.1f}", row.note,
    ]  # fmt: skip


# --- every choice there is --------------------------------------------------------------------------------------------


@attrs.frozen
class Tried:
    """One assignment of formats."""

    nbytes: float
    noise: float
    """Measured, of the outputs, relative to their signal."""


def every_choice(_folder: Path) -> Record:
    """For each point of the curve, the fewest bytes of any choice that is measured to be as exact."""
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
    points = []
    for point in curve:
        own = tried[tuple(point.formats[name] for name in layers)]
        best = min(t.nbytes for t in tried.values() if t.noise <= own.noise)
        points.append({"bytes": own.nbytes, "noise": own.noise, "optimum": best})
    return {"points": points}


def _every_choice_shown(records: Mapping[str, Record]) -> list[Record]:
    points = records.get(EVERY, {}).get("points", [])
    if points:
        print()
        table = Table({"bytes chosen": -12, "noise": -14, "fewest bytes as exact": -21, "above the optimum": -17})
    for point in points:
        nbytes, best = point["bytes"], point["optimum"]
        table.row([f"{nbytes:.0f}", f"{point['noise']:.3g}", f"{best:.0f}", f"{100 * (nbytes / best - 1):.1f}%"])
    return [{"case": SMALL, "variant": "every choice", **point} for point in points]


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
