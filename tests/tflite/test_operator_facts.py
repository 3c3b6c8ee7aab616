"""The table of operator facts, and what a model finds through it: who computes a tensor, and from what."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_handmade import Op, T, write
from tflite_seeds import branching, looping, network

from edgepipe.tflite import arena_plan, macs, reader
from edgepipe.tflite.operator_facts import TRAITS_BY_OPERATOR, OperatorTraits, traits_of

CONVOLUTIONS = {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"}


def _operators_with(fact: str) -> set[str]:
    return {name for name, facts in TRAITS_BY_OPERATOR.items() if getattr(facts, fact)}


@pytest.mark.parametrize(
    ("fact", "names"),
    [
        ("filter_layout", {*CONVOLUTIONS, "CONV_3D", "FULLY_CONNECTED"}),
        ("is_conv_2d", {"CONV_2D", "DEPTHWISE_CONV_2D"}),
        ("reports_sparsity", {*CONVOLUTIONS, "FULLY_CONNECTED"}),
        ("is_per_channel", CONVOLUTIONS),
        ("is_lookup", {"GATHER", "GATHER_ND", "EMBEDDING_LOOKUP"}),
        ("passes_values", {"QUANTIZE", "DEQUANTIZE", "RESHAPE"}),
        ("keeps_state", {"VAR_HANDLE", "ASSIGN_VARIABLE", "CALL_ONCE"}),
        ("body_option_names", {"IF", "WHILE", "CALL_ONCE"}),
    ],
)
def test_operators_with_a_fact(fact: str, names: set[str]) -> None:
    assert _operators_with(fact) == names


def test_the_schema_has_every_operator_and_body_option() -> None:
    assert set(TRAITS_BY_OPERATOR) <= set(vars(schema.BuiltinOperator))
    options = {"IF": schema.IfOptionsT, "WHILE": schema.WhileOptionsT, "CALL_ONCE": schema.CallOnceOptionsT}
    for name, option_table in options.items():
        assert set(traits_of(name).body_option_names) == set(vars(option_table()))


def test_facts_do_not_contradict_each_other() -> None:
    for name, facts in TRAITS_BY_OPERATOR.items():
        assert facts != OperatorTraits(), f"{name} has the defaults only"
        assert set(facts.kernel_positions) <= set(facts.parameter_positions), name
        if facts.filter_layout is not None:
            assert (facts.kernel_positions, facts.parameter_positions) == (
                (1,),
                (1, facts.filter_layout.bias_position),
            ), name
        assert facts.filter_layout is not None or not (
            facts.is_conv_2d or facts.reports_sparsity or facts.is_per_channel
        )
        assert not (facts.has_uncounted_macs and name in macs.MAC_RULES), name


def test_operators_not_in_the_table_have_the_defaults() -> None:
    assert traits_of("ADD") == traits_of("MyFft") == OperatorTraits()
    assert not any(getattr(traits_of("ADD"), field.name) for field in fields(OperatorTraits))


def test_producers_are_the_operators_that_compute_a_tensor(tmp_path: Path) -> None:
    model = reader.read(network(tmp_path / "m.tflite"))
    assert list(model.producer_by_key.values()) == list(model.operators)  # each has one output here
    for key, operator in model.producer_by_key.items():
        assert key in [tensor.key for tensor in operator.outputs if tensor is not None]
    assert model.producer_by_key[model.outputs[0].key] is model.operators[-1]
    assert not any(tensor.key in model.producer_by_key for tensor in (*model.inputs, *model.parameter_tensors))


@pytest.mark.parametrize("write_model", [branching, looping])
def test_producers_keep_subgraphs_apart(tmp_path: Path, write_model: Callable[[Path], Path]) -> None:
    model = reader.read(write_model(tmp_path / "m.tflite"))
    assert {key[0] for key in model.producer_by_key} == {0, 1, 2}
    assert all(operator.subgraph_index == key[0] for key, operator in model.producer_by_key.items())
    assert len(model.producer_by_key) == len(model.operators)
    assert arena_plan.plan_arena(model).peak_bytes > 0  # it follows `body_options`


def _read_chain(path: Path, ops: list[Op], *constants: T) -> reader.Model:
    names = dict.fromkeys(name for op in ops for name in (*op.inputs, *op.outputs))
    tensors = [*constants, *(T(name, (2, 2)) for name in names if name not in {t.name for t in constants})]
    return reader.read(write(path, tensors, ops, ["x"], ["y"]))


def test_a_constant_is_found_behind_dequantize_only(tmp_path: Path) -> None:
    half = T("half", (2, 2), "float16", np.ones((2, 2), np.float16))
    ops = [Op("DEQUANTIZE", ("half",), ("w",)), Op("ABS", ("half",), ("a",)), Op("FULLY_CONNECTED", ("x", "w"), ("y",))]
    model = _read_chain(tmp_path / "m.tflite", ops, half)
    tensors = {tensor.name: tensor for tensor in model.tensors}
    assert model.find_constant(tensors["half"]) is model.find_constant(tensors["w"]) is tensors["half"]
    assert model.find_constant(tensors["a"]) is model.find_constant(tensors["x"]) is model.find_constant(None) is None


@pytest.mark.parametrize(
    ("ops", "source"),
    [
        ([Op("SOFTMAX", ("x",), ("y",))], "SOFTMAX"),
        ([Op("SOFTMAX", ("x",), ("a",)), Op("RESHAPE", ("a",), ("b",)), Op("QUANTIZE", ("b",), ("y",))], "SOFTMAX"),
        ([Op("SOFTMAX", ("x",), ("a",)), Op("ABS", ("a",), ("y",))], "ABS"),
        ([Op("DEQUANTIZE", ("x",), ("y",))], None),
        ([Op("RESHAPE", ("y",), ("y",))], "RESHAPE"),  # a damaged file: an operator that reads what it writes
    ],
)
def test_the_source_of_an_output_is_found_behind_what_passes_values(tmp_path: Path, ops: list[Op], source: Any) -> None:
    ops = ops if any("x" in op.inputs for op in ops) else [*ops, Op("ABS", ("x",), ("z",))]
    model = _read_chain(tmp_path / "m.tflite", ops)
    operator = model.find_source_operator(model.outputs[0])
    assert (operator.name if operator is not None else None) == source
