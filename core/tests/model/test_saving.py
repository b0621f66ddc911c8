import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from pumice.errors import ModelError, PumiceError
from pumice.model import clone, constant, fingerprint, load, save as save_model, saving

LINEAR = "g (float[1,32] x) => (float[1,32] y) { y = MatMul(x, w) }"


@pytest.fixture
def model(stored, rng):
    return load(stored(LINEAR, w=rng.standard_normal((32, 32), np.float32)))


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("external", [False, True])
def test_what_is_saved_is_what_is_loaded(model, out, run, external):
    save_model(model, out / "m.onnx", external_data=external)
    again = load(out / "m.onnx")
    x = np.ones((1, 32), np.float32)
    assert fingerprint(again) == fingerprint(model)
    np.testing.assert_array_equal(run(out / "m.onnx", x=x)[0], run(model, x=x)[0])


@pytest.mark.parametrize("external", [False, True])
def test_the_same_model_gives_the_same_bytes(model, out, external):
    save_model(model, out / "a.onnx", external_data=external)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    save_model(load(out / "a.onnx"), out / "a.onnx", external_data=external)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_saving_does_not_change_the_model(model, out):
    before = fingerprint(model), model.ir_version
    save_model(model, out / "m.onnx", external_data=True)
    assert (fingerprint(model), model.ir_version) == before
    assert not isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)


