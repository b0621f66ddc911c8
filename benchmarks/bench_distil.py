"""Distillation: what a student gains by its teacher, loss by loss, beside the same student trained alone.

    python benchmarks/bench_distil.py [--quick] [--json FILE] [--only PART,PART] [--seeds N,N] [--picture FILE]
                                      [--records FOLDER] [--seconds N]

    fashion       a student of a quarter of the teacher's weights, alone and taught, with all labels and with a tenth
    wide          the same student, taught by a network of sixteen times its weights that is trained for it first
    temperature   the one knob of soft targets, moved, and drawn
    losses        all losses, features and relations beside soft targets, where a tenth of the pictures have labels
    stages        a twentieth of the weights, directly and by way of assistants, in as many steps and in three times as
                  many
    together      what pruning leaves of the wide network, taught by it and quantized
    characters    generation: what students know, and what they write
    sentences     MiniLM from six layers to three without labels
    memory        the plan for three billion weights

Every training is a run of its own on one core (`runs.py`): it leaves its record in the folder `--records` as soon as it
is done and is not repeated where the record is there. `--seconds` ends a call early; the table has what there is, and
`--seconds 0` only prints. `ours` is the mean over the seeds, `±` half of its 95% interval; with a peer, `gain` is the
mean difference of pairs that began with the same weights, and `±` is that of the difference.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from distil_cases import characters, pictures, sentences
from distil_cases.pictures import SOFT
from runs import Record, Run, carried_out, interval, over_seeds
from tables import Table, measurement, write_json

from pumice.distil.architectures import built
from pumice.distil.memory import planned
from pumice.distil.students import weights
from pumice.model import load
from pumice.steps import Distil

LOSSES: dict[str, list[dict[str, Any]]] = {
    "soft-targets": [SOFT],
    "reverse-kl": [{"name": "reverse-kl"}],
    "jensen-shannon": [{"name": "jensen-shannon"}],
    "skewed-kl": [{"name": "skewed-kl"}],
    "sequence": [{"name": "sequence"}],
    "soft-targets, off after 80%": [{**SOFT, "until": 0.8}],
    "soft-targets and feature-mse": [SOFT, {"name": "feature-mse"}],
    "soft-targets and feature-cosine": [SOFT, {"name": "feature-cosine"}],
    "soft-targets and pkt": [SOFT, {"name": "pkt"}],
    "soft-targets and attention-transfer": [SOFT, {"name": "attention-transfer", "weight": 10.0}],
    "soft-targets and relational-distance": [SOFT, {"name": "relational-distance", "weight": 10.0}],
    "soft-targets and relational-angle": [SOFT, {"name": "relational-angle", "weight": 20.0}],
    "soft-targets and attribution": [SOFT, {"name": "attribution"}],
}
TEMPERATURES = (1.0, 3.0, 5.0, 10.0)
SHARP = {**SOFT, "temperature": 1.0}
WIDE_EPOCHS = 8
TOGETHER_EPOCHS = 6
FIGURES = {"bits": False, "accuracy": True, "perplexity": False, "distinct": True, "repetition": False,
           "exposure": False}  # fmt: skip
"""Of a generator, and whether higher is better."""


@attrs.frozen(kw_only=True)
class Part:
    """One section: trainings, and what rows their records make."""

    runs: list[Run]
    ways: Mapping[str, tuple[str, ...]]
    """Case, and the cases that it is compared with, in the order of the table."""
    metrics: Mapping[str, bool] = attrs.field(factory=lambda: {"accuracy": True})
    """And whether higher is better."""
    teacher: str = ""
    """The run that says what the teacher reaches."""

    def rows(self, records: Mapping[str, Record], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
        for case, peers in self.ways.items():
            for metric, higher in self.metrics.items():
                yield from _row(case, peers, metric, higher, records, seeds, records.get(self.teacher))


def fashion(seeds: Iterable[int], *, quick: bool) -> Part:
    """Alone against taught, with all labels and with a tenth."""
    size = whole(quick=quick)
    tenth = attrs.evolve(size, labelled=size.labelled // 10)
    teacher = Run(name="Fashion-MNIST, teacher/0", function=pictures.teacher, arguments=(size.test,))
    runs = [teacher] + [
        Run(name=f"Fashion-MNIST, {name}/{seed}", function=function, arguments=(*arguments, seed))
        for seed in seeds
        for name, function, arguments in (  # the most wanted first
            ("taught, a tenth of the labels", pictures.taught, (tenth, [SOFT], 0.9)),
            ("alone, a tenth of the labels", pictures.alone, (tenth,)),
            ("taught, all labels", pictures.taught, (size, [SOFT], 0.9)),
            ("alone, all labels", pictures.alone, (size,)),
            ("taught, no labels", pictures.taught, (size, [SOFT], 1.0)),
            ("taught at temperature 1, a tenth of the labels", pictures.taught, (tenth, [SHARP], 0.9)),
        )
    ]
    return Part(runs=runs, ways=beside_alone("Fashion-MNIST, teacher", {
        "taught, all labels": "alone, all labels",
        "taught, no labels": "alone, all labels",
        "taught, a tenth of the labels": "alone, a tenth of the labels",
        "taught at temperature 1, a tenth of the labels": "alone, a tenth of the labels",
    }), teacher=teacher.name)  # fmt: skip


def wide(seeds: Iterable[int], *, quick: bool) -> Part:
    """As `fashion`, taught by a better teacher; those that learn alone are the same."""
    size, teacher = whole(quick=quick), _wide_teacher(quick=quick)
    tenth = attrs.evolve(size, labelled=size.labelled // 10)
    runs = [teacher] + [
        Run(name=f"Fashion-MNIST, {name}/{seed}", function=function, arguments=(*arguments, seed), after=after)
        for seed in seeds
        for name, function, arguments, after in (
            ("taught by the wide teacher, a tenth of the labels", pictures.taught_by_wide, (tenth, [SOFT], 0.9),
             (teacher.name,)),
            ("taught by the wide teacher, all labels", pictures.taught_by_wide, (size, [SOFT], 0.9), (teacher.name,)),
            ("alone, a tenth of the labels", pictures.alone, (tenth,), ()),
            ("alone, all labels", pictures.alone, (size,), ()),
        )
    ]  # fmt: skip
    return Part(runs=runs, ways=beside_alone("Fashion-MNIST, wide teacher", {
        "taught by the wide teacher, all labels": "alone, all labels",
        "taught by the wide teacher, a tenth of the labels": "alone, a tenth of the labels",
    }), teacher=teacher.name)  # fmt: skip


def _wide_teacher(*, quick: bool) -> Run:
    arguments = (whole(quick=quick), 1 if quick else WIDE_EPOCHS)
    return Run(name="Fashion-MNIST, wide teacher/0", function=pictures.grown, arguments=arguments)


def beside_alone(teacher: str, peers: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The teacher, and every way of teaching after the way alone that it is compared with."""
    ways: dict[str, tuple[str, ...]] = {teacher: ()}
    for way, peer in peers.items():
        ways.setdefault(f"Fashion-MNIST, {peer}", ())
        ways[f"Fashion-MNIST, {way}"] = (f"Fashion-MNIST, {peer}",)
    return ways


