"""The INT8 table's machinery, without any model of real size."""

import json
import operator
import time

import numpy as np
import pytest


@pytest.fixture
def bench():
    import bench_int8

    return bench_int8


def judged(bench, agreement, kilobytes, variant="pumice", value=0.9, high=None):
    judgement = bench.Judgement(
        value=value,
        low=value - 0.01,
        high=value + 0.01,
        agreement=agreement,
        agreement_low=agreement - 0.01,
        agreement_high=high or agreement,
        integer=1,
        floating=0,
    )
    return bench.Row(variant=variant, kilobytes=kilobytes, judgement=judgement)


def test_an_isolated_call_returns_its_value_and_what_it_took():
    from peers import isolated

    done = isolated(operator.mul, 6, 7)
    assert done.value == 42
    assert done.peak_megabytes > 1


def test_an_isolated_error_is_its_type_and_first_line():
    from peers import Failed, isolated

    with pytest.raises(Failed, match=r"^ZeroDivisionError: .* by zero$"):
        isolated(operator.floordiv, 1, 0)


def test_an_isolated_call_is_stopped_at_its_time_limit():
    from peers import Failed, isolated

    with pytest.raises(Failed, match=r"took more than 1 s"):
        isolated(time.sleep, 60, seconds=1)


def test_an_isolated_call_is_stopped_at_its_memory_limit():
    from peers import Failed, isolated

    with pytest.raises(Failed, match=r"needs more than 1 GB"):
        isolated(np.ones, 2**28, gigabytes=1)


def test_a_result_is_made_once_and_then_remembered(monkeypatch, tmp_path):
    from peers import remembered

    monkeypatch.setenv("PUMICE_BENCH_CACHE", str(tmp_path))
    calls = []
    for _ in range(2):
        assert remembered("key", lambda: calls.append(1) or {"value": 0.1}) == {"value": 0.1}
    assert calls == [1]


def test_a_digest_moves_with_every_array_and_option():
    from peers import digest

    one, two = np.zeros(3, np.float32), np.zeros(3, np.int32)
    assert digest("a", one) == digest("a", one.copy())
    assert len({digest("a", one), digest("a", two), digest("b", one), digest("a", one.reshape(3, 1))}) == 4


def test_recorded_figures_name_known_tools_and_cases():
    from models import CASES
    from peers import TOOLS, recorded

    figures = [figure for name in CASES for figure in recorded(name)]
    assert {figure.tool for figure in figures} == set(TOOLS)
    assert all(figure.agreement is None or -1 <= figure.agreement <= 1 for figure in figures)


def test_recorded_agreement_is_possible_with_the_recorded_accuracy():
    """Two models that are right on a and b of the lines agree on at least a + b - 1 of them."""
    from peers import recorded

    accuracy = {"fashion_resnet": 0.9243, "ocr_rec_v4": 0.9133, "easyocr_en_g2": 0.8267, "silero_vad": 0.9465}
    figures = [figure for name in accuracy for figure in recorded(name) if figure.agreement is not None]
    assert figures
    assert all(figure.agreement >= accuracy[figure.case] + figure.value - 1.001 for figure in figures)


def test_a_peer_of_higher_agreement_makes_the_verdict_no(bench):
    rows = [judged(bench, 1.0, 100, "FP32"), judged(bench, 0.95, 30), judged(bench, 0.97, 40, "peer")]
    assert bench._verdict("unknown", rows, higher=True).best.startswith("NO, 0.9700 at 40 kB (peer)")


def test_a_shortfall_inside_the_interval_is_a_tie(bench):
    rows = [judged(bench, 1.0, 100, "FP32"), judged(bench, 0.95, 30, high=0.98), judged(bench, 0.97, 40, "peer")]
    assert bench._verdict("unknown", rows, higher=True).best.startswith("tie")


def test_a_larger_file_than_the_best_peers_is_said_aloud(bench):
    rows = [judged(bench, 1.0, 100, "FP32"), judged(bench, 0.98, 30), judged(bench, 0.97, 20, "peer")]
    assert bench._verdict("unknown", rows, higher=True).best.startswith("LARGER (30 kB), else yes")


def test_only_peers_of_our_size_count_for_the_size_verdict(bench):
    rows = [judged(bench, 1.0, 100, "FP32"), judged(bench, 0.95, 30), judged(bench, 0.97, 40, "peer")]
    assert bench._verdict("unknown", rows, higher=True).size.startswith("yes")


def test_a_lower_is_better_metric_is_judged_from_the_other_side(bench):
    rows = [judged(bench, 1.0, 100, "FP32", value=1.94), judged(bench, 1.0, 30, value=1.96)]
    assert bench._verdict("unknown", rows, higher=False).metric == "NO"
    assert bench._verdict("unknown", rows, higher=True).metric == "yes"


def test_the_ratio_is_above_one_where_ours_is_better():
    from tables import measurement

    faster = measurement("c", "ms", 1.0, {"a": 2.0, "b": 3.0}, spread=0.0, higher_is_better=False)
    closer = measurement("c", "agreement", 0.9, {"a": 0.8}, spread=0.0, higher_is_better=True)
    assert faster["ratio"] == 2.0
    assert closer["ratio"] > 1.0


def test_the_json_names_the_machine_and_the_date(tmp_path):
    from tables import write_json

    write_json(tmp_path / "new" / "t.json", {"cases": []})
    found = json.loads((tmp_path / "new" / "t.json").read_text())
    assert found["machine"]["cores"]
    assert found["date"].startswith("20")


def test_integer_and_float_kernels_of_the_executed_graph_are_counted(tmp_path):
    from measuring import interleaved_latency, kernels
    from models import case
    from peers import STOCK

    digits = case("digits_cnn")
    STOCK[0].quantize(digits.path, digits.calibration()[:1], tmp_path / "q.onnx")
    assert kernels(digits.path).integer == 0
    assert kernels(digits.path).floating == 4
    assert kernels(tmp_path / "q.onnx").floating == 0
    latency = interleaved_latency({"float": digits.path, "int8": tmp_path / "q.onnx"}, digits.feed, seconds=0.05)
    assert all(0 < found.lower <= found.median <= found.upper for found in latency.values())
