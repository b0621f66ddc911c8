"""An open model: programs compiled for the shapes that come, run by any number of threads at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pumice.composites import recognised
from pumice.ledger import Ledger
from pumice.ops.record import Array
from pumice.plan import Plan, compile_plan
from pumice.program import Step, with_lifetimes
from pumice_cpu.runtime.compiled import Compiled, Timed, describe
from pumice_cpu.runtime.compiler import REFERENCE, Compiler
from pumice_cpu.runtime.executable import assemble
from pumice_cpu.runtime.lower import table
from pumice_cpu.runtime.packing import Packer
from pumice_cpu.runtime.timings import signature
from pumice_cpu.runtime.trace import trace
from pumice_cpu.runtime.views import View

if TYPE_CHECKING:
    import onnx_ir as ir

MOST_PROGRAMS = 64
"""Shapes whose programs are kept, the last ones used."""
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class NativeSession:
    """A model ready to run; threads may share it.

    Args:
        model: left unchanged. Q and DQ become integer operators, as ONNX Runtime fuses them.
        outputs: values to return, any of the main graph; None means the graph's outputs.
        threads: of one run; None means all cores.
        exact: integers are ONNX Runtime's; else rows are quantized each with a scale of its own.
    """

    def __init__(
        self, model: ir.Model, *, outputs: Sequence[str] | None = None, threads: int | None = None, exact: bool = True
    ) -> None:
        self.threads, self.exact = threads, exact
        self.plan = _plan(model, None if outputs is None else tuple(dict.fromkeys(outputs)))  # a name is answered once
        self.steps = _steps(self.plan)
        self.packer = Packer()
        self.programs: OrderedDict[Shapes, Compiled] = OrderedDict()
        self._compiling = threading.Lock()

    # --- running ------------------------------------------------------------------------------------------------------

    def run(self, feeds: Mapping[str, Array], *, out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """All outputs, by name.

        Args:
            feeds: inputs; those in C order are read where they lie.
            out: arrays of the outputs' types and shapes, in C order, to be written to.

        Raises:
            DataError: an input or a given output does not fit.
            NativeError: the values cannot be computed with.
        """
        if any(name in self.plan.initializers for name in feeds):
            return self.plan.run(feeds)
        return self.compiled(feeds).run(feeds, out, self.threads or 0)

    def profile(self, feeds: Mapping[str, Array]) -> list[Timed]:
        """Every instruction and its time, in the order of execution: the mean of a few runs after a warm-up."""
        return self.compiled(feeds).profile(feeds, self.threads or 0)

    def save(self, feeds: Mapping[str, Array], path: Path) -> None:
        """Write the program for the shapes of these inputs to a file, which `NativeRuntime.open` maps back.

        Raises:
            NativeError: a reference kernel is part of it that has graphs or text of its own.
        """
        from pumice_cpu.runtime.stored import save

        save(self.compiled(feeds), path)

    def ledger(self, feeds: Mapping[str, Array]) -> Ledger:
        """A line for every operator: native, or why it runs on the reference kernel, with its share of the time."""
        found, ledger = self.profile(feeds), Ledger()
        whole = sum(line.microseconds for line in found) or 1.0
        for line in found:
            share = {"share": line.microseconds / whole}
            if line.kind == REFERENCE:
                reason = (
                    f"there is no native function for {line.op} on these types and shapes: the reference kernel ran"
                )
                ledger.declined("native", line.node, line.op, reason, **share)
            else:
                ledger.applied("native", line.node, line.op, f"runs as {line.kind}", **share)
        return ledger

    @property
    def description(self) -> str:
        return describe(self.threads)

    # --- compiling ----------------------------------------------------------------------------------------------------

    def compiled(self, feeds: Mapping[str, Array]) -> Compiled:
        """The program for the shapes of these inputs, made if there is none yet."""
        key: Shapes = tuple(
            (i.name, feeds[i.name].shape) for i in self.plan.inputs if hasattr(feeds.get(i.name), "shape")
        )
        found = self.programs.get(key)
        types = all(
            feeds[i.name].dtype == i.dtype for i in self.plan.inputs if i.name in feeds and i.tensor and i.dtype
        )
        if found is not None and types and len(feeds) == len(self.plan.inputs):
            return found
        filled = self.plan.filled(feeds)
        with self._compiling:
            found = self.programs.get(key) or self._compile(dict(filled))
            found.settle(feeds, self.threads or 0)
            self.programs[key] = found
            while len(self.programs) > MOST_PROGRAMS:
                self.programs.popitem(last=False)
        return found

    def _compile(self, filled: Mapping[int, Any]) -> Compiled:
        program = self.plan.program
        seen = trace(program, self.steps, filled)
        compiler = Compiler(program, self.steps, seen, self.packer, exact=self.exact)
        executable = assemble(compiler.compile(table()))
        inputs = {
            i.name: (slot, compiler.given.get(slot))
            for i, slot in zip(self.plan.inputs, program.inputs, strict=True)
            if slot in filled
        }
        outputs: dict[str, View | Array | int] = {}
        for name, slot in zip(self.plan.output_names, program.outputs, strict=True):
            known = seen.known(slot)
            outputs[name] = known if known is not None else compiler.views.get(slot, slot)
        return Compiled(executable, inputs, outputs, tuple(map(signature, executable.instructions)))


def _plan(model: ir.Model, outputs: Sequence[str] | None) -> Plan:
    """The plan of the model with integer operators; values asked for stay what they are."""
    from pumice.model import clone
    from pumice.quantize.fusion import fused

    if outputs is not None:
        wanted = set(outputs) - {str(value.name) for value in model.graph.outputs}
        model = clone(model)
        model.graph.outputs.extend(value for node in model.graph for value in node.outputs if value.name in wanted)
    return compile_plan(fused(model), outputs)


def _steps(plan: Plan) -> list[Step]:
    from pumice.registry import registry

    program = plan.program
    kernels = [k for k in registry().kernels if k.device == "cpu" and k.available() is None]
    steps = recognised(program.steps, program.template, {*program.outputs}, kernels, registry().ops)
    return with_lifetimes(steps, keep={*program.outputs})
