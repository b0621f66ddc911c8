"""Every installed scorer on two tasks with one small budget, as whole runs with other seeds, side by side.

A network loses half of its channels and trains on. A row has the accuracy right after pruning and after training, as
a mean with the half width of its 95% interval. Records stay in a folder (`runs.py`): a call that is stopped goes on
where it was.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from models import case
from runs import Run, carried_out, interval, over_seeds
from tables import Table, measurement

from pumice.registry import registry

from .pictures import Outcome, compressed, train, training_data

COLUMNS = {"network, scorer": 42, "after pruning": -20, "after training": -20, "runs": -5}
NETWORKS, EPOCHS = ("fashion_resnet", "fashion_mobile"), 2
PICTURES = 12_800
VARIANTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "magnitude": ({"norm": "l1"}, {"norm": "l2"}),
    "taylor": ({"of": "gate"}, {"of": "weight"}),
    "activation": ({"by": "magnitude"}, {"by": "nonzeros"}, {"by": "variance"}),
}
"""Scorers that are several criteria."""


def run(
    *, quick: bool, limit: int | None, seeds: Sequence[int], records: Path | None, seconds: float | None
) -> dict[str, Any]:
    """Print the table; the record for `write_json`."""
    seeds = seeds[:1] if quick else seeds
    runs = list(scoring(seeds, 2000 if quick else limit))
    with tempfile.TemporaryDirectory() as folder:
        done = carried_out(runs, records or Path(folder), seconds)
    table, cases = Table(COLUMNS), []
    for label in dict.fromkeys(run.name.rpartition("/")[0] for run in runs):
        found = over_seeds(done, label, seeds).values()
        if not found:
            continue
        before, after = ([one[when] for one in found] for when in ("before", "after"))
        table.row([label, *(f"{np.mean(v):.4f} +-{interval(v):.4f}" for v in (before, after)), str(len(found))])
        mean, spread = float(np.mean(after)), interval(after)
        cases.append(measurement(label, "accuracy", mean, {}, spread=spread, higher_is_better=True))
    return {"cases": cases}


def scoring(seeds: Sequence[int], limit: int | None) -> Iterator[Run]:
    """A run for every network, seed and scorer."""
    for network in NETWORKS:
        for seed in seeds:
            for label, scorer in _scorers():
                arguments = network, scorer, limit or PICTURES, seed
                yield Run(name=f"{network}, {label}/{seed}", function=scored, arguments=arguments)


def _scorers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in registry().strategies("importance-scorer"):
        for knobs in VARIANTS.get(name, ({},)):
            yield ", ".join((name, *knobs.values())), {"name": name, **knobs}


def scored(network: str, scorer: Mapping[str, Any], pictures: int, seed: int, _folder: Path) -> dict[str, float]:
    """Accuracy after half of the channels went, and after training."""
    judged, data = case(network), training_data(pictures)
    knobs = {"draw": seed} if scorer["name"] == "random" else {}
    step = {"use": "prune", "ratio": 0.5, "scorer": {**scorer, **knobs}}
    with tempfile.TemporaryDirectory() as folder:
        pruned, trained = Path(folder, "pruned.onnx"), Path(folder, "trained.onnx")
        compressed(judged.path, (step,), data, pruned, seed)
        compressed(pruned, (train(EPOCHS),), data, trained, seed)
        before, after = (Outcome.of(path, judged).accuracy for path in (pruned, trained))
    return {"before": before, "after": after}
