"""Models: load, check, simplify, save, measure the size, and ask questions of the graph.

A model is an `onnx_ir.Model`; the file on disk stays ordinary ONNX. Importing this package imports `onnx_ir`.
"""

import logging

from pumice.model.checking import check
from pumice.model.graph import (
    add_initializer,
    attribute,
    clone,
    constant,
    consumers,
    fingerprint,
    forget_names,
    fresh_name,
    is_constant,
    nodes,
    remove_unread,
    replace_input,
    replace_value,
    values,
)
from pumice.model.loading import infer_shapes, load
from pumice.model.saving import save
from pumice.model.simplify import simplify
from pumice.model.weights import Sizes, size, weight_of, weights_of

__all__ = [
    "Sizes",
    "add_initializer",
    "attribute",
    "check",
    "clone",
    "constant",
    "consumers",
    "fingerprint",
    "forget_names",
    "fresh_name",
    "infer_shapes",
    "is_constant",
    "load",
    "nodes",
    "remove_unread",
    "replace_input",
    "replace_value",
    "save",
    "simplify",
    "size",
    "values",
    "weight_of",
    "weights_of",
]

for _library in ("onnx_ir", "onnxscript"):  # their warnings repeat, on standard error, what our sentences say
    logging.getLogger(_library).addHandler(logging.NullHandler())
