import json
import re

import attrs
import numpy as np
import onnx_ir as ir
import pytest

from pumice.data import ModelInputs
from pumice.errors import DataError, ModelError, PumiceError
from pumice.measure import compare, file_bytes, peak_memory, random_feeds
from pumice.measure.latency import Latency
from pumice.measure.plan_runtime import ReferenceRuntime
from pumice.model import save, size

REFERENCE = ReferenceRuntime()


def against(before, after, data=None, **options):
    options = {"runtime": REFERENCE, "memory": False, "seconds": 0.05, **options}
    return compare(before, after, data, **options)


def with_speed(comparison, before_ms, after_ms):
    """The comparison as it would be with these latencies."""
    from pumice.measure import speedup

    def latency(ms):
        return Latency(median=ms, low=ms, high=ms, rounds=40, calls=40, times=np.full(40, ms))

    one, other = latency(before_ms), latency(after_ms)
    return attrs.evolve(
        comparison,
        before=attrs.evolve(comparison.before, latency=one),
        after=attrs.evolve(comparison.after, latency=other),
        speedup=speedup(one, other),
    )


def with_bytes(comparison, before, after):
    return attrs.evolve(
        comparison,
        before=attrs.evolve(comparison.before, file_bytes=before),
        after=attrs.evolve(comparison.after, file_bytes=after),
    )


def test_everything_is_measured(files, data):
    found = against(*files, data, memory=True)
    assert found.before.file_bytes == files[0].stat().st_size
    assert found.before.weight_bytes == 96
    assert found.before.latency.median > 0
    assert found.before.memory.process > found.before.memory.model
    assert found.before.evaluation["top1"].mean == 0.9
    assert found.samples == 200
    assert found.agreement.mean < 1
    assert found.tests["top1"].lost > 0
    assert found.drop == pytest.approx(0.9 - found.after.evaluation["top1"].mean)
    assert "NumPy" in found.runtime


def test_the_account_is_json(files, data):
    account = json.loads(json.dumps(against(*files, data).to_json(), allow_nan=False))
    assert account["before"]["accuracy"]["top1"]["mean"] == 0.9
    assert account["speedup"]["verdict"] in {"faster", "slower", "as fast"}
    assert account["headline"]


def test_models_in_memory_are_measured_as_files(model, noisy, files, data):
    found = against(model, noisy, data, latency=False)
    assert found.before.file_bytes == files[0].stat().st_size
    assert found.speedup is None
    assert found.before.latency is None


@pytest.mark.parametrize(
    ("before_ms", "after_ms", "before", "after", "opening"),
    [
        (2.0, 1.0, 400, 100, "2.00x faster and 4.00x smaller: "),
        (1.0, 1.0, 400, 100, "As fast and 4.00x smaller: "),
        (1.0, 2.0, 400, 100, "Slower than the original, though 4.00x smaller: "),
        (2.0, 1.0, 100, 400, "Larger than the original, though 2.00x faster: "),
        (1.0, 2.0, 100, 400, "Slower and larger than the original: "),
        (2.0, 1.0, 400, 400, "2.00x faster and of the same size: "),
    ],
)
def test_the_headline_opens_with_the_bad_news(files, before_ms, after_ms, before, after, opening):
    found = with_bytes(with_speed(against(*files, latency=False), before_ms, after_ms), before, after)
    assert found.headline().startswith(opening)
    assert "\n" not in found.headline()


def test_a_significant_loss_of_accuracy_is_bad_news(files, data):
    found = with_bytes(against(*files, data, latency=False), 400, 100)
    assert found.tests["top1"].p < 0.05
    assert found.headline().startswith("Less accurate than the original, though 4.00x smaller: ")


def test_small_errors_are_not_shown_as_zeros(files, data):
    logits = (data[0] @ np.ones((6, 4))).astype(np.float32) * 1e-4
    found = compare(*files, (data[0] * 1e-4, logits), metrics=["mse"], latency=False, memory=False)
    assert re.search(r"mse \d\.\d+e-\d+ against \d", found.headline())


def test_without_data_nothing_is_claimed_about_accuracy(files):
    found = against(*files)
    assert found.samples == 0
    assert found.agreement is None
    assert found.primary is None
    assert found.after.evaluation is None
    assert "random input" in found.notes[0]
    assert "agreement" not in found.headline()


def test_without_labels_the_notes_say_so(files, data):
    found = against(*files, data[0], latency=False)
    assert found.primary.name == "agreement"
    assert found.drop is None
    assert any("no labels" in note for note in found.notes)


def test_the_batch_of_the_latency_is_told(files, data):
    assert against(*files, data, batch=8).batch == 8
    assert against(*files, batch=4).batch == 4


def test_models_with_other_inputs_are_refused(files, tmp_path):
    from onnx import parser

    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[N,6] z) => (float[N,6] y) { y = Abs(z) }'
    save(ir.from_proto(parser.parse_model(text)), tmp_path / "other.onnx")
    with pytest.raises(ModelError, match="do not take the same inputs"):
        against(files[0], tmp_path / "other.onnx")


def test_empty_data_is_refused(files):
    with pytest.raises(DataError, match="no samples"):
        against(*files, [])


def test_random_feeds_fit_the_inputs_and_are_always_the_same():
    from onnx import parser

    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g '
        "(float16[N,3,H] a,  int32[N,7] b,  string[N] c,  bool[N] d) => (float16[N,3,H] y) { y = Abs(a) }"
    )
    inputs = ModelInputs.of(ir.from_proto(parser.parse_model(text)))
    feeds, again = random_feeds(inputs, 4, 9), random_feeds(inputs, 4, 9)
    assert {n: (a.shape, a.dtype.kind) for n, a in feeds.items()} == {
        "a": ((4, 3, 9), "f"),
        "b": ((4, 7), "i"),
        "c": ((4,), "O"),
        "d": ((4,), "b"),
    }
    for name in feeds:
        np.testing.assert_array_equal(feeds[name], again[name])


def test_the_size_of_a_file_counts_its_external_data(model, tmp_path):
    save(model, tmp_path / "small.onnx")
    big = ir.from_proto(ir.to_proto(model))
    big.graph.initializers["w"].const_value = ir.tensor(np.zeros((6000, 4), np.float32), name="w")
    big.graph.inputs[0].shape = ir.Shape(["N", 6000])
    save(big, tmp_path / "big.onnx", external_data=True)
    assert file_bytes(tmp_path / "small.onnx") == (tmp_path / "small.onnx").stat().st_size
    assert file_bytes(tmp_path / "big.onnx") > size(big).total > (tmp_path / "big.onnx").stat().st_size


def test_peak_memory_sees_the_weights(tmp_path):
    from onnx import numpy_helper, parser

    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[N,1000] x) => (float[N,20000] y) { y = MatMul(x, w) }'
    proto = parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((1000, 20000), np.float32), "w"))  # 80 MB
    save(ir.from_proto(proto), tmp_path / "big.onnx")
    found = peak_memory(tmp_path / "big.onnx", {"x": np.ones((1, 1000), np.float32)}, REFERENCE)
    assert 80_000_000 < found.model < 600_000_000
    assert found.process > found.model


def test_a_model_that_fails_in_the_other_process_is_a_sentence(tmp_path, files):
    with pytest.raises(PumiceError, match=r"'before\.onnx' failed \(.*missing"):
        peak_memory(files[0], {}, REFERENCE)
