"""What an operator is: one frozen `Op` record, keyed by (domain, operator type, opset range).

A record says what the operator computes (`forward`), how its gradient flows (`vjp`), what it costs (`cost`), what its
outputs look like (`infer`) and how channels pass through it (`channels`). Every field but the key may be absent.
Records merge *field by field*: a plugin that knows only a gradient yields an `Op` with only `vjp`. For a model of opset
v, each field comes from the record with the newest `since` <= v that gives it and whose `until` (if any) is >= v.
Two plugins that give the same field for the same (domain, type, since) clash, and the error names both.

    forward(node, *arrays) -> tuple of arrays      absent optional inputs are None, absent trailing ones are left out
    vjp(node, inputs, outputs, grads, wanted) -> gradient of each input, None where it is zero or not wanted
    cost(node, input_shapes, output_shapes) -> OpCost

`vjp` is the vector-Jacobian product: from the gradients of the outputs (None: zero) those of the inputs whose flag in
`wanted` is set, each with the shape and type of its input. `Vjp` says along which inputs gradient flows and what is
read, so that everything else can be freed: an array that is not read arrives as a `ghost`, which has a shape and a type
but no memory. `outputs` is all that `forward` returned, also what no value of the graph receives.

A `Kernel` is another implementation of `forward`, or of `vjp` (`part`), for some device and types. NumPy's has rank 0
and is the definition of truth; a kernel of higher rank replaces it when the plan is compiled. With `fuse` it may take
over the nodes that follow its own, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.errors import PluginError

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.autograd import Tape

Array = NDArray[Any]
Outputs = tuple[Any, ...]
Forward = Callable[..., Outputs]
Shape = Sequence[int] | None
"""A known shape, or None for an absent optional input."""

FIELDS = ("infer", "forward", "vjp", "cost", "channels")


@attrs.frozen(kw_only=True, eq=False)
class Node:
    """The light view of a graph node that every function of an `Op` receives."""

    op_type: str
    domain: str = ""
    name: str = ""
    attributes: Mapping[str, Any] = attrs.field(factory=dict)
    """Python values: int, float, str, lists of these, arrays for tensors, `Subgraph` for graphs."""
    opset: int = 1
    """The version of the node's domain that the model imports."""
    outputs: tuple[str, ...] = ("",)
    """Names of the outputs; '' where an optional output is absent."""

    def get(self, attribute: str, default: Any = None) -> Any:
        return self.attributes.get(attribute, default)

    def wants(self, output: int) -> bool:
        """Whether the node has the optional output of this index."""
        return output < len(self.outputs) and self.outputs[output] != ""

    def __str__(self) -> str:
        return f"node '{self.name or self.outputs[0]}' ({f'{self.domain}.' if self.domain else ''}{self.op_type})"


@attrs.frozen(kw_only=True)
class OpCost:
    """What one execution of a node costs."""

    macs: int = 0
    """Multiply-accumulates of contractions and windows; pointwise arithmetic and data movement count none."""
    params: int = 0
    """Elements of the weight inputs."""
    bytes: int = 0
    """Bytes read and written if every element takes four, each input and output passing through memory once."""


Cost = Callable[[Node, Sequence[Shape], Sequence[Shape]], OpCost]


def elements(shape: Shape) -> int:
    """How many elements a shape holds; an absent input has none."""
    return 0 if shape is None else math.prod(shape)


