"""A configured strategy in one word of the command line: `name`, or `name:knob=value,knob=value`.

    --runtime ort:graph_optimization=basic      --metric token-accuracy:ignore=-1      --exporter qdq:opset=19

A part without `=` continues the value before it: `ort:providers=CUDAExecutionProvider,CPUExecutionProvider` is a list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pumice.errors import KnobError, nearest
from pumice.registry import registry

if TYPE_CHECKING:
    from pumice.strategy import Strategy

S = TypeVar("S", bound="Strategy")


def configured(base: type[S], text: str) -> S:
    """The strategy that the text names, with its knobs.

    Raises:
        PluginError: it is not installed; the nearest is named.
        KnobError: an unknown knob or a value outside its domain.
    """
    name, _, rest = text.partition(":")
    strategy = registry().get(base, name)
    knobs, values = strategy.knobs(), {}
    for key, value in _assignments(rest, text):
        if key not in knobs:
            raise KnobError(f"{strategy.kind} '{name}' has no knob '{key}'{nearest(key, knobs)}")
        values[key] = knobs[key].parse(value)
    return strategy.configure(registry().resolve(strategy, values))


def _assignments(rest: str, text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if equals:
            found.append((key.strip().replace("-", "_"), value.strip()))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]},{part}")
        else:
            raise KnobError(f"'{text}' does not say which knob '{part}' is for: write name:knob=value")
    return found
