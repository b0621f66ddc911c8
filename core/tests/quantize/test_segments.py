import numpy as np
import pytest

from pumice.measure import pick_runtime
from pumice.quantize.segments import run_in_segments, segments

NET = """(float[N,6] x) => (float[N,6] y) {
    a = MatMul (x, w)  b = Relu (a)  c = MatMul (b, v)  d = Add (c, b)  e = Tanh (d)  f = MatMul (e, w)
    y = Add (f, d)  unused = Neg (y) }"""
WEIGHTS = {"w": (6, 6), "v": (6, 6)}
PLENTY = 1 << 30


def value(model, name):
    return next(v for node in model.graph for v in node.outputs if v.name == name)


def held(model, names, feeds, budget=PLENTY, mend=lambda cut, arrays: None):
    """What passes the cuts, by name."""
    found = {}

    def keep(cut, arrays):
        mend(cut, arrays)
        found[cut.name] = [array.copy() for array in arrays]

    run_in_segments(model, [value(model, name) for name in names], pick_runtime(), feeds, budget, keep)
    return found


def whole(model, names, feeds):
    session = pick_runtime().open(model, outputs=names)
    runs = [session.run(feed) for feed in feeds]
    return {name: [run[name] for run in runs] for name in names}


@pytest.mark.parametrize("names", [["a"], ["a", "c", "f"], ["d", "b", "e"], ["y"], ["c", "y", "a"]])
def test_in_pieces_a_model_computes_what_it_computes_whole(lab, names):
    model, feeds = lab.build(NET, **WEIGHTS), lab.normal(3, 6)
    found, exact = held(model, names, feeds), whole(model, names, feeds)
    assert list(found) == sorted(names, key="abcdefy".index)
    for name in names:
        np.testing.assert_allclose(np.stack(found[name]), np.stack(exact[name]), rtol=1e-5, atol=1e-6)


def test_every_node_that_a_cut_needs_runs_once(lab):
    model = lab.build(NET, **WEIGHTS)
    parts = segments(model, [value(model, name) for name in ("c", "a", "f")])
    assert [part.cut.name for part in parts] == ["a", "c", "f"]
    assert [{v.name for v in part.reads} for part in parts] == [{"x"}, {"a"}, {"b", "c"}]
    assert [{v.name for v in part.writes} for part in parts] == [{"a"}, {"b", "c"}, {"f"}]
    assert [{v.name for v in part.drops} for part in parts] == [{"x"}, {"a"}, {"b", "c", "f"}]


def test_what_is_mended_is_what_later_segments_read(lab):
    model, feeds = lab.build(NET, **WEIGHTS), lab.normal(3, 6)

    def clear(cut, arrays):
        if cut.name == "a":
            for array in arrays:
                array[...] = 0.0

    assert all((array == 0).all() for array in held(model, ["a", "c", "f"], feeds, mend=clear)["f"])


def test_samples_that_do_not_fit_are_left_out(lab):
    model, feeds = lab.build(NET, **WEIGHTS), lab.normal(3, 6, count=8)
    one = 4 * 3 * 6  # bytes of a value; at most four values are alive at once
    assert len(held(model, ["a", "c"], feeds, budget=1)["c"]) == 1
    assert 2 <= len(held(model, ["a", "c"], feeds, budget=4 * 3 * one)["c"]) < 8
    assert len(held(model, ["a", "c"], feeds)["c"]) == 8


def test_bodies_of_control_flow_read_what_is_held(lab):
    text = """(float[N,6] x) => (float[N,6] y) {
        a = MatMul (x, w)  b = Relu (a)  s = ReduceSum <keepdims=0> (b)  z = Constant <value = float {0}> ()
        c = Greater (s, z)
        i = If (c) <then_branch = t () => (float[N,6] p) { p = Neg (b) },
            else_branch = e () => (float[N,6] q) { q = Abs (a) }>
        y = MatMul (i, w) }"""
    model, feeds = lab.build(text, w=(6, 6)), lab.normal(3, 6)
    found, exact = held(model, ["s", "i", "y"], feeds), whole(model, ["s", "i", "y"], feeds)
    for name, arrays in exact.items():
        np.testing.assert_allclose(np.stack(found[name]), np.stack(arrays), rtol=1e-5, atol=1e-6)


def test_no_cuts_and_no_samples_are_no_work(lab):
    model = lab.build(NET, **WEIGHTS)
    assert held(model, [], lab.normal(3, 6)) == {}
    assert held(model, ["a"], []) == {}
