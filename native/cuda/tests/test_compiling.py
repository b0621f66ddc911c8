"""Every source compiles to machine code on a machine without a GPU."""

import itertools

import pytest

from pumice.errors import PumiceError
from pumice_cuda import compiling, device
from pumice_cuda.compiling import compiled, resources
from pumice_cuda.gemm import AmpereTiling, Tiling

EVERYWHERE = [(source, arch) for source in compiling.sources() for arch in compiling.architectures(source)]


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch, tmp_path):
    """Nothing compiled before, and nothing left behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiling._compiled.cache_clear()
    yield tmp_path
    compiling._compiled.cache_clear()


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """A folder of sources of a test's own, filled by writing `name: text`."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    monkeypatch.setattr(compiling, "CSRC", folder)

    def write(**texts):
        for name, text in texts.items():
            stem, suffix = (name[:-4], ".cuh") if name.endswith("_cuh") else (name, ".cu")
            (folder / f"{stem}{suffix}").write_text(text)

    return write


@pytest.mark.parametrize(("source", "arch"), EVERYWHERE)
def test_every_source_compiles_for_every_architecture(source, arch):
    found = resources(source, arch=arch)
    assert found, f"{source}.cu has no kernel"


BYTES, HALVES = ("s8", "u8"), ("f16", "bf16")
ELEMENTS = {
    "gemm_dp4a": BYTES, "conv_stem": BYTES, "conv_depthwise": (*BYTES, *HALVES, "f32"),
    "conv_depthwise_floats": (*HALVES, "f32"),
    "gemm_sm80": (*BYTES, *HALVES, "tf32", "f32"), "conv_sm80": (*BYTES, *HALVES, "tf32", "f32"),
    "gemm_sm90": (*BYTES, *HALVES, "tf32"), "conv_sm90": (*BYTES, *HALVES, "tf32"),
}  # fmt: skip
"""What products and convolutions multiply, by source."""
FINISHES = (
    {"OUTPUT": "s8", "ACTIVATION": "clip", "RESIDUAL": "true", "ROW_SCALE": "true"},
    {"OUTPUT": "bf16", "ACTIVATION": "gelu", "RESIDUAL": "true"},
    {"OUTPUT": "f32", "ACTIVATION": "silu", "RESIDUAL": "false", "RANGED": "true"},
)
SMALL = {"sm90": Tiling(consumers=1, width=64).macros(4, 8), "sm80": AmpereTiling(width=64).macros}
"""Tiles that compile fast, by the end of the source's name."""


def finished():
    """(source, architecture, element, finish): every element of a source, and every finish on each architecture."""
    for source, elements in ELEMENTS.items():
        architectures = compiling.architectures(source)
        each = max(len(FINISHES), -(-len(elements) // len(architectures)))
        turns = zip(itertools.cycle(elements), itertools.cycle(FINISHES), strict=False)
        for arch in architectures:
            yield from ((source, arch, *turn) for turn in itertools.islice(turns, each))


@pytest.mark.parametrize(("source", "arch", "element", "finish"), [*finished()])
def test_what_becomes_of_sums_compiles_for_every_type(source, arch, element, finish):
    given = {"ELEMENT": element, "OFFSETS": str(element in BYTES).lower()} | finish
    options = (*(f"-DUSE_{name}={value}" for name, value in given.items()), *SMALL.get(source[-4:], ()))
    assert resources(source, arch=arch, options=options)


TWICE = 'extern "C" __global__ void twice(float *x) { x[threadIdx.x] *= 2; }'


def test_what_was_compiled_comes_from_the_disk_in_the_next_process(sources, fresh_cache, monkeypatch):
    sources(twice=TWICE)
    first = compiled("twice", "twice", arch="sm_80").code
    compiling._compiled.cache_clear()
    monkeypatch.setattr(compiling, "_run", None)  # a second compilation would call it
    assert compiled("twice", "twice", arch="sm_80").code == first


def test_an_edited_header_compiles_anew(sources):
    sources(scale='#include "factor.cuh"\nextern "C" __global__ void scale(float *x) { *x *= FACTOR; }')
    sources(factor_cuh="#define FACTOR 2.0f")
    first = compiled("scale", "scale", arch="sm_80").code
    sources(factor_cuh="#define FACTOR 3.0f")
    compiling._compiled.cache_clear()
    assert compiled("scale", "scale", arch="sm_80").code != first


def test_architectures_and_macros_give_different_code(sources):
    sources(fill='extern "C" __global__ void fill(int *x) { *x = VALUE; }')
    codes = {
        compiled("fill", "fill", arch=arch, options=(f"-DVALUE={value}",)).code
        for arch in ("sm_80", "sm_90a")
        for value in (1, 2)
    }
    assert len(codes) == 4


def test_an_instance_of_a_template_is_found_again_after_the_disk(sources):
    sources(add="template <typename T> __global__ void add(T *x) { *x += 1; }")
    first = compiled("add", "add<float>", arch="sm_80")
    compiling._compiled.cache_clear()
    again = compiled("add", "add<float>", arch="sm_80")
    assert again.symbol_mapping == first.symbol_mapping
    assert again.symbol_mapping["add<float>"] == b"_Z3addIfEvPT_"


def test_a_mistake_in_a_source_is_shown_with_its_line(sources):
    sources(wrong='extern "C" __global__ void wrong(int *x)\n{ *x = nonsense; }')
    with pytest.raises(Exception, match=r'wrong\.cu\(2\): error: identifier "nonsense"'):
        compiled("wrong", "wrong", arch="sm_80")


def test_an_unknown_option_is_refused(sources):
    sources(twice=TWICE)
    with pytest.raises(ValueError, match="option '--fast'"):
        compiled("twice", "twice", arch="sm_80", options=("--fast",))


def test_spills_show_in_the_resources(sources):
    body = "".join(f"float a{i} = x[{i}];" for i in range(64)) + "__syncthreads();"
    body += "".join(f"x[{i}] = a{63 - i} * a{i};" for i in range(64))
    sources(many=f'extern "C" __global__ void many(float *x) {{ {body} }}')
    assert resources("many", arch="sm_90a")["many"].spills == 0
    assert resources("many", arch="sm_90a", options=("--maxrregcount=32",))["many"].spills > 0


def test_without_a_gpu_a_kernel_is_refused_before_the_driver_is_asked(monkeypatch):
    monkeypatch.setattr(device, "examination", lambda: device.Examination(problem="there is none"))
    with pytest.raises(PumiceError, match="no GPU can be used here: there is none"):
        compiling.kernel("split", "split")


def test_a_source_for_newer_gpus_is_refused_on_older_ones(sources, monkeypatch):
    sources(some=f"// since: sm_80\n{TWICE}", one=f"// architectures: sm_90a\n{TWICE}", every=TWICE)
    newer = ("sm_80", "sm_86", "sm_90a", "sm_120")
    assert [arch for arch in ("sm_75", *newer) if compiling.is_for("some", arch)] == [*newer]
    assert compiling.architectures("one") == ("sm_90a",)
    assert compiling.architectures("every") == compiling.ARCHITECTURES
    turing = device.Gpu(name="T4", capability=(7, 5), memory=16 << 30, multiprocessors=40)
    monkeypatch.setattr(device, "gpu", lambda: turing)
    with pytest.raises(NotImplementedError, match="the kernels of 'some' are not for sm_75"):
        compiling.kernel("some", "twice")
