"""Quantization of a float .tflite by any scheme: decomposition, ranges, then the integer model."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import final

from edgepipe.compress.fidelity import Fidelity, measure_fidelity
from edgepipe.compress.quantizer import flatbuffer_edits, recipes
from edgepipe.compress.quantizer.activation_calibration import ActivationRange, ActivationRanges, calibrate
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.layer_attribution import scope_names
from edgepipe.compress.quantizer.lstm_state_ranges import add_state_ranges
from edgepipe.compress.quantizer.mask_sentinels import extend_masked_ranges, masked_tensor_names
from edgepipe.compress.quantizer.mutable_graph import BitWidthPolicy, MutableGraph
from edgepipe.compress.quantizer.op_decomposition import calibrate_decomposed, decomposed_model
from edgepipe.compress.quantizer.recipes import LitertRecipe
from edgepipe.compress.schemes import (
    SCHEMES,
    ActivationCalibration,
    InterfaceType,
    RecurrentForm,
    SchemeName,
    interface_types,
)
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.tflite.model import Model, Operator

OperatorSelector = Callable[[Model], Collection[Operator]]


@final
@dataclass(frozen=True)
class QuantizationRequest:
    """How a model is to be quantized."""

    scheme: SchemeName = "int8"
    input_type: InterfaceType | None = None
    output_type: InterfaceType | None = None
    calibration: ActivationCalibration = field(default_factory=ActivationCalibration)
    recipe: LitertRecipe | None = None  # of the scheme `recipe`
    keep_float: OperatorSelector | None = None  # which operators of the float model stay float
    recurrent: RecurrentForm = "unrolled"

    @property
    def io_types(self) -> tuple[str, str]:
        """The types of inputs and outputs.

        Raises:
            InputError: the scheme does not support them.
        """
        return interface_types(self.scheme, self.input_type, self.output_type)


@final
@dataclass(frozen=True)
class QuantizedModel:
    """The bytes of a .tflite, notes on its quantization, and how far it is from the float model."""

    content: bytes
    notes: tuple[str, ...] = ()
    fidelity: Fidelity | None = None  # None: not measured


def needs_samples(request: QuantizationRequest) -> bool:
    """Whether activation ranges are calibrated on representative samples."""
    if request.scheme == "recipe":
        return recipes.needs_calibration(request.recipe or [])
    return SCHEMES[request.scheme].needs_calibration


def quantize_tflite(
    lite: Model,
    request: QuantizationRequest,
    feeds: list[Array] | None,
    trained_ranges: Mapping[str, ActivationRange] | None = None,
    held_out_feeds: list[Array] | None = None,
) -> QuantizedModel:
    """Quantize the float model `lite`.

    Args:
        lite: the float .tflite.
        request: scheme, types, calibration and what stays in float.
        feeds: representative samples of each input, in order, (samples, ...); None for schemes without calibration.
        trained_ranges: ranges learned in training, by layer; they override those of samples. None: there are none.
        held_out_feeds: samples of each input that do not calibrate, on which the result is compared with `lite`.

    Raises:
        InputError: no samples for a scheme that needs them, or a model that the quantizer does not support.
    """
    if not lite.operators:
        raise InputError("the model has no operators, so there is nothing to quantize")
    rules, user_recipe = _build_rules(request, lite), request.recipe or []
    if not needs_samples(request):
        return QuantizedModel(
            recipes.quantize_with_recipe(lite.content, rules, None),
            tuple(recipes.unmatched_rule_notes(user_recipe, lite)),
        )
    with decomposed_model(lite, _int8_policy(recipes.bit_width_policy(rules))) as model:
        activation_ranges = _find_ranges(rules, model, request, feeds, trained_ranges or {})
        content = recipes.quantize_with_recipe(model.content, rules, activation_ranges.by_tensor)
        notes = (*activation_ranges.notes(), *recipes.unmatched_rule_notes(user_recipe, model))
    return QuantizedModel(content, notes, _compare(lite, content, held_out_feeds))


def _compare(lite: Model, content: bytes, held_out_feeds: list[Array] | None) -> Fidelity | None:
    if not held_out_feeds:
        return None
    return measure_fidelity(lite, content, dict(zip(lite.inputs_by_name, held_out_feeds, strict=True)))


def _int8_policy(policy: BitWidthPolicy) -> BitWidthPolicy:
    """8 bits wherever `policy` wants integers: ranges are calibrated on that model, so that all schemes share them."""
    return lambda kind, output_names: None if policy(kind, output_names) is None else 8


def _find_ranges(
    rules: LitertRecipe,
    lite: Model,
    request: QuantizationRequest,
    feeds: list[Array] | None,
    trained_ranges: Mapping[str, ActivationRange],
) -> ActivationRanges:
    def find_model_ranges(model: Model) -> ActivationRanges:
        return collect_ranges(model, request, feeds, trained_ranges)

    return (
        calibrate_decomposed(lite, find_model_ranges)
        if recipes.has_int16_activations(rules)
        else find_model_ranges(lite)
    )


def collect_ranges(
    lite: Model, request: QuantizationRequest, feeds: list[Array] | None, trained_ranges: Mapping[str, ActivationRange]
) -> ActivationRanges:
    """The ranges of all activations of `lite`.

    Args:
        lite: the float .tflite.
        request: scheme and calibration method.
        feeds: representative samples of each input, in order, (samples, ...).
        trained_ranges: ranges learned in training, by layer; they override the calibrated ones.

    Raises:
        InputError: no samples, or ones that do not fit.
    """
    if feeds is None:
        raise InputError(
            f"scheme {request.scheme} needs representative samples to calibrate activations, found none; give some"
        )
    samples = dict(zip(lite.inputs_by_name, feeds, strict=True))
    index = GraphIndex(MutableGraph(flatbuffer_edits.unpack_model(lite.content)))
    activation_ranges = calibrate(lite, samples, request.calibration, masked_tensor_names(index))
    ranges_with_masks = extend_masked_ranges(index, activation_ranges.by_tensor)
    ranges_with_states = add_state_ranges(index, lite, samples, ranges_with_masks)
    activation_ranges = replace(activation_ranges, by_tensor=ranges_with_states)
    trained_range_by_tensor = (
        {name: _trained_range(name, trained_ranges) for name in activation_ranges.by_tensor} if trained_ranges else {}
    )
    overriding_ranges = {name: span for name, span in trained_range_by_tensor.items() if span is not None}
    remaining_shifts = {
        name: shift for name, shift in activation_ranges.shifts.items() if name not in overriding_ranges
    }
    return replace(
        activation_ranges, by_tensor={**activation_ranges.by_tensor, **overriding_ranges}, shifts=remaining_shifts
    )


def _trained_range(tensor_name: str, trained_ranges: Mapping[str, ActivationRange]) -> ActivationRange | None:
    """The trained range of the one layer that a tensor is named after; None if there is none, or several."""
    matching_ranges = [trained_ranges[scope] for scope in scope_names(tensor_name) if scope in trained_ranges]
    return matching_ranges[0] if len(matching_ranges) == 1 else None


def _build_rules(request: QuantizationRequest, lite: Model) -> LitertRecipe:
    """The recipe for the whole model; the interface types hold whatever stays in float."""
    float_rules = recipes.keep_float_rules(request.keep_float(lite)) if request.keep_float is not None else []
    if request.scheme == "recipe":
        io_rules = recipes.io_rules(request.input_type, request.output_type)
        return [*(request.recipe or []), *float_rules, *io_rules]
    io_rules = recipes.io_rules(*request.io_types) if SCHEMES[request.scheme].needs_calibration else []
    return [*recipes.scheme_recipe(request.scheme), *float_rules, *io_rules]
