"""Prune, cluster, quantize, convert: what of the zeros and the clusters is in the .tflite."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import Workplace

PIPELINE = """\
name: tiny
model: {function: "edgepipe.zoo:small_cnn", args: {filters: [8, 12, 16]}}
data: edgepipe.data:digits
task: classification
allow_chance: true
seed: 3
stages:
  - prune: {epochs: 1, batch_size: 256, sparsity: 0.5}
  - cluster: {epochs: 1, batch_size: 256, clusters: 6, per_channel: true}
  - quantize: {epochs: 2, batch_size: 64, learning_rate: 0.01}
  - convert
"""
CONVOLUTIONS = ("conv1", "conv2", "conv3")


def _kernels(path: Path) -> dict[str, Any]:
    from edgepipe.core.artifact import ArtifactKind
    from edgepipe.models.model_files import load_model

    model = load_model(path, ArtifactKind.FLOAT)
    return {name: np.asarray(model.get_layer(name).weights[0]) for name in CONVOLUTIONS}


def _stored(path: Path) -> dict[str, Any]:
    """The int8 kernels of the convolutions, in their order, with the output channels last as in Keras."""
    from edgepipe.tflite.reader import read

    model = read(path)
    found = [model.read_values(operator.inputs[1]) for operator in model if operator.name == "CONV_2D"]
    return {name: np.moveaxis(kernel, 0, -1) for name, kernel in zip(CONVOLUTIONS, found, strict=True)}


def _most(kernel: Any) -> int:
    return max(np.unique(channel).size for channel in kernel.reshape(-1, kernel.shape[-1]).T)


@pytest.mark.slow
def test_clusters_and_zeros_are_in_the_file(tmp_path: Path) -> None:
    ended = Workplace(tmp_path, PIPELINE).run()
    assert ended.code == 0, ended.stderr
    artifacts = ended.folder / "artifacts"
    pruned, clustered = (_kernels(artifacts / f"{stage}.keras") for stage in ("1-prune", "2-cluster"))
    stored = _stored(artifacts / "4-convert.tflite")
    for name, kernel in stored.items():
        assert kernel.dtype == np.int8
        assert not kernel[pruned[name] == 0].any()
        assert 2 < _most(clustered[name]) <= 6
        assert 2 < _most(kernel) <= 6
    assert np.unique(clustered["conv1"]).size <= 6  # clustered as a whole, as a note says
    assert np.unique(stored["conv1"]).size > 6  # each channel has a scale of its own, so more values in all
    assert np.unique(clustered["conv3"]).size > 6  # by channel
    assert ended.metric("cluster", "distinct_weights")["value"] <= 6
    notes = [note for stage in ended.report["stages"] for note in stage["outcome"]["notes"]]
    assert any("conv1' is clustered as a whole: a channel has" in note for note in notes)
