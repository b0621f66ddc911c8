"""pumice: makes trained neural networks small and fast, and proves it.

    import pumice

    model = pumice.load("model.onnx")
    result = pumice.compress(model, "samples/")
    result.save("model.int8.onnx")
    result.report("report.html")

Names are loaded on first use, so that `import pumice` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "pumice.data": ("Batch", "Dataset", "open_dataset"),
    "pumice.distil.loss": ("DistillationLoss",),
    "pumice.errors": ("PumiceError",),
    "pumice.hookspecs": ("hookimpl",),
    "pumice.knobs": ("Choice", "Flag", "Float", "Int", "Names", "Several", "Text", "Use", "knob"),
    "pumice.ledger": ("Ledger",),
    "pumice.measure": ("compare", "evaluate"),
    "pumice.model": ("load", "save"),
    "pumice.ops": ("Kernel", "Op"),
    "pumice.pipeline": ("Result", "compress"),
    "pumice.recipe": ("Recipe",),
    "pumice.strategy": (
        "Command",
        "Cost",
        "DatasetReader",
        "Exporter",
        "ImportanceScorer",
        "Loss",
        "Metric",
        "Need",
        "Quantizer",
        "Runtime",
        "Searcher",
        "Session",
        "Sparsifier",
        "Strategy",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = ["__version__", *sorted(_MODULE_OF)]

if TYPE_CHECKING:  # the alias is how a type checker is told that a name is public
    from pumice.data import Batch as Batch, Dataset as Dataset, open_dataset as open_dataset
    from pumice.distil.loss import DistillationLoss as DistillationLoss
    from pumice.errors import PumiceError as PumiceError
    from pumice.hookspecs import hookimpl as hookimpl
    from pumice.knobs import (
        Choice as Choice,
        Flag as Flag,
        Float as Float,
        Int as Int,
        Names as Names,
        Several as Several,
        Text as Text,
        Use as Use,
        knob as knob,
    )
    from pumice.ledger import Ledger as Ledger
    from pumice.measure import compare as compare, evaluate as evaluate
    from pumice.model import load as load, save as save
    from pumice.ops import Kernel as Kernel, Op as Op
    from pumice.pipeline import Result as Result, compress as compress
    from pumice.recipe import Recipe as Recipe
    from pumice.strategy import (
        Command as Command,
        Cost as Cost,
        DatasetReader as DatasetReader,
        Exporter as Exporter,
        ImportanceScorer as ImportanceScorer,
        Loss as Loss,
        Metric as Metric,
        Need as Need,
        Quantizer as Quantizer,
        Runtime as Runtime,
        Searcher as Searcher,
        Session as Session,
        Sparsifier as Sparsifier,
        Strategy as Strategy,
    )


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pumice' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