def losses(seeds: Iterable[int], *, quick: bool) -> Part:
    """Divergences beside the labels alone, and what is added to soft targets beside these."""
    size = small(quick=quick)
    runs = []
    for seed in seeds:
        runs.append(Run(name=f"labels alone/{seed}", function=pictures.alone, arguments=(size, seed)))
        runs += [
            Run(name=f"{name}/{seed}", function=pictures.taught, arguments=(size, made, 0.9, seed))
            for name, made in LOSSES.items()
        ]
    peers = {name: ("soft-targets",) if len(made) > 1 else ("labels alone",) for name, made in LOSSES.items()}
    return Part(runs=runs, ways={"labels alone": (), **peers})


def temperature(seeds: Iterable[int], *, quick: bool) -> Part:
    """Soft targets at several temperatures."""
    size = small(quick=quick)
    runs = [
        Run(name=f"temperature {t:g}/{seed}", function=pictures.taught,
            arguments=(size, [{**SOFT, "temperature": t}], 0.9, seed))
        for seed in seeds for t in TEMPERATURES
    ]  # fmt: skip
    return Part(runs=runs, ways={f"temperature {t:g}": () for t in TEMPERATURES})


def stages(seeds: Iterable[int], *, quick: bool) -> Part:
    """A twentieth of the teacher's weights, directly and by way of two assistants, in as many passes in all.

    In the longer course every stage makes as many as the direct way does in the shorter one.
    """
    size, peers, runs = small(quick=quick), dict[str, tuple[str, ...]](), []
    for passes in (1, 3) if quick else (12, 36):
        course = attrs.evolve(size, epochs=passes)
        direct, staged = (f"a twentieth, {passes} passes, {way}" for way in ("directly", "by two assistants"))
        peers |= {direct: (), staged: (direct,)}
        runs += [
            Run(name=f"{name}/{seed}", function=pictures.in_stages, arguments=(course, assistants, seed))
            for seed in seeds for name, assistants in ((direct, 0), (staged, 2))
        ]  # fmt: skip
    return Part(runs=runs, ways=peers)


