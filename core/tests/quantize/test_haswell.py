"""An x86 CPU without VNNI, emulated: what ONNX Runtime really computes there is what the simulation says.

The test exists where `qemu-x86_64` is installed, on x86. Everywhere, `test_saturation` holds the same kernels to the
arithmetic of the instruction.
"""

import platform
import shutil
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest

from pumice.quantize.simulation import simulate

QEMU = shutil.which("qemu-x86_64")
NET = """(float[N,3,6,6] x) => (float[N,16] y) {
    a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w)  r = Relu (a)
    c = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (r, v)  p = GlobalAveragePool (c)
    f = Flatten (p)  y = MatMul (f, u) }"""
RUN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"x": numpy.load(sys.argv[2])})[0])
"""


def on_haswell(model, x, folder):
    """First output of a model, as ONNX Runtime computes it on a CPU of 2013."""
    ir.save(model, folder / "model.onnx")
    np.save(folder / "x.npy", x)
    files = [str(folder / name) for name in ("model.onnx", "x.npy", "y.npy")]
    subprocess.run([QEMU, "-cpu", "Haswell", sys.executable, "-c", RUN, *files], check=True, stderr=subprocess.PIPE)
    return np.load(folder / "y.npy")


if QEMU and platform.machine() == "x86_64":

    @pytest.mark.parametrize("target", ["ort-cpu", "ort-cpu-no-vnni"])
    def test_the_simulation_is_what_such_a_cpu_computes(lab, tmp_path, target):
        rng = np.random.default_rng(0)
        strong = {name: np.abs(rng.standard_normal(shape)).astype(np.float32) for name, shape in
                  {"w": (8, 3, 3, 3), "v": (8, 8, 3, 3)}.items()}  # fmt: skip
        model, feeds = lab.build(NET, u=(8, 16), **strong), lab.normal(1, 3, 6, 6)
        result, _ = lab.quantized(model, feeds, target, modes=("static",), smallest=1)
        x = np.concatenate([feed["x"] for feed in feeds])
        plain, saturating = (simulate(result, pair_saturation=on).run({"x": x})["y"] for on in (False, True))
        np.testing.assert_array_equal(on_haswell(result, x, tmp_path), saturating)
        assert np.array_equal(plain, saturating) == (target == "ort-cpu-no-vnni")
