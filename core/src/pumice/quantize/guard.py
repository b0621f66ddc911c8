"""The accuracy guard: a model that lost more than its budget gets its worst layers back in floating point.

It stands around every quantizer: whatever leaves excluded nodes alone and tells the ledger what it changed is guarded.

What counts as lost is told in `pumice.measure.budget`.

If the budget is broken, every layer is quantized alone, the outputs are compared, and the layers that disturb them most
are returned to floating point: one, two, four, ... until the budget holds, and then as many fewer as it still holds
with. Each is named in the ledger with its figure. If one layer alone costs more than that, the step is rolled back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np
import onnx_ir as ir

from pumice.errors import BudgetExceeded, PluginError
from pumice.ledger import Ledger
from pumice.measure import budget
from pumice.measure.budget import JUDGED, NOISE_TO_SIGNAL, Drift, Verdict
from pumice.model import clone, nodes, weight_of
from pumice.progress import unshown
from pumice.quantize.context import QuantizeContext
from pumice.quantize.placement import STEP
from pumice.strategy import Quantizer

RANKED = 8
"""Samples used to rank layers."""


def judge(original: ir.Model, changed: ir.Model, context: QuantizeContext) -> Verdict:
    """Compare the two models on the calibration data: what breaks a budget of noise is judged by that."""
    samples = context.samples_with_labels(JUDGED)
    found = budget.judge(original, changed, samples, context.metrics, context.runtime, context.max_drop)
    if not context.noise or found.noise <= context.noise:
        return found
    return Verdict(measure=NOISE_TO_SIGNAL, loss=found.noise, budget=context.noise, error=0.0, noise=found.noise)


def within_budget(model: ir.Model, quantizer: Quantizer, context: QuantizeContext) -> ir.Model:
    """Quantize, judge, and give layers back until the budget holds.

    Args:
        model: the floating-point model.
        quantizer: leaves nodes alone for which `context.excluded` gives a reason; that is all it does for the guard.
        context: holds the budget; its ledger and its notes are told which layers were given back, and why.

    Raises:
        BudgetExceeded: no layer can be quantized within the budget.
        PluginError: the quantizer changed a node that is excluded.
    """
    found = _Guard(model, quantizer, context).run()
    context.ledger.extend(found.ledger)
    return found.model


@attrs.frozen(eq=False)
class _Attempt:
    """A quantized model and its account."""

    model: ir.Model
    ledger: Ledger
    kept: Mapping[str, str]
    """Why layers were returned to floating point, by name."""


@attrs.frozen(eq=False)
class _Guard:
    """One model, one quantizer, one budget."""

    model: ir.Model
    quantizer: Quantizer
    context: QuantizeContext

    def run(self) -> _Attempt:
        whole = self.attempt({})
        layers = self.layers(whole.ledger)
        if not layers:
            return whole
        if self.context.calibration is None:
            self.context.notes.append("what quantization cost was not judged: no data was given")
            return whole
        verdict = self.verdict(whole)
        if not verdict.exceeded:
            return whole
        found = self.search(verdict, self.ranking([layer.name or "" for layer in layers]))
        returned = "1 layer was" if len(found.kept) == 1 else f"{len(found.kept)} layers were"
        self.context.notes.append(f"{returned} returned to floating point, because {verdict}: {', '.join(found.kept)}")
        return found

    def attempt(self, kept: Mapping[str, str]) -> _Attempt:
        around = attrs.evolve(self.context, ledger=Ledger(), kept=kept)
        changed = self.quantizer.quantize(self.model, around)
        self.check(around)
        return _Attempt(changed, around.ledger, kept)

    def check(self, around: QuantizeContext) -> None:
        """Hold the quantizer to what was excluded, and the ledger to a line for every layer that was given back.

        Raises:
            PluginError: an excluded layer was quantized.
        """
        for layer in self.layers(around.ledger):
            if reason := around.excluded(layer):
                raise PluginError(
                    f"quantizer '{self.quantizer.name}' quantized node '{layer.name}', which is excluded ({reason}): "
                    "ask its author to leave nodes alone for which context.excluded(node) gives a reason"
                )
        silent = around.kept.keys() - {entry.node for entry in around.ledger.of(STEP)}
        for node in nodes(self.model):
            if node.name in silent:
                around.ledger.declined(STEP, node.name, node.op_type, around.kept[node.name])

    def layers(self, ledger: Ledger) -> list[ir.Node]:
        """The nodes that were quantized and have weights; all that were, if none has."""
        applied = {entry.node for entry in ledger.of(STEP, "applied")}
        found = [node for node in nodes(self.model) if node.name in applied]
        return [node for node in found if weight_of(node) is not None] or found

    def verdict(self, attempt: _Attempt) -> Verdict:
        return judge(self.model, attempt.model, self.context)

    def search(self, verdict: Verdict, ranking: Sequence[tuple[str, float]]) -> _Attempt:
        """The model with the fewest of the worst layers in floating point that keeps the budget."""
        said = f"returned to floating point: {verdict}, and this layer alone adds"
        failed, enough = 0, 0
        found: _Attempt | None = None
        while found is None or enough - failed > 1:
            count = (failed + enough) // 2 if found is not None else min(max(2 * failed, 1), len(ranking) - 1)
            if count == failed:
                raise BudgetExceeded(
                    f"quantization was rolled back: {verdict}, and too much however few layers are quantized; "
                    "raise max_drop, or give calibration data that looks like the real input"
                )
            attempt = self.attempt({name: f"{said} {noise:.3g} noise" for name, noise in ranking[:count]})
            if self.verdict(attempt).exceeded:
                failed = count
            else:
                found, enough = attempt, count
        return found

    def ranking(self, layers: Sequence[str]) -> list[tuple[str, float]]:
        """(layer, noise-to-signal ratio at the outputs when it alone is quantized), worst first."""
        runtime = self.context.runtime
        original = runtime.open(clone(self.model))
        samples = [(feeds, original.run(feeds)) for feeds in self.context.feeds(RANKED)]
        found = []
        with self.context.progress.task("rank layers", len(layers)) as advance:
            for name in layers:
                session, drift = runtime.open(clone(self.alone(name))), Drift()
                for feeds, exact in samples:
                    drift.update(exact, session.run(feeds))
                found.append((name, drift.ratio))
                advance()
        return sorted(found, key=lambda item: (-np.nan_to_num(item[1], nan=np.inf), item[0]))

    def alone(self, layer: str) -> ir.Model:
        """The model with one layer quantized, roughly."""
        others = {node.name or "": "another layer is looked at" for node in nodes(self.model) if node.name != layer}
        silent = unshown(self.context.progress)
        around = attrs.evolve(self.context, ledger=Ledger(), progress=silent, kept=others, draft=True)
        return self.quantizer.quantize(self.model, around)
