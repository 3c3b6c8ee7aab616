"""The `teacher:` option of a training stage, parsed without importing anything heavy."""

from typing import Annotated, Any, final

from pydantic import BeforeValidator, Field, model_validator

from edgepipe.core.config import Options

DISTILLATION_KINDS = ("logits", "outputs", "features", "attention", "relational")


class _LayerPairs(Options):
    layers: dict[str, str] = Field(
        default_factory=dict, description="layer of the student -> layer of the teacher; empty for the default pair"
    )


@final
class LogitMatching(Options):
    """Hinton, Vinyals, Dean 2015 (arXiv 1503.02531): alpha T^2 KL(teacher || student), both softened by T."""

    temperature: float = Field(default=4.0, gt=0, description="divisor of the logits before the softmax")
    alpha: float = Field(
        default=0.5, gt=0, le=1, description="the teacher's share of the loss; the labels get the rest"
    )


@final
class OutputMatching(Options):
    """Ba, Caruana 2014 (arXiv 1312.6184): the mean squared difference of the scores, or of a regression's outputs."""

    weight: float = Field(default=1.0, gt=0, description="weight of this loss term")


@final
class FeatureMatching(_LayerPairs):
    """FitNets: Romero et al. 2015 (arXiv 1412.6550): features through an adaptor to the teacher's; mean of squares."""

    weight: float = Field(default=1.0, gt=0, description="weight of this loss term")
    adaptor: bool = Field(
        default=True,
        description="a trained 1x1 projection to the teacher's channels; without it channels must be equal",
    )


@final
class AttentionMatching(_LayerPairs):
    """Zagoruyko, Komodakis 2017 (arXiv 1612.03928): half the squared distance of normalized attention maps."""

    weight: float = Field(default=10.0, gt=0, description="weight of this loss term")


@final
class RelationMatching(_LayerPairs):
    """Park et al. 2019 (arXiv 1904.05068): distances and angles between the samples of a batch."""

    distance: float = Field(default=25.0, ge=0, description="weight of the pairwise distances")
    angle: float = Field(default=50.0, ge=0, description="weight of the angles of triples")

    @model_validator(mode="after")
    def _check_weights(self) -> "RelationMatching":
        if self.distance == 0 and self.angle == 0:
            raise ValueError("distance and angle are both 0: nothing to learn")
        return self


def _as_list(models: Any) -> Any:
    return [models] if isinstance(models, str) else models


def _fill_defaults(options: Any) -> Any:
    """Empty `logits:` and `logits: {}` take the defaults."""
    if isinstance(options, dict):
        return {key: {} if option is None and key in DISTILLATION_KINDS else option for key, option in options.items()}
    return options


ModelNames = Annotated[
    list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str]), Field(min_length=1)
]


@final
class Teacher(Options):
    """The teachers and what to learn from them; several teachers are averaged."""

    model: (
        Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str]), Field(min_length=1)]
        | None
    ) = Field(default=None, description="an earlier stage, a model file or module:function; or a list of these")
    logits: LogitMatching | None = Field(default=None, description="softened class probabilities (Hinton)")
    outputs: OutputMatching | None = Field(default=None, description="class scores or regression outputs")
    features: FeatureMatching | None = Field(
        default=None, description="outputs of a layer, through an adaptor (FitNets)"
    )
    attention: AttentionMatching | None = Field(default=None, description="attention maps of a layer")
    relational: RelationMatching | None = Field(default=None, description="distances and angles between samples")

    @property
    def kinds(self) -> list[str]:
        """The requested kinds; none for the default of the task."""
        return [kind for kind in DISTILLATION_KINDS if getattr(self, kind) is not None]

    def with_task_default(self, task_family: str) -> "Teacher":
        """With the default kind if none is requested: `logits` for classes, `outputs` otherwise."""
        if self.kinds:
            return self
        default_options: dict[str, Options] = (
            {"logits": LogitMatching()} if task_family in ("one", "many") else {"outputs": OutputMatching()}
        )
        return self.model_copy(update=default_options)


def expand_teacher_option(option: Any) -> Any:
    """Expand the short forms `teacher: train` and `teacher: [a, b]` to `teacher: {model: ..}`."""
    return {"model": option} if isinstance(option, (str, list)) else _fill_defaults(option)


TeacherOption = Annotated[
    Teacher | None, BeforeValidator(expand_teacher_option, json_schema_input_type=str | list[str] | Teacher | None)
]
