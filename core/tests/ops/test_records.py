import numpy as np
import onnx
import pytest

from pumice.errors import PluginError
from pumice.ops import Op, OpTable, core_ops, core_table
from pumice.ops.dtypes import NAMES, numpy_dtype, wide


def forward(node, x):
    return (x,)


def vjp(node, x):
    return (x,)


def test_fields_from_different_plugins_merge():
    table = OpTable.merge([("a", Op("F", forward=forward)), ("b", Op("F", vjp=vjp))])
    op = table.resolve("", "F", 5)
    assert (op.forward, op.vjp) == (forward, vjp)


def test_one_field_from_two_plugins_is_an_error_that_names_both():
    with pytest.raises(PluginError, match=r"both one and two give 'vjp' of operator ai\.onnx\.F since opset 3"):
        OpTable.merge([("one", Op("F", since=3, vjp=vjp)), ("two", Op("F", since=3, vjp=vjp))])


def test_the_newest_record_that_holds_is_taken_field_by_field():
    old, new = Op("F", since=1, forward=forward, vjp=vjp), Op("F", since=13, forward=vjp)
    table = OpTable.merge([("a", old), ("a", new)])
    assert table.resolve("", "F", 12).forward is forward
    assert table.resolve("", "F", 13).forward is vjp
    assert table.resolve("", "F", 13).vjp is vjp


def test_a_record_does_not_hold_beyond_its_last_opset():
    table = OpTable.merge([("a", Op("F", since=2, until=5, forward=forward))])
    assert [table.resolve("", "F", v) is not None for v in (1, 2, 5, 6)] == [False, True, True, False]


def test_both_spellings_of_the_default_domain_are_one():
    assert core_table().resolve("ai.onnx", "Relu", 21).forward is core_table().resolve("", "Relu", 21).forward


@pytest.mark.parametrize("op", [op for op in core_ops() if not op.domain], ids=lambda op: f"{op.op_type}-{op.since}")
def test_records_begin_where_onnx_changed_the_operator(op):
    if op.op_type != "SimplifiedLayerNormalization":  # ONNX Runtime keeps it in the default domain
        schemas = onnx.defs.get_all_schemas_with_history()
        assert op.since in {s.since_version for s in schemas if (s.domain, s.name) == ("", op.op_type)}


def test_wide_types_stay_as_they_are_and_narrow_ones_become_float32():
    widened = {
        name: wide(np.ones(2, numpy_dtype(code))).dtype.name
        for code, name in enumerate(NAMES)
        if name not in {"undefined", "string"}
    }
    narrow = {name for name in NAMES if name.startswith(("float4_", "float6_", "float8_"))} | {"float16", "bfloat16"}
    assert widened == {name: "float32" if name in narrow else name for name in widened}
