"""Which constants of a model are its parameters, and what is special about each.

An initializer is a *parameter* if it is floating point, gradient reaches it, and it stands where an operator keeps a
weight (the kernel of a convolution, the scale of a normalisation, a recurrence, a table). Elsewhere (the operand of an
Add, a Mul, a Concat) it is one unless it looks like a constant of the formula: a single number, or values beyond 1000
or not finite, which are masks. The running statistics of batch normalisation and the scales of quantizers are not
parameters.

Weight decay pulls matrices and kernels towards zero, never vectors (biases, scales). A *mask* marks the elements that
are exactly zero in a matrix or kernel; what was pruned stays so. (All zeros is where a matrix may begin.)
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice.errors import ModelError
from pumice.ops.dtypes import is_float, wide
from pumice.ops.gradient import namespace
from pumice.ops.record import Array, Placement

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.plan import Plan
    from pumice.program import Step

WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "FusedMatMul": (0, 1),
    "BatchNormalization": (1, 2), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2), "RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (1, 2, 3, 4), "LSTM": (1, 2, 3, 7), "GRU": (1, 2, 3), "RNN": (1, 2, 3), "Gather": (0,),
    "PRelu": (1,),
}  # fmt: skip
"""Inputs that are weights whatever their size and values."""

NEVER = frozenset({"QuantizeLinear", "DequantizeLinear", "Clip", "Pow", "Resize", "Where"})
"""Operators whose constants say how, not what they have learned."""

LARGEST = 1000.0


@attrs.frozen(eq=False)
class Parameters:
    """Arrays under training, by the name of their initializer; the trainer owns and changes them."""

    values: dict[str, Array]
    decayed: frozenset[str]
    masks: Mapping[str, Array]
    """1 where an element may change, 0 where it stays zero."""
    frozen: tuple[str, ...]
    """Parameters that were left as they are because a pattern named them."""
    dtypes: Mapping[str, Any]
    """Types of the initializers; narrow ones are trained as float32 and rounded when they are fed."""

    @classmethod
    def of(
        cls, plan: Plan, *, freeze: Sequence[str] = (), keep_zeros: bool = True, also: Sequence[str] = ()
    ) -> Parameters:
        """
        Args:
            plan: the model.
            freeze: patterns of nodes or initializers that stay as they are.
            keep_zeros: whether what is exactly zero in a matrix or kernel stays so.
            also: initializers to train though they do not look like parameters.

        Raises:
            ModelError: nothing is left to train, or a pattern of `freeze` names nothing.
        """
        found = {name: plan.program.template[plan.initializers[name]] for name in (*parameter_names(plan), *also)}
        users = _users(plan)
        names = {name: [name, *(str(step.node.name) for step, _ in users[plan.initializers[name]])] for name in found}
        for pattern in freeze:
            if not any(fnmatch.filter(known, pattern) for known in names.values()):
                raise ModelError(f"nothing to freeze is called '{pattern}': name a node or a parameter of the model")
        frozen = tuple(n for n, known in names.items() if any(fnmatch.filter(known, pattern) for pattern in freeze))
        values = {name: namespace(value).array(wide(value)) for name, value in found.items() if name not in frozen}
        if not values:
            raise ModelError("the model has no floating-point parameter to train: freeze less, or give another model")
        matrices = [name for name, value in values.items() if value.ndim > 1]
        pruned = [n for n in matrices if keep_zeros and values[n].any() and not values[n].all()]
        masks = {n: (values[n] != 0).astype(values[n].dtype) for n in pruned}
        return cls(values, frozenset(matrices), masks, frozen, {name: found[name].dtype for name in values})

    def on(self, placement: Placement) -> Parameters:
        """The same on a device."""
        values = {name: placement.bring(value) for name, value in self.values.items()}
        return attrs.evolve(
            self, values=values, masks={name: placement.bring(mask) for name, mask in self.masks.items()}
        )

    def fed(self, values: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """The values (None: these) in the types of their initializers."""
        chosen = self.values if values is None else values
        return {name: value.astype(self.dtypes[name], copy=False) for name, value in chosen.items()}

    def write(self, model: ir.Model, values: Mapping[str, Array]) -> None:
        """Put values (these, or an average of them, and running statistics) into the model's initializers."""
        import onnx_ir as ir

        for name, value in values.items():
            held = model.graph.initializers[name]
            held.const_value = ir.tensor(np.array(value), name=name)


def parameter_names(plan: Plan) -> list[str]:
    """In the order of the plan's initializers."""
    users = _users(plan)
    return [
        name
        for name, slot in plan.initializers.items()
        if _is_parameter(plan.program.template[slot], list(users.get(slot, ())))
    ]


def _users(plan: Plan) -> dict[int, list[tuple[Step, int]]]:
    found: dict[int, list[tuple[Step, int]]] = {}
    for step, index, slot in _reads(plan):
        found.setdefault(slot, []).append((step, index))
    return found


def _reads(plan: Plan) -> Iterator[tuple[Step, int, int]]:
    for step in plan.steps:
        for index, slot in enumerate(step.inputs):
            yield step, index, slot


def _is_parameter(value: Any, users: Sequence[tuple[Step, int]]) -> bool:
    if not is_float(value.dtype) or not value.size:
        return False
    roles = [_role(step, index) for step, index in users]
    if "constant" in roles or not roles:
        return False
    if "weight" in roles:
        return True
    return value.size > 1 and bool(np.isfinite(value).all()) and float(np.abs(value).max()) < LARGEST


def _role(step: Step, index: int) -> str:
    op, wrt = step.node.op_type, getattr(step.vjp, "wrt", None)
    if op in NEVER or (op == "BatchNormalization" and index > 2) or (wrt is not None and index not in wrt):
        return "constant"
    return "weight" if index in WEIGHTS.get(op, ()) else "operand"
