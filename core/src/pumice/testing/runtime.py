"""What a runtime owes: the answers of the reference plan, to any number of threads, for any value asked for."""

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from pumice.model import save
from pumice.plan import compile_plan
from pumice.strategy import Runtime
from pumice.testing.models import random_feeds, tiny_cnn
from pumice.testing.strategy import StrategyContract, refusal


class RuntimeContract(StrategyContract[Runtime]):
    """Where the runtime is not available, its tests are skipped with the reason it gives."""

    rtol: ClassVar[float] = 1e-4
    atol: ClassVar[float] = 1e-5
    """How closely float32 outputs must agree with the reference."""

    def model(self) -> ir.Model:
        """The model to run."""
        return tiny_cnn()

    def engine(self) -> Runtime:
        engine = self.make()
        reason = engine.available()
        if reason:
            pytest.skip(reason)
        return engine

    def agree(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
        assert list(one) == list(other), f"outputs {list(one)} instead of {list(other)}"
        for name, array in one.items():
            np.testing.assert_allclose(array, other[name], rtol=self.rtol, atol=self.atol)

    def test_it_answers_as_the_reference_does(self) -> None:
        model, (feeds,) = self.model(), random_feeds(1)
        self.agree(self.engine().open(model).run(feeds), compile_plan(model, kernels=()).run(feeds))

    def test_a_file_answers_as_the_model_in_memory_does(self) -> None:
        model, (feeds,) = self.model(), random_feeds(1)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            save(model, path)
            self.agree(self.engine().open(path).run(feeds), compile_plan(model, kernels=()).run(feeds))

    def test_any_value_inside_the_model_can_be_asked_for(self) -> None:
        model, (feeds,) = self.model(), random_feeds(1)
        inner = [str(node.outputs[0].name) for node in model.graph][:3]
        self.agree(
            self.engine().open(model, outputs=inner).run(feeds), compile_plan(model, inner, kernels=()).run(feeds)
        )

    def test_opening_a_model_leaves_it_unchanged(self) -> None:
        from pumice.model import fingerprint

        model = self.model()
        before = fingerprint(model), [v.name for v in model.graph.outputs]
        self.engine().open(model, outputs=[str(model.graph[0].outputs[0].name)])
        assert (fingerprint(model), [v.name for v in model.graph.outputs]) == before

    def test_a_value_that_does_not_exist_is_refused_by_name(self) -> None:
        assert "no_such_value" in str(refusal(self.engine().open, self.model(), outputs=["no_such_value"]))

    def test_an_input_that_does_not_exist_is_refused_by_name(self) -> None:
        (feeds,) = random_feeds(1)
        session = self.engine().open(self.model())
        assert "no_such_input" in str(refusal(session.run, {**feeds, "no_such_input": feeds["x"]}))

    def test_several_threads_may_run_one_session(self) -> None:
        session, batches = self.engine().open(self.model()), random_feeds(8)
        alone = [session.run(feeds) for feeds in batches]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(session.run, batches))
        for one, other in zip(together, alone, strict=True):
            for name, array in one.items():
                np.testing.assert_array_equal(array, other[name])

    def test_what_really_runs_is_told(self) -> None:
        assert self.engine().open(self.model(), threads=1).description.strip()
