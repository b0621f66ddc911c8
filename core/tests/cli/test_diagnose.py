"""`diagnose` on the command line: every form of the account, and remedies that are tried."""

import csv
import json

import numpy as np
import onnx_ir as ir
import pytest

from pumice.testing.models import tiny_cnn


@pytest.fixture
def folder(tmp_path):
    ir.save(tiny_cnn(), tmp_path / "exact.onnx")
    x = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    return tmp_path


@pytest.fixture
def quantized(folder, run):
    target = folder / "small.onnx"
    run("compress", folder / "exact.onnx", "--data", folder / "data.npz", "-o", target, "--no-measure", "--quiet")
    return target


def test_the_account_comes_as_text_json_csv_and_page(folder, quantized, run):
    table, page = folder / "layers.csv", folder / "page.html"
    arguments = [folder / "exact.onnx", quantized, "--data", folder / "data.npz"]
    done = run("diagnose", *arguments, "--json", "--csv", table, "--html", page)
    account = json.loads(done.stdout)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["node"] for row in rows] == [layer["node"] for layer in account["layers"]]
    assert float(rows[0]["alone_sqnr_db"]) == account["layers"][0]["alone_sqnr_db"]
    assert account["layers"][0]["node"] in page.read_text()
    assert "noise at the outputs" in run("diagnose", *arguments).stdout


def test_what_is_suggested_is_tried_and_what_is_better_is_written(folder, quantized, run):
    best = folder / "best.onnx"
    arguments = [folder / "exact.onnx", quantized, "--data", folder / "data.npz"]
    account = json.loads(run("diagnose", *arguments, "--apply", best, "--json").stdout)
    assert [trial["kept"] for trial in account["trials"]].count(True) == 1
    again = json.loads(run("diagnose", folder / "exact.onnx", best, *arguments[2:], "--json").stdout)
    assert again["noise"] < account["noise"]
