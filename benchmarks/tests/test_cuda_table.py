"""The table of CUDA kernels, without a GPU."""

import attrs
import bench_cuda
import pytest
from cuda_cases import Case

CASE = Case(family="gemm", name="a product", operations=2e9, moved=1e6, target=1.0, build=lambda sets: None)


def row(ours, **peers):
    return bench_cuda.Row(case=CASE, rounds={"": ours, **peers}, failures=())


def test_a_row_has_medians_of_its_rounds_and_the_best_peer():
    found = row([1e-6, 2e-6, 9e-6], slow=[8e-6] * 3, fast=[3e-6, 1e-6, 3e-6])
    assert (found.best, found.ratio) == ("fast", pytest.approx(1.5))
    assert found.spread == pytest.approx((5.5 - 1.5) / 2 / 2)
    assert found.cells()[1:5] == ["2.00", "1000.0 T/s", "fast 3.00", "1.50"]
    assert row([4e-6], peer=[2e-6]).cells()[4] == "0.50!"


def test_a_case_whose_peer_is_not_installed_is_left_out_with_a_line():
    absent = attrs.evolve(CASE, needs=["attrs", "no_such_package"])
    assert bench_cuda.without_peer(absent) == (
        "a product is left out, as its peer needs no_such_package: pip install no_such_package"
    )
    assert bench_cuda.without_peer(attrs.evolve(CASE, needs=["attrs"])) is None


def test_the_record_keeps_every_round():
    found = row([1e-6, 2e-6, 9e-6], peer=[8e-6, 7.126e-6, 6e-6]).measurement()
    assert found["rounds"] == {"ours": "1.00 2.00 9.00", "peer": "8.00 7.13 6.00"}
    assert found["ratio"] == pytest.approx(3.5, rel=0.02)


def test_the_record_says_what_was_wrong_and_which_peers_failed():
    found = bench_cuda.Row(case=CASE, rounds={"": [1e-6]}, failures=["a product: peer: RuntimeError: no memory"])
    record = bench_cuda.record([found], ["another: relative error 1"])
    assert record["wrong"] == ["another: relative error 1"]
    assert record["failures"] == ["a product: peer: RuntimeError: no memory"]
    assert [case["case"] for case in record["cases"]] == ["a product"]
