"""What an exporter owes: the same model in another form, the same bytes twice, and never half a file."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pumice.ledger import Ledger
from pumice.model import fingerprint, load
from pumice.plan import compile_plan
from pumice.strategy import Exporter
from pumice.testing.models import random_feeds, tiny_cnn
from pumice.testing.strategy import StrategyContract, refusal


class ExporterContract(StrategyContract[Exporter]):
    """An exporter that writes something else than ONNX sets `suffix`; its answers are then not compared."""

    suffix: ClassVar[str] = ".onnx"

    def model(self) -> ir.Model:
        """The model to export."""
        return tiny_cnn()

    @contextmanager
    def exported(self, model: ir.Model) -> Iterator[list[Path]]:
        """The files written for a model, in a folder that goes away."""
        with tempfile.TemporaryDirectory() as folder:
            yield self.write(model, Path(folder, f"model{self.suffix}"))

    def write(self, model: ir.Model, path: Path) -> list[Path]:
        account = SimpleNamespace(model=model, original=model, ledger=Ledger(), notes=())
        return self.make().export(model, path, account)

    def test_it_tells_which_files_it_wrote(self) -> None:
        with self.exported(self.model()) as files:
            folder = files[0].parent
            assert files[0].name == f"model{self.suffix}"
            assert sorted(files) == sorted(p for p in folder.rglob("*") if p.is_file()), "every file, and no other"
            assert all(path.stat().st_size for path in files)

    def test_the_same_model_gives_the_same_bytes(self) -> None:
        with self.exported(self.model()) as one, self.exported(self.model()) as other:
            assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]

    def test_the_file_answers_as_the_model_does(self) -> None:
        if self.suffix != ".onnx":
            return
        model, (feeds,) = self.model(), random_feeds(1)
        with self.exported(model) as files:
            answers = compile_plan(load(files[0]), kernels=()).run(feeds)
        for name, array in compile_plan(model, kernels=()).run(feeds).items():
            np.testing.assert_allclose(answers[name], array, rtol=1e-5, atol=1e-6)

    def test_the_model_is_left_unchanged(self) -> None:
        model = self.model()
        before = fingerprint(model)
        with self.exported(model):
            assert fingerprint(model) == before

    def test_a_place_that_cannot_be_written_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            taken = Path(folder, f"model{self.suffix}")
            taken.mkdir()
            refusal(self.write, self.model(), taken)
            assert [p.name for p in Path(folder).iterdir()] == [taken.name], "nothing half written may stay behind"
