"""The C kernels against NumPy, onnxruntime, OpenVINO and PyTorch on the CPU.

    python benchmarks/bench_kernels.py [--quick] [--json FILE] [--only FAMILY,FAMILY] [--matching TEXT] [--threads 1,2]
                                       [--weights hot,cold] [--seconds S] [--tests]

The level in force is the machine's best, or what `PUMICE_CPU_ISA` names; `--tests` first runs the kernels' own tests
at that level. Every row is one case at one number of threads. `hot` repeats the call on the same weights; `cold` goes
round so many copies of them that no cache of the core's own holds any. All contestants take turns, round by round,
each in its own process, the others stopped. Times are medians; the spread is half the distance of the quartiles,
relative. `ratio` is the best peer's median over ours, above 1 is faster, `over ort` onnxruntime's; `of peak` is our
rate as a share of what multiply-adds on registers reach at the same moment; `!` marks a target that is missed, over the
best peer or, for 8-bit convolutions and 4-bit products, over onnxruntime.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import attrs
import numpy as np
from kernel_cases import Case, Work, all_cases
from kernel_peers import Peer, environment
from peers.environment import PeerError
from tables import Table, machine, measurement, write_json

COLD_BYTES, MOST_COPIES = 64 << 20, 64
BURST_SECONDS = 4e-3
FEWEST_ROUNDS, MOST_ROUNDS = 5, 60
SECONDS, QUICK_SECONDS = 4.0, 0.8
TESTS = Path(__file__).resolve().parent.parent / "native" / "cpu" / "tests"
COLUMNS = {
    "case": 34, "threads": -7, "weights": 7, "ours µs": -10, "G/s": -7, "of peak": -7, "best peer": 20, "ratio": -7,
    "over ort": -8, "target": -6, "spread": -6,
}  # fmt: skip


class Ours:
    """Our own side, with the interface of a peer."""

    name = "pumice"

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.calls: list[Work] = []
        self.turn = 0

    def build(self, case: Case, copies: int) -> None:
        self.calls = [case.ours(self.threads, seed) for seed in range(copies)]
        for call in self.calls:
            call()

    def burst(self, calls: int) -> float:
        self._next()
        start = time.perf_counter()
        for _ in range(calls):
            self._next()
        return (time.perf_counter() - start) / calls

    def _next(self) -> None:
        self.turn = (self.turn + 1) % len(self.calls)
        self.calls[self.turn]()


@attrs.frozen(kw_only=True)
class Row:
    """One measured line."""

    case: Case
    threads: int
    weights: str
    median: dict[str, float]
    """Seconds by contestant."""
    spread: float
    of_peak: float | None

    @property
    def best(self) -> str | None:
        peers = {name: seconds for name, seconds in self.median.items() if name != Ours.name}
        return min(peers, key=peers.__getitem__, default=None)

    @property
    def ratio(self) -> float:
        return self.over(self.best) if self.best else float("nan")

    @property
    def rival(self) -> str | None:
        """The peer that the target is about."""
        return self.case.rival if self.case.rival in self.median else self.best

    @property
    def met(self) -> bool:
        """Whether the target is."""
        return self.rival is not None and self.over(self.rival) >= self.case.target

    def over(self, peer: str) -> float:
        return self.median[peer] / self.median[Ours.name]

    def cells(self) -> list[str]:
        ours, best = self.median[Ours.name], self.best
        return [
            self.case.name, str(self.threads), self.weights, f"{ours * 1e6:.1f}",
            f"{self.case.operations / ours / 1e9:.0f}" if self.case.operations else "",
            "" if self.of_peak is None else f"{self.of_peak:.0%}",
            f"{best} {self.median[best] * 1e6:.1f}" if best else "none",
            self._told(best), self._told("onnxruntime"), f"{self.case.target:g}", f"{self.spread:.1%}",
        ]  # fmt: skip

    def _told(self, peer: str | None) -> str:
        """The ratio over a peer, marked if it is below the target and what that is about."""
        if peer is None or peer not in self.median:
            return ""
        return f"{self.over(peer):.2f}{'!' if peer == self.rival and not self.met else ''}"

    def measurement(self) -> dict[str, Any]:
        peers = {name: seconds * 1e6 for name, seconds in self.median.items() if name != Ours.name}
        found = measurement(
            f"{self.case.name}, {self.threads} threads, {self.weights}", "µs", self.median[Ours.name] * 1e6, peers,
            spread=self.spread, higher_is_better=False,
        )  # fmt: skip
        return {**found, "family": self.case.family, "target": self.case.target, "of_peak": self.of_peak}


def main() -> int:
    """Print the table; 1 if our side of a case failed."""
    arguments = _parser().parse_args()
    try:
        python = environment()
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print_level(arguments.tests)
    cases = [case for case in all_cases(arguments.quick, arguments.only) if arguments.matching in case.name]
    seconds = arguments.seconds or (QUICK_SECONDS if arguments.quick else SECONDS)
    table, rows, failures = Table(COLUMNS), [], []
    for threads in arguments.threads:
        with _Peers(python, threads) as peers:
            for case in cases:
                for row in measured(case, threads, arguments.weights, peers, seconds, failures):
                    table.row(row.cells())
                    rows.append(row)
    for line in failures:
        print(f"\n{line}")
    _print_means(rows)
    if arguments.json:
        write_json(arguments.json, {"cases": [row.measurement() for row in rows], "failures": failures})
    return 0


class _Peers:
    """Processes of the peers at one number of threads, started when first needed."""

    def __init__(self, python: Path, threads: int) -> None:
        self.python, self.threads = python, threads
        self.running: dict[str, Peer] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        for peer in self.running.values():
            peer.close()

    def drop(self, name: str) -> None:
        """End a process that failed; the next case gets a new one."""
        if name in self.running:
            self.running.pop(name).close()

    def get(self, name: str) -> Peer:
        if name not in self.running:
            self.running[name] = Peer(name, self.python, self.threads)
        return self.running[name]


def measured(
    case: Case, threads: int, temperatures: Sequence[str], peers: _Peers, seconds: float, failures: list[str]
) -> Iterator[Row]:
    """The case hot and, if it has weights, cold. Peers that cannot compute it are named in `failures`."""
    for weights in temperatures if case.weight_bytes else ("hot",):
        copies = 1 if weights == "hot" else int(np.clip(-(-COLD_BYTES // case.weight_bytes), 2, MOST_COPIES))
        ours = Ours(threads)
        ours.build(case, copies)
        contestants: list[Ours | Peer] = [ours]
        for name, given in case.peers.items():
            try:
                peer = peers.get(name)
                peer.build(case.family, copies, dict(given))
                contestants.append(peer)
            except PeerError as error:
                failures.append(f"{case.name}: {error}")
                peers.drop(name)
        times, peaks = _interleaved(contestants, case, threads, seconds)
        yield _row(case, threads, weights, times, peaks)


def _interleaved(
    contestants: Sequence[Ours | Peer], case: Case, threads: int, seconds: float
) -> tuple[dict[str, list[float]], list[float]]:
    bursts = {c.name: max(1, round(BURST_SECONDS / c.burst(1))) for c in contestants}
    once = sum(c.burst(bursts[c.name]) * bursts[c.name] for c in contestants)
    times: dict[str, list[float]] = {c.name: [] for c in contestants}
    peaks: list[float] = []
    for number in range(int(np.clip(seconds / once, FEWEST_ROUNDS, MOST_ROUNDS))):
        turn = number % len(contestants)
        for contestant in [*contestants[turn:], *contestants[:turn]]:
            times[contestant.name].append(contestant.burst(bursts[contestant.name]))
        if case.peak is not None:
            peaks.append(_peak(case.peak, threads))
    return times, peaks


def _peak(product: Any, threads: int) -> float:
    from pumice_cpu.peak import peak

    return peak(product, threads=threads, rounds=1, seconds=1e-3)


def _row(case: Case, threads: int, weights: str, times: dict[str, list[float]], peaks: list[float]) -> Row:
    low, high = np.percentile(times[Ours.name], [25, 75])
    medians = {name: float(np.median(found)) for name, found in times.items()}
    rate = case.operations / medians[Ours.name]
    return Row(
        case=case, threads=threads, weights=weights, median=medians,
        spread=float(high - low) / 2 / medians[Ours.name], of_peak=rate / float(np.median(peaks)) if peaks else None,
    )  # fmt: skip


def _print_level(with_tests: bool) -> None:
    """Which instructions are measured, on what, and what the tests of that level say."""
    from pumice_cpu import native

    level = native.level()
    print(f"Level {level} on {machine()['processor']}\n")
    if with_tests:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS), "-k", level]
        told = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, check=False).stdout
        print(f"Tests of the level (native/cpu/tests -k {level}): {told.strip().splitlines()[-1]}\n", flush=True)


def _print_means(rows: Sequence[Row]) -> None:
    """The geometric mean of the ratios of each family, to the best peers and to every one of them."""
    for family in dict.fromkeys(row.case.family for row in rows if row.best):
        found = [row for row in rows if row.case.family == family and row.best]
        peers = sorted({peer for row in found for peer in row.median} - {Ours.name})
        apart = [f"{_mean([row.over(peer) for row in found if peer in row.median]):.2f} over {peer}" for peer in peers]
        means = ", ".join([f"{_mean([row.ratio for row in found]):.2f} over the best", *apart])
        print(f"\n{family}: geometric means {means}; {sum(row.met for row in found)} of {len(found)} at their target")


def _mean(ratios: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few cases, little time each")
    parser.add_argument("--json", type=Path, help="also write the table as JSON")
    parser.add_argument("--only", type=lambda text: set(text.split(",")), default=set(), help="families of cases")
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="numbers of threads")
    parser.add_argument("--matching", default="", help="only cases with this in their names")
    parser.add_argument("--weights", type=lambda text: text.split(","), default=["hot", "cold"], help="hot, cold")
    parser.add_argument("--seconds", type=float, help="measuring time of a row")
    parser.add_argument("--tests", action="store_true", help="first run the kernels' tests at the level in force")
    return parser


if __name__ == "__main__":
    sys.exit(main())
