"""Recovery without labels: least squares, streams and biases; batch normalisation estimated anew."""

import numpy as np
import pytest

from pumice.data import open_dataset
from pumice.measure import pick_runtime
from pumice.model import constant
from pumice.plan import compile_plan
from pumice.prune import find_groups, remove, union
from pumice.prune.reading import reader_of
from pumice.prune.reconstruction import reconstruct, with_statistics
from pumice.prune.wiring import Place

from .structures import CONV, IMAGE, TAIL, Structure

BRANCHES = Structure(
    "float[N,T,12] x",
    "a = MatMul(x, w0) b = Add(a, b0) c = Relu(b) d = MatMul(c, w1) e = Add(d, b1) s = Add(x, e) "
    "f = MatMul(s, w2) g = Relu(f) h = MatMul(g, w3) i = Add(h, b3) y = Add(s, i)",
    {"w0": (12, 24), "b0": (24,), "w1": (24, 12), "b1": (12,), "w2": (12, 24), "w3": (24, 12), "b3": (12,)},
    {}, outputs="float[N,T,12] y",
)  # fmt: skip
NORMALISED = Structure(
    IMAGE,
    f"a = Conv<{CONV}>(x, w0) n = BatchNormalization(a, s0, b0, mean0, var0) r = Relu(n) "
    f"z = Conv<{CONV}>(r, w1) {TAIL}",
    {
        "w0": (12, 3, 3, 3), "s0": (12,), "b0": (12,), "mean0": (12,), "var0": (12,), "w1": (8, 12, 3, 3),
        "head": (8, 5),
    },
    {},
)  # fmt: skip


def feeds(model, count=32):
    draws = np.random.default_rng(4)
    shape = [d if isinstance(d, int) else 5 for d in model.graph.inputs[0].shape]
    mixing = draws.standard_normal((shape[-1], shape[-1]))
    return [{"x": (draws.standard_normal((1, *shape[1:])) @ mixing + 0.5).astype(np.float32)} for _ in range(count)]


def loss(whole, changed, given):
    """Mean square of what the outputs lost."""
    plans = compile_plan(whole), compile_plan(changed)
    return float(np.mean([(plans[0].run(feed)["y"] - plans[1].run(feed)["y"]) ** 2 for feed in given]))


def pruned(structure):
    model = structure.model()
    found = find_groups(model)
    cuts = union(group.cuts(range(group.channels // 3)) for group in found.free)
    given = feeds(model)
    read = reader_of(open_dataset(given, model), pick_runtime("reference"))
    return model, found.wiring, cuts, remove(found.wiring, cuts), given, read


@pytest.mark.parametrize(("structure", "readers"), [(BRANCHES, 3), (NORMALISED, 2)])
def test_outputs_come_closer_on_data_that_was_not_seen(structure, readers):
    model, wiring, cuts, cut, _, read = pruned(structure)
    recovered, count = reconstruct(wiring, cuts, cut, read)
    fresh = feeds(model, 64)[32:]
    assert count == readers
    assert loss(model, recovered, fresh) < 0.5 * loss(model, cut, fresh)


def test_the_bias_makes_up_for_means():
    _, wiring, cuts, cut, _, read = pruned(BRANCHES)
    recovered, _ = reconstruct(wiring, cuts, cut, read)
    changed = [
        n for n in ("b1", "b3") if not np.array_equal(*(constant(m.graph.initializers[n]) for m in (cut, recovered)))
    ]
    assert changed == ["b1", "b3"]


def test_a_branch_takes_up_what_the_stream_has_lost():
    """Only the first branch is pruned; the second is refitted all the same, for what it is given and what it joins."""
    model = BRANCHES.model()
    found = find_groups(model)
    cuts = found.free[0].cuts(range(8))
    read = reader_of(open_dataset(feeds(model), model), pick_runtime("reference"))
    cut = remove(found.wiring, cuts)
    recovered, count = reconstruct(found.wiring, cuts, cut, read)
    assert count == 3
    assert not np.array_equal(*(constant(m.graph.initializers["w3"]) for m in (cut, recovered)))


def test_values_are_read_on_samples_and_columns_from_everywhere():
    """Of many pictures whose pixels tell the picture and the column, in the few positions that are kept."""
    count, width, model = 600, 8, NORMALISED.model()
    columns = np.broadcast_to(np.arange(width, dtype=np.float32), (1, 1, width, width))
    given = [{"x": np.concatenate([columns, columns * 0 + i, columns], axis=1)} for i in range(count)]
    place = Place("x", 1)
    found = reader_of(open_dataset(given, model), pick_runtime("reference"), rows=2048)(model, [place])[place]
    assert 1024 <= len(found) <= 2048
    assert set(found[:, 0]) == set(range(width))
    assert found[:, 1].max() > 0.9 * count


def test_nothing_is_refitted_where_nothing_was_lost():
    model = BRANCHES.model()
    found = find_groups(model)
    read = reader_of(open_dataset(feeds(model), model), pick_runtime("reference"))
    assert reconstruct(found.wiring, {}, model, read)[1] == 0


def test_normalisation_is_estimated_from_what_it_is_given_now():
    model, *_, given, read = pruned(NORMALISED)
    estimated = with_statistics(model, read)
    values = np.concatenate([compile_plan(model, ["a"]).run(feed)["a"] for feed in given])
    flat = np.moveaxis(values, 1, -1).reshape(-1, 12)
    np.testing.assert_allclose(constant(estimated.graph.initializers["mean0"]), flat.mean(axis=0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(constant(estimated.graph.initializers["var0"]), flat.var(axis=0), rtol=1e-2)
