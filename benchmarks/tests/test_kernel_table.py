"""The table of kernels: every family has peers, every case runs on our side, ratios point the right way."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(FOLDER))

import bench_kernels  # noqa: E402
from kernel_cases import all_cases  # noqa: E402

CASES = list(all_cases(quick=True, only=set()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_our_side_of_every_quick_case_runs(case):
    ours = bench_kernels.Ours(threads=1)
    ours.build(case, copies=1)
    assert ours.burst(1) > 0


def test_every_family_says_what_its_peers_compute():
    for case in CASES:
        assert (FOLDER / "kernel_peers" / "served" / f"{case.family}.py").exists()


def test_a_ratio_above_one_is_in_our_favour():
    case = CASES[0]
    row = bench_kernels.Row(
        case=case, threads=1, weights="hot", median={"pumice": 1e-3, "a": 3e-3, "b": 2e-3}, spread=0.01, of_peak=0.5
    )
    assert row.best == "b"
    assert row.ratio == 2
    found = row.measurement()
    assert found["ratio"] == pytest.approx(2)
    assert found["peers"] == pytest.approx({"a": 3000, "b": 2000})
    assert "!" not in "".join(row.cells())


def test_a_ratio_below_the_target_is_marked():
    case = CASES[0]
    row = bench_kernels.Row(
        case=case, threads=1, weights="hot", median={"pumice": 2e-3, "a": 1e-3}, spread=0.01, of_peak=None
    )
    assert "0.50!" in row.cells()


def test_a_target_over_one_rival_is_not_missed_for_another_peer():
    case = next(case for case in CASES if case.rival == "onnxruntime" and case.target == 1)
    median = {"pumice": 2e-3, "openvino": 1e-3, "onnxruntime": 3e-3}
    row = bench_kernels.Row(case=case, threads=1, weights="hot", median=median, spread=0.01, of_peak=None)
    assert (row.best, row.met) == ("openvino", True)
    assert "0.50" in row.cells()


def test_a_call_may_tell_its_own_seconds():
    from kernel_peers.server import Server

    server = Server("any", threads=1)
    server.calls = [lambda: 2.0, lambda: 4.0]
    assert server.burst(4) == 3.0
    server.calls = [lambda: None]
    assert 0 < server.burst(1) < 1


def test_a_process_that_dies_is_an_error_of_one_line():
    from kernel_peers import Peer
    from peers.environment import PeerError

    peer = Peer("numpy", Path(sys.executable), threads=1)
    try:
        with pytest.raises(PeerError, match="no_such_family"):
            peer.build("no_such_family", 1, {})
    finally:
        peer.close()
