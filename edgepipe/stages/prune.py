"""`prune`: set the weights of least magnitude to zero while training goes on."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from pydantic import Field, model_validator

from edgepipe.artifact import Artifact, Kind
from edgepipe.outcome import Outcome, Table
from edgepipe.stages import facts
from edgepipe.stages.base import TrainingStage, Work
from edgepipe.units import Dimension

if TYPE_CHECKING:
    from edgepipe.compress.prune import LayerSparsity


@final
class Prune(TrainingStage):
    """Set the weights of least magnitude to zero while training goes on (tfmot)."""

    accepts: ClassVar = {Kind.KERAS: Kind.FLOAT, Kind.FLOAT: Kind.FLOAT}
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")

    sparsity: float = Field(
        default=0.5, gt=0, lt=1, description="share of each pruned layer's weights that ends as zero"
    )
    schedule: Literal["polynomial", "constant"] = Field(
        default="polynomial", description="grow the masks from initial_sparsity, or hold the target from the first step"
    )
    saliency: Literal["magnitude"] = Field(
        default="magnitude", description="which weights matter: those of large magnitude"
    )
    initial_sparsity: float = Field(default=0.0, ge=0, lt=1, description="where the polynomial schedule begins")
    power: float = Field(default=3.0, gt=0, description="exponent of the polynomial schedule")
    ramp: float = Field(
        default=0.75, gt=0, le=1, description="share of the steps over which the masks grow; the rest recovers quality"
    )
    exclude_last: bool = Field(default=True, description="leave the last convolution or dense layer alone")

    @model_validator(mode="after")
    def _grows(self) -> "Prune":
        if self.schedule == "polynomial" and self.initial_sparsity >= self.sparsity:
            raise ValueError(f"initial_sparsity ({self.initial_sparsity}) must be below sparsity ({self.sparsity})")
        return self

    def run(self, work: Work) -> tuple[Artifact, Outcome]:
        """Wrap, train, strip; the zeros of every layer are counted afterwards."""
        from edgepipe.arrays import count
        from edgepipe.compress import prune
        from edgepipe.training.fit import fit, seeded

        seeded(work.seed)
        model, notes = facts.open_float(work)
        train, validation, schedule = work.data.train, work.data.validation, self.fit_schedule(work)
        alone = prune.left_alone(model, self.exclude_last)
        wrapped = prune.wrap(model, self._plan(), schedule.steps(count(train.x)))
        fit(wrapped, work.goal, train, validation, schedule, work.progress.epoch, prune.callbacks())
        stripped = prune.strip(wrapped)
        layers = prune.measure(stripped, alone)
        prune.check_reached(layers, self.sparsity)
        artifact = facts.write_float(stripped, work.folder)
        metrics = (*facts.keras_evidence(stripped, artifact, work), _sparsity(layers))
        return artifact, Outcome(metrics=metrics, notes=tuple(notes), tables=(_table(layers),))

    def _plan(self) -> Any:
        from edgepipe.compress.prune import Plan

        return Plan(self.sparsity, self.schedule, self.initial_sparsity, self.power, self.ramp, self.exclude_last)


def _sparsity(layers: "list[LayerSparsity]") -> Any:
    pruned = [layer for layer in layers if not layer.left_alone]
    share = sum(layer.zeros for layer in pruned) / sum(layer.elements for layer in pruned)
    names = ", ".join(layer.name for layer in layers if layer.left_alone) or "none"
    how = f"exact zeros in the kernels of {len(pruned)} pruned layers; left alone: {names}"
    return facts.exact("sparsity", share, Dimension.FRACTION, how)


def _table(layers: "list[LayerSparsity]") -> Table:
    rows = tuple((layer.name, layer.kind, layer.elements, layer.zeros, layer.left_alone) for layer in layers)
    return Table(title="Zeros by layer", columns=("layer", "kind", "weights", "zeros", "left alone because"), rows=rows)
