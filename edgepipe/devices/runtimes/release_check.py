"""Whether a release of a runtime runs a model, operator by operator."""

from edgepipe.core.metric import Finding, Judgement
from edgepipe.devices.runtimes.abilities import Ability, KernelState, find_form_ability
from edgepipe.devices.runtimes.operator_form import OperatorForm, operator_form
from edgepipe.devices.runtimes.releases import Release
from edgepipe.tflite.model import Model, Operator

RULE_NAME = "release"
MAX_LOCATIONS = 3  # operators of one form that a finding names
SUGGESTION_BY_STATE = {
    KernelState.REFUSES: "convert with --runtime '{release}', or use a newer release",
    KernelState.CRASHES: "convert with --runtime '{release}', or use a newer release",
    KernelState.WRONG: "convert with --runtime '{release}', or use a newer release",
    KernelState.UNKNOWN: "run the model there and compare the outputs",
}


def check_release(release: Release, model: Model) -> list[Finding]:
    """One finding for each form of operator that `release` does not run, or that nothing is known of."""
    return [
        _finding(release, operators, ability)
        for form, operators in operators_by_form(model).items()
        if (ability := find_form_ability(release, form)).state is not KernelState.RUNS
    ]


def operators_by_form(model: Model) -> dict[OperatorForm, list[Operator]]:
    """The builtin operators of a model; custom ones are matters of how a runtime was built."""
    operators: dict[OperatorForm, list[Operator]] = {}
    for operator in model.operators:
        if not operator.is_custom:
            operators.setdefault(operator_form(operator), []).append(operator)
    return operators


def _finding(release: Release, operators: list[Operator], ability: Ability) -> Finding:
    return Finding(
        rule=RULE_NAME,
        place=describe_locations(operators),
        observed=f"{ability.observed} ({ability.provenance})",
        suggestion=SUGGESTION_BY_STATE[ability.state].format(release=release),
        judgement=Judgement.UNKNOWN if ability.state is KernelState.UNKNOWN else Judgement.NOT_MET,
    )


def describe_locations(operators: list[Operator]) -> str:
    """The first operators, and how many more there are."""
    locations = ", ".join(operator.location for operator in operators[:MAX_LOCATIONS])
    rest = len(operators) - MAX_LOCATIONS
    return f"{locations} and {rest} more" if rest > 0 else locations
