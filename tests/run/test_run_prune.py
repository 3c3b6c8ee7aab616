"""`prune` in whole pipelines: every granularity down to the .tflite, targets, rounds, and a file that was changed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command

import edgepipe
from edgepipe.core.errors import InputError
from edgepipe.render.report import Report
from edgepipe.tflite.reader import read

HEAD = """\
name: p
model: {function: "edgepipe.zoo:small_cnn", args: {filters: [8, 12, 16]}}
data: edgepipe.data:digits
task: classification
allow_chance: true
seed: 3
stages:
  - train: {epochs: 8, batch_size: 16, decay: cosine, learning_rate: 0.003}
"""
QUANTIZE = "  - quantize: {epochs: 1, batch_size: 256}\n"
ONE = "epochs: 1, batch_size: 256"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: the model is trained once."""
    return tmp_path_factory.mktemp("cache")


def _run(folder: Path, cache: Path, options: str, tail: str = "") -> Report:
    (folder / "p.yaml").write_text(f"{HEAD}  - prune: {{{options}}}\n{tail}")
    return edgepipe.run(folder / "p.yaml", output_dir=folder / "out", cache_dir=cache)


def _outcome(report: Report, stage: str) -> Any:
    return next(entry.outcome for entry in report.stages if entry.name == stage)


def _metric(report: Report, stage: str, name: str) -> Any:
    return next(metric for metric in _outcome(report, stage).metrics if metric.name == name)


def _rows(report: Report, stage: str, title: str) -> list[Any]:
    return [row for table in _outcome(report, stage).tables if table.title.startswith(title) for row in table.rows]


@pytest.mark.parametrize(("granularity", "shape", "share", "trained"), [
    ("2:4", "2:4", 0.5, QUANTIZE), ("block 4x1", "block 4x1", 0.6, ""), ("weight", "single weights", 0.6, "")
])  # fmt: skip
def test_masks_are_in_the_file_exactly(
    tmp_path: Path, cache: Path, granularity: str, shape: str, share: float, trained: str, command: Command
) -> None:
    """With trained ranges for one of them; single weights go through `quantize` in the demo."""
    more = "" if ":" in granularity else f", sparsity: {share}"
    options = f'{ONE}, granularity: "{granularity}", saliency: taylor{more}'
    report = _run(tmp_path, cache, options, f"{trained}  - convert\n  - validate\n")
    assert not _outcome(report, "validate").findings
    rows = _rows(report, "validate", "Zeros of 'prune' inside the .tflite")
    assert {(row[3], row[4]) for row in rows} == {(0, shape)}
    assert _metric(report, "validate", "sparsity").value >= share - 0.15  # conv1 has one input: 2:4 leaves it alone
    _tampering_is_found(tmp_path, command)


def _tampering_is_found(folder: Path, command: Command) -> None:
    pruned = folder / "out" / "artifacts" / "2-prune.keras"
    (lite,) = (folder / "out" / "artifacts").glob("*-convert.tflite")
    assert command("verify", lite, "--zeros-of", pruned).code == 0
    model = read(lite)
    weights = [op.inputs[1] for op in model if op.name == "CONV_2D"][1]
    assert weights is not None
    zero = int(np.flatnonzero(model.read_values(weights).ravel() == 0)[7])
    content = bytearray(lite.read_bytes())
    content[weights.byte_extent[0] + zero] = 1
    lite.write_bytes(content)
    ended = command("verify", lite, "--zeros-of", pruned, "--json")
    assert ended.code == 3
    (finding,) = json.loads(ended.out)["findings"]
    assert finding["rule"] == "pruned-zeros"
    assert finding["place"] == "conv2"
    assert finding["observed"].startswith("1 of ")
    position = np.unravel_index(zero, weights.shape)
    place = f"output {position[0]}, position {position[1] * 3 + position[2]}, input {position[3]}"
    assert finding["observed"].endswith(f"the first at {place}")


def test_training_after_pruning_is_found(tmp_path: Path, cache: Path) -> None:
    tail = "  - train: {as: again, epochs: 1, batch_size: 256}\n"
    report = _run(tmp_path, cache, f"{ONE}, schedule: one_shot", tail)
    assert any("training refills pruned weights" in note for note in _outcome(report, "again").notes)


def test_channels_make_a_smaller_model(tmp_path: Path, cache: Path) -> None:
    options = f"{ONE}, granularity: channel, schedule: one_shot, saliency: taylor, multiple_of: 4"
    report = _run(tmp_path, cache, options, f"{QUANTIZE}  - convert\n")
    left = {row[0]: row[3] for row in _rows(report, "prune", "Channels by layer")}
    assert left["probabilities"] == 10
    assert sum(left.values()) - 10 <= 18  # of 36
    assert all(number % 4 == 0 for name, number in left.items() if name != "probabilities")
    kernels = [op.inputs[1] for op in read(tmp_path / "out" / "artifacts" / "4-convert.tflite") if op.name == "CONV_2D"]
    assert [kernel.shape[0] for kernel in kernels if kernel] == [left[name] for name in ("conv1", "conv2", "conv3")]


