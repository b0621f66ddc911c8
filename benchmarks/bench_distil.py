"""Distillation: what a student gains by its teacher, loss by loss, beside the same student trained alone.

    python benchmarks/bench_distil.py [--quick] [--json FILE] [--only PART,PART] [--picture FILE]

`fashion` trains a student of a quarter of the teacher's weights on Fashion-MNIST, alone and taught, with every label
and with a tenth of them; three seeds (one without labels), each pair beginning with the same weights. `ours` is the
mean accuracy, the peer the student alone, `spread` the 95% interval of the difference of pairs.
`losses` compares all losses, features and
relations beside soft targets, on a fifth of the pictures of which half have labels; `temperature` moves the one knob of
soft targets, and draws it; `stages` goes to a twentieth directly or by way of assistants; `together` is distilled,
pruned, distilled again and quantized; `characters` is about generation: what students know, and what they write;
`sentences` takes MiniLM from six layers to three without labels; `memory` plans for three billion weights. Trainings
run side by side, one on each core that the process may use.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from distil_cases import characters, pictures, sentences
from distil_cases.pictures import SOFT
from distil_cases.workers import Task, all_of, interval
from tables import Table, measurement, write_json

from pumice.distil.architectures import built
from pumice.distil.memory import planned
from pumice.distil.students import weights
from pumice.model import load
from pumice.report.charts import curve
from pumice.steps import Distil

LOSSES: dict[str, list[dict[str, Any]]] = {
    "soft-targets": [SOFT],
    "reverse-kl": [{"name": "reverse-kl"}],
    "jensen-shannon": [{"name": "jensen-shannon"}],
    "skewed-kl": [{"name": "skewed-kl"}],
    "sequence": [{"name": "sequence"}],
    "soft-targets and feature-mse": [SOFT, {"name": "feature-mse"}],
    "soft-targets and feature-cosine": [SOFT, {"name": "feature-cosine"}],
    "soft-targets and pkt": [SOFT, {"name": "pkt"}],
    "soft-targets and attention-transfer": [SOFT, {"name": "attention-transfer", "weight": 10.0}],
    "soft-targets and relational-distance": [SOFT, {"name": "relational-distance", "weight": 10.0}],
    "soft-targets and relational-angle": [SOFT, {"name": "relational-angle", "weight": 20.0}],
    "soft-targets and attribution": [SOFT, {"name": "attribution"}],
    "soft-targets, off after 80%": [{**SOFT, "until": 0.8}],
}
TEMPERATURES = (1.0, 3.0, 5.0, 10.0)
SEEDS = (0, 1, 2)


def fashion(folder: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Alone against taught, with all labels and with a tenth."""
    size = pictures.Size(pictures=2000, test=500, labelled=2000, epochs=1) if quick else pictures.Size()
    seeds, tenth = SEEDS[: 2 if quick else None], attrs.evolve(size, labelled=size.labelled // 10)
    ways: dict[str, Any] = {
        "alone, all labels": lambda seed: (pictures.alone, (size, seed)),
        "taught, all labels": lambda seed: (pictures.taught, (size, seed, [SOFT], 0.9, str(folder))),
        "alone, a tenth of the labels": lambda seed: (pictures.alone, (tenth, seed)),
        "taught, a tenth of the labels": lambda seed: (pictures.taught, (tenth, seed, [SOFT], 0.9, str(folder))),
        "taught, no labels": lambda seed: (pictures.taught, (size, seed, [SOFT], 1.0, str(folder))),
    }
    runs = {name: seeds if name != "taught, no labels" else seeds[:1] for name in ways}
    found = iter(all_of([ways[name](seed) for name in ways for seed in runs[name]]))
    outcomes = {name: [next(found) for _ in runs[name]] for name in ways}
    teacher = pictures.teacher_accuracy(size.test)
    for name, mine in outcomes.items():
        peer = {"taught, no labels": "alone, all labels"}.get(name, name.replace("taught", "alone"))
        row = compared(f"Fashion-MNIST, {name}", mine, outcomes[peer][: len(mine)] if peer != name else [])
        yield {**row, "teacher": teacher, "of the teacher": row["ours"] / teacher}


def losses(folder: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Every loss on a fifth of the pictures, half of which have labels."""
    size = small(quick=quick)
    tasks: list[Task] = [(pictures.taught, (size, 0, made, 0.9, str(folder))) for made in LOSSES.values()]
    first, *rest = all_of([(pictures.alone, (size, 0)), *tasks])
    yield compared("labels alone", [first], [])
    for name, outcome in zip(LOSSES, rest, strict=True):
        yield compared(name, [outcome], [first])


def temperature(folder: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Soft targets at several temperatures."""
    size = small(quick=quick)
    ways = [[{**SOFT, "temperature": t}] for t in TEMPERATURES]
    found = all_of([(pictures.taught, (size, 0, made, 0.9, str(folder))) for made in ways])
    for t, outcome in zip(TEMPERATURES, found, strict=True):
        yield {**compared(f"temperature {t:g}", [outcome], []), "temperature": t}


def stages(folder: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """A twentieth of the teacher's weights, directly and by way of two assistants; as many steps in all."""
    size, seeds = attrs.evolve(small(quick=quick), epochs=3 if quick else 9), SEEDS[: 2 if quick else None]
    tasks = [(pictures.in_stages, (size, seed, assistants, str(folder))) for assistants in (0, 2) for seed in seeds]
    found = all_of(tasks)
    direct, staged = found[: len(seeds)], found[len(seeds) :]
    yield compared("a twentieth, directly", direct, [])
    yield compared("a twentieth, by two assistants", staged, direct)


def together(folder: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Distilled, pruned and INT8."""
    size = pictures.Size(pictures=600, test=300, labelled=600, epochs=1) if quick else pictures.Size()
    found = pictures.together(size, str(folder))
    base = {"spread": 0.0, "weights": 0, "seconds": 0.0}
    teacher = {"teacher": found["before"]}
    yield {**measurement("distilled, pruned, INT8", "accuracy", found["after"], teacher, spread=0.0,
                         higher_is_better=True), **base}  # fmt: skip
    figures = {"size": found["smaller"], **{f"speed on {name}": value for name, value in found["faster"].items()}}
    for name, value in figures.items():
        row = {"case": "distilled, pruned, INT8", "metric": name, "ours": value, "peers": {}, "ratio": value}
        yield {**row, **base}


def letters(folder: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Forward against reverse divergence in as many steps, and on policy against offline from there."""
    size = characters.Size(stretches=64, epochs=1, judged=8) if quick else characters.Size()
    more = attrs.evolve(size, stretches=size.stretches // 4, epochs=1)
    forward, reverse = {"name": "soft-targets", "temperature": 1.0}, {"name": "reverse-kl"}
    policy = {"name": "on-policy", "prompt": characters.PROMPT, "reuse": 2}
    first: dict[str, tuple[list[dict[str, Any]], float]] = {
        "alone": ([], 0.0), "forward": ([forward], 0.9), "reverse": ([reverse], 0.9),
    }  # fmt: skip
    then: dict[str, tuple[list[dict[str, Any]], float]] = {
        "reverse, then reverse offline": ([reverse], 0.9), "reverse, then on policy": ([policy], 0.5),
    }  # fmt: skip
    place = {name: str(folder / f"{number}.onnx") for number, name in enumerate((*first, *then))}
    tasks: list[Task] = [(characters.trained, (size, *way, "", place[name])) for name, way in first.items()]
    found = all_of(tasks)
    found += all_of([(characters.trained, (more, *way, place["reverse"], place[name])) for name, way in then.items()])
    yield from written("teacher", characters.judged(characters.TEACHER, size))
    for name, outcome in zip((*first, *then), found, strict=True):
        yield from written(name, outcome)


def sentence_embeddings(folder: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Six layers to three by the embeddings, and features, attention or what matters beside."""
    size = sentences.Size(texts=32, length=16) if quick else sentences.Size()
    ways: dict[str, list[dict[str, Any]]] = {
        "embeddings alone": [],
        "and feature-mse": [{"name": "feature-mse"}],
        "and attention, values": [{"name": "attention-maps"}, {"name": "value-relation"}],
        "and attribution": [{"name": "attribution"}],
    }
    tasks: list[Task] = [
        (sentences.taught, (size, way, str(folder / f"{n}.onnx"))) for n, way in enumerate(ways.values())
    ]
    found = all_of([(sentences.teacher, ()), (sentences.untaught, (str(folder),)), *tasks])
    teacher = found[0]
    for name, outcome in zip(("teacher", "layers left out", *ways), found, strict=True):
        for metric in ("sentiment", "retrieval"):
            ours, base = getattr(outcome, metric), getattr(teacher, metric)
            peers = {"teacher": base}
            row = measurement(f"MiniLM, {name}", metric, ours, peers, spread=0.0, higher_is_better=True)
            yield {**row, "of the teacher": ours / base, "weights": outcome.weights, "seconds": outcome.seconds}


def memory(folder: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Three billion weights teach half a billion: what is held where, and what to do on accelerators of three sizes."""
    sizes = {"family": "gpt", "width": 2560, "heads": 32, "layers": 4 if quick else 36, "positions": 2048}
    like = load(characters.TEACHER)
    teacher = built(sizes, like, None)
    student = built({**sizes, "width": 1280, "layers": 2 if quick else 25}, like, None)
    plan = planned(teacher, student, Distil(), {"ids": (4, 1024)})
    case = f"{weights(teacher) / 1e9:.2f} billion weights teach {weights(student) / 1e9:.2f}"
    for name, held in plan.rows():
        yield {"case": case, "metric": f"{name}, GB", "ours": held / 1e9, "peers": {}, "ratio": None, "spread": 0.0,
               "seconds": 0.0}  # fmt: skip
    for limit in (24, 48, 80):
        yield {"case": plan.fitting(limit * 10**9), "metric": "GB", "ours": plan.total() / 1e9,
               "peers": {}, "ratio": None, "spread": 0.0, "seconds": 0.0}  # fmt: skip


def written(name: str, outcome: characters.Outcome) -> Iterator[dict[str, Any]]:
    """A row for everything that is asked of a generator."""
    figures = attrs.asdict(outcome)
    for metric in ("accuracy", "bits", "perplexity", "distinct", "repetition"):
        row = measurement(f"characters, {name}", metric, figures[metric], {}, spread=0.0, higher_is_better=True)
        yield {**row, "weights": outcome.weights, "seconds": outcome.seconds}
    row = measurement(f"characters, {name}", "drift", outcome.drift[-1], {}, spread=0.0, higher_is_better=False)
    yield {**row, "parts": outcome.drift, "weights": outcome.weights, "seconds": outcome.seconds}


def small(*, quick: bool) -> pictures.Size:
    if quick:
        return pictures.Size(pictures=600, test=300, labelled=300, epochs=1)
    return pictures.Size(pictures=12_000, labelled=6_000, epochs=4)


def compared(case: str, mine: list[pictures.Outcome], theirs: list[pictures.Outcome]) -> dict[str, Any]:
    """Mean accuracies, and the interval of the differences of pairs (of the values themselves, without a peer)."""
    ours = [outcome.accuracy for outcome in mine]
    peers = {"alone": float(np.mean([outcome.accuracy for outcome in theirs]))} if theirs else {}
    gains = [a.accuracy - b.accuracy for a, b in zip(mine, theirs, strict=True)] if theirs else ours
    row = measurement(case, "accuracy", float(np.mean(ours)), peers, spread=interval(gains), higher_is_better=True)
    return {**row, "runs": ours, "weights": mine[0].weights, "seconds": float(np.mean([o.seconds for o in mine]))}


# --- the script -------------------------------------------------------------------------------------------------------

PARTS = {
    "fashion": fashion, "losses": losses, "temperature": temperature, "stages": stages, "together": together,
    "characters": letters, "sentences": sentence_embeddings, "memory": memory,
}  # fmt: skip


def shown(row: dict[str, Any]) -> list[str]:
    peers = ", ".join(f"{name} {value:.2%}" for name, value in row["peers"].items())
    if row["metric"] != "accuracy":
        share = f"{row['of the teacher']:.1%}" if "of the teacher" in row else ""
        return [
            f"{row['case']}: {row['metric']}",
            f"{row['ours']:.3f}",
            "",
            "",
            "",
            share,
            "",
            f"{row['seconds']:.0f} s",
        ]
    gain = f"{100 * (row['ours'] - max(row['peers'].values())):+.2f}" if row["peers"] else ""
    share = f"{row['of the teacher']:.1%}" if "of the teacher" in row else ""
    return [row["case"], f"{row['ours']:.2%}", peers, gain, f"{100 * row['spread']:.2f}", share, f"{row['weights']:,}",
            f"{row['seconds']:.0f} s"]  # fmt: skip


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over temperature, as SVG."""
    points = [row for row in rows if "temperature" in row]
    label = ", ".join(f"{row['temperature']:g}: {row['ours']:.2%}" for row in points)
    path.write_text(str(curve([row["ours"] for row in points], f"accuracy at temperature {label}")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cases, a minute or two")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--picture", type=Path, help="draw the sweep of the temperature there, as SVG")
    options = parser.parse_args()
    cases: list[dict[str, Any]] = []
    table = Table({"case": 46, "accuracy": -8, "peer": 14, "gain": -6, "±": -5, "of teacher": -10, "weights": -8,
                   "time": -6})  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for part in options.only.split(","):
            for row in PARTS[part](Path(folder), quick=options.quick):
                table.row(shown(row))
                cases.append(row)
            if options.json:
                write_json(options.json, {"cases": cases})
    if options.picture and any("temperature" in row for row in cases):
        draw(cases, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
