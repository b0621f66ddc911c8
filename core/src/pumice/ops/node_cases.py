"""ONNX's own node cases: about 1,900 one-node models with inputs and outputs, and what becomes of each here.

A case passes if its outputs agree within its own tolerances (two units in the last place where the type is narrower
than these), or is refused by name with `UnsupportedOp`; anything else is a defect. Outputs of random operators are
compared in type and shape only. `node_cases.json` holds the counts per operator and the refused cases; the test suite
reruns every case and holds them to it, and `docs/ops.md` prints them. `python -m pumice.ops cases` rewrites it.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from pumice.errors import UnsupportedOp
from pumice.ops.dtypes import is_float

COUNTS = Path(__file__).with_name("node_cases.json")
RANDOM = {"Bernoulli", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def collect() -> list[Any]:
    """All cases of the installed onnx, drawn from one seed."""
    from onnx.backend.test.case.node import collect_testcases

    state = np.random.get_state()  # noqa: NPY002 - the cases draw from NumPy's global generator
    np.random.seed(0)  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases: list[Any] = collect_testcases(None)
    np.random.set_state(state)  # noqa: NPY002
    return cases


def check(case: Any) -> None:
    """Runs one case.

    Raises:
        UnsupportedOp: the case needs an operator, or a mode of one, that is not implemented.
        AssertionError: the outputs differ from what ONNX says.
    """
    import onnx_ir as ir

    from pumice.plan import compile_plan

    plan = compile_plan(ir.from_proto(case.model), kernels=())
    random = not RANDOM.isdisjoint(node.op_type for node in case.model.graph.node)
    for inputs, outputs in case.data_sets:
        feeds = {spec.name: _frozen(value(data)) for spec, data in zip(plan.inputs, inputs, strict=False)}
        results = plan.run(feeds)
        for name, expected in zip(plan.output_names, outputs, strict=True):
            compare(results[name], value(expected), rtol=case.rtol, atol=case.atol, random=random)


def value(data: Any) -> Any:
    """An input or output as the plan takes it: an array, a list of arrays or None."""
    import onnx

    if data is None or isinstance(data, list):
        return data
    return onnx.numpy_helper.to_array(data) if isinstance(data, onnx.TensorProto) else np.asarray(data)


def _frozen(data: Any) -> Any:
    """A view that cannot be written to: an operator that changes its inputs fails its cases."""
    if isinstance(data, np.ndarray):
        data = data.view()
        data.flags.writeable = False
    return data


def compare(have: Any, want: Any, *, rtol: float, atol: float, random: bool = False) -> None:
    """Asserts that a result is what a case expects."""
    import ml_dtypes

    if want is None or isinstance(want, list):
        assert type(have) is type(want), f"got {type(have).__name__}, expected {type(want).__name__}"
        for have_item, want_item in zip(have or [], want or [], strict=True):
            compare(have_item, np.asarray(want_item), rtol=rtol, atol=atol)
        return
    assert have.shape == want.shape, f"shape {have.shape}, expected {want.shape}"
    if want.dtype.kind in "OSU":
        np.testing.assert_array_equal(have.astype(object), want.astype(object))
        return
    assert have.dtype == want.dtype, f"type {have.dtype}, expected {want.dtype}"
    if random:
        return
    if not is_float(want.dtype) and want.dtype.kind != "c":
        np.testing.assert_array_equal(have, want)
        return
    if want.dtype.itemsize < 4:
        rtol = max(rtol, 2 * float(ml_dtypes.finfo(want.dtype).eps))  # type: ignore[no-untyped-call]
        have, want = have.astype(np.float32), want.astype(np.float32)
    np.testing.assert_allclose(have, want, rtol=rtol, atol=atol)


@attrs.frozen
class Counts:
    """How the cases of one operator fare; a case counts for every operator in its graph."""

    passed: int
    refused: int

    @property
    def total(self) -> int:
        return self.passed + self.refused


@attrs.frozen(kw_only=True)
class Record:
    """What `node_cases.json` says."""

    onnx: str
    total: int
    refused: tuple[str, ...]
    """Names of the refused cases."""
    operators: dict[str, Counts]
    """By `domain.type`, or the bare type in the default domain."""

    @property
    def passed(self) -> int:
        return self.total - len(self.refused)

    @classmethod
    def load(cls) -> Record:
        data = json.loads(COUNTS.read_text())
        operators = {name: Counts(*counts) for name, counts in data["operators"].items()}
        return cls(onnx=data["onnx"], total=data["total"], refused=tuple(data["refused"]), operators=operators)

    @classmethod
    def of(cls, cases: Iterable[Any], refused: Iterable[str]) -> Record:
        """The record of all cases when these are refused and all others pass."""
        import onnx

        turned_down, total = set(refused), 0
        passed: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        for case in cases:
            total += 1
            types = {f"{node.domain}.{node.op_type}".lstrip(".") for node in case.model.graph.node}
            (failed if case.name in turned_down else passed).update(types)
        operators = {name: Counts(passed[name], failed[name]) for name in sorted({*passed, *failed})}
        return cls(onnx=onnx.__version__, total=total, refused=tuple(sorted(turned_down)), operators=operators)

    def save(self) -> None:
        operators = {name: [counts.passed, counts.refused] for name, counts in self.operators.items()}
        rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(counts)}" for name, counts in operators.items())
        COUNTS.write_text(
            f'{{\n  "onnx": "{self.onnx}",\n  "total": {self.total},\n'
            f'  "refused": {json.dumps(self.refused, indent=4)},\n  "operators": {{\n{rows}\n  }}\n}}\n'
        )


def run_all() -> Record:
    """Runs every case. A wrong answer stops it."""
    cases, refused = collect(), []
    for case in cases:
        try:
            check(case)
        except UnsupportedOp:
            refused.append(case.name)
        except Exception as error:
            raise AssertionError(f"node case {case.name} is wrong") from error
    return Record.of(cases, refused)
