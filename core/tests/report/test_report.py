"""The page: complete in itself, safe with any name, honest in its colours, and it works in a browser."""

import errno
import json
import os
import re
from pathlib import Path

import attrs
import numpy as np
import pytest

from pumice.diagnose import Histogram, LayerError
from pumice.errors import PumiceError
from pumice.ledger import Ledger
from pumice.measure import Comparison, Latency, PairedTest, Score, Side, speedup
from pumice.measure.accuracy import Evaluation
from pumice.measure.memory import PeakMemory
from pumice.measure.metrics import Agreement, Top1
from pumice.pipeline import Result
from pumice.recipe import Recipe
from pumice.report import write_report
from pumice.report.page import is_bad_news, ledger_groups
from pumice.testing.models import tiny_cnn

HOSTILE = "<img src=https://example.org/x onerror=alert(1)>'\"&</script><script>alert(2)</script>"


def latency(median):
    times = median * np.linspace(0.97, 1.03, 21)
    return Latency(median=median, low=median * 0.98, high=median * 1.02, rounds=21, calls=21, times=times)


def side(size, milliseconds, right, metrics, total=200):
    scores = {m.name: Score.of(m, np.repeat([1.0, 0.0], [right, total - right])) for m in metrics}
    return Side(
        file_bytes=size,
        weight_bytes=size - 40,
        latency=latency(milliseconds),
        memory=PeakMemory(model=size * 3, process=10**8),
        evaluation=Evaluation(scores=scores, samples=total, seconds=1.0, description="a runtime"),
    )


def comparison(after_size=1000, after_ms=1.0, right=180, p=1.0):
    before = side(4000, 2.0, 181, [Top1()])
    after = side(after_size, after_ms, right, [Top1(), Agreement()])
    test = PairedTest(name="McNemar exact", p=p, lost=2, gained=1, difference=(right - 181) / 200, low=-0.02, high=0.01)
    return Comparison(
        before=before,
        after=after,
        speedup=speedup(before.latency, after.latency),
        tests={"top1": test},
        runtime="a runtime 1.0, 1 thread",
        threads=1,
        batch=1,
        samples=200,
    )


def layer(node, decibels, picture=True):
    histogram = Histogram(of="output", edges=(-1.0, 0.0, 1.0), before=(3, 5), after=(4, 4)) if picture else None
    return LayerError(
        node=node,
        op="Conv",
        weight_bytes_before=400,
        weight_bytes_after=100,
        weight_sqnr_db=38.0,
        output_sqnr_db=decibels,
        output_range=(-1.0, 1.0),
        outliers_3sigma=0.01,
        coverage=0.999,
        rescaled=False,
        histogram=histogram,
    )


@pytest.fixture
def result():
    original = tiny_cnn()
    original.graph.name = HOSTILE
    ledger = Ledger()
    for node in original.graph:
        if node.op_type == "Conv":
            ledger.applied("quantize", node.name, node.op_type, "computes with integers", sqnr_db=31.234567)
        else:
            ledger.skipped("quantize", node.name, node.op_type, "it has no weights")
    ledger.declined("quantize", HOSTILE, "Gemm", f"the reason names '{HOSTILE}'")
    names = [node.name for node in original.graph]
    return Result(
        name=HOSTILE,
        model=original,
        original=original,
        recipe=Recipe.default(),
        ledger=ledger,
        measurements=comparison(),
        layers=(
            layer(names[0], 12.0),
            layer(names[2], 33.0),
            layer(names[-1], None, picture=False),
            layer(HOSTILE, 40.0),
        ),
        notes=("there were no labels", HOSTILE),
        seconds={"load": 0.1, "quantize": 2.5},
        runtime="reference",
        seed=7,
    )


@pytest.fixture
def page(result, tmp_path):
    return write_report(result, tmp_path / "report.html")


def test_the_page_and_its_json_lie_side_by_side(page, result):
    assert page.name == "report.html"
    account = json.loads(page.with_suffix(".json").read_text())
    assert account == json.loads(json.dumps(result.to_json()))


def test_what_a_step_that_searches_has_chosen_is_shown_too(result, tmp_path):
    result.ledger.note("auto", "the winner is trial 1", recipe={"step": [{"use": "prune", "ratio": 0.123}]})
    assert "ratio = 0.123" in write_report(result, tmp_path / "report.html").read_text()


def test_a_path_without_a_suffix_gets_one(result, tmp_path):
    assert write_report(result, tmp_path / "my.report").name == "my.report.html"