def traffic(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    """The cost of an operator that only moves or maps elements."""
    return OpCost(bytes=4 * (sum(map(elements, inputs)) + sum(map(elements, outputs))))


Arrays = Sequence[Any]
"""Arrays by position, None where one is absent."""
Wanted = Sequence[bool]
"""Of each input, whether its gradient is asked for."""


@attrs.frozen(eq=False)
class Vjp:
    """A gradient and what it needs; indices are positions of inputs or outputs, None stands for all of them."""

    run: Callable[[Node, Arrays, Arrays, Arrays, Wanted], Arrays]
    wrt: tuple[int, ...] | None = attrs.field(default=None, kw_only=True)
    """Inputs along which gradient flows; that of the others (indices, shapes) is zero by definition."""
    inputs: tuple[int, ...] | None = attrs.field(default=None, kw_only=True)
    """Inputs whose values are read."""
    outputs: tuple[int, ...] | None = attrs.field(default=None, kw_only=True)
    """Results of `forward` whose values are read."""

    def __call__(self, node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
        return self.run(node, inputs, outputs, grads, wanted)


STOP = Vjp(lambda node, inputs, outputs, grads, wanted: [None] * len(inputs), wrt=(), inputs=(), outputs=())
"""The gradient of a function that is constant almost everywhere (rounding, comparison) or only describes its input."""


def ghost(x: Any) -> Any:
    """An array of the same shape, type and kind whose values mean nothing and take no memory."""
    if not getattr(x, "ndim", 0) or not x.size:
        return x
    return np.broadcast_to(np.empty_like(x, shape=(1,) * x.ndim), x.shape)


@attrs.frozen(eq=False)
class Op:
    """One operator, or a part of what is known about it."""

    op_type: str
    since: int = attrs.field(default=1, kw_only=True)
    """First opset of the domain for which this record holds."""
    until: int | None = attrs.field(default=None, kw_only=True)
    """Last opset for which it holds; None means that no later version changed the meaning."""
    domain: str = attrs.field(default="", kw_only=True)
    infer: Callable[..., Any] | None = attrs.field(default=None, kw_only=True)
    forward: Forward | None = attrs.field(default=None, kw_only=True)
    vjp: Callable[..., Any] | None = attrs.field(default=None, kw_only=True)
    cost: Cost | None = attrs.field(default=None, kw_only=True)
    channels: Callable[..., Any] | None = attrs.field(default=None, kw_only=True)

    @property
    def key(self) -> tuple[str, str]:
        return self.domain, self.op_type

    def holds(self, opset: int) -> bool:
        return self.since <= opset and (self.until is None or opset <= self.until)


@attrs.frozen(kw_only=True, eq=False)
class Link:
    """One node of a chain: nobody else reads the first output of the node before it."""

    node: Node
    constants: Sequence[Any]
    """By input; None where one is not constant."""
    at: int = -1
    """Which of its inputs the node before computes; -1 for the first node."""


@attrs.frozen(kw_only=True, eq=False)
class Kernel:
    """A faster way to compute an operator or its gradient; `run` must not change its inputs.

    `run` has the signature of `Op.forward` or, if `part` is "vjp", that of `Op.vjp`; such a kernel finds the values
    that the operator's `Vjp` reads (the others are ghosts) and gives every gradient that is wanted.
    """

    op_type: str
    part: Literal["forward", "vjp"] = "forward"
    domain: str = ""
    since: int = 1
    until: int | None = None
    device: str = "cpu"
    dtypes: frozenset[str] = frozenset({"float32"})
    """NumPy names of the first input's type for which `run` works; others fall through to the next kernel."""
    rank: int = 10
    """The highest rank that is available and accepts the node wins; NumPy has rank 0."""
    run: Forward
    bind: Callable[[Node, Sequence[Any]], Forward | None] | None = None
    """Given the node's constant inputs (None where one is not constant) when a plan is compiled, what to run instead of
    `run`: a place to rearrange weights once. It must look whether an input *is* that constant; feeds may replace it.
    None if the kernel is not for these constants."""
    fuse: Callable[[Sequence[Link]], Callable[..., Outputs] | None] | None = None
    """Given a chain that begins with the node, what computes all of it at once, or None; asked when a plan is compiled,
    with longer and longer chains, of which the longest is taken. The function takes the inputs of all the nodes, one
    node after the other, without what these hand on, and returns the last node's outputs, or NotImplemented to have
    every node computed by itself. What `bind` says about constants holds here too."""
    variant: Callable[[], str] = lambda: ""
    """What this machine runs, for reports: an instruction set, a device."""
    limited: Callable[[int], AbstractContextManager[Any]] = nullcontext
    """Holds it to so many threads, called from this thread; one function for all kernels of a library."""
    available: Callable[[], str | None] = lambda: None
    """None if it can run on this machine, else the reason."""
    accepts: Callable[[Node], str | None] = lambda node: None
    """None if it handles the node's attributes, else the reason. Asked once, when the plan is compiled."""
    rtol: float = 1e-5
    atol: float = 1e-6
    """The kernel's own tolerance against rank 0."""

    def fits(self, node: Node) -> bool:
        return (
            (self.domain, self.op_type) == (node.domain, node.op_type)
            and self.since <= node.opset
            and (self.until is None or node.opset <= self.until)
            and self.accepts(node) is None
        )


class Placement(Protocol):
    """Puts a plan on a device: its constants, and what computes its steps."""

    device: str
    """That of the kernels to choose from."""

    def constant(self, value: ir.Value, array: Array) -> Any:
        """A constant as the plan holds it."""

    def step(self, op: Op, call: Forward, vjp: Callable[..., Any] | None) -> tuple[Op, Forward, Any]:
        """An operator, what computes a node of it and what computes the node's gradient, on arrays of the device."""

    def tape(self, tape: Tape) -> Tape:
        """The tape of a training whose steps come one after the other, as it runs best on the device."""

    def bring(self, array: Any) -> Any:
        """An array of the CPU on the device; anything else as it is."""

    def fetch(self, array: Any) -> Any:
        """An array of the device on the CPU, once it is computed; anything else as it is."""

    def available_bytes(self) -> int:
        """What the device has free."""


@attrs.frozen(eq=False)
class OpTable:
    """Every known record, merged field by field."""

    records: Mapping[tuple[str, str], tuple[Op, ...]]
    """By (domain, type), newest `since` first."""

    @classmethod
    def merge(cls, contributions: Iterable[tuple[str, Op]]) -> OpTable:
        """The table of all `(source, record)` pairs, where `source` names the distribution a record came from.

        Raises:
            PluginError: two sources give the same field for the same operator and opset.
        """
        found: dict[tuple[str, str, int], dict[str, Any]] = {}
        givers: dict[tuple[str, str, int, str], str] = {}
        for source, op in contributions:
            merged = found.setdefault((op.domain, op.op_type, op.since), {"until": op.until})
            for field in FIELDS:
                if getattr(op, field) is None:
                    continue
                giver = givers.setdefault((op.domain, op.op_type, op.since, field), source)
                if field in merged:
                    raise PluginError(
                        f"both {giver} and {source} give '{field}' of operator {op.domain or 'ai.onnx'}.{op.op_type} "
                        f"since opset {op.since}; uninstall one of them or leave it out with PUMICE_DISABLE_PLUGINS"
                    )
                merged[field] = getattr(op, field)
        records: dict[tuple[str, str], list[Op]] = {}
        for (domain, op_type, since), fields in sorted(found.items(), key=lambda item: -item[0][2]):
            op = Op(op_type, domain=domain, since=since, **fields)
            records.setdefault((domain, op_type), []).append(op)
        return cls({key: tuple(ops) for key, ops in sorted(records.items())})

    def resolve(self, domain: str, op_type: str, opset: int) -> Op | None:
        """What is known about an operator in a model that imports `opset` of `domain`; None if nothing is."""
        holding = [op for op in self.records.get((normal(domain), op_type), ()) if op.holds(opset)]
        if not holding:
            return None
        fields: dict[str, Any] = {
            field: next((getattr(op, field) for op in holding if getattr(op, field) is not None), None)
            for field in FIELDS
        }
        return attrs.evolve(holding[0], **fields)


def normal(domain: str) -> str:
    """The default domain has two spellings; records use the empty one."""
    return "" if domain == "ai.onnx" else domain
