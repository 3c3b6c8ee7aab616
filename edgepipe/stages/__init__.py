"""The stages a pipeline can be made of: one small file each, found by name in this table."""

import importlib

from edgepipe.stages.base import Stage

STAGES = {
    "train": "edgepipe.stages.train:Train",
    "distill": "edgepipe.stages.distill:Distill",
    "prune": "edgepipe.stages.prune:Prune",
    "cluster": "edgepipe.stages.cluster:Cluster",
    "quantize": "edgepipe.stages.quantize:Quantize",
    "export": "edgepipe.stages.export:Export",
    "convert": "edgepipe.stages.convert:Convert",
    "compile": "edgepipe.stages.compile:Compile",
    "validate": "edgepipe.stages.validate:Validate",
}


def stage_class(name: str) -> type[Stage]:
    """The option class of the stage `name`, which must be in `STAGES`."""
    module, _, cls = STAGES[name].partition(":")
    found: type[Stage] = getattr(importlib.import_module(module), cls)
    return found
