"""What `sanitized.py` launches, looked at without a GPU: every kernel there is, and each variant of what is stored."""

import importlib.util
import itertools
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pumice_cuda import compiling, device, launching, tensor_maps

HOPPER = device.Gpu(name="H200", capability=(9, 0), memory=1 << 37, multiprocessors=132)
BOUNDS = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
"""Brackets, those in them two deep."""
KERNEL = re.compile(rf"__global__\s+void\s+(?:__launch_bounds__{BOUNDS}\s*)?(\w+)\(")


@pytest.fixture(scope="module")
def launched():
    """(source, kernel, options) of all families, as on an H200."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield _launched(monkeypatch)


def _launched(monkeypatch):
    fake = _module("fake_cupy")
    cupy = fake.module()
    cupy.get_array_module = lambda *_: cupy
    cupy.pad = lambda x, width: fake.wrapped(np.pad(fake.unwrapped(x), width))
    cupy.ascontiguousarray = lambda x, dtype=None: fake.wrapped(np.ascontiguousarray(fake.unwrapped(x), dtype))
    cupy.asnumpy = lambda x: fake.unwrapped(x) if isinstance(x, fake.ndarray) else np.asarray(x)
    cupy.cuda.Device = lambda: SimpleNamespace(synchronize=lambda: None)
    cupy.cuda.set_allocator = lambda _: None
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    sanitized, found = _module("sanitized"), set()  # first, as it imports what is replaced next

    def kernel(source, name, *, options=()):
        assert compiling.is_for(source, HOPPER.architecture), source
        return source, name, options

    replaced = {compiling.kernel: kernel, launching.launch: lambda which, *_, **__: found.add(which)}
    modules = [module for name, module in sys.modules.items() if name.startswith("pumice_cuda")]
    for module, (old, new) in itertools.product(modules, replaced.items()):
        if getattr(module, old.__name__, None) is old:
            monkeypatch.setattr(module, old.__name__, new)
    for name in ("boxes", "columns", "windows"):
        monkeypatch.setattr(tensor_maps, name, lambda *_, **__: None)
    monkeypatch.setattr(device, "gpu", lambda: HOPPER)
    monkeypatch.setattr(sys, "argv", ["sanitized.py"])
    with np.errstate(all="ignore"):
        sanitized.main()
    return found


def _module(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_kernel_is_launched(launched):
    there = {(source, name) for source in compiling.sources() for name in KERNEL.findall(compiling._text(source))}
    assert there - {(source, name.partition("<")[0]) for source, name, _ in launched} == set()


def test_no_kernel_escapes_the_search():
    for path in compiling.CSRC.iterdir():
        text = re.sub("//.*", "", path.read_text(encoding="utf-8"))
        assert len(KERNEL.findall(text)) == text.count("__global__"), path


ACTIVATIONS, TYPES = {"none", "clip", "gelu", "silu"}, {"s32", "f32", "f16", "bf16", "s8", "u8"}
PRODUCTS = {"OUTPUT": TYPES, "ACTIVATION": ACTIVATIONS, "RANGED": {"true"}, "OFFSETS": {"true"}, "ROW_SCALE": {"true"}}
WINDOWS = {"OUTPUT": TYPES, "ACTIVATION": ACTIVATIONS, "RESIDUAL": {"true", "false"}}
OF_BYTES, OF_FLOATS = {"ELEMENT": {"s8", "u8"}}, {"ELEMENT": {"f16", "bf16", "f32"}}
OF_ALL = {"ELEMENT": OF_BYTES["ELEMENT"] | OF_FLOATS["ELEMENT"]}
ON_HOPPER = {"ELEMENT": {"s8", "u8", "f16", "bf16", "tf32"}, "SPLITS": {"1", "2"}, "NEIGHBOURS": {"0", "1"}}
TURNS = {"LATER": {"0", "1"}, "PARTS": {"1", "2", "4"}, "TOGETHER": {"1", "2"}}


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("gemm_dp4a", PRODUCTS | OF_BYTES),
        ("gemm_sm80", PRODUCTS | OF_ALL | {"SPLITS": {"1", "2", "4"}}),
        ("gemm_sm90", PRODUCTS | ON_HOPPER | TURNS),
        ("conv_sm80", WINDOWS | OF_ALL | {"SPLITS": {"1", "2"}}),
        ("conv_sm90", ON_HOPPER | {"RESIDUAL": {"true", "false"}}),
        ("conv_stem", WINDOWS | OF_BYTES),
        ("conv_depthwise", WINDOWS | OF_ALL),
        ("conv_depthwise_floats", OF_FLOATS | {"OUTPUT": {"f16", "bf16", "f32"}, "ACTIVATION": ACTIVATIONS}),
    ],
)
def test_every_variant_of_what_is_stored_is_launched(launched, source, wanted):
    macros = [dict(o.removeprefix("-DUSE_").split("=") for o in options) for s, _, options in launched if s == source]
    missing = {name: values - {given.get(name) for given in macros} for name, values in wanted.items()}
    assert not any(missing.values()), missing