def together(seeds: Iterable[int], *, quick: bool) -> Part:
    """Pruned, distilled and INT8: accuracy beside the wide teacher's, and how many times smaller and faster."""
    size = attrs.evolve(whole(quick=quick), epochs=1 if quick else TOGETHER_EPOCHS)
    name, teacher = "distilled, pruned, INT8", _wide_teacher(quick=quick)
    runs = [
        Run(name=f"{name}/{seed}", function=pictures.together, arguments=(size, seed), after=(teacher.name,))
        for seed in seeds
    ]
    figures = ("accuracy", "times smaller", *(f"times faster, {runtime}" for runtime in pictures.RUNTIMES))
    return Part(
        runs=[teacher, *runs], ways={name: ()}, metrics=dict.fromkeys(figures, True), teacher=teacher.name
    )  # fmt: skip


def letters(seeds: Iterable[int], *, quick: bool) -> Part:
    """Forward against reverse divergence in as many steps, and on policy against offline from there."""
    size = characters.Size(stretches=64, epochs=1, judged=8) if quick else characters.Size()
    more = attrs.evolve(size, stretches=size.stretches // 4, epochs=1)
    forward, reverse = {"name": "soft-targets", "temperature": 1.0}, {"name": "reverse-kl"}
    policy = {"name": "on-policy", "prompt": characters.PROMPT, "reuse": 2}
    first = {"alone": ([], 0.0), "forward": ([forward], 0.9), "reverse": ([reverse], 0.9)}
    then = {"reverse, then offline": ([reverse], 0.9), "reverse, then on policy": ([policy], 0.5)}
    runs = []
    for seed in seeds:
        runs.append(Run(name=f"characters, teacher/{seed}", function=characters.teacher, arguments=(size, seed)))
        for ways, much, before in ((first, size, ""), (then, more, "reverse")):
            runs += [
                Run(name=f"characters, {name}/{seed}", function=characters.trained,
                    arguments=(name, much, *way, before, seed),
                    after=(f"characters, {before}/{seed}",) if before else ())
                for name, way in ways.items()
            ]  # fmt: skip
    peers = {"forward": "alone", "reverse": "forward", "reverse, then on policy": "reverse, then offline"}
    ways = {
        f"characters, {name}": (f"characters, {peers[name]}",) if name in peers else ()
        for name in ("teacher", *first, *then)
    }
    return Part(runs=runs, ways=ways, metrics=FIGURES)


def sentence_embeddings(seeds: Iterable[int], *, quick: bool) -> Part:
    """Six layers to three by the embeddings, and features, attention or what matters beside."""
    size = sentences.Size(texts=32, length=16) if quick else sentences.Size()
    mse, plain, attention = "MiniLM, and feature-mse", "MiniLM, embeddings alone", "MiniLM, and attention, values"
    relations = [{"name": name, "mask": "attention_mask"} for name in ("attention-maps", "value-relation")]
    ways: dict[str, list[dict[str, Any]]] = {
        plain: [],
        mse: [{"name": "feature-mse"}],
        attention: relations,
        f"{attention}, in the first half": [{**loss, "until": 0.5} for loss in relations],
        f"{attention} of the last layer": relations,
        "MiniLM, and attribution": [{"name": "attribution"}],
    }
    teacher = Run(name="MiniLM, teacher/0", function=sentences.teacher, arguments=())
    runs = [teacher, Run(name="MiniLM, layers left out/0", function=sentences.untaught, arguments=())]
    runs += [
        Run(name=f"{name}/{seed}", function=sentences.taught,
            arguments=(name, size, way, "last layer" in name, seed))
        for seed in seeds for name, way in ways.items()
    ]  # fmt: skip
    peers = {name: () if name in {plain, mse} else (mse,) for name in ways}
    shown = {"MiniLM, teacher": (), "MiniLM, layers left out": (), **peers}
    return Part(runs=runs, ways=shown, metrics={"sentiment": True, "retrieval": True}, teacher=teacher.name)


def memory(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Three billion weights teach half a billion: what is held where, and what to do on accelerators of three sizes."""
    sizes = {"family": "gpt", "width": 2560, "heads": 32, "layers": 4 if quick else 36, "positions": 2048}
    like = load(characters.TEACHER)
    teacher = built(sizes, like, None)
    student = built({**sizes, "width": 1280, "layers": 2 if quick else 25}, like, None)
    plan = planned(teacher, student, Distil(), {"ids": (4, 1024)})
    case = f"{weights(teacher) / 1e9:.2f} billion weights teach {weights(student) / 1e9:.2f}"
    for name, held in plan.rows():
        yield measurement(case, f"{name}, GB", held / 1e9, {}, spread=0.0, higher_is_better=False)
    for limit in (24, 48, 80):
        total = plan.total() / 1e9
        yield measurement(plan.fitting(limit * 10**9), "GB", total, {}, spread=0.0, higher_is_better=False)


def whole(*, quick: bool) -> pictures.Size:
    if quick:
        return pictures.Size(pictures=2000, test=500, labelled=2000, epochs=1)
    return pictures.Size()


def small(*, quick: bool) -> pictures.Size:
    if quick:
        return pictures.Size(pictures=600, test=300, labelled=300, epochs=1)
    return pictures.Size(pictures=12_800, labelled=1_280, epochs=8)


def _row(
    case: str, peers: Sequence[str], metric: str, higher: bool, records: Mapping[str, Record], seeds: Sequence[int],
    teacher: Record | None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Means, and the interval of the differences of pairs (of the values themselves, without a peer)."""
    mine = over_seeds(records, case, seeds)
    if not mine:
        return
    theirs = {peer: over_seeds(records, peer, mine) for peer in peers}
    pairs = [(mine[seed][metric], other[seed][metric]) for other in theirs.values() for seed in other]
    means = {peer: float(np.mean([one[metric] for one in other.values()])) for peer, other in theirs.items() if other}
    values = [one[metric] for one in mine.values()]
    spread = interval([a - b for a, b in pairs] if pairs else values)
    row = measurement(case, metric, float(np.mean(values)), means, spread=spread, higher_is_better=higher)
    row |= {"runs": values, "weights": next(iter(mine.values())).get("weights", 0)}
    if pairs:
        row["gain"] = float(np.mean([a - b for a, b in pairs]))
    if teacher is not None and metric in teacher:
        row["of the teacher"] = row["ours"] / teacher[metric]
    yield row | {"seconds": float(np.mean([one.get("seconds", 0.0) for one in mine.values()]))}


# --- the script -------------------------------------------------------------------------------------------------------

PARTS = {
    "fashion": fashion, "wide": wide, "temperature": temperature, "together": together, "characters": letters,
    "stages": stages, "losses": losses, "sentences": sentence_embeddings,
}  # fmt: skip
SHARES = {"accuracy", "sentiment", "retrieval", "distinct", "repetition"}


def shown(row: Mapping[str, Any]) -> list[str]:
    share = row["metric"] in SHARES

    def number(value: float, sign: str = "") -> str:
        return f"{100 * value:{sign}.2f} %" if share else f"{value:{sign}.3f}"

    return [
        row["case"], row["metric"], number(row["ours"]),
        number(row["gain"], "+") if "gain" in row else "",
        number(row["spread"]) if len(row.get("runs", ())) > 1 else "",
        str(len(row.get("runs", ())) or ""),
        f"{row['of the teacher']:.1%}" if "of the teacher" in row else "",
        f"{row['weights']:,}" if row.get("weights") else "", f"{row['seconds']:.0f} s" if row.get("seconds") else "",
    ]  # fmt: skip


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy over temperature, as SVG: the means, each with its temperature and itself written beside."""
    points = [row for row in rows if row["case"] in {f"temperature {t:g}" for t in TEMPERATURES}]
    if not points:
        return
    low, high = (bound(row["ours"] for row in points) for bound in (min, max))
    places = [(60 + 120 * i, 110 - 80 * (row["ours"] - low) / ((high - low) or 1)) for i, row in enumerate(points)]
    line = " ".join(f"{x},{y:.1f}" for x, y in places)
    marks = "".join(
        f'<circle cx="{x}" cy="{y:.1f}" r="3"/><text x="{x}" y="{y - 10:.1f}">{row["ours"]:.2%}</text>'
        f'<text x="{x}" y="140">{row["case"].replace("temperature", "T =")}</text>'
        for (x, y), row in zip(places, points, strict=True)
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {120 * len(points)} 150" width="{120 * len(points)}" '
        f'font-family="sans-serif" font-size="12" text-anchor="middle"><polyline points="{line}" fill="none" '
        f'stroke="steelblue" stroke-width="2"/>{marks}</svg>\n'
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cases, a minute or two")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument(
        "--only",
        default=",".join((*PARTS, "memory")),
        help="parts, separated by commas; with seeds of their own: losses:0+1",
    )
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    parser.add_argument("--picture", type=Path, help="draw the sweep of the temperature there, as SVG")
    parser.add_argument("--records", type=Path, help="folder of what runs leave behind; a temporary one if not given")
    parser.add_argument("--seconds", type=float, help="stop what is not done by then")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")][: 2 if options.quick else None]
    wanted = [(name, own.split("+")) for name, _, own in (each.partition(":") for each in options.only.split(","))]
    parts = [
        PARTS[name]([seed for seed in seeds if own == [""] or str(seed) in own], quick=options.quick)
        for name, own in wanted if name in PARTS
    ]  # fmt: skip
    runs = list({run.name: run for part in parts for run in part.runs}.values())
    with tempfile.TemporaryDirectory() as folder:
        records = carried_out(runs, options.records or Path(folder), options.seconds)
    table = Table({"case": 42, "metric": 20, "ours": -9, "gain": -9, "±": -8, "runs": -5, "of teacher": -10,
                   "weights": -9, "time": -7})  # fmt: skip
    cases = [row for part in parts for row in part.rows(records, seeds)]
    cases += memory(quick=options.quick) if ("memory", [""]) in wanted else ()
    for row in cases:
        table.row(shown(row))
    if options.json:
        write_json(options.json, {"cases": cases})
    if options.picture:
        draw(cases, options.picture)
    print(f"\n{len(records)} of {len(runs)} runs are done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
