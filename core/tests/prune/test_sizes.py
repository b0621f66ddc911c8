from pumice.prune.sizes import with_sizes

from .structures import STRUCTURES, Structure, ints


def shapes(structure):
    model = with_sizes(structure.model())
    return {value.name: list(map(str, value.shape)) for node in model.graph for value in node.outputs}


def test_sizes_follow_through_arithmetic_on_a_shape():
    found = shapes(STRUCTURES["attention by hand"])
    assert found["q1"][2:] == ["3", "4"]
    assert found["o"][2] == "12"


def test_a_size_left_open_follows_when_dynamic_ones_cancel():
    structure = Structure(
        "float[N,6,4,2] x",
        "s = Shape<end=2>(x) t = Concat<axis=0>(s, rest) r = Reshape(x, t) y = MatMul(r, w)",
        {"rest": ints(-1), "w": (8, 5)}, {}, outputs="float[N,6,5] y",
    )  # fmt: skip
    assert shapes(structure)["r"][1:] == ["6", "8"]


def test_bounds_that_are_known_become_constants():
    structure = Structure(
        "float[N,6] x",
        "s = Shape<start=1>(x) h = Div(s, two) a = MatMul(x, w) b = Slice(a, zero, h, one) y = MatMul(b, v)",
        {"two": ints(2), "zero": ints(0), "one": ints(1), "w": (6, 8), "v": (3, 5)}, {},
    )  # fmt: skip
    assert shapes(structure)["b"][1] == "3"
