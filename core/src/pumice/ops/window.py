"""The geometry of sliding windows, shared by convolution and pooling.

Along a spatial axis of n elements, with kernel k, stride s, dilation d and padding (p, q), the window spans
e = d (k - 1) + 1 elements and output o reads padded positions o s + d t for taps t = 0 .. k-1:

    outputs = floor((n + p + q - e) / s) + 1        (ceil in ceil mode, without windows that start in the right padding)

SAME padding instead fixes outputs = ceil(n / s) and splits max(0, (outputs - 1) s + e - n) over both sides, the odd
element after the data (SAME_UPPER) or before it (SAME_LOWER).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import attrs

from pumice.ops.gradient import namespace
from pumice.ops.record import Array, Node


@attrs.frozen(kw_only=True)
class Window:
    """Per spatial axis."""

    size: tuple[int, ...]
    """Of the data, without padding."""
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    """Padding; in ceil mode `after` may not suffice, see `reach`."""
    output: tuple[int, ...]

    @classmethod
    def of(cls, node: Node, size: Sequence[int], kernel: Sequence[int]) -> Window:
        """The window of a Conv or pooling node over data of a spatial size."""
        rank = len(size)
        strides = tuple(node.get("strides") or (1,) * rank)
        dilations = tuple(node.get("dilations") or (1,) * rank)
        extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
        auto_pad = node.get("auto_pad", "NOTSET")
        if auto_pad.startswith("SAME"):
            output = [-(-n // s) for n, s in zip(size, strides, strict=True)]
            total = [max(0, (o - 1) * s + e - n) for o, s, e, n in zip(output, strides, extent, size, strict=True)]
            small = [t // 2 for t in total]
            large = [t - b for t, b in zip(total, small, strict=True)]
            before, after = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        else:
            pads = node.get("pads") if auto_pad == "NOTSET" else None
            pads = list(pads or (0,) * (2 * rank))
            before, after = pads[:rank], pads[rank:]
            ceil = bool(node.get("ceil_mode", 0))
            output = [_count(*axis, ceil=ceil) for axis in zip(size, extent, strides, before, after, strict=True)]
        return cls(
            size=tuple(size), kernel=tuple(kernel), strides=strides, dilations=dilations,
            before=tuple(before), after=tuple(after), output=tuple(output),
        )  # fmt: skip

    @property
    def padded(self) -> bool:
        return any(self.before) or any(self.after)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def reach(self) -> tuple[int, ...]:
        """Padding needed after the data so that every window lies inside."""
        spans = zip(self.output, self.strides, self.kernel, self.dilations, self.before, self.size, strict=True)
        return tuple(max(0, (o - 1) * s + d * (k - 1) + 1 - p - n) for o, s, k, d, p, n in spans)

    def pad(self, x: Array, fill: float) -> Array:
        """(N, C, *size) with `fill` around it wherever a window reaches."""
        after = tuple(map(max, self.after, self.reach))
        if not any(self.before) and not any(after):
            return x
        shape = [b + n + a for b, n, a in zip(self.before, self.size, after, strict=True)]
        padded: Array = namespace(x).full((*x.shape[:2], *shape), fill, x.dtype)
        padded[self.interior] = x
        return padded

    @property
    def interior(self) -> tuple[slice, ...]:
        """Where the data lies in the padded (N, C, ...) array."""
        return (slice(None), slice(None), *(slice(b, b + n) for b, n in zip(self.before, self.size, strict=True)))

    def views(self, padded: Array) -> Array:
        """All windows of a padded (N, C, ...) array, as a view of shape (N, C, *kernel, *output)."""
        spatial = padded.strides[2:]
        windows: Array = namespace(padded).lib.stride_tricks.as_strided(
            padded,
            (*padded.shape[:2], *self.kernel, *self.output),
            (
                *padded.strides[:2],
                *(b * d for b, d in zip(spatial, self.dilations, strict=True)),
                *(b * s for b, s in zip(spatial, self.strides, strict=True)),
            ),
        )
        return windows

    def slices(self) -> Iterator[tuple[slice, ...]]:
        """For every tap in row-major order, where it falls in the padded (N, C, ...) array, over all outputs."""
        for tap in itertools.product(*map(range, self.kernel)):
            axes = zip(tap, self.dilations, self.output, self.strides, strict=True)
            spans = (slice(t * d, t * d + max(0, (o - 1) * s + 1), s) for t, d, o, s in axes)
            yield (slice(None), slice(None), *spans)


def _count(n: int, extent: int, stride: int, before: int, after: int, *, ceil: bool) -> int:
    span = n + before + after - extent
    if not ceil:
        return span // stride + 1
    outputs = -(-span // stride) + 1
    return outputs - 1 if (outputs - 1) * stride >= n + before else outputs
