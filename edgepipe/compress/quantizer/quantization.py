"""A float .tflite quantized by any scheme: ranges first, then one of two quantizers.

int8 is TensorFlow's quantizer's work, which has the most operators; everything else, what mixes types and what stays
partly in float, is litert-quantizer's.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import final

from edgepipe.compress.quantizer import float_fallback, recipes, tensorflow_quantizer
from edgepipe.compress.quantizer.activation_calibration import Range, Ranges, calibrate
from edgepipe.compress.quantizer.layer_attribution import parts
from edgepipe.compress.quantizer.mutable_graph import Wanted
from edgepipe.compress.quantizer.op_decomposition import spelled, widened
from edgepipe.compress.quantizer.recipes import Recipe
from edgepipe.compress.schemes import SCHEMES, Calibration, Number, SchemeName, interface
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.models.native_stderr import captured_stderr
from edgepipe.tflite.model import Model, Operator

Choice = Callable[[Model], Collection[Operator]]


@final
@dataclass(frozen=True)
class Request:
    """What a model is to become."""

    scheme: SchemeName = "int8"
    input_type: Number | None = None
    output_type: Number | None = None
    calibration: Calibration = field(default_factory=Calibration)
    recipe: Recipe | None = None  # of the scheme `recipe`
    left: Choice | None = None  # which operators of the float model stay float

    @property
    def types(self) -> tuple[str, str]:
        """Of inputs and outputs.

        Raises:
            InputError: the scheme does not have them.
        """
        return interface(self.scheme, self.input_type, self.output_type)


@final
@dataclass(frozen=True)
class Quantized:
    """The bytes of a .tflite, and what is worth knowing of how it came about."""

    content: bytes
    notes: tuple[str, ...] = ()


def needs_samples(request: Request) -> bool:
    """Whether activations take ranges from representative samples."""
    if request.scheme == "recipe":
        return recipes.calibrated(request.recipe or [])
    return SCHEMES[request.scheme].calibrated


def quantized(
    lite: Model, request: Request, feeds: list[Array] | None, trained: Mapping[str, Range] | None = None
) -> Quantized:
    """The float model `lite` as `request` says; `feeds` are samples of each input, in its order.

    `trained` are ranges that training found, by layer; they go before those of samples.

    Raises:
        InputError: no samples for a scheme that needs them, or something that the quantizer does not take.
    """
    if not lite.operators:
        raise InputError("the model has no operator, it gives back what it is given: there is nothing to quantize")
    rules, asked = _rules_of(request, lite), request.recipe or []
    if not needs_samples(request):
        return Quantized(recipes.applied(lite.content, rules, None), tuple(recipes.unmatched(asked, lite)))
    with spelled(lite, _in_8(recipes.wanted(rules))) as model:
        ranges = _ranges_by(rules, model, request, feeds, trained or {})
        if request.scheme == "int8" and feeds is not None:
            done = _in_int8(model, feeds, ranges, request, rules)
        else:
            done = Quantized(recipes.applied(model.content, rules, ranges.by_tensor))
        return replace(done, notes=(*ranges.notes(), *done.notes, *recipes.unmatched(asked, model)))


def _in_8(wanted: Wanted) -> Wanted:
    """8 bits for whatever is to be integer: there ranges are taken first, so that all schemes have the same."""
    return lambda kind, outputs: None if wanted(kind, outputs) is None else 8


def _ranges_by(
    rules: Recipe, lite: Model, request: Request, feeds: list[Array] | None, trained: Mapping[str, Range]
) -> Ranges:
    def find(model: Model) -> Ranges:
        return ranges_of(model, request, feeds, trained)

    return widened(lite, find) if recipes.has_16_bits(rules) else find(lite)


def ranges_of(lite: Model, request: Request, feeds: list[Array] | None, trained: Mapping[str, Range]) -> Ranges:
    """Ranges of all activations of `lite`, those of `trained` layers from there.

    Raises:
        InputError: no samples, or ones that do not fit.
    """
    if feeds is None:
        raise InputError(
            f"scheme {request.scheme} needs representative samples to calibrate activations, found none; give some"
        )
    found = calibrate(lite, dict(zip(lite.input_names, feeds, strict=True)), request.calibration)
    known = {name: _trained(name, trained) for name in found.by_tensor} if trained else {}
    kept = {name: span for name, span in known.items() if span is not None}
    moved = {name: by for name, by in found.moved.items() if name not in kept}
    return replace(found, by_tensor={**found.by_tensor, **kept}, moved=moved)


def _trained(tensor: str, trained: Mapping[str, Range]) -> Range | None:
    """The range of the one trained layer that a tensor bears the name of."""
    found = [trained[part] for part in parts(tensor) if part in trained]
    return found[0] if len(found) == 1 else None


def _rules_of(request: Request, lite: Model) -> Recipe:
    """The recipe of a whole model; the types of inputs and outputs hold whatever is left in float."""
    left = recipes.leave(request.left(lite)) if request.left is not None else []
    if request.scheme == "recipe":
        ends = recipes.ends(request.input_type, request.output_type)
        return [*(request.recipe or []), *left, *ends]
    ends = recipes.ends(*request.types) if SCHEMES[request.scheme].calibrated else []
    return [*recipes.everything(request.scheme), *left, *ends]


MISCOMPUTED = frozenset({"ONE_HOT", "SCATTER_ND"})  # TensorFlow's quantizer stores their constants in another scale


def _in_int8(lite: Model, feeds: list[Array], ranges: Ranges, request: Request, rules: Recipe) -> Quantized:
    """`lite` in int8: by TensorFlow's quantizer, or by the rules where those leave less in float or it cannot do."""
    if why := _against_tensorflow(lite, request):
        return Quantized(recipes.applied(lite.content, rules, ranges.by_tensor), (f"int8 by litert-quantizer: {why}",))
    made = _by_tensorflow(lite, feeds, ranges.by_tensor, request)
    made = float_fallback.joined(made, lite.content, recipes.wanted(rules), ranges.by_tensor)
    if not (floating := float_fallback.floating(made)):
        return Quantized(made)
    other = recipes.applied(lite.content, rules, ranges.by_tensor)
    if (fewer := float_fallback.floating(other)) >= floating:
        return Quantized(made)
    return Quantized(
        other,
        (f"int8 by litert-quantizer: it leaves {fewer} operators in float, TensorFlow's quantizer {floating}",),
    )


def _against_tensorflow(lite: Model, request: Request) -> str:
    """Why TensorFlow's quantizer is not used; empty if nothing speaks against it."""
    if request.left is not None:
        return "TensorFlow's quantizer does not leave all kinds of operators in float that are to stay there"
    wrong = sorted({operator.name for operator in lite.operators} & MISCOMPUTED)
    return f"TensorFlow's quantizer computes {' and '.join(wrong)} wrongly" if wrong else ""


def _by_tensorflow(lite: Model, feeds: list[Array], ranges: Mapping[str, Range], request: Request) -> bytes:
    """`lite` in int8 by TensorFlow's quantizer.

    Raises:
        InputError: the quantizer fails; with what it says, if anything.
    """
    try:
        with captured_stderr():
            return tensorflow_quantizer.quantized(lite.content, feeds, ranges, request.types)
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(f"TensorFlow's quantizer failed: {said or 'without a word'}") from error
