"""What the report says of a search."""

import pytest

from pumice.report.charts import Point, scatter
from pumice.report.search import explained, importance
from pumice.testing.searcher import small_space, tried


def test_a_knob_that_decides_everything_explains_everything():
    assert explained(["a", "a", "b", "b"], [1.0, 1.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert explained(["a", "b", "a", "b"], [1.0, 1.0, 3.0, 3.0]) == pytest.approx(0.0)
    assert explained([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]) == pytest.approx(1.0)


def test_what_matters_most_comes_first():
    space = small_space()
    points = [{"quantize.bits.bits": bits, "quantize.bits.clipped": clip} for bits in (2, 3, 5, 8) for clip in (0, 1)]
    trials = [
        tried(n, space.default(("quantize",), {**p, "quantize.bits.clipped": bool(p["quantize.bits.clipped"])}))
        for n, p in enumerate(points, 1)
    ]
    assert [name for name, _ in importance(trials)] == ["quantize.bits.bits"]
    assert importance(trials[:7]) == []


def test_stairs_lead_from_mark_to_mark():
    points = [Point(x=x, y=y, kind="after", title="") for x, y in ((1.0, 1.0), (2.0, 3.0), (4.0, 3.0))]
    chart = scatter(points, "seconds", "best", "three trials", stairs=True)
    assert chart.count("<circle") == 3
    assert chart.count("H") == chart.count("V") == 2


def test_marks_say_what_they_are_and_hostile_names_stay_text():
    chart = scatter([Point(x=1.0, y=2.0, kind="after", title="<script>")], "lost", "faster", "one trial")
    assert "&lt;script&gt;" in chart
    assert "<script>" not in chart
