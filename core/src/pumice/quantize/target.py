"""Target profiles: what a runtime computes with integers, stated as data (`targets/*.toml`), never as code.

A profile may name a `base`; it then states only what differs from it.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import attrs

from pumice.errors import PluginError, nearest

if TYPE_CHECKING:
    import numpy as np

Mode = Literal["static", "dynamic", "weight-only"]
ChannelScales = Literal["everywhere", "free", "none"]


@attrs.frozen(kw_only=True)
class LayerRule:
    """How a runtime computes one type of layer that has constant weights."""

    modes: tuple[Mode, ...] = attrs.field(converter=tuple)
    """Ways it can be quantized, best first."""
    output: Literal["required", "optional", "none"]
    """Whether the integer kernel must, may or cannot write integers."""


@attrs.frozen(kw_only=True)
class Target:
    """One runtime's quantization profile."""

    name: str
    summary: str
    activation_type: np.dtype[Any]
    activation_symmetric: bool
    channel_scales: ChannelScales
    """Where activations may have a factor per channel: `everywhere` it pays, only where it is `free`, or nowhere."""
    weight_bits: int
    per_channel: bool
    bias: Literal["int32", "float32"]
    """What integer layers add: an integer in units of their products, or a real number."""
    layers: Mapping[str, LayerRule]
    recurrent: Mapping[str, Mode]
    """How recurrent layers are quantized: `dynamic` where there is an integer kernel for them."""
    pass_through: frozenset[str]
    arithmetic: frozenset[str]
    fused_sums: bool
    """A convolution that writes real numbers adds an integer tensor to them in the same kernel."""
    hard_swish: bool
    """Between integers it is worth computing as a sum and a product of integers."""
    absorbed: frozenset[str]
    pair_saturation: bool
    """The CPU adds pairs of 8-bit products in 16 bits, with saturation."""

    @classmethod
    def named(cls, name: str) -> Target:
        """A profile that ships with pumice.

        Raises:
            PluginError: there is none of that name; the nearest is named.
        """
        if name not in names():
            raise PluginError(f"there is no target profile '{name}'{nearest(name, names())}")
        return _read(name)


def names() -> list[str]:
    """The profiles that ship with pumice."""
    folder = resources.files("pumice.quantize") / "targets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


@functools.cache
def _read(name: str) -> Target:
    import numpy as np  # the names of the profiles are knobs' choices: reading those stays light

    table = _table(name)
    return Target(
        name=name,
        summary=table["summary"],
        activation_type=np.dtype(table["activation"]["type"]),
        activation_symmetric=table["activation"]["symmetric"],
        channel_scales=table["activation"]["channel_scales"],
        weight_bits=table["weight"]["bits"],
        per_channel=table["weight"]["per_channel"],
        bias=table["weight"]["bias"],
        layers=MappingProxyType({op: LayerRule(**rule) for op, rule in table["layers"].items()}),
        recurrent=MappingProxyType(table["recurrent"]),
        pass_through=frozenset(table["pass_through"]["ops"]),
        arithmetic=frozenset(table["arithmetic"]["ops"]),
        fused_sums=table["arithmetic"]["fused_sums"],
        hard_swish=table["arithmetic"]["hard_swish"],
        absorbed=frozenset(table["absorbed"]["ops"]),
        pair_saturation=table["pair_saturation"],
    )


def _table(name: str) -> dict[str, Any]:
    source = resources.files("pumice.quantize") / "targets" / f"{name}.toml"
    table = tomllib.loads(source.read_text(encoding="utf-8"))
    return _over(_table(table.pop("base")), table) if "base" in table else table


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, table by table."""
    both = {
        key: _over(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in changes.items()
    }
    return base | both