@pytest.mark.parametrize(("opset", "expected"), [(21, 10), (22, 10), (23, 11), (24, 12), (25, 13), (26, 13)])
def test_the_file_format_is_the_oldest_that_carries_the_opset(stored, out, run, opset, expected):
    model = load(stored("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=opset))
    save_model(model, out / "m.onnx")
    assert onnx.load(out / "m.onnx").ir_version == expected
    assert run(out / "m.onnx", x=np.ones(2, np.float32))[0].tolist() == [1, 1]


def test_an_older_external_file_goes_when_the_new_model_is_in_place(model, out):
    save_model(model, out / "m.onnx", external_data=True)
    (out / "m.onnx.data").write_bytes(b"somebody else's")
    old = load(out / "m.onnx")
    weight = old.graph.initializers["w"]
    kept = constant(weight).copy()
    weight.const_value = ir.tensor(kept * 2, name="w")
    save_model(old, out / "m.onnx", external_data=True)
    assert len(listing(out)) == 3
    np.testing.assert_array_equal(constant(load(out / "m.onnx").graph.initializers["w"]), kept * 2)
    save_model(old, out / "m.onnx")
    assert listing(out) == ["m.onnx", "m.onnx.data"]


def test_a_model_over_its_own_mapped_data_can_be_saved(model, out):
    save_model(model, out / "m.onnx", external_data=True)
    mapped = load(out / "m.onnx")
    before = fingerprint(mapped)
    save_model(mapped, out / "m.onnx", external_data=False)
    assert fingerprint(mapped) == before == fingerprint(load(out / "m.onnx"))


def test_a_model_does_not_replace_the_file_that_holds_its_own_weights(model, out):
    save_model(model, out / "m.onnx", external_data=True)
    (data,) = (path for path in out.iterdir() if path.suffix == ".data")
    before = data.read_bytes()
    with pytest.raises(PumiceError, match=r"holds the weights of the model that was read: choose another name"):
        save_model(clone(load(out / "m.onnx")), data)
    assert data.read_bytes() == before


def test_types_that_initializers_state_are_not_stated_twice(model, out):
    save_model(model, out / "m.onnx")
    assert not onnx.load(out / "m.onnx").graph.value_info


def test_external_data_starts_on_aligned_offsets(stored, out, rng):
    weights = {name: rng.standard_normal((17, 17), np.float32) for name in "ab"}
    text = "g (float[1,17] x) => (float[1,17] y) { t = MatMul(x, a)  y = MatMul(t, b) }"
    save_model(load(stored(text, **weights)), out / "m.onnx", external_data=True)
    entries = [
        {e.key: e.value for e in tensor.external_data}
        for tensor in onnx.load(out / "m.onnx", load_external_data=False).graph.initializer
    ]
    assert [int(entry["offset"]) % 64 for entry in entries] == [0, 0]


def test_large_models_go_outside_by_themselves_and_refuse_to_be_forced_in(model, out, monkeypatch):
    monkeypatch.setattr(saving, "EXTERNAL_ABOVE", 1000)
    save_model(model, out / "m.onnx")
    assert [name.endswith(".data") for name in listing(out)] == [False, True]
    with pytest.raises(ModelError, match="allow external data"):
        save_model(model, out / "n.onnx", external_data=False)


def test_a_model_that_fails_the_checker_is_not_saved(model, out):
    save_model(model, out / "m.onnx")
    old = (out / "m.onnx").read_bytes()
    model.graph[0].attributes["nonsense"] = ir.AttrInt64("nonsense", 1)
    for external in (False, True):
        with pytest.raises(ModelError, match="not saved: it does not pass ONNX's checker"):
            save_model(model, out / "m.onnx", external_data=external)
    assert listing(out) == ["m.onnx"]
    assert (out / "m.onnx").read_bytes() == old


@pytest.mark.parametrize("place", ["absent/m.onnx", "file/m.onnx", "folder"])
def test_an_unwritable_place_is_one_sentence(model, out, place):
    (out / "file").touch()
    (out / "folder").mkdir()
    for external in (False, True):
        with pytest.raises(PumiceError, match="cannot be written") as caught:
            save_model(model, out / place, external_data=external)
        assert "\n" not in str(caught.value)
    assert listing(out) == ["file", "folder"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(0, 8000), external=st.booleans())
def test_a_full_disk_leaves_the_old_files_and_no_others(model, tmp_path_factory, limit, external):
    folder = tmp_path_factory.mktemp("full")
    save_model(model, folder / "m.onnx", external_data=external)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    new = clone(model)  # its data file is 4096 bytes long, its model file over 8000: each may hit the limit
    new.metadata_props["long"] = "x" * 8000
    new.graph.initializers["w"].const_value = ir.tensor(np.zeros((32, 32), np.float32), name="w")
    with largest_file(limit), pytest.raises(PumiceError, match="nothing was changed"):
        save_model(new, folder / "m.onnx", external_data=external)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@contextlib.contextmanager
def largest_file(size):
    """Writing beyond `size` bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("stage", ["fsync", "replace", "check"])
@pytest.mark.parametrize("external", [False, True])
def test_a_save_killed_at_any_stage_leaves_the_old_model_whole(model, out, stage, external):
    save_model(model, out / "m.onnx", external_data=external)
    before = fingerprint(model)
    program = textwrap.dedent(f"""
        import os, pathlib, onnx, onnx_ir as ir
        from pumice.model import load, save
        model = load({str(out / "m.onnx")!r})
        weight = model.graph.initializers["w"]
        weight.const_value = ir.tensor(weight.const_value.numpy() + 1, name="w")
        die = lambda *_, **__: os._exit(9)
        match {stage!r}:
            case "fsync": os.fsync = die
            case "replace": pathlib.Path.replace = die
            case "check": onnx.checker.check_model = die
        save(model, {str(out / "m.onnx")!r}, external_data={external})
    """)
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert fingerprint(load(out / "m.onnx")) == before


def test_the_mode_of_the_file_follows_the_umask_and_links_are_written_through(model, out):
    (out / "real.onnx").touch()
    (out / "link.onnx").symlink_to("real.onnx")
    mask = os.umask(0o027)
    try:
        save_model(model, out / "link.onnx")
    finally:
        os.umask(mask)
    assert (out / "link.onnx").is_symlink()
    assert (out / "real.onnx").stat().st_mode & 0o777 == 0o640
    assert fingerprint(load(out / "real.onnx")) == fingerprint(model)


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=4, max_size=4, unique=True))
def test_any_names_survive_a_round_trip(stored, tmp_path, names):
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Add", [names[0], names[1]], [names[2]], name=names[3])],
            "g",
            [onnx.helper.make_tensor_value_info(names[0], 1, [2])],
            [onnx.helper.make_tensor_value_info(names[2], 1, [2])],
            [onnx.numpy_helper.from_array(np.ones(2, np.float32), names[1])],
        ),
        ir_version=10,
        opset_imports=[onnx.helper.make_opsetid("", 21)],
    )
    save_model(load(stored(proto)), tmp_path / "again.onnx")
    again = onnx.load(tmp_path / "again.onnx").graph
    assert [again.input[0].name, again.initializer[0].name, again.output[0].name, again.node[0].name] == names
