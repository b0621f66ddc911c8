"""Two parts of the data: one to calibrate on, one to measure on.

A folder may hold them as `calibration` and `test` (folders, or files of any form that a reader knows). Otherwise some
samples, spread evenly over the data, calibrate, and all others measure: 512 at most, and at most half. With fewer than
256 samples both parts are all of them: calibration needs them more, and a note says what the measurement is on.

Where a model is trained as well, everything that does not measure trains: a part `train` of the folder, else all that
may calibrate; a single dataset gives a fifth, spread evenly, to the measurement and trains on the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np

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
    training: Dataset
    """What a model may be trained on; holds the samples that calibrate."""
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
    training: bool = False,
) -> Splits:
    """Open data in two parts.

    Args:
        source: as for `open_dataset`; a folder may hold `calibration` and `test`. A `Splits` is returned as it is.
        model: as for `open_dataset`.
        test: other data to measure on; then all of `source` may calibrate.
        labels: as for `open_dataset`, for `source`.
        calibration_samples: how many samples calibrate at most.
        training: whether the model is trained, so that most samples should go there.

    Raises:
        DataError: as `open_dataset`.
    """
    if isinstance(source, Splits):
        return source
    parts = _subsets(source)
    if test is not None:
        calibration = open_dataset(parts[0] if parts else source, model, labels=labels)
        measured = open_dataset(test, model)
        note = f"calibrated on {calibration.name}, measured on {measured.name}"
        if calibration.fingerprint() == measured.fingerprint():
            note = f"accuracy was measured on the samples that calibrated: {calibration.name} was given for both"
        few = _at_most(calibration, calibration_samples)
        return Splits(calibration=few, test=measured, training=calibration, note=note)
    if parts:
        if labels is not None:
            raise DataError(f"'{source}' has parts of its own: put the labels beside the samples of each part")
        calibration, measured = open_dataset(parts[0], model), open_dataset(parts[1], model)
        note = f"calibrated on '{parts[0].name}' and measured on '{parts[1].name}' of '{source}'"
        few = _at_most(calibration, calibration_samples)
        own = _part(Path(source), "train") if training else None
        most = calibration if own is None else open_dataset(own, model)
        return Splits(calibration=few, test=measured, training=most, note=note)
    return split(open_dataset(source, model, labels=labels), calibration_samples, training=training)


def split(dataset: Dataset, calibration_samples: int = CALIBRATION_SAMPLES, *, training: bool = False) -> Splits:
    """Split one dataset, deterministically."""
    total = dataset.count()
    if total < FEWEST_TO_SPLIT:
        many = f"{total} sample{'s' if total > 1 else ''}"
        note = f"{dataset.name} has only {many}: accuracy was measured on the samples that calibrated"
        few = min(calibration_samples, total)
        calibration = dataset if few == total else dataset.select(np.arange(few) * total // few)
        return Splits(calibration=calibration, test=dataset, training=dataset, note=note)
    if training:
        test, most = dataset.split(total // 5)
        note = f"{total // 5} samples of {dataset.name}, evenly spread, measured accuracy; the other samples trained"
        return Splits(calibration=_at_most(most, calibration_samples), test=test, training=most, note=note)
    count = min(calibration_samples, total // 2)
    calibration, test = dataset.split(count)
    many = f"{len(calibration)} samples of {dataset.name}, evenly spread"
    note = f"{many}, calibrated; the other {len(test)} measured accuracy"
    return Splits(calibration=calibration, test=test, training=calibration, note=note)


def _at_most(dataset: Dataset, count: int) -> Dataset:
    return dataset if dataset.count() <= count else dataset.split(count)[0]


def _subsets(source: Any) -> tuple[Path, Path] | None:
    """The paths of the parts `calibration` and `test` of a folder, if it has both."""
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        return None
    return subsets_of(Path(source))


def _part(folder: Path, stem: str) -> Path | None:
    """The part of a folder that bears a name: a folder, or a file of any suffix."""
    found = [path for path in sorted(folder.iterdir()) if path.stem == stem and not path.name.startswith(".")]
    return found[0] if found else None


def subsets_of(folder: Path) -> tuple[Path, Path] | None:
    """`calibration` and `test` (folders, or files of any suffix) inside a folder; None unless both are there."""
    found = {path.stem: path for path in sorted(folder.iterdir(), reverse=True) if not path.name.startswith(".")}
    if "calibration" in found and "test" in found:
        return found["calibration"], found["test"]
    return None
