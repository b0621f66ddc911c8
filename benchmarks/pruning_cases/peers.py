"""Torch-Pruning and onnxsim on the same trained network, same ratio and training, in an environment of their own.

The peer reads our ONNX file, prunes half of the channels by the same criterion (L2 norm), trains with the same
optimizer, schedule, augmentation, batch and number of pictures, and exports to ONNX. Accuracy, size and
multiply-accumulates are then taken here, by the same code. What onnxsim's structured pruning makes of the file is
trained by our step.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from models import case
from peers.environment import PeerError, interpreter
from tables import Table, measurement

from .pictures import Outcome, compressed, prune, train, training_data

PACKAGES = ("torch==2.13.0", "torch-pruning==1.6.1", "onnx==1.23.2", "onnxsim==0.8.1", "numpy==2.4.6")
PEER = Path(__file__).with_name("torch_pruning_peer.py")
COLUMNS = {"case": 42, "accuracy": 24, "params": -8, "MACs": -10}


ONNXSIM = "import onnx, onnxsim, sys; onnx.save(onnxsim.apply_structured_pruning(sys.argv[1], 0.5), sys.argv[2])"


def run(*, quick: bool, epochs: int, limit: int | None) -> dict[str, Any]:
    """Print the table; the record for `write_json`."""
    judged = case("fashion_resnet")
    epochs, data = (1, training_data(2000)) if quick else (epochs, training_data(limit))
    table, found = Table(COLUMNS), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in MAKERS.items():
            path = Path(folder, f"{name}.onnx")
            try:
                make(judged.path, data, path, epochs)
            except PeerError as error:
                table.row([f"fashion_resnet, {name}", str(error), "", ""])
                continue
            found[name] = outcome = Outcome.of(path, judged)
            low, high = outcome.interval
            table.row([
                f"fashion_resnet, half of the channels, {name}", f"{outcome.accuracy:.4f} [{low:.4f}, {high:.4f}]",
                f"{outcome.size.params:,}", f"{outcome.size.macs:,}",
            ])  # fmt: skip
    return {"cases": list(_measurements(found))}


def _measurements(found: Mapping[str, Outcome]) -> Iterator[dict[str, Any]]:
    mine, label = found["pumice"], "fashion_resnet, half of the channels"
    half = (mine.interval[1] - mine.interval[0]) / 2
    others = {name: outcome for name, outcome in found.items() if name != "pumice"}
    peers = {name: outcome.accuracy for name, outcome in others.items()}
    yield measurement(label, "accuracy", mine.accuracy, peers, spread=half, higher_is_better=True)
    peers = {name: float(outcome.size.macs) for name, outcome in others.items()}
    yield measurement(label, "MACs", mine.size.macs, peers, spread=0.0, higher_is_better=False)


def ours(source: Path, data: dict[str, np.ndarray], target: Path, epochs: int) -> None:
    compressed(
        source, (prune(0.5, "channels", scorer="magnitude", recover="none", multiple=1), train(epochs)), data, target
    )


def onnxsim_pruned(source: Path, data: dict[str, np.ndarray], target: Path, epochs: int) -> None:
    """What onnxsim finds to prune, trained by us.

    Raises:
        PeerError: it failed.
    """
    pruned = target.with_suffix(".pruned.onnx")
    _asked(["-c", ONNXSIM, str(source), str(pruned)])
    compressed(pruned, (train(epochs),), data, target)


def torch_pruned(source: Path, data: dict[str, np.ndarray], target: Path, epochs: int) -> None:
    """Write what Torch-Pruning makes of a network after training.

    Raises:
        PeerError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "data.npz"), **data)
        order = {
            "source": str(source), "data": str(Path(folder, "data.npz")), "target": str(target), "ratio": 0.5,
            "training": {**train(epochs), "weight_decay": 1e-4},
        }  # fmt: skip
        _asked([str(PEER)], json.dumps(order))


def _asked(arguments: list[str], order: str = "") -> None:
    finished = subprocess.run(
        [interpreter("pruning-peers", PACKAGES), *arguments], input=order, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise PeerError(f"the peer failed: {(finished.stderr.strip().splitlines() or ['?'])[-1]}")


MAKERS = {"pumice": ours, "torch-pruning": torch_pruned, "onnxsim": onnxsim_pruned}
