"""Augmentation in whole runs."""

import pytest

from tests.run.conftest import TINY, Workplace


@pytest.mark.slow
def test_every_training_stage_augments_and_nothing_else_does(workplace: Workplace) -> None:
    data = 'data: {function: "edgepipe.data:digits", augment: {crop: 1, mixup: 0.2}}'
    text = TINY.replace("data: edgepipe.data:digits", data).replace(": {devices: [host, DEVICE]}", "")
    workplace.pipeline.write_text(text)
    first = workplace.run()
    assert first.code == 0, first.stderr
    for stage in first.report["stages"]:
        told = any("training samples augmented: crop 1, mixup 0.2" in note for note in stage["outcome"]["notes"])
        assert told == (stage["name"] in ("train", "prune", "quantize"))
    workplace.pipeline.write_text(text[: text.index("  - prune")])
    again = workplace.run("--cache-dir", str(workplace.folder / "other"), output="again")
    assert again.statuses() == {"model": "ran", "train": "ran"}
    assert again.digests().items() <= first.digests().items()


@pytest.mark.slow
def test_what_does_not_fit_ends_the_run(workplace: Workplace) -> None:
    data = 'data: {function: "edgepipe.data:digits", augment: {jitter: 0.1}}'
    workplace.pipeline.write_text(TINY.replace("data: edgepipe.data:digits", data).replace("DEVICE", "board.yaml"))
    ended = workplace.run()
    assert ended.code == 2
    assert "augment: jitter is for windows (time, channels); the samples have shape (8, 8, 1)" in ended.stderr