def test_the_same_result_gives_the_same_bytes(result, tmp_path):
    first, second = (write_report(result, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_nothing_of_the_page_lies_elsewhere(page):
    text = page.read_text()
    assert "default-src 'none'" in text
    tags = re.findall(r"<(?:script|link|img|iframe|object|source)\b[^>]*>", text)
    assert tags == ['<link rel="icon" href="data:,">', "<script>"]
    assert not re.search(r"url\(|@import", text)


def test_names_are_text_and_never_markup(page):
    text = page.read_text()
    assert HOSTILE not in text
    assert "&lt;img src=https://example.org/x onerror=alert(1)&gt;" in text


@pytest.mark.parametrize(("owner", "step", "times"), [(Path, "replace", 0), (os, "fdopen", 0), (os, "fdopen", 1)])
def test_a_failed_write_leaves_the_old_page_and_account_whole(page, result, monkeypatch, owner, step, times):
    before = {path.name: path.read_bytes() for path in page.parent.iterdir()}
    assert sorted(before) == ["report.html", "report.json"]
    monkeypatch.setattr(owner, step, failing_after(times, getattr(owner, step)))
    with pytest.raises(PumiceError, match=r"report\.html' cannot be written \(No space left on device\)"):
        write_report(attrs.evolve(result, notes=("changed",)), page)
    assert {path.name: path.read_bytes() for path in page.parent.iterdir()} == before


def failing_after(times, function):
    """The function, that finds the disk full after so many calls."""
    calls = iter(range(times))

    def call(*arguments, **named):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*arguments, **named)

    return call


@pytest.mark.parametrize(
    ("measured", "bad"),
    [
        (comparison(), False),
        (comparison(after_ms=3.0), True),
        (comparison(after_size=5000), True),
        (comparison(right=120, p=1e-6), True),
        (comparison(right=180, p=0.9), False),
    ],
)
def test_bad_news_is_a_slower_a_larger_or_a_surely_less_accurate_model(measured, bad, result, tmp_path):
    assert is_bad_news(measured.to_json()) is bad
    text = write_report(attrs.evolve(result, measurements=measured), tmp_path / "r.html").read_text()
    assert f'<p class="headline {"bad" if bad else "good"}">' in text


def test_a_run_without_data_and_without_measuring_still_has_a_page(result, tmp_path):
    def bare(size):
        return Side(file_bytes=size, weight_bytes=size, latency=None, memory=None, evaluation=None)

    measured = attrs.evolve(comparison(), before=bare(9), after=bare(3), speedup=None, tests={}, samples=0)
    text = write_report(
        attrs.evolve(result, measurements=measured, layers=(), notes=(), ledger=Ledger()), tmp_path / "r.html"
    ).read_text()
    assert "3.00x smaller" in text
    assert "Latency" not in text


def test_reasons_that_differ_only_in_names_and_numbers_are_one_group():
    ledger = Ledger()
    ledger.declined("quantize", "a", "Conv", "'a' lost 3.2 dB")
    ledger.declined("quantize", "b", "Conv", "'b' lost 14 dB")
    ledger.applied("quantize", "c", "Conv", "computes with integers")
    groups = ledger_groups(ledger)
    assert [(g["verdict"], g["reason"], len(g["entries"])) for g in groups] == [
        ("declined", "… lost … dB", 2),
        ("applied", "computes with integers", 1),
    ]
    assert groups[0]["entries"][1]["reason"] == "'b' lost 14 dB"


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_loads_nothing_complains_of_nothing_and_fits(browser, page, width, scheme):
    browser.open(page, width, scheme=scheme)
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.complaints == []
    assert browser.script("document.documentElement.scrollWidth") <= width
    assert browser.script("document.querySelectorAll('img, script[src]').length") == 0


def test_dark_and_light_differ(browser, page):
    colours = []
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        colours.append(browser.script("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]


def test_the_layer_table_sorts_both_ways_with_unknown_values_last(browser, page):
    browser.open(page)
    column = "[...document.querySelectorAll('#layer-table tbody tr')].map(r => r.cells[2].textContent)"
    button = "document.querySelectorAll('#layer-table th button')[2].click()"
    assert browser.script(column) == ["12.0", "33.0", "–", "40.0"]
    browser.script(button)
    assert browser.script(column) == ["40.0", "33.0", "12.0", "–"]
    browser.script(button)
    assert browser.script(column) == ["12.0", "33.0", "40.0", "–"]


def test_the_ledger_filters_by_verdict_and_by_text(browser, page):
    browser.open(page)
    shown = "[...document.querySelectorAll('.group')].filter(g => !g.hidden).map(g => g.dataset.verdict)"
    assert browser.script(shown) == ["declined", "applied", "skipped"]
    browser.script("document.querySelector('button[data-verdict=skipped]').click()")
    assert browser.script(shown) == ["declined", "applied"]
    browser.script(
        "(() => { const f = document.querySelector('[data-filter]'); f.value = 'conv_2';"
        " f.dispatchEvent(new Event('input')); })()"
    )
    assert browser.script(shown) == ["applied"]
    assert browser.script("document.querySelectorAll('.group li:not([hidden])').length") >= 1
    assert browser.script("document.querySelector('.empty').hidden") is True


def test_the_recipe_on_the_page_reads_back(browser, page, result):
    browser.open(page)
    assert Recipe.from_toml(browser.script("document.querySelector('#recipe pre code').textContent")) == result.recipe


def test_every_chart_says_in_words_what_it_shows(browser, page):
    browser.open(page)
    assert browser.script("[...document.querySelectorAll('main svg')].every(s => s.getAttribute('aria-label'))")


def test_text_has_enough_contrast(browser, page):
    """WCAG AA: 4.5 to 1, for the body text and the soft text, in both schemes."""
    code = """(() => {
      const parse = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
      const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
      const light = (c) => { const [r, g, b] = parse(c).map(linear);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const back = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
        if (!/, 0\\)$/.test(c) && c !== 'transparent') return c; } };
      return [...document.querySelectorAll('p, li, td, th, dd, dt, .tag, h1, h2, h3, figcaption, .count, footer')]
        .filter((e) => e.textContent.trim())
        .map((e) => { const [a, b] = [light(getComputedStyle(e).color), light(back(e))];
          return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.className + ' ' + e.tagName]; })
        .filter(([ratio]) => ratio < 4.5).map(([ratio, what]) => what + ' ' + ratio.toFixed(2));
    })()"""
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        assert browser.script(code) == []
