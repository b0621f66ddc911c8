"""Functions of one real number: steps of their own, or what a product does to its sums on their way out."""

from __future__ import annotations

import math
from collections.abc import Callable

from pumice.program import ABSENT, Step
from pumice_cpu.rows import FUNCTIONS
from pumice_cpu.runtime.compiler import Compiler, Lower

MS = "com.microsoft"
PARAMETERS = 3
"""That a function may have: `enum pumice_function`."""
Named = tuple[str, tuple[float, ...]]
"""A function of `pumice_cpu.rows` and its parameters."""


def bounds(c: Compiler, step: Step) -> tuple[float, float] | None:
    """Of a Relu or a Clip with constant bounds."""
    if step.node.op_type == "Relu":
        return 0.0, math.inf
    if step.node.op_type != "Clip":
        return None
    low, high = step.node.get("min", -math.inf), step.node.get("max", math.inf)
    given = [slot for slot in step.inputs[1:] if slot != ABSENT]
    if any(c.scalar(slot) is None for slot in given):
        return None
    if len(step.inputs) > 1 and step.inputs[1] != ABSENT:
        low = c.scalar(step.inputs[1])
    if len(step.inputs) > 2 and step.inputs[2] != ABSENT:
        high = c.scalar(step.inputs[2])
    return float(low), float(high)


def function_of(step: Step) -> Named | None:
    """What the step does to every element, if that is all."""
    found = ELEMENTWISE.get((step.node.domain, step.node.op_type))
    return None if found is None or len(step.inputs) != 1 else found(step)


def emit_map(c: Compiler, x: int, y: int, function: str, *parameters: float) -> bool:
    """A step of its own."""
    if not c.is_float(x, y) or c.trace.is_known(x):
        return False
    given = c.gapless(x)
    c.emit(
        "map", c.result_like(y, given), given, in_place=(1,), function=FUNCTIONS[function], count=given.array.size,
        parameters=padded(parameters),
    )  # fmt: skip
    return True


def padded(parameters: tuple[float, ...]) -> list[float]:
    return [*parameters, *[0.0] * PARAMETERS][:PARAMETERS]


def _map(c: Compiler, step: Step) -> bool:
    found = function_of(step)
    return found is not None and emit_map(c, step.inputs[0], step.outputs[0], found[0], *found[1])


def _clip(c: Compiler, step: Step) -> bool:
    found = bounds(c, step)
    return found is not None and emit_map(c, step.inputs[0], step.outputs[0], "clip", *found)


def _named(function: str, *knobs: tuple[str, float]) -> Callable[[Step], Named]:
    return lambda step: (function, tuple(float(step.node.get(name, default)) for name, default in knobs))


def _gelu(step: Step) -> Named:
    return "gelu_tanh" if step.node.get("approximate", "none") == "tanh" else "gelu", ()


ELEMENTWISE: dict[tuple[str, str], Callable[[Step], Named]] = {
    **{
        ("", name): _named(name.lower())
        for name in ("Exp", "Log", "Tanh", "Sigmoid", "Erf", "Relu", "Sqrt", "Reciprocal")
    },
    ("", "Neg"): lambda step: ("affine", (-1.0, 0.0, 0.0)),
    ("", "HardSwish"): _named("hard_swish"),
    ("", "Gelu"): _gelu,
    (MS, "Gelu"): _gelu,
    (MS, "FastGelu"): _named("gelu_tanh"),
    (MS, "QuickGelu"): _named("silu", ("alpha", 1.702)),
    ("", "Swish"): _named("silu", ("alpha", 1.0)),
    ("", "HardSigmoid"): _named("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)),
    ("", "LeakyRelu"): _named("leaky_relu", ("alpha", 0.01)),
}
LOWERS: dict[tuple[str, str], Lower] = {**dict.fromkeys(ELEMENTWISE, _map), ("", "Clip"): _clip}
