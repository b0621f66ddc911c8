"""Data: re-iterable, deterministic streams of samples that fit a model's inputs.

Memory never grows with the number of samples: files are read sample by sample, arrays on disk row by row.
"""

from pumice.data.dataset import Batch, Dataset, Sample, Selection
from pumice.data.inputs import InputSpec, ModelInputs
from pumice.data.opening import open_dataset
from pumice.data.splits import Splits, open_splits

__all__ = [
    "Batch",
    "Dataset",
    "InputSpec",
    "ModelInputs",
    "Sample",
    "Selection",
    "Splits",
    "open_dataset",
    "open_splits",
]
