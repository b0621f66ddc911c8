import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from pumice.model import add_initializer, infer_shapes, save
from pumice.plan import compile_plan
from pumice.quantize.fusion import fused
from pumice.quantize.simulated_runtime import SimulatedRuntime
from pumice.quantize.simulation import TIE, LayerDifference, compare_integers, integer_tensors, main, simulate, table

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
two_layers (float[N,6] x) => (float[N,3] y) {
    x_q = QuantizeLinear (x, s, z)
    x_d = DequantizeLinear (x_q, s, z)
    w_d = DequantizeLinear <axis=1> (w, w_s, w_z)
    h = MatMul (x_d, w_d)
    h_q = QuantizeLinear (h, h_s, z)
    h_d = DequantizeLinear (h_q, h_s, z)
    gate = Sigmoid (h_d)
    g_q, g_s, g_z = DynamicQuantizeLinear (gate)
    sums = MatMulInteger (g_q, v, g_z)
    y = Cast <to=1> (sums)
}"""


def two_layers() -> ir.Model:
    """QLinearMatMul, then a Sigmoid of real numbers, then MatMulInteger. Input `x` of shape (N, 6)."""
    rng = np.random.default_rng(0)
    held = {
        "s": np.array(0.02, np.float32), "h_s": np.array(0.04, np.float32), "z": np.array(128, np.uint8),
        "w": rng.integers(-127, 128, (6, 8)).astype(np.int8), "w_s": np.full(8, 0.02, np.float32),
        "w_z": np.zeros(8, np.int8), "v": rng.integers(100, 128, (8, 3)).astype(np.int8),
    }  # fmt: skip
    proto = parser.parse_model(TEXT)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in held.items())
    return infer_shapes(ir.from_proto(proto))


def feeds(count=3):
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((16, 6)).astype(np.float32)} for _ in range(count)]


class Wrong(SimulatedRuntime):
    """A runtime whose integers of one tensor are off by some steps in every second element of a batch."""

    def __init__(self, tensor, steps):
        super().__init__(pair_saturation=False)
        self.__dict__.update(tensor=tensor, steps=steps)

    def open(self, model, *, outputs=None, threads=None):
        session, wrong = super().open(model, outputs=outputs), self

        class Session:
            def run(self, given):
                found = dict(session.run(given))
                if wrong.tensor not in found:
                    return found
                right = found[wrong.tensor].astype(int)
                off = np.where(right < 128, wrong.steps, -wrong.steps)  # towards the middle: nothing overflows
                off.flat[1::2] = 0
                return found | {wrong.tensor: (right + off).astype(np.uint8)}

        return Session()


def test_every_integer_tensor_is_compared():
    names = [found.tensor for found in compare_integers(two_layers(), feeds(), SimulatedRuntime())]
    assert names == ["x_q", "h_q", "g_q", "g_z", "sums"]
    assert "g_s" in integer_tensors(two_layers())


def test_a_runtime_with_the_same_arithmetic_agrees_bit_for_bit():
    exact = SimulatedRuntime(pair_saturation=False)
    assert not any(found.steps for found in compare_integers(two_layers(), feeds(), exact))


def test_a_difference_belongs_to_the_layer_where_it_arises():
    layers = {found.tensor: found for found in compare_integers(two_layers(), feeds(), Wrong("x_q", 3))}
    assert layers["x_q"].steps == 3
    layers = {found.tensor: found for found in compare_integers(two_layers(), feeds(), Wrong("h_q", 3))}
    assert layers["x_q"].steps == 0
    layer = layers["h_q"]
    assert (layer.op, layer.steps, layer.share) == ("QLinearMatMul", 3, 0.5)
    assert layer.float_ops == ()
    assert not layer.explained


def test_a_difference_names_the_real_operators_before_it_and_the_distance_from_a_tie():
    (layer,) = (f for f in compare_integers(two_layers(), feeds(), Wrong("g_q", 1)) if f.tensor == "g_q")
    assert layer.float_ops == ("Sigmoid",)
    assert layer.from_tie > 0.1
    assert not layer.explained, "numbers far from a tie are rounded alike everywhere"


class Rough(SimulatedRuntime):
    """A runtime whose Sigmoid is off by a fraction of a step."""

    def __init__(self, off):
        super().__init__(pair_saturation=False)
        self.__dict__.update(off=np.float32(off))

    def open(self, model, *, outputs=None, threads=None):
        moved = model.clone()
        gate = moved.graph.node(6).outputs[0]
        add_initializer(moved, "off", self.off)
        assert gate.name == "gate"
        name, gate.name = gate.name, "right"
        wrong = ir.node("Add", [gate, moved.graph.initializers["off"]], name="wrong")
        wrong.outputs[0].name, wrong.outputs[0].type = name, gate.type
        gate.replace_all_uses_with(wrong.outputs[0])
        wrong.replace_input_with(0, gate)
        moved.graph.insert_after(moved.graph.node(6), wrong)
        return super().open(moved, outputs=outputs)


def test_real_numbers_that_are_computed_less_exactly_account_for_their_rounding():
    (layer,) = (f for f in compare_integers(two_layers(), feeds(), Rough(0.001)) if f.tensor == "g_q")
    assert layer.steps == 1
    assert layer.from_tie > TIE
    assert 0.2 < layer.apart < 0.4  # a step is about 0.0035
    assert layer.explained


class Wandering(Rough):
    """Whose integers are others where it is asked for real numbers: what it fuses depends on what it is asked for."""

    def open(self, model, *, outputs=None, threads=None):
        session, moved = super().open(model, outputs=outputs), "gate" in outputs

        class Session:
            def run(self, given):
                return session.run(given | {"x": given["x"] + np.float32(moved)})

        return Session()


def test_real_numbers_are_compared_from_the_same_integers():
    (layer,) = (f for f in compare_integers(two_layers(), feeds(), Wandering(0.001)) if f.tensor == "g_q")
    assert 0.2 < layer.apart < 0.4
    assert layer.explained


@pytest.mark.parametrize(("op", "explained"), [("Sigmoid", False), ("DynamicQuantizeLSTM", True)])
def test_several_steps_are_explained_only_where_roundings_feed_on_roundings(op, explained):
    layer = LayerDifference(
        tensor="y_q",
        node="q",
        op="QuantizeLinear",
        elements=9,
        steps=2,
        share=0.1,
        float_ops=(op,),
        from_tie=0,
        apart=0,
    )
    assert layer.explained == explained


def test_the_simulator_rounds_as_the_integer_operator_does():
    model, given = two_layers(), feeds(1)[0]
    direct = compile_plan(fused(model), ["h_q"]).run(given)["h_q"]
    np.testing.assert_array_equal(simulate(model, ["h_q"]).run(given)["h_q"], direct)


def test_without_vnni_the_sums_saturate():
    model, given = two_layers(), feeds(1)[0]
    exact, less = (simulate(model, pair_saturation=on).run(given)["y"] for on in (False, True))
    assert (less < exact).any()
    np.testing.assert_array_equal(SimulatedRuntime().open(model).run(given)["y"], less)


def test_the_model_is_left_unchanged():
    model = two_layers()
    before = [node.op_type for node in model.graph]
    compare_integers(model, feeds(1), SimulatedRuntime())
    assert [node.op_type for node in model.graph] == before
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_the_table_begins_with_the_worst():
    text = table(compare_integers(two_layers(), feeds(), Wrong("h_q", 3)))
    assert text.startswith("5 integer tensors, ")
    assert "3 steps in 50.0000% of 'h_q' (QLinearMatMul), by integer arithmetic alone" in text


@pytest.fixture
def folder(tmp_path):
    save(two_layers(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=np.concatenate([feed["x"] for feed in feeds()]))
    return tmp_path


def test_the_command_prints_the_table(folder, capsys):
    assert main([str(folder / "m.onnx"), "--data", str(folder / "data.npz"), "--runtime", "reference"]) in {0, 1}
    assert "integer tensors" in capsys.readouterr().out


def test_the_command_refuses_what_is_not_there_in_one_sentence(folder, capsys):
    assert main([str(folder / "none.onnx"), "--data", str(folder / "data.npz")]) == 2
    assert "none.onnx" in capsys.readouterr().err
