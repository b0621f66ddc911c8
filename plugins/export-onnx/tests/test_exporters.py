import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from pumice.errors import ModelError, NothingChanged, PumiceError
from pumice.ledger import Ledger
from pumice.model import infer_shapes, load
from pumice.strategy import Runtime
from pumice.testing import ExporterContract
from pumice.testing.models import tiny_cnn
from pumice_export_onnx import Qdq, QOperator


class Account:
    def __init__(self):
        self.ledger = Ledger()


def quantized_conv() -> ir.Model:
    """Input `x` (N, 3, 8, 8), a quantized convolution and an Abs that no integer operator replaces.

    The scales are powers of two, so that real and integer arithmetic agree exactly.
    """
    proto = parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 21]>
    conv (float[N,3,8,8] x) => (float[N,4,6,6] y) {
        x_q = QuantizeLinear (x, s, z)
        x_d = DequantizeLinear (x_q, s, z)
        w_d = DequantizeLinear <axis=0> (w, w_s, w_z)
        c = Conv (x_d, w_d)
        c_q = QuantizeLinear (c, s, z)
        c_d = DequantizeLinear (c_q, s, z)
        y = Abs (c_d)
    }""")
    rng = np.random.default_rng(0)
    held = {
        "s": np.array(1 / 32, np.float32), "z": np.array(128, np.uint8),
        "w": rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "w_s": np.full(4, 1 / 256, np.float32), "w_z": np.zeros(4, np.int8),
    }  # fmt: skip
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in held.items())
    return infer_shapes(ir.from_proto(proto))


class TestQdq(ExporterContract):
    strategy = Qdq


class TestQdqWithWeightsApart(ExporterContract):
    strategy = Qdq
    settings = {"external_data": "yes"}


class TestQOperator(ExporterContract):
    strategy = QOperator

    def model(self) -> ir.Model:
        return quantized_conv()


def test_the_account_says_which_runtime_opened_the_file(tmp_path):
    account = Account()
    Qdq().export(tiny_cnn(), tmp_path / "m.onnx", account)
    assert "opened by onnxruntime" in account.ledger.of("export")[0].reason


def test_every_node_that_was_not_converted_has_its_reason(tmp_path):
    account = Account()
    QOperator().export(quantized_conv(), tmp_path / "m.onnx", account)
    (declined,) = account.ledger.of("export", "declined")
    assert (declined.op, declined.reason) == ("Abs", "there is no integer operator for Abs")
    assert "QLinearConv" in {node.op_type for node in load(tmp_path / "m.onnx").graph}


def test_a_model_without_anything_quantized_has_no_integer_operators(tmp_path):
    with pytest.raises(NothingChanged, match=r"nothing around it is quantized.*use exporter 'qdq'"):
        QOperator().export(tiny_cnn(), tmp_path / "m.onnx", Account())
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_runtime_refuses_does_not_replace_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    Qdq().export(tiny_cnn(0), path, Account())
    old = path.read_bytes()

    class Picky(Runtime):
        name = "picky"
        rank = 1000

        def open(self, model, *, outputs=None, threads=None):
            raise ModelError("no")

    monkeypatch.setattr("pumice_export_onnx.exporters._deployment_runtime", Picky)
    with pytest.raises(ModelError, match="'picky' does not load it"):
        Qdq(external_data="yes").export(tiny_cnn(1), path, Account())
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
    assert Qdq(verify=False).export(tiny_cnn(1), path, Account()) == [path]


def test_the_opset_can_be_chosen(tmp_path):
    path = tmp_path / "m.onnx"
    Qdq(opset=17).export(tiny_cnn(), path, Account())
    assert onnx.load(path).opset_import[0].version == 17


def test_an_opset_that_cannot_be_reached_is_refused(tmp_path):
    model = quantized_conv()
    with pytest.raises(ModelError, match="cannot be converted to opset 8"):
        Qdq(opset=8).export(model, tmp_path / "m.onnx", Account())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("b.h:66: adapt: Assertion `false` failed: No Adapter From Version $14 for Mul", "cannot take Mul back from"),
        ("b.h:23: adapt: Assertion `false` failed: No Previous Version of Gelu exists", "it has no operator Gelu yet"),
        ("b.h:99: adapt: Assertion `x > 0` failed: x was negative", "(x was negative)"),
    ],
)
def test_what_the_converter_asserts_is_said_in_words(tmp_path, monkeypatch, said, meant):
    def convert(model, opset):
        raise RuntimeError(said)

    monkeypatch.setattr("onnx.version_converter.convert_version", convert)
    with pytest.raises(ModelError) as caught:
        Qdq(opset=13).export(tiny_cnn(), tmp_path / "m.onnx", Account())
    assert meant in str(caught.value)
    assert "Assertion" not in str(caught.value)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(PumiceError, match="choose a writable folder"):
        Qdq().export(tiny_cnn(), tmp_path / "missing" / "m.onnx", Account())
