"""What is said about a machine, for every answer that its driver and libraries may give."""

import ctypes
import sys
from types import SimpleNamespace

import attrs
import pytest

from pumice.errors import PumiceError
from pumice_cuda import device
from pumice_cuda.device import Gpu, NotThere, Probes, architecture_of, examine

H200 = Gpu(name="NVIDIA H200", capability=(9, 0), memory=150 << 30, multiprocessors=132)


def absent(what):
    def probe():
        raise NotThere(what)

    return probe


def unreachable():
    raise AssertionError("asked although an earlier answer ruled a GPU out")


def probes(*, driver=(13, 0), nvrtc=(13, 0), newest=(12, 1), cupy=13, runtime=13, cublas=13, gpu=H200):
    return Probes(
        driver=lambda: driver, nvrtc=lambda: nvrtc, newest=lambda: newest, cupy=lambda: cupy, gpu=lambda: gpu,
        libraries=lambda: {"CUDA runtime": runtime, "cuBLAS": cublas},
    )  # fmt: skip


def test_a_machine_with_everything_has_a_gpu():
    found = examine(probes())
    assert found.problem is None
    assert str(found) == "NVIDIA H200 (sm_90a), driver for CUDA 13.0, NVRTC 13.0"


def test_without_a_driver_nothing_else_is_touched():
    others = dict.fromkeys(("nvrtc", "newest", "cupy", "libraries", "gpu"), unreachable)
    asked = Probes(driver=absent("no driver"), **others)
    assert examine(asked).problem == "no driver"


@pytest.mark.parametrize("missing", ["nvrtc", "cupy", "libraries", "gpu"])
def test_what_is_missing_is_said(missing):
    assert examine(attrs.evolve(probes(), **{missing: absent(f"no {missing}")})).problem == f"no {missing}"


def test_a_driver_older_than_the_compiler_is_named_with_both_versions():
    found = examine(probes(driver=(12, 8)))
    assert found.problem == "the NVIDIA driver runs CUDA 12.8 at most and NVRTC compiles for 13.0: update the driver"


@pytest.mark.parametrize("found", [(12, 4), (11, 0), (14, 0)])
def test_an_nvrtc_of_another_version_is_named_before_it_compiles(found):
    others = dict.fromkeys(("newest", "cupy", "libraries", "gpu"), unreachable)
    asked = Probes(driver=lambda: (14, 0), nvrtc=lambda: found, **others)
    assert examine(asked).problem == (
        f"NVRTC {found[0]}.{found[1]} is installed and 13.0 or a later 13 is needed: pip install "
        f"'nvidia-cuda-nvrtc==13.0.*'"
    )


@pytest.mark.parametrize("found", [(13, 0), (13, 2)])
def test_an_nvrtc_of_the_same_major_version_is_taken(found):
    assert examine(probes(nvrtc=found)).problem is None


@pytest.mark.parametrize(("name", "found"), [("CUDA runtime", {"runtime": 12}), ("cuBLAS", {"cublas": 12})])
def test_a_library_that_does_not_fit_cupy_is_named_with_both_versions(name, found):
    assert examine(probes(**found)).problem == (
        f"CuPy is built for CUDA 13 and finds the {name} of CUDA 12: pip install --upgrade 'pumice-cuda[toolkit]'"
    )


def test_a_cupy_newer_than_the_driver_is_named():
    assert "CuPy is built for CUDA 14" in examine(probes(cupy=14)).problem


def test_a_gpu_without_the_instructions_is_named_with_its_capability():
    old = Gpu(name="Tesla P100", capability=(6, 0), memory=16 << 30, multiprocessors=56)
    assert "'Tesla P100' has compute capability 6.0 and the kernels need 7.5" in examine(probes(gpu=old)).problem


