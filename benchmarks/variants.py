"""Every case as it is, in 8-bit integers and in mixed precision, with real feeds, as files in one folder.

    FOLDER/ID.npz                                        what it is fed
    FOLDER/ID.float32.onnx  ID.int8.onnx  ID.mixed.onnx  `int8` by the defaults; `mixed` has by turns a layer in 8-bit
                                                         integers, one with weights of 4 bits, one in float32

What a folder holds is measured without the data that it was made from, also on another machine.
"""

import itertools
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from models import CASES, Case, Feed, case
from onnx_ir.passes.common import LiftConstantsToInitializersPass

import pumice
from pumice.model import clone
from pumice.quantize.context import QuantizeContext
from pumice.quantize.weight_matrices import WeightMatrix, weight_matrices
from pumice.recipe import Recipe
from pumice.steps import Quantize
from pumice_quant_mixed import Mixed
from pumice_quant_mixed.formats import apply_formats, given_to

SAMPLES = 4
"""Calibration feeds that are kept of a case."""
TURNS = ("int8", "int4", "float32")
"""Formats of a mixed network's layers."""
DEEP = attrs.evolve(
    CASES["fashion_resnet"],
    id="fashion_deep",
    summary="fifty layers, no case of its own",
    locate=lambda: Path(__file__).parent / "models" / "trained" / "fashion_deep.onnx",
)
NAMES = (*CASES, DEEP.id)


@attrs.frozen(kw_only=True)
class Feeds:
    """What a case is fed."""

    samples: Sequence[Feed]
    """Of its calibration, as they are."""
    one: Feed
    """A single sample, for its latency."""
    axes: Mapping[str, int]
    """The axis of samples of every input; empty if there are none to be joined."""

    def batch(self, count: int) -> Feed:
        """So many samples of the first feed's shape, the same ones again where there are fewer; or the first feed."""
        first = self.samples[0]
        if not self.axes:
            return first
        shape = {name: x.shape for name, x in self._single(first).items()}
        alike = [f for f in self.samples if {name: x.shape for name, x in self._single(f).items()} == shape]
        joined = {name: np.concatenate([f[name] for f in alike], axis) for name, axis in self.axes.items()}
        rows = np.arange(count) % min(joined[name].shape[axis] for name, axis in self.axes.items())
        return {name: joined[name].take(rows, axis) for name, axis in self.axes.items()}

    def _single(self, feed: Feed) -> Feed:
        return {name: feed[name].take([0], axis) for name, axis in self.axes.items()}

    @classmethod
    def of(cls, found: Case) -> "Feeds":
        one, model = found.feed, pumice.load(found.path)
        samples = list(itertools.islice(found.calibration(), SAMPLES))
        axes = {str(value.name): _free_axis(value, one[str(value.name)]) for value in model.graph.inputs}
        known = {name: axis for name, axis in axes.items() if axis is not None}
        return cls(samples=samples, one=one, axes=known if len(known) == len(axes) else {})

    def write(self, path: Path) -> None:
        arrays = {f"sample{i}/{name}": x for i, feed in enumerate(self.samples) for name, x in feed.items()}
        arrays |= {f"one/{name}": x for name, x in self.one.items()}
        arrays |= {f"axis/{name}": np.array(axis) for name, axis in self.axes.items()}
        np.savez_compressed(path, **arrays)

    @classmethod
    def read(cls, path: Path) -> "Feeds":
        found: dict[str, dict[str, Any]] = {}
        with np.load(path) as arrays:
            for key in arrays.files:
                part, _, name = key.partition("/")
                found.setdefault(part, {})[name] = arrays[key]
        axes = {name: int(axis) for name, axis in found.pop("axis", {}).items()}
        return cls(one=found.pop("one"), samples=list(found.values()), axes=axes)


def _free_axis(value: ir.Value, one: np.ndarray) -> int | None:
    """The first axis of any length that has one entry for a single sample."""
    assert value.shape is not None
    free = (i for i, n in enumerate(value.shape.dims) if not (isinstance(n, int) and n > 0))
    return next((i for i in free if one.shape[i] == 1), None)


@attrs.frozen(kw_only=True)
class ByTurns(Mixed):
    """Formats by turns, in the order of the layers."""

    def quantize(self, model: ir.Model, context: QuantizeContext) -> ir.Model:
        lifted, layers = clone(model), dict[str, list[WeightMatrix]]()
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(lifted)
        for matrix in weight_matrices(iter(lifted.graph)):
            if math.prod(matrix.shape) >= self.smallest:
                layers.setdefault(str(matrix.readers[0][0].name), []).append(matrix)
        turns = zip(layers.values(), itertools.cycle(TURNS))
        choice = {node: name for matrices, turn in turns for node, name in given_to(turn, matrices).items()}
        return apply_formats(model, choice, context, smallest=self.smallest)


def found_case(name: str) -> Case:
    """A case of the catalogue, or the deep network."""
    return DEEP if name == DEEP.id else case(name)


def _compressed(found: Case, recipe: Recipe | None, target: Path) -> None:
    data = [dict(feed) for feed in found.calibration()]
    pumice.compress(found.path, data=data, recipe=recipe, measure=False).save(target)


MAKERS: Mapping[str, Callable[[Case, Path], Any]] = {
    "float32": lambda found, target: shutil.copyfile(found.path, target),
    "int8": lambda found, target: _compressed(found, None, target),
    "mixed": lambda found, target: _compressed(
        found, Recipe([Quantize(quantizer=ByTurns(), max_drop=1.0)]), target
    ),
}  # fmt: skip


def write(name: str, folder: Path) -> None:
    """Make what is not there yet of a case's files."""
    folder.mkdir(parents=True, exist_ok=True)
    found = found_case(name)
    if not (feeds := folder / f"{name}.npz").exists():
        Feeds.of(found).write(feeds)
    for kind, make in MAKERS.items():
        if not (target := folder / f"{name}.{kind}.onnx").exists():
            make(found, target)


def read(folder: Path, names: Sequence[str] = NAMES) -> Iterator[tuple[str, str, Path, Feeds]]:
    """(case, kind, file, feeds) of all that a folder holds of these cases."""
    for name in names:
        there = [(kind, path) for kind in MAKERS if (path := folder / f"{name}.{kind}.onnx").exists()]
        for kind, path in there:
            yield name, kind, path, Feeds.read(folder / f"{name}.npz")
