"""The same networks on the CPU, by the runtime `native`, and on the GPU, by `cuda`: latency, throughput and cost.

    python benchmarks/bench_cuda_devices.py [--json FILE] [--picture FILE] [--seconds N] [--gpu-hour X] [--core-hour X]

Every network runs as it is and with 8-bit integers, rounded to nearest: how well says nothing here. Latency is the
median of a call with one sample, NumPy in and NumPy out; throughput is of batches. The CPU has the cores that the
process may use, all for one call. Cost is that of a million inferences in batches, from two prices an hour, that of the
GPU and that of one core: the defaults are round figures in dollars, no provider's. `differs` is the largest difference
between the two, relative to the largest output. The picture has all three, a mark a network.
"""

import argparse
import operator
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from cuda_cases.models import QUICKEST
from models import Feed
from tables import Table, now, write_json

import pumice
from pumice.data import open_dataset
from pumice.measure import interleaved_latency, pick_runtime
from pumice.report.charts import Point, scatter

TRAINED = Path(__file__).parent / "models" / "trained"
BATCH, SAMPLES = 64, 8
LENGTH = 64
"""Of an axis without a size, other than the first."""
TOKENS = 60
"""Integers are drawn below this."""
PANEL = 340, 240
"""Width and height of a chart of the picture."""
STYLE = ".axis { stroke: #888 } .before { fill: #c33 } .after { fill: #27c } text { font: 10px sans-serif }"
COLUMNS = {
    "network": 22, "cpu ms": -8, "gpu ms": -8, "cpu /s": -9, "gpu /s": -9, "ratio": -7, "cpu $/M": -8, "gpu $/M": -8,
    "differs": -8,
}  # fmt: skip


@attrs.frozen(kw_only=True)
class Measured:
    """One network on both, by `cpu` and `gpu`."""

    name: str
    latency: Mapping[str, float]
    """Milliseconds of one sample."""
    throughput: Mapping[str, float]
    """Samples a second, in batches."""
    dollars: Mapping[str, float]
    """Of a million samples in batches."""
    differs: float

    def cells(self) -> list[str]:
        ms, rate, cost = self.latency, self.throughput, self.dollars
        return [
            self.name, f"{ms['cpu']:.3f}", f"{ms['gpu']:.3f}", f"{rate['cpu']:.0f}", f"{rate['gpu']:.0f}",
            f"{rate['gpu'] / rate['cpu']:.1f}", f"{cost['cpu']:.2g}", f"{cost['gpu']:.2g}", f"{self.differs:.1e}",
        ]  # fmt: skip


def main() -> int:
    """Print the table; 2 without a GPU."""
    arguments = _parser().parse_args()
    from pumice_cuda import device

    if problem := device.unavailable():
        print(f"error: {problem}", file=sys.stderr)
        return 2
    cores = len(os.sched_getaffinity(0))
    print(f"{device.examination()}; {cores} cores; {now()}\n")
    prices = {"cpu": arguments.core_hour * cores, "gpu": arguments.gpu_hour}
    place = {"device": str(device.examination()), "cores": cores, "prices": prices}
    table, found = Table(COLUMNS), []
    for name, model in networks():
        found.append(measured(name, model, prices, arguments.seconds, cores))
        table.row(found[-1].cells())
        if arguments.json:
            write_json(arguments.json, {**place, "networks": [attrs.asdict(m) for m in found]})
    if arguments.picture:
        arguments.picture.write_text(picture(found))
    return 0


def networks() -> Iterator[tuple[str, ir.Model]]:
    """The trained networks of the benchmarks, as they are and with 8-bit integers."""
    for path in sorted(TRAINED.glob("*.onnx")):
        model = pumice.load(path)
        yield path.stem, model
        samples = drawn(model, SAMPLES)
        recipe = {"step": [{"use": "quantize", "quantizer": QUICKEST}]}
        yield f"{path.stem} int8", pumice.compress(model, open_dataset(samples, model), recipe, measure=False).model


def drawn(model: ir.Model, count: int) -> Feed:
    """Random samples: normal floats, small integers."""
    rng = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        assert value.name is not None
        shape = (count, *(n if isinstance(n, int) else LENGTH for n in value.shape.dims[1:]))
        kind = value.dtype.numpy()
        draw = rng.standard_normal(shape) if kind.kind == "f" else rng.integers(0, TOKENS, shape)
        feed[value.name] = draw.astype(kind)
    return feed


def measured(name: str, model: ir.Model, prices: Mapping[str, float], seconds: float, cores: int) -> Measured:
    """Both runtimes in turns, one sample and a batch at a time."""
    opened = {
        "cpu": pick_runtime("native").open(model, threads=cores), "gpu": pick_runtime("cuda").open(model),
    }  # fmt: skip
    one, many = drawn(model, 1), drawn(model, BATCH)
    outputs = {key: session.run(many) for key, session in opened.items()}
    times = {}
    for label, feed in (("one", one), ("many", many)):
        calls = {key: lambda s=session, f=feed: s.run(f) for key, session in opened.items()}
        times[label] = interleaved_latency(calls, seconds=seconds)
    throughput = {key: BATCH / times["many"][key].median * 1e3 for key in opened}
    return Measured(
        name=name,
        latency={key: times["one"][key].median for key in opened},
        throughput=throughput,
        dollars={key: prices[key] / 3600 / throughput[key] * 1e6 for key in opened},
        differs=_difference(outputs["gpu"], outputs["cpu"]),
    )


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    return max(float(np.abs(found[k] - wanted[k]).max() / np.abs(wanted[k]).max()) for k in wanted)


def picture(found: list[Measured]) -> str:
    """What the GPU takes, does and costs over the same of the CPU, side by side, all in powers of ten."""
    panels = [
        ("latency", "log10 of milliseconds", [m.latency for m in found], operator.lt),
        ("throughput", "log10 of samples a second", [m.throughput for m in found], operator.gt),
        ("cost", "log10 of dollars a million", [m.dollars for m in found], operator.lt),
    ]
    (width, height), drawings = PANEL, []
    for number, (what, unit, pairs, better) in enumerate(panels):
        points = [
            Point(
                x=float(np.log10(pair["cpu"])), y=float(np.log10(pair["gpu"])),
                kind="after" if better(pair["gpu"], pair["cpu"]) else "before", title=m.name,
            )
            for m, pair in zip(found, pairs, strict=True)
        ]  # fmt: skip
        drawing = str(scatter(points, f"CPU: {what}, {unit}", "GPU, the same", f"{what} of GPU and CPU"))
        place = f'x="{number * width}" width="{width}" height="{height}"'
        drawings.append(drawing.replace("<svg ", f"<svg {place} ", 1))
    size = f'viewBox="0 0 {len(panels) * width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{"".join(drawings)}</svg>\n'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the table as JSON, as it grows")
    parser.add_argument("--picture", type=Path, help="write the picture there, as SVG")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each runtime of a measurement")
    parser.add_argument("--gpu-hour", type=float, default=3.0, help="price of an hour of the GPU")
    parser.add_argument("--core-hour", type=float, default=0.05, help="price of an hour of one core")
    return parser


if __name__ == "__main__":
    sys.exit(main())
