"""The native runtime against onnxruntime and OpenVINO on the same networks, and what else it claims.

    python benchmarks/bench_runtime.py [--quick] [--json FILE] [--only ID,ID] [--threads 1,2] [--peers ort,openvino]

The networks are those of `runtime_cases`. Every file is run by onnxruntime with and without its SkipLayerNormalization
fusion, which is slower on some machines; the faster one counts. With four bits `error` says how far its blocks and our
codebook are apart. Runtimes take turns within one process; a time is the median, the spread that of the ratio's 95%
interval; OpenVINO, quantized by NNCF, runs in a process of its own (`runtime_cases.openvino`). `error` is the largest
difference from onnxruntime, relative to the largest output. The second table is of `runtime_cases.claims`.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from peers.environment import PeerError
from runtime_cases import CASES, Compared, Feed, Files, files
from runtime_cases.claims import CLAIMS
from runtime_cases.openvino import measured
from tables import Table, measurement, write_json

from pumice.measure import interleaved_latency, pick_runtime, speedup

COLUMNS = {
    "case": 26, "threads": -7, "native ms": -9, "ort ms": -8, "ratio": -6, "spread": -6, "target": -6,
    "openvino ms": -11, "over it": -7, "error": -8,
}  # fmt: skip
CLAIM_COLUMNS = {"claim": 56, "measured": -18, "bound": -14, "holds": 5}
SECONDS, QUICK_SECONDS = 2.5, 1.0


def main() -> int:
    """Print both tables; 1 if a case failed."""
    arguments = _parser().parse_args()
    logging.disable(logging.INFO)  # onnxruntime's quantizer tells every node
    record: dict[str, Any] = {"cases": [], "claims": [], "failures": []}
    _compare(arguments, record)
    _judge_claims(arguments, record)
    return 1 if record["failures"] else 0


def _parser() -> argparse.ArgumentParser:
    def words(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smaller networks, a second each, and no claims")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument(
        "--only", type=words, help=f"only these cases and claims, of which there are {', '.join(CLAIMS)}"
    )
    parser.add_argument("--threads", type=lambda text: [int(n) for n in words(text)], default=[1, 2])
    parser.add_argument("--peers", type=words, default=["ort", "openvino"], help="without openvino: ort")
    parser.add_argument("--seconds", type=float, help="of measuring for every runtime")
    return parser


def _failed(record: dict[str, Any], name: str, error: Exception) -> None:
    record["failures"].append({"case": name, "error": f"{type(error).__name__}: {error}"})
    print(f"{name}: {error}", file=sys.stderr)


# --- against others ---------------------------------------------------------------------------------------------------


def _compare(arguments: argparse.Namespace, record: dict[str, Any]) -> None:
    chosen = [c for c in CASES if (c.id in arguments.only if arguments.only else c.quick or not arguments.quick)]
    if not chosen:
        return
    table, seconds = Table(COLUMNS), arguments.seconds or (QUICK_SECONDS if arguments.quick else SECONDS)
    for case in chosen:
        feed = case.feed(np.random.default_rng(0))
        with tempfile.TemporaryDirectory() as folder:
            try:
                made = files(case, Path(folder))
                for count in arguments.threads:
                    measured = _measured(case, made, feed, count, seconds, "openvino" in arguments.peers)
                    table.row(_cells(case, measured))
                    record["cases"].append(measured)
            except Exception as error:  # one case must not cost the others
                _failed(record, case.id, error)
        if arguments.json:
            write_json(arguments.json, record)


def _measured(case: Compared, made: Files, feed: Feed, threads: int, seconds: float, openvino: bool) -> dict[str, Any]:
    ours = pick_runtime({"name": "native", "mode": case.mode}).open(made.ours, threads=threads)
    peers = {"ort": _onnxruntime(made.theirs, threads)}
    peers["ort, no SkipLN"] = _onnxruntime(made.theirs, threads, "SkipLayerNormFusion")
    error = _error(ours.run(feed), peers["ort"](feed))
    calls: dict[str, Callable[[], Any]] = {name: _call(run, feed) for name, run in peers.items()}
    found = interleaved_latency({"native": lambda: ours.run(feed), **calls}, seconds=seconds)
    best = min(peers, key=lambda name: found[name].median)
    ratio = speedup(found[best], found["native"])
    entry = measurement(
        f"{case.id}, {threads} threads", "ms", found["native"].median, {name: found[name].median for name in peers},
        spread=(ratio.certain_high - ratio.certain_low) / 2 / ratio.median, higher_is_better=False,
    )  # fmt: skip
    entry |= {"ratio": ratio.median, "target": case.target, "error": error, "threads": threads}
    if openvino:
        entry["openvino"] = _against_openvino(case, made.real, threads, lambda: ours.run(feed))
    return entry


def _against_openvino(case: Compared, model: Path, threads: int, ours: Callable[[], Any]) -> dict[str, float] | None:
    try:
        return attrs.asdict(measured(case, model, threads, ours))
    except PeerError as error:
        print(f"{case.id}: {error}", file=sys.stderr)
        return None


def _cells(case: Compared, entry: dict[str, Any]) -> list[str]:
    rival = entry.get("openvino")
    return [
        case.id, str(entry["threads"]), f"{entry['ours']:.3f}", f"{min(entry['peers'].values()):.3f}",
        f"{entry['ratio']:.2f}", f"{entry['spread']:.1%}", f"{case.target:.2f}",
        *([f"{rival['median']:.3f}", f"{rival['ratio']:.2f}"] if rival else ["", ""]), f"{entry['error']:.0e}",
    ]  # fmt: skip


def _call(run: Callable[[Feed], Any], feed: Feed) -> Callable[[], Any]:
    return lambda: run(feed)


def _onnxruntime(path: Path, threads: int, *disabled: str) -> Callable[[Feed], dict[str, np.ndarray]]:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled)
    )
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def _error(have: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> float:
    return max(float(np.abs(have[n] - want[n]).max() / max(float(np.abs(want[n]).max()), 1e-30)) for n in want)


# --- claims -----------------------------------------------------------------------------------------------------------


def _judge_claims(arguments: argparse.Namespace, record: dict[str, Any]) -> None:
    chosen = [name for name in CLAIMS if (name in arguments.only if arguments.only else not arguments.quick)]
    if not chosen:
        return
    print()
    table = Table(CLAIM_COLUMNS)
    for name in chosen:
        try:
            claim = CLAIMS[name](arguments.seconds or SECONDS)
        except Exception as error:
            _failed(record, name, error)
            continue
        bound = f"{'at most' if claim.at_most else 'at least'} {claim.target:g}"
        table.row([claim.id, f"{claim.value:.2f} {claim.unit}", bound, "yes" if claim.holds else "no"])
        record["claims"].append({**attrs.asdict(claim), "holds": claim.holds})
        if arguments.json:
            write_json(arguments.json, record)


if __name__ == "__main__":
    sys.exit(main())
