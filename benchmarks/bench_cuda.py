"""The CUDA kernels against PyTorch, cuBLASLt and cuDNN on this machine's GPU.

    python benchmarks/bench_cuda.py [--quick] [--json FILE] [--only FAMILY,FAMILY] [--matching TEXT]

Every case is checked first, on fresh random data and into poisoned outputs; a case that is wrong is not timed and the
script ends with 1, one whose peer is not installed is left out with a line that says so. A contestant's calls are
recorded into a CUDA graph that goes round several sets of inputs, more than the cache holds, and the graph is replayed
between two events. All contestants take turns, round by round. Times are medians of a call; the spread is half the
distance of the quartiles, relative. `ratio` is the best peer's median over ours, above 1 is faster; `!` marks a ratio
below the case's target. Clocks are left as they are found. The JSON keeps the date, the device and every round of every
contestant; `results/cuda_h200/` holds those of an H200.
"""

import argparse
import functools
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from cuda_cases import Case, Work, all_cases
from tables import Table, measurement, now, write_json

ROTATED_BYTES, MOST_SETS = 240 << 20, 64
GRAPH_SECONDS, QUICK_GRAPH_SECONDS = 4e-3, 1e-3
ROUNDS, QUICK_ROUNDS = 25, 9
COLUMNS = {
    "case": 46, "ours µs": -9, "rate": -11, "best peer": 34, "ratio": -6, "target": -6, "spread": -6,
}  # fmt: skip


@attrs.frozen(kw_only=True)
class Row:
    """One measured line."""

    case: Case
    rounds: Mapping[str, Sequence[float]]
    """Seconds of a call in every round, by contestant; ours is ''."""
    failures: Sequence[str]

    @functools.cached_property
    def median(self) -> Mapping[str, float]:
        return {name: float(np.median(times)) for name, times in self.rounds.items()}

    @property
    def spread(self) -> float:
        low, high = np.percentile(self.rounds[""], [25, 75])
        return float((high - low) / 2 / self.median[""])

    @property
    def best(self) -> str | None:
        peers = {name: seconds for name, seconds in self.median.items() if name}
        return min(peers, key=peers.__getitem__, default=None)

    @property
    def ratio(self) -> float:
        return self.median[self.best] / self.median[""] if self.best else float("nan")

    def cells(self) -> list[str]:
        ours, best, case = self.median[""], self.best, self.case
        rate = f"{case.operations / ours / 1e12:.1f} T/s" if case.operations else f"{case.moved / ours / 1e9:.0f} GB/s"
        return [
            case.name, f"{ours * 1e6:.2f}", rate, f"{best} {self.median[best] * 1e6:.2f}" if best else "none",
            f"{self.ratio:.2f}{'!' if self.ratio < case.target else ''}", f"{case.target:g}", f"{self.spread:.1%}",
        ]  # fmt: skip

    def measurement(self) -> dict[str, Any]:
        peers = {name: seconds * 1e6 for name, seconds in self.median.items() if name}
        found = measurement(
            self.case.name, "µs", self.median[""] * 1e6, peers, spread=self.spread, higher_is_better=False
        )
        sizes = {"operations": self.case.operations, "moved": self.case.moved}
        rounds = {name or "ours": " ".join(f"{t * 1e6:.2f}" for t in times) for name, times in self.rounds.items()}
        return {**found, "family": self.case.family, "target": self.case.target, **sizes, "rounds": rounds}


class Recorded:
    """A contestant's calls as a CUDA graph."""

    def __init__(self, calls: Sequence[Work], stream: Any, seconds: float) -> None:
        self.stream = stream
        for call in calls:  # compiles, chooses, allocates
            call()
        once = self._time(lambda: [call() for call in calls]) / len(calls)
        turns = max(1, round(seconds / once / len(calls)))
        self.calls = turns * len(calls)
        stream.begin_capture()
        for _ in range(turns):
            for call in calls:
                call()
        self.graph = stream.end_capture()
        self.graph.launch(stream)

    def seconds(self) -> float:
        """Of one call, in one replay."""
        return self._time(lambda: self.graph.launch(self.stream)) / self.calls

    def _time(self, work: Work) -> float:
        import cupy

        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record(self.stream)
        work()
        end.record(self.stream)
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(start, end)) * 1e-3


