"""cuBLASLt's INT8 product: s32 sums of A (m, k) B' with B (n, k), by the fastest of the algorithms it proposes.

The descriptors follow the library's header `cublasLt.h`; numbers are the values of its enumerations. Row-major matrices
are the transposed column-major ones, so that cuBLASLt computes (B A')' .
"""

import ctypes
from typing import Any

WORKSPACE = 32 << 20
PROPOSALS = 16
TRIALS = 5
_INT8, _INT32 = 3, 10  # cudaDataType
_SUMS_INT32 = 72  # cublasComputeType_t
_TRANSPOSE_A, _TRANSPOSED = 3, 1  # cublasLtMatmulDescAttributes_t, cublasOperation_t
_MOST_WORKSPACE = 1  # cublasLtMatmulPreferenceAttributes_t


class _Proposal(ctypes.Structure):
    """`cublasLtMatmulHeuristicResult_t`."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int),
        ("waves", ctypes.c_float), ("reserved", ctypes.c_int * 4),
    )  # fmt: skip


class Product:
    """Call it with arrays of the shapes of those it was made for."""

    def __init__(self, a: Any, b: Any) -> None:
        import cupy

        (m, k), n = a.shape, b.shape[0]
        self.library = _library()
        self.handle, self.operation = ctypes.c_void_p(), ctypes.c_void_p()
        self._do("cublasLtCreate", ctypes.byref(self.handle))
        self._do("cublasLtMatmulDescCreate", ctypes.byref(self.operation), _SUMS_INT32, _INT32)
        transposed = ctypes.c_int(_TRANSPOSED)
        self._do("cublasLtMatmulDescSetAttribute", self.operation, _TRANSPOSE_A, ctypes.byref(transposed), 4)
        self.layouts = [self._layout(_INT8, k, n), self._layout(_INT8, k, m), self._layout(_INT32, n, m)]
        self.workspace = cupy.empty(WORKSPACE, "uint8")
        self.algorithm = self._fastest(a, b, cupy.empty((m, n), "int32"))

    def __call__(self, a: Any, b: Any, out: Any) -> None:
        self._multiply(a, b, out, self.algorithm)

    def _layout(self, dtype: int, rows: int, columns: int) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)
        self._do("cublasLtMatrixLayoutCreate", ctypes.byref(made), dtype, *sizes)
        return made

    def _fastest(self, a: Any, b: Any, out: Any) -> Any:
        preference, found = ctypes.c_void_p(), ctypes.c_int()
        self._do("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        most = ctypes.c_size_t(WORKSPACE)
        self._do("cublasLtMatmulPreferenceSetAttribute", preference, _MOST_WORKSPACE, ctypes.byref(most), 8)
        proposals = (_Proposal * PROPOSALS)()
        first, second, result = self.layouts
        self._do(
            "cublasLtMatmulAlgoGetHeuristic", self.handle, self.operation, first, second, result, result, preference,
            PROPOSALS, proposals, ctypes.byref(found),
        )  # fmt: skip
        usable = [p for p in proposals[: found.value] if p.state == 0]
        return min(usable, key=lambda p: self._milliseconds(a, b, out, p.algorithm)).algorithm

    def _milliseconds(self, a: Any, b: Any, out: Any, algorithm: Any) -> float:
        import cupy

        times = []
        for _ in range(TRIALS):
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            self._multiply(a, b, out, algorithm)
            end.record()
            end.synchronize()
            times.append(float(cupy.cuda.get_elapsed_time(start, end)))
        return sorted(times)[TRIALS // 2]

    def _multiply(self, a: Any, b: Any, out: Any, algorithm: Any) -> None:
        import cupy

        one, zero = ctypes.c_int32(1), ctypes.c_int32(0)
        first, second, result = self.layouts
        pointers = [ctypes.c_void_p(array.data.ptr) for array in (a, b, out, self.workspace)]
        self._do(
            "cublasLtMatmul", self.handle, self.operation, ctypes.byref(one), pointers[1], first, pointers[0], second,
            ctypes.byref(zero), pointers[2], result, pointers[2], result, algorithm, pointers[3],
            ctypes.c_size_t(WORKSPACE), ctypes.c_void_p(cupy.cuda.get_current_stream().ptr),
        )  # fmt: skip

    def _do(self, name: str, *arguments: Any) -> None:
        if status := getattr(self.library, name)(*arguments):
            raise RuntimeError(f"{name} answers {status}")


def _library() -> Any:
    from cuda.pathfinder import load_nvidia_dynamic_lib

    return ctypes.CDLL(load_nvidia_dynamic_lib("cublasLt").abs_path)
