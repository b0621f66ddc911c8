"""Pruning without labels and without training: what least squares on unlabelled data makes up for.

`transformers` takes a quarter of the heads and of the feed-forward units of every layer, and none of the width that all
layers share; each row with and without recovery. `photographs` takes a fifth of the multiply-accumulates of an ImageNet
network, calibrated on photographs that the test set does not hold, and lets the whole network teach what is left on the
same photographs. The metric is the case's own; `same` is the agreement with the whole network, answer by answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models import Case, Feed, case, photographs as photos
from models.catalogue import reference
from models.stamps import stamp_names
from tables import Table, measurement

import pumice
from pumice import Recipe
from pumice.measure import pick_runtime
from pumice.model import load, simplify
from pumice.prune import find_groups
from pumice.prune.costs import size
from pumice.prune.wiring import Wiring

COLUMNS = {"case": 52, "params": -6, "MACs": -6, "metric": -24, "whole": -24, "same": -6}
WRITERS = 4
"""Weights that write a group at most, if it lies inside a layer: queries, keys and values; more is the shared width."""
STAMPS = 655
"""Unlabelled photographs to calibrate on."""
CRITERION = {"scorer": "reconstruction", "multiple": 1}
LESSON: Mapping[str, Any] = {
    "use": "distil", "epochs": 3, "batch": 8, "lr": 2e-5, "schedule": "one-cycle", "weight_decay": 0.0, "clip": 1.0,
    "augment": ["flip"], "validation": 0.0, "keep": "last",
    "losses": [{"name": "soft-targets", "temperature": 2.0}, {"name": "feature-mse"}],
}  # fmt: skip


def transformers(names: set[str], *, quick: bool) -> dict[str, Any]:
    """Print the table of these networks (none: all); the record for `write_json`."""
    table, cases = Table(COLUMNS), []
    for name in names or (("fashion_vit",) if quick else ("fashion_vit", "minilm")):
        judged = case(name)
        shared = list(_shared(judged))
        for recover in ("none", "least-squares"):
            step = {"use": "prune", **CRITERION, "ratio": 0.25, "recover": recover, "protect": shared}
            label = f"{name}, a quarter of heads and feed-forward, {recover}"
            cases.append(_row(table, label, judged, (step,), judged.calibration()))
    return {"cases": cases}


def photographs(*, quick: bool) -> dict[str, Any]:
    """Print the table; the record for `write_json`."""
    judged = case("effnet_lite0")
    names = stamp_names()
    chosen = names[:: max(1, len(names) // (40 if quick else STAMPS))]
    feeds = [*judged.calibration(), *({"image": photos.on_white(name)[None]} for name in chosen)]
    step = {
        "use": "prune", **CRITERION, "ratio": 0.2, "of": "macs", "scope": "global", "by": "score-per-mac",
        "normalise": "outputs", "recover": "least-squares", "least": 0.3,
    }  # fmt: skip
    label = "effnet_lite0, a fifth of the multiply-accumulates"
    ways = {label: (step,), f"{label}, taught": (step, {**LESSON, "epochs": 1 if quick else LESSON["epochs"]})}
    table = Table(COLUMNS)
    return {"cases": [_row(table, label, judged, steps, feeds) for label, steps in ways.items()]}


def _shared(judged: Case) -> Iterator[str]:
    """Groups that run through the whole network."""
    model = load(judged.path)
    simplify(model)
    return (group.name for group in find_groups(model).free if len(group.writers) > WRITERS)


def _row(
    table: Table, label: str, judged: Case, steps: Sequence[Mapping[str, Any]], feeds: list[Feed]
) -> dict[str, Any]:
    recipe = Recipe.from_dict({"step": list(steps)})
    result = pumice.compress(judged.path, feeds, recipe, test=feeds[:2], measure=False)
    session = pick_runtime("ort").open(result.model)
    found, whole = judged.evaluate(lambda feed: session.run(dict(feed))), reference(judged)
    left, before = (size(Wiring.of(model), {}) for model in (result.model, result.original))
    same = judged.agreement(found, whole)
    shown = [f"{e.value:.4f} [{e.interval()[0]:.4f}, {e.interval()[1]:.4f}]" for e in (found, whole)]
    table.row([label, f"{left.params / before.params:.0%}", f"{left.macs / before.macs:.0%}", *shown, f"{same:.3f}"])
    half = (found.interval()[1] - found.interval()[0]) / 2
    return {
        **measurement(label, found.metric, found.value, {"whole": whole.value}, spread=half, higher_is_better=True),
        "same": same, "macs": left.macs / before.macs, "params": left.params / before.params,
    }  # fmt: skip
