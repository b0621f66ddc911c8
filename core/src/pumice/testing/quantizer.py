"""What a quantizer owes: a valid model close to the original, a line for every node, the same bytes twice."""

import contextlib
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from pumice.errors import PumiceError
from pumice.model import check, constant, fingerprint, nodes, remove_unread, size, weight_of
from pumice.plan import compile_plan
from pumice.strategy import Quantizer
from pumice.testing.models import random_feeds, serialized, tiny_cnn, weightless
from pumice.testing.strategy import StrategyContract


class QuantizerContract(StrategyContract[Quantizer]):
    """Needs nothing but `strategy`."""

    sqnr_db: ClassVar[float] = 15.0
    """Least signal-to-noise ratio of the outputs on data like the calibration data, in decibels."""

    def model(self) -> ir.Model:
        """The model to quantize: floating point, with weights."""
        return tiny_cnn()

    def samples(self) -> list[dict[str, Any]]:
        """Feeds to calibrate with."""
        return random_feeds(8)

    def context(self, model: ir.Model, **settings: Any) -> Any:
        """What a quantize step with its defaults, or with these fields of the context, would give for `model`."""
        from pumice.data import open_dataset
        from pumice.measure import pick_runtime
        from pumice.quantize.context import QuantizeContext
        from pumice.quantize.target import Target

        return QuantizeContext(
            calibration=open_dataset(self.samples(), model),
            runtime=pick_runtime(None),
            target=Target.named("ort-cpu"),
            **settings,
        )

    def quantized(self) -> ir.Model:
        """The model after a quantize step: what nothing reads any more is dropped."""
        model = self.model()
        quantized = self.make().quantize(model, self.context(model))
        remove_unread(quantized)
        return quantized

    def test_it_accepts_a_plain_network(self) -> None:
        assert self.make().accepts(self.model()) is None

    def test_the_result_is_a_valid_model(self) -> None:
        check(self.quantized())

    def test_the_result_has_the_same_inputs_and_outputs(self) -> None:
        one, other = self.model().graph, self.quantized().graph
        assert [v.name for v in one.inputs] == [v.name for v in other.inputs]
        assert [v.name for v in one.outputs] == [v.name for v in other.outputs]

    def test_the_result_is_smaller(self) -> None:
        assert size(self.quantized()).total < size(self.model()).total

    def test_the_outputs_stay_close(self) -> None:
        plan, quantized = compile_plan(self.model(), kernels=()), compile_plan(self.quantized(), kernels=())
        for feeds in random_feeds(2, seed=1):
            expected, got = plan.run(feeds), quantized.run(feeds)
            for name, array in expected.items():
                noise = np.mean((array - got[name]) ** 2) or np.finfo(np.float32).tiny
                sqnr = 10 * np.log10(np.mean(array**2) / noise)
                assert sqnr >= self.sqnr_db, f"output '{name}' has only {sqnr:.1f} dB of signal to noise"

    def test_every_node_has_a_line_in_the_ledger_and_some_are_applied(self) -> None:
        model = self.model()
        context = self.context(model)
        self.make().quantize(model, context)
        silent = {node.name for node in nodes(model)} - {entry.node for entry in context.ledger}
        assert not silent, f"no line for {sorted(map(str, silent))}: say why they were left"
        assert context.ledger.counts()["applied"] > 0
        assert all(entry.reason.strip() for entry in context.ledger)

    def test_every_layer_can_be_excluded(self) -> None:
        """The accuracy guard stands on this: it gives layers back by excluding them."""
        for layer in [node for node in nodes(self.model()) if weight_of(node) is not None]:
            name, model = str(layer.name), self.model()
            context = self.context(model, kept={name: "the guard gave it back"})
            quantized = self.make().quantize(model, context)
            lines = [entry.verdict for entry in context.ledger if entry.node == name]
            assert "applied" not in lines, f"'{name}' was changed: ask context.excluded(node) first"
            before, after = constant(weight_of(layer)), constant(weight_of(quantized.graph.node(name)))
            np.testing.assert_array_equal(before, after, f"the weights of '{name}' must stay as they were")

    def test_the_original_is_left_unchanged(self) -> None:
        model = self.model()
        before = fingerprint(model)
        self.make().quantize(model, self.context(model))
        assert fingerprint(model) == before

    def test_the_same_input_gives_the_same_bytes(self) -> None:
        assert serialized(self.quantized()) == serialized(self.quantized())

    def test_where_nothing_can_be_quantized_nothing_is_called_applied(self) -> None:
        """It may refuse, or return the model as it was: the step then fails with the reasons in the ledger."""
        model = weightless()
        context = self.context(self.model())
        with contextlib.suppress(PumiceError):
            self.make().quantize(model, context)
        assert not context.ledger.of("quantize", "applied")
