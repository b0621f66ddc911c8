"""Single weights made zero: how faithful the network stays, and its bytes, dense and compressed.

Every sparsifier zeroes half of the weights of a network, anywhere and two of four neighbours, without training; the
metric is the case's own, `same` the agreement with the dense network. `int8` is the result quantized as well: its share
of zeros must not fall. `products` is where zeros pay: the time of one matrix product that skips them against the dense
one of NumPy, in the same process, taking turns.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from models import Case, case
from models.catalogue import reference
from scipy.sparse import csr_array
from tables import Table, measurement

import pumice
from pumice import Recipe
from pumice.measure import interleaved_latency, pick_runtime, speedup
from pumice.registry import registry

COLUMNS = {"case": 48, "metric": -7, "dense": -7, "same": -6, "kB dense": -8, "kB compressed": -13, "int8 zeros": -10}


def run(*, quick: bool) -> dict[str, Any]:
    """Print the table; the record for `write_json`."""
    table, cases = Table(COLUMNS), []
    for name in ("fashion_resnet",) if quick else ("fashion_resnet", "fashion_vit", "minilm"):
        judged = case(name)
        for pattern in ("unstructured", "2:4"):
            for sparsifier in registry().strategies("sparsifier"):
                step = {"use": "sparsify", "pattern": pattern, "sparsifier": sparsifier}
                cases.append(_row(table, f"{name}, {pattern}, {sparsifier}", judged, step))
    return {"cases": [*cases, *_products(quick=quick)]}


def _row(table: Table, label: str, judged: Case, step: Mapping[str, Any]) -> dict[str, Any]:
    result = _compressed(judged, step)
    session = pick_runtime("ort").open(result.model)
    found, dense = judged.evaluate(lambda feed: session.run(dict(feed))), reference(judged)
    told = result.ledger.of("sparsify", "applied")[-1].details
    same = judged.agreement(found, dense)
    integers = _compressed(judged, step, {"use": "quantize", "quantizer": "int8", "max_drop": 1.0})
    table.row([
        label, f"{found.value:.4f}", f"{dense.value:.4f}", f"{same:.3f}", f"{told['dense_bytes'] / 1e3:.0f}",
        f"{told['compressed_bytes'] / 1e3:.0f}", f"{_zeros(integers):.0%}",
    ])  # fmt: skip
    half = (found.interval()[1] - found.interval()[0]) / 2
    peers = {"dense": dense.value}
    return measurement(label, found.metric, found.value, peers, spread=half, higher_is_better=True) | told


def _compressed(judged: Case, *steps: Mapping[str, Any]) -> pumice.Result:
    feeds = judged.calibration()
    return pumice.compress(judged.path, feeds, Recipe.from_dict({"step": list(steps)}), test=feeds[:1], measure=False)


def _zeros(result: pumice.Result) -> float:
    """Share of zeros among the weights that are integers."""
    held = [v.const_value.numpy() for v in result.model.graph.initializers.values() if v.dtype.name == "INT8"]
    matrices = [array for array in held if array.ndim > 1]
    return float(np.mean(np.concatenate([array.reshape(-1) == 0 for array in matrices]))) if matrices else 0.0


def _products(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Times faster than dense, by size, share of zeros and rows."""
    print()
    table = Table({"products": 36, "zeros": -6, "rows": -5, "times faster": -16})
    draws = np.random.default_rng(0)
    for inputs, outputs in ((384, 1536),) if quick else ((384, 1536), (1024, 4096), (4096, 4096)):
        for share in (0.8, 0.85, 0.9, 0.95):
            dense = draws.standard_normal((inputs, outputs)).astype(np.float32)
            dense *= draws.random(dense.shape) >= share
            sparse = csr_array(np.ascontiguousarray(dense.T))
            for rows in (1, 8):
                x = draws.standard_normal((rows, inputs)).astype(np.float32)
                calls = {"dense": partial(np.matmul, x, dense), "sparse": partial(_skipping, sparse, x)}
                found = interleaved_latency(calls, seconds=0.2)
                ratio = speedup(found["dense"], found["sparse"])
                half = (ratio.high - ratio.low) / 2
                label = f"matrix product, {inputs} x {outputs}"
                table.row([label, f"{share:.0%}", str(rows), f"{ratio.median:.2f}x +-{half:.2f}"])
                name = f"{label}, {share:.0%} zeros, {rows} rows"
                yield measurement(name, "times faster", ratio.median, {}, spread=half, higher_is_better=True)


def _skipping(sparse: csr_array, x: np.ndarray) -> np.ndarray:
    """As the kernel of pumice-prune-sparse computes it."""
    return np.ascontiguousarray((sparse @ x.T).T)