def main() -> int:
    """Print the table; 1 if a case is wrong, 2 without a GPU or without PyTorch."""
    arguments = _parser().parse_args()
    from pumice_cuda import device

    missing = None if importlib.util.find_spec("torch") else "the peers need PyTorch: pip install torch"
    if problem := device.unavailable() or missing:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    print(f"{device.examination()}; {now()}\n")
    table, rows, wrong, left_out = Table(COLUMNS), [], [], []
    for case in all_cases(arguments.quick, arguments.only):
        if arguments.matching not in case.name:
            continue
        if missing := without_peer(case):
            left_out.append(missing)
            continue
        found = measured(case, arguments.quick)
        if isinstance(found, str):
            wrong.append(f"{case.name}: {found}")
        else:
            table.row(found.cells())
            rows.append(found)
        if arguments.json:
            write_json(
                arguments.json, {"device": str(device.examination()), "left_out": left_out, **record(rows, wrong)}
            )
    for line in (*wrong, *left_out, *failed_peers(rows)):
        print(f"\n{line}")
    _print_means(rows)
    return 1 if wrong else 0


def without_peer(case: Case) -> str | None:
    """Why a case cannot be timed here, if its peer is not installed."""
    absent = next((package for package in case.needs if importlib.util.find_spec(package) is None), None)
    return absent and f"{case.name} is left out, as its peer needs {absent}: pip install {absent}"


def record(rows: Sequence[Row], wrong: Sequence[str]) -> dict[str, Any]:
    """What was measured so far, for machines."""
    return {"wrong": wrong, "failures": failed_peers(rows), "cases": [row.measurement() for row in rows]}


def failed_peers(rows: Sequence[Row]) -> list[str]:
    """What went wrong with peers."""
    return [line for row in rows for line in row.failures]


def measured(case: Case, quick: bool) -> Row | str:
    """The case's line, or what is wrong with its result."""
    import cupy

    sets = int(np.clip(-(-ROTATED_BYTES // max(1, case.moved)), 2, MOST_SETS))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream, _for_torch(stream):
        contest = case.build(sets)
        stream.synchronize()
        if problem := contest.check():
            return problem
        contestants, failures = {}, []
        for name, calls in {"": contest.ours, **contest.peers}.items():
            try:
                contestants[name] = Recorded(calls, stream, QUICK_GRAPH_SECONDS if quick else GRAPH_SECONDS)
            except Exception as error:  # a peer's own troubles end its part, not the table
                if not name:
                    raise
                failures.append(f"{case.name}: {name}: {type(error).__name__}: {error}")
        times = _interleaved(contestants, QUICK_ROUNDS if quick else ROUNDS)
        del contest, contestants
    cupy.get_default_memory_pool().free_all_blocks()
    return Row(case=case, rounds=times, failures=failures)


def _interleaved(contestants: Mapping[str, Recorded], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(contestants[name].seconds())
    return times


def _for_torch(stream: Any) -> Any:
    """PyTorch on the same stream."""
    import torch

    return torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr))


def _print_means(rows: Sequence[Row]) -> None:
    """The geometric mean of the ratios of each family."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        if row.best:
            families.setdefault(row.case.family, []).append(row)
    for family, found in families.items():
        mean = float(np.exp(np.mean([np.log(row.ratio) for row in found])))
        met = sum(row.ratio >= row.case.target for row in found)
        print(f"\n{family}: geometric mean of the ratios {mean:.2f}, {met} of {len(found)} at their target")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few cases, little time each")
    parser.add_argument("--json", type=Path, help="also write every round as JSON, as it grows")
    parser.add_argument("--only", type=lambda text: set(text.split(",")), default=set(), help="families of cases")
    parser.add_argument("--matching", default="", help="only cases with this in their names")
    return parser


if __name__ == "__main__":
    sys.exit(main())
