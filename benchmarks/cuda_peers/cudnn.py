"""cuDNN's INT8 convolution with a scale a channel, ReLU and INT8 out, by the fastest of the plans it proposes.

Images (n, h, w, c), weights (outputs, kh, kw, c / groups) and results (n, oh, ow, outputs) have channels last. Sums are
int32, times `scale` in float32, rounded and clipped to 0..127. PyTorch has no way to it, so cuDNN itself is asked.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import cudnn_graph as graph

MOST_PROPOSALS = 64
TRIALS, TRIAL_CALLS = 5, 64


class Convolution:
    """Call it with the number of one of the `images` and `outs`; the first call chooses the plan.

    `problem` says what is wrong with the first of the `outs`, or None: a plan that leaves it wrong is not used.
    """

    def __init__(
        self, images: Sequence[Any], weights: Any, outs: Sequence[Any], scale: Any, *, stride: int, padding: int,
        problem: Callable[[Any], str | None],
    ) -> None:  # fmt: skip
        self.images, self.weights, self.outs, self.scale = images, weights, outs, scale
        self.stride, self.padding, self.problem = stride, padding, problem

    def __call__(self, number: int) -> None:
        self._execute(self.fastest, number)

    @functools.cached_property
    def fastest(self) -> Any:
        timed, trouble = [], RuntimeError("cuDNN has no plan for it")
        for plan in self.plans:
            try:
                timed.append((self._seconds(plan), plan))
            except RuntimeError as error:
                trouble = error
        if not timed:
            raise trouble
        return min(timed, key=lambda pair: pair[0])[1]

    @functools.cached_property
    def plans(self) -> Sequence[Any]:
        """All that the heuristics propose and that can be built."""
        whole = self._graph()
        proposals = [found for mode in (graph.BY_RULES, graph.FALLBACK) for found in _proposals(whole, mode)]
        with ThreadPoolExecutor() as builders:
            return [plan for plan in builders.map(_plan, proposals) if plan]

    @functools.cached_property
    def calls(self) -> Sequence[Any]:
        """The arrays of every call, with a workspace that is large enough for any plan."""
        import cupy

        sizes = [graph.read(plan, graph.PLAN, "workspace", [0])[0] for plan in self.plans]
        self.workspace = cupy.empty(max(1, *sizes), "uint8")
        return [
            graph.made(
                graph.CALL, names=[ord(name) for name in "xwfy"], workspace=[self.workspace.data.ptr],
                pointers=[array.data.ptr for array in (x, self.weights, self.scale, y)],
            )
            for x, y in zip(self.images, self.outs, strict=True)
        ]  # fmt: skip

    def _graph(self) -> Any:
        shape = self.outs[0].shape
        x, w = _tensor("x", graph.INT8, self.images[0].shape), _tensor("w", graph.INT8, self.weights.shape)
        scale, y = _tensor("f", graph.FLOAT, (1, 1, 1, shape[3])), _tensor("y", graph.INT8, shape)
        sums, scaled = (_tensor(*kind, shape, virtual=True) for kind in (("s", graph.INT32), ("t", graph.FLOAT)))
        window = graph.made(
            graph.WINDOW, sums=[graph.INT32], mode=[graph.CROSS_CORRELATION], rank=[2], dilations=[1, 1],
            strides=[self.stride] * 2, before=[self.padding] * 2, after=[self.padding] * 2,
        )  # fmt: skip
        multiply, relu = (
            graph.made(graph.FUNCTION, mode=[mode], precision=[graph.FLOAT]) for mode in (graph.MULTIPLY, graph.RELU)
        )
        operations = [
            graph.made(graph.CONVOLUTION, alpha=[1], beta=[0], window=[window], weights=[w], images=[x], out=[sums]),
            graph.made(graph.POINTWISE, function=[multiply], x=[sums], factor=[scale], out=[scaled]),
            graph.made(graph.POINTWISE, function=[relu], x=[scaled], out=[y]),
        ]
        return graph.made(graph.GRAPH, handle=[graph.handle()], operations=operations)

    def _seconds(self, plan: Any) -> float:
        """Of a call, in a CUDA graph that goes round the sets."""
        import cupy

        self.outs[0].fill(-1)
        self._execute(plan, 0)
        if problem := self.problem(self.outs[0]):
            raise RuntimeError(problem)
        stream, times = cupy.cuda.get_current_stream(), []
        stream.begin_capture()
        try:
            for call in range(TRIAL_CALLS):
                self._execute(plan, call % len(self.calls))
        finally:
            recorded = stream.end_capture()
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        for _ in range(TRIALS):
            start.record(stream)
            recorded.launch(stream)
            end.record(stream)
            end.synchronize()
            times.append(cupy.cuda.get_elapsed_time(start, end))
        return float(sorted(times)[TRIALS // 2]) * 1e-3 / TRIAL_CALLS

    def _execute(self, plan: Any, number: int) -> None:
        import cupy

        stream = ctypes.c_void_p(cupy.cuda.get_current_stream().ptr)
        graph.do("cudnnSetStream", graph.handle(), stream)
        graph.do("cudnnBackendExecute", graph.handle(), plan, self.calls[number])


def _proposals(whole: Any, mode: int) -> Sequence[Any]:
    try:
        heuristic = graph.made(graph.HEURISTIC, mode=[mode], graph=[whole])
    except RuntimeError:  # nothing in this mode
        return []
    room = [graph.created(graph.PROPOSAL) for _ in range(MOST_PROPOSALS)]
    return room[: len(graph.read(heuristic, graph.HEURISTIC, "proposals", room))]


def _plan(proposal: Any) -> Any | None:
    try:
        return graph.made(graph.PLAN, handle=[graph.handle()], proposal=[proposal])
    except RuntimeError:  # proposed, and yet not supported
        return None


def _tensor(name: str, dtype: int, shape: Sequence[int], virtual: bool = False) -> Any:
    n, h, w, c = shape
    return graph.made(
        graph.TENSOR, alignment=[16], dtype=[dtype], sizes=[n, c, h, w], strides=[h * w * c, 1, w * c, c],
        name=[ord(name)], virtual=[virtual],
    )  # fmt: skip
