"""Target profiles: what a runtime computes with integers, stated as data (`targets/*.toml`), never as code."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

import attrs
import numpy as np

from pumice.errors import PluginError, nearest

Mode = Literal["static", "dynamic", "weight-only"]


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
    weight_bits: int
    per_channel: bool
    layers: Mapping[str, LayerRule]
    pass_through: frozenset[str]
    arithmetic: frozenset[str]
    absorbed: frozenset[str]
    channel_scales: bool
    """Q and DQ at the border to floating point may have one scale per channel."""
    pair_saturation: bool
    """The CPU adds pairs of 8-bit products in 16 bits, with saturation."""

    @classmethod
    def named(cls, name: str) -> Target:
        """A profile that ships with pumice."""
        if name not in names():
            raise PluginError(f"there is no target profile '{name}'{nearest(name, names())}")
        return _read(name)


def names() -> list[str]:
    """The profiles that ship with pumice."""
    folder = resources.files("pumice.quantize") / "targets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


@functools.cache
def _read(name: str) -> Target:
    source = resources.files("pumice.quantize") / "targets" / f"{name}.toml"
    table = tomllib.loads(source.read_text(encoding="utf-8"))
    return Target(
        name=name,
        summary=table["summary"],
        activation_type=np.dtype(table["activation"]["type"]),
        activation_symmetric=table["activation"]["symmetric"],
        weight_bits=table["weight"]["bits"],
        per_channel=table["weight"]["per_channel"],
        layers=MappingProxyType({op: LayerRule(**rule) for op, rule in table["layers"].items()}),
        pass_through=frozenset(table["pass_through"]["ops"]),
        arithmetic=frozenset(table["arithmetic"]["ops"]),
        absorbed=frozenset(table["absorbed"]["ops"]),
        channel_scales=table["activation"].get("channel_scales", False),
        pair_saturation=table.get("pair_saturation", False),
    )
