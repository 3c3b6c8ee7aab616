"""Running a report again: its pipeline, whether its inputs are unchanged, and whether the results are the same."""

from pathlib import Path

from edgepipe.core.errors import InputError
from edgepipe.pipeline import schema
from edgepipe.pipeline.run_inputs import refuse_changes
from edgepipe.pipeline.run_record import Reproduction, RunDefinition
from edgepipe.pipeline.runner import Run
from edgepipe.pipeline.schema import Pipeline
from edgepipe.render.report import Report


def load_pipeline(report: Report, pipeline_folder: Path | None) -> Pipeline:
    """The pipeline that a report is of, as it was then.

    Args:
        report: a report that stores its pipeline.
        pipeline_folder: the folder that its paths start from; None for the one of that run.

    Raises:
        InputError: the report stores no pipeline, or the folder is gone.
        ConfigError: what it names is missing, or this version does not take its options.
    """
    definition = _definition(report)
    folder = pipeline_folder if pipeline_folder is not None else Path(definition.folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; the paths of {_name(report)} start from it: name the folder of the pipeline "
            "with --pipeline-folder"
        )
    return schema.load_text(definition.text, Path(report.pipeline), folder.resolve(), definition.settings)


def check_inputs(report: Report, run: Run) -> None:
    """Refuse a run whose inputs are not those of `report`.

    Raises:
        ConfigError: all that have changed, by name.
    """
    refuse_changes(_name(report), _definition(report).inputs, run.definition.inputs)


def compare_results(report: Report, repeated_report: Report) -> Reproduction:
    """How the artifacts of a repeated run compare with those of `report`."""
    digest_by_stage = {stage.name: stage.digest for stage in repeated_report.stages}
    versions = repeated_report.versions
    return Reproduction(
        report=_name(report),
        differing_stages=tuple(s.name for s in report.stages if digest_by_stage.get(s.name) != s.digest),
        version_changes={
            package: (version, versions.get(package, "absent"))
            for package, version in report.versions.items()
            if versions.get(package, "absent") != version
        },
    )


def describe(reproduction: Reproduction) -> str:
    """Whether the results are the same, and which versions are not."""
    changes = [f"{package} {then} -> {now}" for package, (then, now) in reproduction.version_changes.items()]
    versions_text = f"; versions: {', '.join(changes)}" if changes else ""
    if reproduction.is_equal:
        return f"reproduced: every artifact has the digest of {reproduction.report}{versions_text}"
    stages_text = ", ".join(reproduction.differing_stages)
    cause_text = versions_text or "; the versions are the same: the processor or its number of threads may differ"
    return f"not reproduced: {stages_text} differ from {reproduction.report}{cause_text}"


def _definition(report: Report) -> RunDefinition:
    if report.definition is None:
        raise InputError(
            f"{_name(report)}: written by edgepipe {report.versions.get('edgepipe', 'of an unknown version')}, which "
            "did not store the pipeline in the report: run the pipeline file"
        )
    return report.definition


def _name(report: Report) -> str:
    return str(report.folder / "report.json") if report.folder is not None else f"the report of {report.name}"
