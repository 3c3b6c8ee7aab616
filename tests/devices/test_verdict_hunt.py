"""Sixty random models on two runtimes: no `met` that fails or differs, no `not met` that runs."""

import importlib.util
from pathlib import Path

import pytest
from verdict_hunt import Trial, try_model

from edgepipe.core.metric import Judgement

SEEDS, GROUPS = 60, 6


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tflite_micro") is None, reason="the extra `micro` is not installed")
@pytest.mark.parametrize("group", range(GROUPS))
def test_verdicts_hold(group: int, tmp_path: Path) -> None:
    trials: list[Trial] = [trial for seed in range(group, SEEDS, GROUPS) for trial in try_model(seed, tmp_path)]
    assert [trial.problem for trial in trials if trial.problem] == []
    judgements = [trial.judgement for trial in trials]
    assert judgements.count(Judgement.UNKNOWN) <= len(judgements) // 20
    assert Judgement.MET in judgements
    assert Judgement.NOT_MET in judgements
