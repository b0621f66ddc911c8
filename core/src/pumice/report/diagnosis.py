"""The page of a diagnosis: one self-contained file, in the style of the report."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

from markupsafe import Markup

from pumice.report import charts

if TYPE_CHECKING:
    from pumice.diagnose import Diagnosis, LayerError


def render(found: Diagnosis, name: str, order: Sequence[str]) -> str:
    """The whole page; `order` names the nodes of the model from input to output."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folder = resources.files("pumice.report")
    template = environment.from_string((folder / "diagnosis.html.j2").read_text(encoding="utf-8"))
    return template.render(
        name=name,
        sentences=found.sentences(),
        depth=_depth(found.layers, order),
        coverage=_coverage(found),
        histograms=[_histogram(layer) for layer in found.layers if layer.histogram is not None],
        layers=found.layers,
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
    )


def _depth(layers: Sequence[LayerError], order: Sequence[str]) -> Markup | None:
    """Error alone and accumulated, along the network."""
    by_name = {layer.node: layer for layer in layers}
    along = [by_name[node] for node in order if node in by_name]
    if len(along) < 2:
        return None
    alone, outputs = [e.alone_sqnr_db for e in along], [e.output_sqnr_db for e in along]
    return charts.depth([e.node for e in along], alone, outputs, f"Precision of {len(along)} layers, input to output")


def _coverage(found: Diagnosis) -> Markup | None:
    curve = found.coverage
    if curve is None or len(curve.mean) < 2:
        return None
    label = f"Share of the final ranges after 1 to {curve.samples[-1]} samples, doubling"
    return charts.curve(curve.mean, label, ("1 sample", f"{curve.samples[-1]} samples"))


def _histogram(layer: LayerError) -> dict[str, object]:
    shown = layer.histogram
    assert shown is not None
    label = f"{shown.of} of {layer.node} in both models"
    return {"node": layer.node, "chart": charts.histogram(shown.edges, shown.before, shown.after, label, shown.grid)}
