"""What a report stores of a run's start: enough to run it again."""

from typing import Any, Literal

from pydantic import Field

from edgepipe.core.metric import Record

InputRole = Literal["model", "data", "module", "device", "file"]


class RunInput(Record):
    """One thing that a run reads besides its pipeline, and the SHA-256 of its content."""

    role: InputRole = Field(
        description="`model`, `data`, `module` (your own Python source), `device` (a profile), or another `file`"
    )
    name: str = Field(description="as the pipeline names it; paths are relative to the folder of the pipeline")
    digest: str = Field(description="SHA-256 of the content")

    def __str__(self) -> str:
        return f"{self.role} {self.name}"


class RunDefinition(Record):
    """What a run was started from."""

    pipeline: dict[str, Any] = Field(description="the pipeline with `settings` applied")
    text: str = Field(description="the pipeline as written, YAML")
    settings: tuple[str, ...] = Field(default=(), description="the overrides, as `--set` takes them")
    folder: str = Field(description="the folder that paths and modules start from")
    command: tuple[str, ...] = Field(default=(), description="the command line; empty for a run from Python")
    inputs: tuple[RunInput, ...] = Field(default=(), description="what the run read besides the pipeline")


class Reproduction(Record):
    """How the results of `edgepipe run --from REPORT` compare with those of that report."""

    report: str = Field(description="the report that was run again")
    differing_stages: tuple[str, ...] = Field(default=(), description="stages whose artifact has another digest")
    version_changes: dict[str, tuple[str, str]] = Field(
        default_factory=dict, description="packages of another version: then and now"
    )

    @property
    def is_equal(self) -> bool:
        """Whether every artifact has the digest that the report says."""
        return not self.differing_stages
