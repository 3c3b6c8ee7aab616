"""Where one operator runs, and a rule that keeps it from running elsewhere."""

from dataclasses import dataclass
from enum import StrEnum

from edgepipe.core.metric import Evidence


class Processor(StrEnum):
    """What computes an operator."""

    NPU = "NPU"
    GPU = "GPU"
    CPU = "CPU"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True)
class OperatorPlacement:
    """Where one operator runs, why not elsewhere, and the change that would move it."""

    operator_label: str
    runs_on: Processor
    reason: str = ""
    suggestion: str = ""
    rule_name: str = ""  # the violated rule: operator, dtype, integer-only, npu-*, behind, or one of RULE_BY_NAME
    evidence: Evidence = Evidence.ESTIMATED
    basis: str = ""  # what the placement is known from
    is_open: bool = False  # nothing known settles it; `runs_on` is the likelier


@dataclass(frozen=True)
class RuleViolation:
    """A rule that an operator violates; `gpu`: the operator then runs on the GPU instead of the core."""

    rule_name: str
    reason: str
    suggestion: str
    runs_on_gpu: bool = False
