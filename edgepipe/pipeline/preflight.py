"""What a checked pipeline will not reach, found before anything runs: findings, as the run itself would report them."""

from edgepipe.core.metric import Finding
from edgepipe.data.rescale_choice import choose_rescale, present_choice
from edgepipe.models.input_expectations import read_expectations
from edgepipe.pipeline.schema import Pipeline
from edgepipe.stages.preprocessing_check import PREPROCESSING_RULE


def find_early_findings(pipeline: Pipeline) -> list[Finding]:
    """Every rule that the pipeline is bound to break as it is written."""
    return [*_preprocessing_findings(pipeline)]


def _preprocessing_findings(pipeline: Pipeline) -> list[Finding]:
    """The model expects other values than `rescale` gives."""
    data, source = pipeline.data, pipeline.source
    if data is None or source.path is None:
        return []
    present = present_choice(data, pipeline.base_folder)
    expectations = read_expectations(pipeline.base_folder / source.path)
    if present is None or len(expectations) != 1 or expectations[0].fits(present[0].low, present[0].high):
        return []
    choice = choose_rescale(expectations[0], present[1])
    remedy = (
        f"write `rescale: {choice.mode}` under `data:`"
        if choice is not None
        else "no `rescale` gives that: preprocess in a function, or in the model"
    )
    return [
        Finding(
            rule=PREPROCESSING_RULE,
            place="data.rescale",
            observed=f"the model {expectations[0].describe()}; `rescale: {data.rescale}` gives {present[0].low:g} to "
            f"{present[0].high:g}",
            suggestion=remedy,
        )
    ]