def test_a_cupy_that_cannot_be_used_is_named_in_one_line(monkeypatch):
    def broken():
        raise RuntimeError("the driver is too old\nand more")

    broken_cuda = SimpleNamespace(runtime=SimpleNamespace(runtimeGetVersion=broken))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(__version__="14.2.0", cuda=broken_cuda))
    with pytest.raises(NotThere, match=r"^CuPy cannot be used \(the driver is too old\): pip install 'pumice"):
        device._cupy()


def test_cupy_is_asked_what_it_is_built_for_and_not_what_it_finds(monkeypatch):
    """There is a CUDA runtime of its own in CuPy, whatever this machine has."""
    monkeypatch.setattr("cupy.cuda.get_local_runtime_version", unreachable)
    monkeypatch.setattr(device, "_library", unreachable)
    assert device._cupy() == 13


@pytest.fixture
def found(monkeypatch):
    """A cuBLAS and a CUDA runtime of the given versions; an error in their place is raised."""

    def place(cublas=13, runtime=13000):
        def major(what, number):
            assert what == 0
            number._obj.value = cublas
            return 0

        def version():
            if isinstance(runtime, Exception):
                raise runtime
            return runtime

        monkeypatch.setattr(device, "_library", lambda *_: SimpleNamespace(abs_path="libcublas.so"))
        monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(cublasGetProperty=major))
        monkeypatch.setattr("cupy.cuda.get_local_runtime_version", version)

    return place


def test_libraries_are_asked_for_their_own_versions(found):
    found(cublas=12, runtime=13020)
    assert device._libraries() == {"CUDA runtime": 13, "cuBLAS": 12}


def test_a_runtime_that_is_nowhere_is_named_in_one_line(found):
    found(runtime=RuntimeError("libcudart.so.13 is not there\nlooked in /usr/lib"))
    message = r"^the CUDA runtime cannot be loaded \(libcudart.so.13 is not there\): pip install --upgrade 'pumice-cuda"
    with pytest.raises(NotThere, match=message):
        device._libraries()


@pytest.mark.parametrize("installed", ["13.6.0", "14.1.9", "15.0.0"])
def test_a_package_of_another_version_is_named_with_both(monkeypatch, installed):
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(__version__=installed))
    with pytest.raises(NotThere, match=f"^CuPy {installed} is installed and 14.2 or a later 14 is needed: pip install"):
        device._cupy()


@pytest.mark.parametrize("installed", ["14.2.0", "14.10.0rc1"])
def test_later_packages_of_the_same_major_version_are_taken(installed):
    device._written_for("CuPy", installed, (14, 2))


def test_a_gpu_newer_than_the_compiler_is_named_with_both():
    new = Gpu(name="of tomorrow", capability=(13, 0), memory=1 << 40, multiprocessors=200)
    assert examine(probes(gpu=new)).problem == (
        "the GPU 'of tomorrow' has compute capability 13.0 and NVRTC 13.0 compiles for 12.1 at most: install a newer "
        "pumice-cuda"
    )


def test_this_compiler_knows_what_the_kernels_are_for():
    assert device._nvrtc() >= (13, 0)
    assert device._newest() > (9, 0)


@pytest.mark.parametrize(
    ("capability", "name"), [((8, 0), "sm_80"), ((8, 9), "sm_89"), ((9, 0), "sm_90a"), ((10, 0), "sm_100a")]
)
def test_only_some_architectures_have_instructions_of_their_own(capability, name):
    assert architecture_of(capability) == name


def test_asking_for_the_gpu_of_a_machine_without_one_says_why(monkeypatch):
    monkeypatch.setattr(device, "examination", lambda: device.Examination(problem="no NVIDIA driver is installed"))
    with pytest.raises(PumiceError, match="no GPU can be used here: no NVIDIA driver is installed"):
        device.gpu()


def test_this_machine_gives_an_answer_in_one_sentence_or_a_gpu():
    found = device.examination()
    assert (found.problem is None) == (found.gpu is not None)
    assert found.problem is None or ": " in found.problem
