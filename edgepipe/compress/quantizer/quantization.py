"""Quantization of a float .tflite by any scheme: decomposition, ranges, then the integer model."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import final

from edgepipe.compress.agreement import Agreement, measure_agreement
from edgepipe.compress.fidelity import Fidelity, measure_fidelity
from edgepipe.compress.quantizer import equality_sentinels, flatbuffer_edits, recipes
from edgepipe.compress.quantizer.activation_calibration import (
    ActivationRange,
    ActivationRanges,
    calibrate,
    unmasked_values,
)
from edgepipe.compress.quantizer.coarse_parts import joined_part_notes
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.integer_inputs import integer_inputs
from edgepipe.compress.quantizer.integer_support import float_reason_notes
from edgepipe.compress.quantizer.lstm_state_ranges import add_state_ranges
from edgepipe.compress.quantizer.mask_sentinels import extend_masked_ranges, masked_tensor_names
from edgepipe.compress.quantizer.mutable_graph import BitWidthPolicy, MutableGraph
from edgepipe.compress.quantizer.op_decomposition import calibrate_decomposed, decomposed_model
from edgepipe.compress.quantizer.output_bias import OutputBiasCorrection
from edgepipe.compress.quantizer.output_splits import (
    OutputSplit,
    find_output_splits,
    split_graph,
    swap_output_levels,
)
from edgepipe.compress.quantizer.recipes import LitertRecipe, RecipeRule
from edgepipe.compress.quantizer.trained_ranges import TrainedRanges, without_fake_quant
from edgepipe.compress.schemes import (
    SCHEMES,
    ActivationCalibration,
    InterfaceType,
    RecurrentForm,
    SchemeName,
    check_split_outputs,
    check_streaming,
    interface_types,
)
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.core.progress import report_step
from edgepipe.core.units import plural
from edgepipe.tflite.interpreter import list_calls
from edgepipe.tflite.model import Model, Operator
from edgepipe.tflite.reader import read
from edgepipe.tflite.split_outputs import embed_split_outputs
from edgepipe.tflite.stream_ports import own_inputs, read_stream_ports

NOTHING_SPLIT = (
    "split_outputs: nothing is split: no output is a concatenation in 8 bits with a part of fewer than 20 of its steps"
)

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
    streaming: int | None = None  # steps a call of a model whose states are inputs and outputs; None: no stream
    split_outputs: bool = False  # outputs that join parts of very different range become one output for each part
    kind_rules: Sequence[RecipeRule] = ()  # for kinds of operators, after those of the scheme
    keep_open_batch: bool = False  # of a .tflite: else calibrated models get a batch of 1

    def __post_init__(self) -> None:
        """Raise an `InputError` for a scheme that is unknown, or does not support the types or the other options."""
        _ = self.io_types
        check_streaming(self.scheme, self.recurrent, self.streaming)
        check_split_outputs(self.scheme, self.split_outputs, self.streaming)

    @property
    def io_types(self) -> tuple[str, str]:
        """The types of inputs and outputs."""
        return interface_types(self.scheme, self.input_type, self.output_type)


@final
@dataclass(frozen=True)
class QuantizedModel:
    """The bytes of a .tflite, notes on its quantization, and how far it is from the float model."""

    content: bytes
    notes: tuple[str, ...] = ()
    join_notes: tuple[str, ...] = ()  # on concatenations with parts that get few codes
    output_splits: tuple[OutputSplit, ...] = ()
    tensor_by_fake_quant: Mapping[str, str] = field(default_factory=dict)  # what each fake-quant has become, by name
    fidelity: Fidelity | None = None  # None: not measured
    agreement: Agreement | None = None  # with the fake-quant model; None: there is none, or it was not measured


def needs_samples(request: QuantizationRequest) -> bool:
    """Whether activation ranges are calibrated on representative samples."""
    if request.scheme == "recipe":
        return recipes.needs_calibration(request.recipe or [])
    return SCHEMES[request.scheme].needs_calibration


def quantize_tflite(
    lite: Model,
    request: QuantizationRequest,
    feeds: list[Array] | None,
    held_out_feeds: list[Array] | None = None,
) -> QuantizedModel:
    """Quantize the float model `lite`.

    Args:
        lite: the float .tflite; the ranges of its fake-quant, if it has any, override those of samples.
        request: scheme, types, calibration and what stays in float.
        feeds: representative samples of each input, in order, (samples, ...); None for schemes without calibration. Of
            a streaming model, whole sequences of the inputs that are no states.
        held_out_feeds: samples of each input that do not calibrate, on which the result is compared with `lite`.

    Raises:
        InputError: no samples for a scheme that needs them, or a model that the quantizer does not support.
    """
    sample_count = 0 if feeds is None else len(feeds[0])
    if feeds is not None and read_stream_ports(lite) is not None:
        feeds = list_calls(lite, feeds)
    with without_fake_quant(lite) as (float_lite, trained_ranges):
        if request.scheme == "float32":
            return QuantizedModel(float_lite.content)
        if not float_lite.operators:
            raise InputError("the model has no operators, so there is nothing to quantize")
        quantized_model = (
            _quantize_activations(float_lite, request, feeds, trained_ranges, sample_count)
            if needs_samples(request)
            else _quantize_weights(float_lite, request)
        )
    with _split_model(lite, quantized_model.output_splits) as split_lite:
        compared_model = _compare(split_lite, quantized_model, request.scheme, held_out_feeds)
    split_outputs = tuple(split.output for split in compared_model.output_splits)
    return replace(
        compared_model,
        content=embed_split_outputs(compared_model.content, split_outputs),
        notes=(*compared_model.notes, *_part_notes(compared_model)),
    )


@contextmanager
def _split_model(lite: Model, splits: tuple[OutputSplit, ...]) -> Iterator[Model]:
    """The float model with outputs split as in the integer model, to compare them; exists inside the block only."""
    if not splits:
        yield lite
        return
    graph = MutableGraph(flatbuffer_edits.unpack_model(lite.content))
    split_graph(graph, splits)
    content = flatbuffer_edits.pack_model(flatbuffer_edits.canonicalize(graph.model))
    with flatbuffer_edits.temporary_tflite(content, lite.path.name) as path:
        yield read(path)


def _part_notes(model: QuantizedModel) -> tuple[str, ...]:
    """On parts of one tensor that get few codes; channels are counted where no concatenation explains them."""
    outputs = model.fidelity.outputs if model.fidelity is not None else ()
    return model.join_notes or tuple(note for output in outputs for note in output.notes)


def _quantize_weights(lite: Model, request: QuantizationRequest) -> QuantizedModel:
    integer_model = recipes.quantize_with_recipe(lite.content, _build_rules(request, lite), None)
    return QuantizedModel(integer_model.content, tuple(recipes.unmatched_rule_notes(request.recipe or [], lite)))


def _quantize_activations(
    lite: Model,
    request: QuantizationRequest,
    feeds: list[Array] | None,
    trained_ranges: TrainedRanges,
    sample_count: int,
) -> QuantizedModel:
    rules = _build_rules(request, lite)
    with (
        integer_inputs(lite, feeds, recipes.float_inputs(rules, lite)) as integers,
        decomposed_model(integers.model, _int8_policy(recipes.bit_width_policy(rules))) as model,
    ):
        rules = [*rules, *recipes.float_input_rules(integers.fractional_names)]
        activation_ranges = replace(
            _find_ranges(rules, model, request, feeds, trained_ranges), sample_count=sample_count
        )
        ranges, policy = activation_ranges.by_tensor, recipes.bit_width_policy(rules)
        graph = recipes.decompose_with_recipe(model.content, rules, ranges)
        splits, ranges = (
            _split_outputs(graph, ranges, policy, trained_ranges) if request.split_outputs else ([], ranges)
        )
        index = GraphIndex(graph)
        float_notes = float_reason_notes(index, policy, ranges)
        joined_names = {name for number in range(len(index.operators)) for name in index.output_names(number)}
        joined_names -= {split.join_tensor for split in splits}
        integer_model = recipes.write_with_recipe(graph, rules, ranges)
        content = integer_model.content
        if not trained_ranges.by_tensor:  # training has seen the errors of rounding
            content = OutputBiasCorrection(model, feeds or []).apply(integer_model)
        notes = (
            *integers.notes,
            *trained_ranges.notes(),
            *activation_ranges.notes(),
            *recipes.unmatched_rule_notes(request.recipe or [], model),
            *float_notes,
            *(split.note() for split in splits),
            *([NOTHING_SPLIT] if request.split_outputs and not splits else []),
        )
        join_notes = tuple(joined_part_notes(model, ranges, policy, joined_names))
    tensor_by_fake_quant = trained_ranges.locate(integer_model.name_by_float_tensor)
    return QuantizedModel(content, notes, join_notes, tuple(splits), tensor_by_fake_quant)


def _split_outputs(
    graph: MutableGraph, ranges: Mapping[str, ActivationRange], policy: BitWidthPolicy, trained_ranges: TrainedRanges
) -> tuple[list[OutputSplit], dict[str, ActivationRange]]:
    """Split the outputs of `graph`, in place, that join parts of very different range; `ranges` with new tensors."""
    if trained_ranges.by_tensor:
        raise InputError(
            "split_outputs: a fake-quant model was trained with one range for each output; make the parts outputs of "
            "the model before it is trained, or convert the float model"
        )
    all_ranges = {**ranges, **swap_output_levels(graph, ranges, policy)}
    splits = find_output_splits(graph, all_ranges, policy)
    split_graph(graph, splits)
    return splits, all_ranges


def _compare(
    lite: Model, quantized_model: QuantizedModel, scheme: str, held_out_feeds: list[Array] | None
) -> QuantizedModel:
    """With the fidelity to the float model `lite`, and the agreement with its fake-quant in int8."""
    if not held_out_feeds:
        return quantized_model
    samples = dict(zip(own_inputs(lite), held_out_feeds, strict=True))
    content, tensor_by_fake_quant = quantized_model.content, quantized_model.tensor_by_fake_quant
    has_agreement = scheme == "int8" and bool(tensor_by_fake_quant)
    return replace(
        quantized_model,
        fidelity=measure_fidelity(lite, content, samples),
        agreement=measure_agreement(lite, content, tensor_by_fake_quant, samples) if has_agreement else None,
    )


def _int8_policy(policy: BitWidthPolicy) -> BitWidthPolicy:
    """8 bits wherever `policy` wants integers: ranges are calibrated on that model, so that all schemes share them."""
    return lambda kind, output_names: None if policy(kind, output_names) is None else 8


def _find_ranges(
    rules: LitertRecipe,
    lite: Model,
    request: QuantizationRequest,
    feeds: list[Array] | None,
    trained_ranges: TrainedRanges,
) -> ActivationRanges:
    def find_model_ranges(model: Model) -> ActivationRanges:
        return collect_ranges(model, request, feeds, trained_ranges)

    return (
        calibrate_decomposed(lite, find_model_ranges)
        if recipes.has_int16_activations(rules)
        else find_model_ranges(lite)
    )


def collect_ranges(
    lite: Model, request: QuantizationRequest, feeds: list[Array] | None, trained_ranges: TrainedRanges
) -> ActivationRanges:
    """The ranges of all activations of `lite`.

    Args:
        lite: the float .tflite.
        request: scheme and calibration method.
        feeds: representative samples of each input, in order, (samples, ...).
        trained_ranges: ranges learned in training; they override the calibrated ones.

    Raises:
        InputError: no samples, or ones that do not fit.
    """
    if feeds is None:
        raise InputError(
            f"scheme {request.scheme} needs representative samples to calibrate activations, found none; give some"
        )
    report_step(f"calibrating activations on {plural(len(feeds[0]), 'sample')}")
    index = GraphIndex(MutableGraph(flatbuffer_edits.unpack_model(lite.content)))
    activation_ranges = _calibrate_real_values(lite, index, request, feeds)
    remaining_shifts = {
        name: shift for name, shift in activation_ranges.shifts.items() if name not in trained_ranges.by_tensor
    }
    return replace(
        activation_ranges,
        by_tensor=trained_ranges.override(index, activation_ranges.by_tensor),
        shifts=remaining_shifts,
    )


def _calibrate_real_values(
    lite: Model, index: GraphIndex, request: QuantizationRequest, feeds: list[Array]
) -> ActivationRanges:
    """The ranges of what stands for numbers, wide enough for masks and compared constants to saturate beyond them."""
    compared_filters = equality_sentinels.value_filters(index)
    activation_ranges = calibrate(
        lite,
        dict(zip(lite.inputs_by_name, feeds, strict=True)),
        request.calibration,
        {**dict.fromkeys(masked_tensor_names(index), unmasked_values), **compared_filters},
        compared_filters.keys(),
    )
    samples = dict(zip(lite.inputs_by_name, feeds, strict=True))
    ranges_with_masks = extend_masked_ranges(index, activation_ranges.by_tensor)
    separated_ranges = equality_sentinels.separate_equal_values(
        index,
        add_state_ranges(index, lite, samples, ranges_with_masks),
        {tensor.name: feed for tensor, feed in zip(lite.inputs, feeds, strict=True)},
    )
    return replace(activation_ranges, by_tensor=separated_ranges.by_tensor, range_notes=separated_ranges.notes)


def _build_rules(request: QuantizationRequest, lite: Model) -> LitertRecipe:
    """The recipe for the whole model; the interface types hold whatever stays in float."""
    float_rules = recipes.keep_float_rules(request.keep_float(lite)) if request.keep_float is not None else []
    if request.scheme == "recipe":
        io_rules = recipes.io_rules(request.input_type, request.output_type)
        return [*(request.recipe or []), *request.kind_rules, *float_rules, *io_rules]
    io_rules = recipes.io_rules(*request.io_types) if SCHEMES[request.scheme].needs_calibration else []
    return [*recipes.scheme_recipe(request.scheme), *request.kind_rules, *float_rules, *io_rules]