@pytest.mark.parametrize(("target", "metric", "limit"), [
    ("macs: 20 k", "macs", 20_000), ("parameters: 1500", "parameters", 1500), ("flash: 6 KiB", "size", 6 * 1024),
])  # fmt: skip
def test_a_target_is_met_from_above(tmp_path: Path, cache: Path, target: str, metric: str, limit: int) -> None:
    options = f"{ONE}, granularity: channel, schedule: one_shot, target: {{{target}}}"
    report = _run(tmp_path, cache, options, "  - convert\n")
    assert not _outcome(report, "prune").findings
    value = _metric(report, "convert", metric).value
    assert limit * 0.8 < value <= limit
    losses = next(note for note in _outcome(report, "prune").notes if "validation loss before fine-tuning" in note)
    found = {name: float(loss) for name, loss in (part.split() for part in losses.partition("tuning: ")[2].split(", "))}
    assert losses.split("'")[1] == min(found, key=lambda name: found[name])


def test_nonzero_parameters_are_a_target_too(tmp_path: Path, cache: Path) -> None:
    report = _run(tmp_path, cache, f"{ONE}, target: {{parameters: 1500}}, distribution: erk")
    assert 1490 <= _metric(report, "prune", "nonzero_parameters").value <= 1500


@pytest.mark.parametrize("options", ['granularity: "block 4x4"', "distribution: global", "distribution: uniform"])
def test_a_number_of_parameters_is_never_passed(tmp_path: Path, cache: Path, options: str) -> None:
    report = _run(tmp_path, cache, f"{ONE}, schedule: one_shot, target: {{parameters: 1111}}, {options}")
    assert 1111 - 16 * 4 < _metric(report, "prune", "nonzero_parameters").value <= 1111


def test_shares_of_all_layers_own_need_no_other(tmp_path: Path, cache: Path) -> None:
    options = "granularity: channel, types: {Conv2D: {sparsity: 0.25}, Dense: {sparsity: 0.25}}"
    report = _run(tmp_path, cache, f"{ONE}, schedule: one_shot, {options}")
    kept = [row[3] / row[2] for row in _rows(report, "prune", "Channels by layer") if not row[4]]
    assert kept
    assert kept == pytest.approx([0.75] * len(kept), abs=0.05)


@pytest.mark.parametrize(("options", "told"), [
    ("granularity: channel, target: {flash: 1 KiB}", "the target flash <= 1.0 KiB cannot be met by removing channels"),
    ("granularity: channel, target: {macs: 10}", "the target macs <= 10 cannot be met by removing channels of"),
    ("target: {parameters: 100}", "a target of 100 parameters cannot be met"),
])  # fmt: skip
def test_a_target_out_of_reach_is_refused_with_the_reason(tmp_path: Path, cache: Path, options: str, told: str) -> None:
    with pytest.raises(InputError) as refused:
        _run(tmp_path, cache, f"{ONE}, schedule: one_shot, {options}")
    assert told in str(refused.value)
    assert "probabilities" in str(refused.value) or "parameters" in options


def test_rounds_stop_at_the_threshold_with_the_last_good_model(tmp_path: Path, cache: Path) -> None:
    options = (
        "epochs: 1, batch_size: 16, schedule: iterative, rounds: 4, sparsity: 0.985, max_drop: 16 points, "
        "saliency: obd, hessian: gauss_newton, probes: 4, saliency_samples: 128"
    )
    report = _run(tmp_path, cache, options)
    rounds = _rows(report, "prune", "Rounds of pruning")
    assert [row[3] for row in rounds] == ["yes"] * (len(rounds) - 1) + ["no"]
    assert len(rounds) >= 3
    good = rounds[-2]
    assert _metric(report, "prune", "accuracy").text() == good[2]
    assert f"{_metric(report, 'prune', 'sparsity').value:.1%}"[:3] == good[1][:3]
    assert f"stopped in round {len(rounds) - 1}" in " ".join(_outcome(report, "prune").notes)
    start = float(rounds[0][2].rstrip(" %"))
    assert float(good[2].rstrip(" %")) >= start - 16 > float(rounds[-1][2].rstrip(" %"))


AUTOENCODER = """\
name: p
model: model.keras
data: {{npz: data.npz}}
task: reconstruction
stages:
  - prune: {{epochs: 1, batch_size: 32, saliency: taylor, {options}}}
"""


@pytest.mark.parametrize("options", ["distribution: global", "distribution: uniform"])
def test_the_schedule_counts_the_samples_that_are_trained_on(tmp_path: Path, options: str) -> None:
    """A reconstruction trains on normal samples only, here every other one: half of the steps."""
    import keras

    random = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=random.random((96, 6)).astype("float32"), y=np.arange(96) % 2)
    layers = [keras.layers.Dense(8, "relu"), keras.layers.Dense(6, "sigmoid")]
    keras.Sequential([keras.Input((6,)), *layers]).save(tmp_path / "model.keras")
    (tmp_path / "p.yaml").write_text(AUTOENCODER.format(options=options))
    report = edgepipe.run(tmp_path / "p.yaml", output_dir=tmp_path / "out", cache_dir=tmp_path / "cache")
    assert _metric(report, "prune", "sparsity").value == 0.5
