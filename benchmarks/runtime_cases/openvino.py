"""OpenVINO on the same networks, quantized by NNCF, in a process and an environment of its own.

Its process sleeps whenever it is not its turn (`kernel_peers.Peer`); bursts of both sides take turns, and the ratio is
the median of the rounds'.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from kernel_peers import Peer
from models.store import cache_folder, file_sha256
from peers.cache import digest
from peers.environment import interpreter
from peers.stock_onnxruntime import Variant

from . import CALIBRATION, Compared

PACKAGES = ("numpy==2.4.6", "onnx==1.23.2", "openvino==2026.4.1", "nncf==3.4.0")
ROUNDS, BURST_SECONDS = 9, 0.06


@attrs.frozen
class Rival:
    """Milliseconds of a call, and how many times faster ours is."""

    median: float
    ratio: float


def measured(case: Compared, model: Path, threads: int, ours: Callable[[], Any]) -> Rival:
    """Our call against OpenVINO on the float model, quantized unless the case is a float one.

    Raises:
        PeerError: OpenVINO or NNCF cannot be had, or cannot compute the case.
    """
    python = interpreter("runtime-peers", PACKAGES)
    with contextlib.closing(Peer("openvino", python, threads)) as peer, tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        feeds = [case.feed(rng) for _ in range(CALIBRATION)]
        arrays = {f"{number}.{name}": array for number, feed in enumerate(feeds) for name, array in feed.items()}
        np.savez(Path(folder, "feeds.npz"), **arrays)
        kind = "float" if case.quantize is None else "int4" if case.quantize == "codebook" else "int8"
        transforms = isinstance(case.quantize, Variant) and case.quantize.mode == "dynamic"
        kept = cache_folder() / "int8-peers" / f"{digest(file_sha256(model), kind, transforms, *PACKAGES)}.xml"
        given = {"path": str(model), "feeds": str(Path(folder, "feeds.npz")), "kind": kind, "kept": str(kept)}
        peer.build("network", 1, given | {"transformer": transforms})
        calls = max(1, round(BURST_SECONDS / peer.burst(1)))
        rounds = [(_burst(ours, calls), peer.burst(calls)) for _ in range(ROUNDS)]
    return Rival(float(np.median([b for _, b in rounds])) * 1e3, float(np.median([b / a for a, b in rounds])))


def _burst(call: Callable[[], Any], calls: int) -> float:
    call()
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls
