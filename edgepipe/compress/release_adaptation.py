"""Conversion for one release of a runtime: what it does not run right is written in a form that it does.

Two means, tried in this order: a lower operator version, where the release's kernel of that version is right for these
tensors; and simpler weights, per tensor instead of per channel, or in float where the operator computes in float. What
neither helps is refused, with the operators and what the release does with them.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
from edgepipe.compress.quantizer.operator_codes import with_versions
from edgepipe.compress.quantizer.recipes import RecipeRule, make_rule, operation_name, per_tensor_config, scheme_config
from edgepipe.core.arrays import Arrays
from edgepipe.core.errors import InputError
from edgepipe.devices.runtimes.abilities import KernelState, find_form_ability
from edgepipe.devices.runtimes.operator_form import PER_CHANNEL, OperatorForm
from edgepipe.devices.runtimes.release_check import describe_locations, operators_by_form
from edgepipe.devices.runtimes.releases import Release
from edgepipe.tflite.model import Operator
from edgepipe.tflite.reader import read

if TYPE_CHECKING:
    from edgepipe.compress.conversion import ConvertedModel
    from edgepipe.compress.quantizer.quantization import QuantizationRequest

HYBRID_WEIGHT_TYPES = frozenset({"int8", "int4"})
BROKEN = frozenset({KernelState.WRONG, KernelState.REFUSES, KernelState.CRASHES})
Converter = Callable[["QuantizationRequest"], "ConvertedModel"]
OperatorsByForm = dict[OperatorForm, list[Operator]]


def convert_model_for(
    model: Any, request: "QuantizationRequest", samples: Arrays | None, held_out: Arrays | None, release: Release | None
) -> "ConvertedModel":
    """What `conversion.convert_model` gives; for a release, in forms that it runs right.

    Raises:
        InputError: as `convert_model` and `convert_for_release`.
    """
    from edgepipe.compress.conversion import convert_model

    def convert(request: "QuantizationRequest") -> "ConvertedModel":
        return convert_model(model, request, samples, held_out)

    return convert(request) if release is None else convert_for_release(convert, request, release)


def convert_for_release(convert: Converter, request: "QuantizationRequest", release: Release) -> "ConvertedModel":
    """What `convert` makes of a request, in forms that `release` runs right.

    Raises:
        InputError: operators that the release does not run in any form that edgepipe writes.
    """
    rules: list[RecipeRule] = []
    notes: list[str] = []
    while True:
        converted_model = convert(replace(request, kind_rules=tuple(rules)))
        content, version_notes = _lower_versions(converted_model.content, release)
        broken_operators = _broken_operators(content, release)
        new_rules = _simpler_rules(release, request.scheme, broken_operators, rules)
        if not new_rules:
            break
        rules += new_rules.values()
        notes += [f"for {release}: {text}" for text in new_rules]
    if broken_operators:
        raise InputError(_describe_refusal(release, broken_operators))
    unknown_notes = _unknown_notes(content, release)
    return replace(
        converted_model, content=content, notes=(*converted_model.notes, *notes, *version_notes, *unknown_notes)
    )


def _forms(content: bytes) -> OperatorsByForm:
    with temporary_tflite(content) as path:
        return operators_by_form(read(path))


def _broken_operators(content: bytes, release: Release) -> OperatorsByForm:
    return {
        form: operators
        for form, operators in _forms(content).items()
        if find_form_ability(release, form).state in BROKEN
    }


def _lower_versions(content: bytes, release: Release) -> tuple[bytes, list[str]]:
    """The model with lower versions where the release runs them right, and a note on each."""
    version_by_operator: dict[tuple[int, int], int] = {}
    notes = []
    for form, operators in _broken_operators(content, release).items():
        version = _lower_version(form, release)
        if version is not None:
            version_by_operator |= {(op.subgraph_index, op.index): version for op in operators}
            notes.append(
                f"for {release}: {describe_locations(operators)}: version {version} instead of {form.version}, whose "
                "kernel is right for these tensors there"
            )
    return with_versions(content, version_by_operator) if version_by_operator else content, notes


def _lower_version(form: OperatorForm, release: Release) -> int | None:
    """The highest lower version that the release runs right with the same tensors; None if there is none.

    It helps where the release refuses the version, and not where its kernel is wrong.
    """
    if find_form_ability(release, form).state is not KernelState.REFUSES:
        return None
    candidates: Iterable[int] = range(form.version - 1, 0, -1)
    return next(
        (v for v in candidates if find_form_ability(release, replace(form, version=v)).state is KernelState.RUNS), None
    )


def _simpler_rules(
    release: Release, scheme: str, broken_operators: OperatorsByForm, rules: list[RecipeRule]
) -> dict[str, RecipeRule]:
    """A rule for each kind of operator that a simpler form may help and that has none yet, by what it does."""
    config, new_rules = scheme_config(scheme), {}
    for form in broken_operators:
        operation = operation_name(form.name)
        if config is None or any(rule["operation"] == operation for rule in rules):
            continue
        if PER_CHANNEL in form.features and _runs_per_tensor(release, form):
            text = f"{form.name} has one scale for all its weights instead of one for each filter"
            new_rules[text] = make_rule(per_tensor_config(config), operation=operation)
        elif _is_hybrid(form):
            new_rules[f"{form.name} has float weights"] = make_rule(None, operation=operation)
    return new_rules


def _runs_per_tensor(release: Release, form: OperatorForm) -> bool:
    """Whether the release runs the operator with one scale, in any version up to that of several."""
    features = tuple(feature for feature in form.features if feature != PER_CHANNEL)
    candidates = (replace(form, features=features, version=version) for version in range(1, form.version + 1))
    return any(find_form_ability(release, candidate).state is KernelState.RUNS for candidate in candidates)


def _is_hybrid(form: OperatorForm) -> bool:
    inputs, outputs = form.types.split(" -> ")
    return outputs.startswith("float32") and bool(HYBRID_WEIGHT_TYPES & set(inputs.split()))


def _describe_refusal(release: Release, broken_operators: OperatorsByForm) -> str:
    texts = [
        f"{describe_locations(operators)}: {find_form_ability(release, form).observed}"
        for form, operators in broken_operators.items()
    ]
    kinds = " ".join(f"--keep-float-types {name}" for name in sorted({form.name for form in broken_operators}))
    return (
        f"{release} does not run what this model needs: {'; '.join(texts)}. Use a newer release, replace the layers, "
        f"or leave the operators in float ({kinds})"
    )


def _unknown_notes(content: bytes, release: Release) -> list[str]:
    return [
        f"{describe_locations(operators)}: {ability.observed}; run the model on the device and compare the outputs"
        for form, operators in _forms(content).items()
        if (ability := find_form_ability(release, form)).state is KernelState.UNKNOWN
    ]
