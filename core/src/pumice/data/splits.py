"""Two parts of the data: one to calibrate on, one to measure on.

A folder may hold them as `calibration` and `test` (folders, or files of any form that a reader knows). Otherwise some
samples, spread evenly over the data, calibrate, and all others measure: 512 at most, and at most half. With fewer than
256 samples both parts are all of them: calibration needs them more, and a note says what the measurement is on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from pumice.data.dataset import Dataset
from pumice.data.inputs import ModelLike
from pumice.data.opening import open_dataset
from pumice.errors import DataError

CALIBRATION_SAMPLES = 512
FEWEST_TO_SPLIT = 256


@attrs.frozen(kw_only=True)
class Splits:
    """Data to calibrate on and data to measure on."""

    calibration: Dataset
    test: Dataset
    note: str
    """One sentence: where the two parts come from."""

    @property
    def notes(self) -> tuple[str, ...]:
        """`note`, and what the two datasets inferred or converted."""
        return tuple(dict.fromkeys([self.note, *self.calibration.notes, *self.test.notes]))


def open_splits(
    source: Any,
    model: ModelLike | None = None,
    *,
    test: Any = None,
    labels: Any = None,
    calibration_samples: int = CALIBRATION_SAMPLES,
) -> Splits:
    """Open data in two parts.

    Args:
        source: as for `open_dataset`; a folder may hold `calibration` and `test`. A `Splits` is returned as it is.
        model: as for `open_dataset`.
        test: other data to measure on; then all of `source` may calibrate.
        labels: as for `open_dataset`, for `source`.
        calibration_samples: how many samples calibrate at most.

    Raises:
        DataError: as `open_dataset`.
    """
    if isinstance(source, Splits):
        return source
    parts = _subsets(source)
    if test is not None:
        calibration = open_dataset(parts[0] if parts else source, model, labels=labels)
        note = f"calibrated on {calibration.name}, measured on other data"
        return Splits(calibration=_at_most(calibration, calibration_samples), test=open_dataset(test, model), note=note)
    if parts:
        if labels is not None:
            raise DataError(f"'{source}' has parts of its own: put the labels beside the samples of each part")
        calibration, measured = open_dataset(parts[0], model), open_dataset(parts[1], model)
        note = f"calibrated on '{parts[0].name}' and measured on '{parts[1].name}' of '{source}'"
        return Splits(calibration=_at_most(calibration, calibration_samples), test=measured, note=note)
    return split(open_dataset(source, model, labels=labels), calibration_samples)


def split(dataset: Dataset, calibration_samples: int = CALIBRATION_SAMPLES) -> Splits:
    """Split one dataset, deterministically."""
    total = dataset.count()
    if total < FEWEST_TO_SPLIT:
        many = f"{total} sample{'s' if total > 1 else ''}"
        note = f"{dataset.name} has only {many}: accuracy was measured on the samples that calibrated"
        return Splits(calibration=dataset, test=dataset, note=note)
    count = min(calibration_samples, total // 2)
    calibration, test = dataset.split(count)
    note = f"{count} samples of {dataset.name}, evenly spread, calibrated; the other {total - count} measured accuracy"
    return Splits(calibration=calibration, test=test, note=note)


def _at_most(dataset: Dataset, count: int) -> Dataset:
    return dataset if dataset.count() <= count else dataset.split(count)[0]


def _subsets(source: Any) -> tuple[Path, Path] | None:
    """The paths of the parts `calibration` and `test` of a folder, if it has both."""
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        return None
    return subsets_of(Path(source))


def subsets_of(folder: Path) -> tuple[Path, Path] | None:
    """`calibration` and `test` (folders, or files of any suffix) inside a folder; None unless both are there."""
    found = {path.stem: path for path in sorted(folder.iterdir(), reverse=True) if not path.name.startswith(".")}
    if "calibration" in found and "test" in found:
        return found["calibration"], found["test"]
    return None
