"""Whole runs in which every training stage has a teacher."""

import keras
import pytest
from commands import Command

from edgepipe.zoo import small_cnn
from tests.run.conftest import Workplace

TAUGHT = """\
name: taught
model: {function: "edgepipe.zoo:small_cnn", args: {filters: [6, 8]}}
data: edgepipe.data:digits
task: classification
allow_chance: true
seed: 3
stages:
  - train: {epochs: 1, batch_size: 256}
  - distill: {student: {function: "edgepipe.zoo:small_cnn", args: {filters: [4, 6]}}, epochs: 1, batch_size: 256}
  - prune: {epochs: 1, batch_size: 256, sparsity: 0.5, teacher: {model: train, attention: }}
  - cluster: {epochs: 1, batch_size: 256, teacher: {model: [train, model], logits: {alpha: 0.8}, relational: }}
  - quantize: {epochs: 1, batch_size: 256, teacher: {model: train, logits: , features: {layers: {conv2_relu: conv2_relu}}}}
  - convert
"""  # noqa: E501


@pytest.mark.slow
def test_every_training_stage_can_be_taught(workplace: Workplace, command: Command) -> None:
    workplace.pipeline.write_text(TAUGHT)
    first = workplace.run()
    assert first.code == 0, first.stderr
    notes = {stage["name"]: " ".join(stage["outcome"]["notes"]) for stage in first.report["stages"]}
    assert "taught by 'train': logits (temperature 4, alpha 0.5)" in notes["distill"]  # the model before it
    assert "teacher 'train' itself: accuracy" in notes["distill"]
    assert "computed once" in notes["distill"]
    assert "attention of 'conv2_relu' of the student and 'conv2_relu' of the teacher" in notes["prune"]
    assert "taught by 'model': logits" in notes["cluster"]
    assert "angles of" in notes["cluster"]
    assert "features of 'conv2_relu'" in notes["quantize"]
    assert first.metric("distill", "parameters")["value"] < first.metric("train", "parameters")["value"]
    (lite,) = (first.folder / "artifacts").glob("*-convert.tflite")
    assert not command("verify", lite, "--integer-only").code
    again = workplace.run("--set", "stages.quantize.teacher.logits.alpha=0.9")
    assert again.statuses() == {**dict.fromkeys(again.statuses(), "cached"), "quantize": "ran", "convert": "ran"}


@pytest.mark.slow
def test_a_teacher_from_a_file_is_part_of_the_key(workplace: Workplace) -> None:
    """A changed teacher file runs the stage again; a teacher of other classes is refused by name."""
    stages = "  - train: {epochs: 1, batch_size: 512, teacher: teacher.keras}\n"
    text = TAUGHT[: TAUGHT.index("  - train")] + stages
    workplace.pipeline.write_text(text)
    missing = workplace.run()
    assert missing.code == 2
    assert "no earlier stage, file or module:function 'teacher.keras'" in missing.stderr
    statuses = []
    for teacher in ((1, 10), (), (2, 10), (2, 12)):
        if teacher:
            seed, classes = teacher
            keras.utils.set_random_seed(seed)
            model = small_cnn(input_shape=(8, 8, 1), classes=classes, filters=(4,))
            model.save(workplace.folder / "teacher.keras")
        ended = workplace.run()
        statuses.append(ended.statuses()["train"] if ended.code == 0 else ended.stderr)
    assert statuses[:3] == ["ran", "cached", "ran"]
    assert "the student 'small_cnn' gives 10 classes or values, the teacher 'teacher.keras' 12 classes" in statuses[3]
