"""What an operator's record owes, as tests that a third party inherits:

    from pumice.testing import OpContract
    from pumice.ops.contract import Example

    class TestSquare(OpContract):
        op = Op("Square", domain="my.domain", forward=lambda node, x: (x * x,))

        def examples(self):
            yield Example(np.arange(6.0, dtype=np.float32))

        def expected(self, example):  # only for operators that ONNX does not define
            return (np.square(example.inputs[0]),)

`forward` is held to ONNX's reference implementation, in values, types and shapes; it must leave its inputs alone and
give the same answer twice; `vjp` is held to central differences in float64 and must not read what it says it does not;
`cost` must be plausible; every kernel that is available, of `forward` and of `vjp`, must agree with rank 0 within its
own tolerance. Fields that the record lacks are not checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import attrs
import numpy as np

from pumice.ops import core_table
from pumice.ops.central_differences import gradient_error, in_float64
from pumice.ops.node_cases import compare
from pumice.ops.record import Array, Kernel, Node, Op, OpCost, Outputs

TOLERANCE = 1e-5
"""Largest error of a gradient in float64, relative to its largest element."""


@attrs.frozen(init=False)
class Example:
    """One node on one set of inputs; None stands for an absent optional input."""

    inputs: tuple[Array | None, ...]
    attributes: dict[str, Any]
    outputs: int
    opset: int | None
    rtol: float
    atol: float

    def __init__(
        self,
        *inputs: Array | None,
        outputs: int = 1,
        opset: int | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-6,
        **attributes: Any,
    ) -> None:
        self.__attrs_init__(inputs, attributes, outputs, opset, rtol, atol)


class OpContract:
    """Needs `op` and `examples`; `kernels` are compared with the record's `forward`, or with core's if it has none."""

    op: ClassVar[Op]
    kernels: ClassVar[Sequence[Kernel]] = ()
    straight_through: ClassVar[bool] = False
    """True if `vjp` is, on purpose, not the derivative of `forward`."""

    def examples(self) -> Iterable[Example]:
        """At least one example; together they should reach every attribute."""
        raise NotImplementedError

    def expected(self, example: Example) -> Outputs:
        """What the outputs should be: by default, what ONNX's reference implementation gives."""
        import onnx
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        names = [f"x{i}" if x is not None else "" for i, x in enumerate(example.inputs)]
        node = self.node(example)
        proto = helper.make_node(node.op_type, names, node.outputs, domain=node.domain, **example.attributes)
        feeds = {name: x for name, x in zip(names, example.inputs, strict=True) if x is not None}
        values = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in feeds.items()
        ]
        graph = helper.make_graph([proto], "example", values, [onnx.ValueInfoProto(name=n) for n in node.outputs])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, node.opset)])
        return tuple(ReferenceEvaluator(model).run(None, feeds))

    # --- parts of the tests -------------------------------------------------------------------------------------------

    def node(self, example: Example) -> Node:
        return Node(
            op_type=self.op.op_type,
            domain=self.op.domain,
            name="example",
            attributes=example.attributes,
            opset=example.opset or self.op.until or max(self.op.since, _latest(self.op.domain)),
            outputs=tuple(f"y{i}" for i in range(example.outputs)),
        )

    def forward(self, example: Example) -> Outputs:
        """The outputs by the record's own `forward`, or by core's where the record has none."""
        node, known = self.node(example), self.op
        if known.forward is None:
            known = core_table().resolve(node.domain, node.op_type, node.opset) or known
        assert known.forward is not None, f"neither the record nor core has a forward for {node.op_type}"
        with np.errstate(all="ignore"):
            outputs = known.forward(node, *example.inputs)
        return tuple(np.asarray(y) for y in outputs[: example.outputs])

    # --- tests --------------------------------------------------------------------------------------------------------

    def test_there_is_an_example(self) -> None:
        assert list(self.examples()), "examples() must give at least one example"

    def test_forward_agrees_with_the_reference(self) -> None:
        if self.op.forward is not None:
            for example in self.examples():
                expected = self.expected(example)
                results = self.forward(example)
                assert len(results) == len(expected), f"{len(results)} outputs, expected {len(expected)}"
                for have, want in zip(results, expected, strict=True):
                    compare(have, np.asarray(want), rtol=example.rtol, atol=example.atol)

    def test_forward_leaves_its_inputs_unchanged(self) -> None:
        for example in self.examples():
            before = [None if x is None else x.copy() for x in example.inputs]
            self.forward(example)
            for x, old in zip(example.inputs, before, strict=True):
                np.testing.assert_array_equal(x, old)

    def test_forward_gives_the_same_answer_twice(self) -> None:
        for example in self.examples():
            for first, second in zip(self.forward(example), self.forward(example), strict=True):
                assert first.tobytes() == second.tobytes()

    def test_vjp_agrees_with_central_differences(self) -> None:
        if self.op.vjp is not None and not self.straight_through:
            for example in self.examples():
                node, known = self.node(example), self.op
                known = core_table().resolve(node.domain, node.op_type, node.opset) or known
                forward = self.op.forward or known.forward
                assert forward is not None, f"neither the record nor core has a forward for {node.op_type}"
                error = gradient_error(forward, self.op.vjp, node, in_float64(example.inputs))
                assert error < TOLERANCE, f"the gradient is wrong by {error:.1e} of its scale"

    def test_cost_is_plausible(self) -> None:
        if self.op.cost is not None:
            for example in self.examples():
                shapes = [None if x is None else x.shape for x in example.inputs]
                cost = self.op.cost(self.node(example), shapes, [y.shape for y in self.forward(example)])
                assert isinstance(cost, OpCost)
                assert min(cost.macs, cost.params, cost.bytes) >= 0, f"a cost is negative: {cost}"
                assert cost.bytes > 0, "every operator reads or writes something"
                held = sum(x.size for x in example.inputs if x is not None)
                assert cost.params <= held, f"{cost.params} parameters, but the inputs hold {held} elements"

    def test_kernels_agree_with_rank_0(self) -> None:
        for kernel in self.kernels:
            assert kernel.rank > 0, "rank 0 is NumPy's"
            if kernel.available() is not None:
                continue
            for example in self.examples():
                first = example.inputs[0]
                if first is None or first.dtype.name not in kernel.dtypes or not kernel.fits(self.node(example)):
                    continue
                compute = self._gradients if kernel.part == "vjp" else self._results
                truth = self.op.vjp if kernel.part == "vjp" else self.op.forward
                for have, want in zip(compute(kernel.run, example), compute(truth, example), strict=False):
                    if want is not None:
                        compare(np.asarray(have), np.asarray(want), rtol=kernel.rtol, atol=kernel.atol)

    def _results(self, forward: Any, example: Example) -> Sequence[Any]:
        return (
            self.forward(example)
            if forward in (None, self.op.forward)
            else forward(self.node(example), *example.inputs)
        )

    def _gradients(self, vjp: Any, example: Example) -> Sequence[Any]:
        """For one gradient of the outputs, drawn at random, with respect to every floating-point input."""
        node = self.node(example)
        known = core_table().resolve(node.domain, node.op_type, node.opset) or self.op
        forward, vjp = self.op.forward or known.forward, vjp or known.vjp
        assert forward is not None
        with np.errstate(all="ignore"):
            outputs = forward(node, *example.inputs)
        draws = np.random.default_rng(11)
        grads = [draws.standard_normal(y.shape).astype(y.dtype) for y in outputs[: example.outputs]]
        wanted = [x is not None and x.dtype.kind == "f" for x in example.inputs]
        return list(vjp(node, example.inputs, outputs, grads, wanted))


def _latest(domain: str) -> int:
    """The newest opset of a domain that the installed onnx defines; 1 for a domain that it does not know."""
    import onnx

    versions = [schema.since_version for schema in onnx.defs.get_all_schemas() if schema.domain == domain]
    return max(versions, default=1)
