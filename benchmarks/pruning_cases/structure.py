"""Every architecture at hand loses 30% of its channels at random, and must stay the same function.

A row a model: the channel groups found, those that nothing can be taken from, the share of parameters and of
multiply-accumulates left after every group lost 30% of its channels (at least one) at random, and the proof: the
largest difference in onnxruntime between the pruned model and the whole one with the same channels masked, relative to
the largest output (`error`), beside what masking changes at all (`effect`). Below the table, every reason that held
channels back. Models are those of `models/`, the architectures that onnx ships without weights (given random ones) and
onnx's converted operators, which count as one row a family.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import onnx
from models import CASES, StoreError, case
from onnx import numpy_helper
from tables import Table, measurement

from pumice.errors import PumiceError
from pumice.measure import pick_runtime
from pumice.model import load, simplify
from pumice.prune import find_groups, prove, remove, union
from pumice.prune.application import why_held
from pumice.prune.costs import size
from pumice.prune.rounds import random_feeds

QUICK = ("digits_cnn", "fashion_resnet", "fashion_mobile", "fashion_vit", "fashion_lstm", "char_gpt", "char_lstm",
         "light_squeezenet", "light_shufflenet", "simple")  # fmt: skip
SHARE = 0.3
FEEDS = 2
"""Feeds that a removal is proven on."""

SHIPPED = Path(onnx.__file__).parent / "backend/test/data"
FAMILIES = ("pytorch-converted", "pytorch-operator", "simple")
COLUMNS = {
    "model": 26,
    "groups": -6,
    "held": -5,
    "params left": -11,
    "MACs left": -9,
    "error": -8,
    "effect": -7,
    "note": 4,
}


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one model."""

    groups: int
    held: int
    reasons: Counter
    params: float = 1.0
    macs: float = 1.0
    error: float = 0.0
    effect: float = 0.0
    proven: bool = False


def prune(path: Path, feeds: list | None) -> Outcome:
    """Prune a file at random and prove it; `feeds` None makes random ones."""
    model = load(path)
    simplify(model)
    found = find_groups(model)
    generator = np.random.default_rng(0)
    cuts = union(group.cuts(_some(group.channels, generator)) for group in found.free)
    reasons = Counter(_kind(why_held(group)) for group in found.held)
    if not cuts:
        return Outcome(groups=0, held=len(found.held), reasons=reasons)
    feeds = [random_feeds(found.wiring.model, seed) for seed in range(FEEDS)] if feeds is None else feeds
    proof = prove(found.wiring, cuts, remove(found.wiring, cuts), feeds, pick_runtime("ort"))
    whole, left = size(found.wiring, {}), size(found.wiring, cuts)
    return Outcome(
        groups=len(found.free), held=len(found.held), reasons=reasons, params=left.params / whole.params,
        macs=left.macs / max(whole.macs, 1), error=proof.error, effect=proof.effect, proven=True,
    )  # fmt: skip


def _some(channels: int, generator: np.random.Generator) -> list[int]:
    count = min(channels - 1, max(1, round(SHARE * channels)))
    return generator.choice(channels, count, replace=False).tolist()


def _kind(reason: str) -> str:
    """A reason without the names in it."""
    words = reason.split(" (node", maxsplit=1)[0]
    return "an output of the graph" if "is an output of the graph" in words else words


def with_weights(source: Path, folder: Path) -> Path:
    """An architecture whose weights were replaced by `ConstantOfShape`, with random ones that keep signals in range."""
    proto = onnx.load(source)
    generator = np.random.default_rng(0)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    uses = {name: (node.op_type, i) for node in proto.graph.node for i, name in enumerate(node.input)}
    rest = []
    for node in proto.graph.node:
        if node.op_type != "ConstantOfShape":
            rest.append(node)
            continue
        array = _drawn(tuple(shapes[node.input[0]].tolist()), uses[node.output[0]], generator)
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), node.output[0]))
    del proto.graph.node[:]
    proto.graph.node.extend(rest)
    proto.ir_version = 4  # initializers need not be inputs
    onnx.save(proto, folder / source.name)
    return folder / source.name


def _drawn(shape: tuple[int, ...], use: tuple[str, int], generator: np.random.Generator) -> np.ndarray:
    if use in {("BatchNormalization", 1), ("BatchNormalization", 4)}:
        return generator.uniform(0.2, 0.4, shape) if use[1] == 1 else generator.uniform(0.5, 1.5, shape)
    return generator.standard_normal(shape) * (np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1)


def sources(folder: Path) -> Iterator[tuple[str, list]]:
    """Names of rows, with the (file, feeds) that each stands for."""
    for name in CASES:
        yield name, [(lambda name=name: (case(name).path, [dict(case(name).feed)]))]
    for path in sorted(SHIPPED.glob("light/*.onnx")):
        yield path.stem, [(lambda path=path: (with_weights(path, folder), None))]
    for family in FAMILIES:
        files = sorted(SHIPPED.glob(f"{family}/*/model.onnx"))
        yield family, [(lambda path=path: (path, None)) for path in files]


def run(names: set[str] | None, *, quick: bool) -> dict:
    """Print the table of these models (None: all); what `write_json` takes, with the proofs that failed."""
    wanted = names or (set(QUICK) if quick else None)
    table, cases, reasons, failed = Table(COLUMNS), [], Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for name, files in sources(Path(folder)):
            if wanted is None or name in wanted:
                row(table, name, files, cases, reasons, failed)
    print("\nHeld back: " + "; ".join(f"{reason} ({count} groups)" for reason, count in reasons.most_common()))
    return {"cases": cases, "held": dict(reasons), "failures": failed}


def row(table: Table, name: str, files: list, cases: list, reasons: Counter, failed: list) -> None:
    """One model, or one family of small ones."""
    found, notes = [], Counter()
    for make in files:
        try:
            found.append(prune(*make()))
        except StoreError as error:
            notes[f"not at hand: {error}"] += 1
        except PumiceError as error:
            kind = "refused: " + str(error)[:120]
            notes[kind] += 1
            if "differs from the masked one" in str(error):
                failed.append({"case": name, "error": str(error)})
    pruned = [one for one in found if one.proven]
    for one in found:
        reasons.update(one.reasons)
    if len(files) > 1:
        notes[f"{len(pruned)} of {len(files)} models have channels to remove"] += 1
    note = "; ".join(text if count == 1 else f"{count} models {text}" for text, count in notes.items())
    if not pruned:
        table.row([name, "0", str(sum(o.held for o in found)), "", "", "", "", note])
        return
    error = max(o.error for o in pruned)
    table.row([
        name, str(sum(o.groups for o in pruned)), str(sum(o.held for o in found)),
        f"{np.mean([o.params for o in pruned]):.0%}", f"{np.mean([o.macs for o in pruned]):.0%}",
        f"{error:.1e}", f"{max(o.effect for o in pruned):.2f}", note,
    ])  # fmt: skip
    cases.append(measurement(name, "difference from masking", error, {}, spread=0.0, higher_is_better=False))
