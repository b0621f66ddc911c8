"""Students grown from a description: a family and its sizes, in TOML.

    family = "resnet"               resnet, mobilenet: pictures        bert, gpt, lstm: sequences of tokens
    widths = [12, 24, 32]

What a description does not say comes from the teacher: names, types and sizes of inputs and outputs, and how many words
there are. Every family is a class whose fields are the keys of its description.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import onnx_ir as ir

from pumice.distil.architectures.network import Network
from pumice.distil.architectures.pictures import Mobilenet, Resnet, classified
from pumice.distil.architectures.sequences import Bert, Gpt, Lstm, answered
from pumice.distil.compatibility import vocabularies
from pumice.errors import ModelError, nearest
from pumice.model import infer_shapes
from pumice.toml import read_table

FAMILIES: Mapping[str, Any] = MappingProxyType(
    {"resnet": Resnet, "mobilenet": Mobilenet, "bert": Bert, "gpt": Gpt, "lstm": Lstm}
)


def grown(path: Path, like: ir.Model, seed: int = 0) -> ir.Model:
    """The network that a file describes, with the inputs and outputs of another and random weights.

    Raises:
        ModelError: a file that cannot be read, an unknown family or key, a size that makes no sense, or a family that
            does not fit the inputs and outputs.
    """
    try:
        table = read_table(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the network that '{path}' describes: {error}; give a TOML file") from None
    return built(table, like, seed, f"'{path}'")


def built(table: Mapping[str, Any], like: ir.Model, seed: int | None = 0, where: str = "the description") -> ir.Model:
    """As `grown`, from the structure that the TOML has; without a seed, an outline whose weights take no memory."""
    sizes = dict(table)
    family = sizes.pop("family", None)
    if family not in FAMILIES:
        raise ModelError(f"{where} names no family that is known: add family = '...'{nearest(str(family), FAMILIES)}")
    kind = FAMILIES[family]
    known = {field.name: field for field in attrs.fields(kind)}
    for key, value in sizes.items():
        if key not in known:
            raise ModelError(f"{where}: the family {family} has no size '{key}'{nearest(key, known)}")
        _require_sizes(value, isinstance(known[key].default, tuple), f"{where}: {key}")
    if "vocabulary" in known and not sizes.get("vocabulary"):
        sizes["vocabulary"] = next(iter(vocabularies(like).values()), 0)
    described = kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in sizes.items()})
    _require_fit(described, family, like, where)
    inputs = [value for value in like.graph.inputs if value.name not in like.graph.initializers]
    net = Network(family, inputs, seed)
    head = classified if described.inputs == "picture" else answered
    y, width = described.body(net, net.inputs[0])
    return infer_shapes(net.finished(head(net, y, width, like.graph.outputs), like.graph.outputs))


def _require_sizes(value: Any, several: bool, where: str) -> None:
    numbers = value if several and isinstance(value, list) and value else [value]
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
        wanted = "a list of whole numbers" if several else "a whole number"
        raise ModelError(f"{where} = {value!r} must be {wanted} of 1 at least")


def _require_fit(described: Any, family: str, like: ir.Model, where: str) -> None:
    """Whether the inputs and outputs are what the family computes with."""
    first = like.graph.inputs[0]
    rank = len(first.shape or ())
    if described.inputs == "picture":
        fits = rank == 4 and isinstance(first.shape[1], int)  # type: ignore[index]
        ranks = {2}
    else:
        fits = rank == 2 and first.dtype is not None and first.dtype.is_integer() and described.vocabulary > 0
        ranks = {2, 3}
    sized = all(len(y.shape or ()) in ranks and isinstance(y.shape[-1], int) for y in like.graph.outputs)  # type: ignore[index]
    if not fits or not sized:
        asked = "pictures (N, channels, height, width)" if described.inputs == "picture" else "token numbers (N, T)"
        raise ModelError(
            f"{where}: the family {family} is for {asked} and outputs of a known width, but '{first.name}' is "
            f"{first.shape}: choose another family{nearest('', FAMILIES)}"
        )
    if getattr(described, "heads", 1) and getattr(described, "width", 0) % getattr(described, "heads", 1):
        raise ModelError(
            f"{where}: width {described.width} cannot be shared by {described.heads} heads: make it a multiple"
        )
