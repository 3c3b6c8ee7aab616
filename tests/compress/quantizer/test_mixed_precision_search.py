"""Mixed precision meets its target with close to the fewest possible layers, or reports how near it came."""

from itertools import combinations
from pathlib import Path

import hard_models as hm
import pytest
from quantizer_cases import trained_quantizer

from edgepipe.compress.quantizer import device_bit_widths
from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
from edgepipe.compress.quantizer.layerwise_quantizer import LayerwiseQuantizer
from edgepipe.compress.quantizer.mixed_precision_search import QualityGoal, search
from edgepipe.core.errors import TargetNotMetError
from edgepipe.devices import device_profile
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.reader import read

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixed")


def quality(content: bytes) -> float:
    """Accuracy on the held-out digits."""
    _, _, x, y = hm.data()
    with temporary_tflite(content) as path:
        return hm.accuracy(predict(path, x).real_values, y)


def goal(quantizer: LayerwiseQuantizer, drop: float) -> QualityGoal:
    return QualityGoal(quality, True, quality(quantizer.float_model.content), drop)


@pytest.fixture(scope="module")
def quality_by_group(folder: Path) -> dict[tuple[str, ...], float]:
    """The quality of every set of layers in 16 bits: 256 models."""
    quantizer = trained_quantizer("hard", folder)
    names = [layer.name for layer in quantizer.layers]
    groups = [group for size in range(len(names) + 1) for group in combinations(names, size)]
    return {group: quality(quantizer.quantize(dict.fromkeys(group, "int16"))) for group in groups}


@pytest.mark.parametrize("drop", [0.02, 0.05, 0.2])
def test_no_more_layers_than_one_above_the_optimum(
    drop: float, folder: Path, quality_by_group: dict[tuple[str, ...], float]
) -> None:
    quantizer = trained_quantizer("hard", folder)
    assert len(quantizer.layers) == 8
    target = goal(quantizer, drop)
    mix = search(quantizer, target, ["int16", "float16"])
    assert quality(mix.content) == mix.quality
    assert target.is_met(mix.quality)
    fewest = min(len(group) for group, group_quality in quality_by_group.items() if target.is_met(group_quality))
    assert 0 < len(mix.precisions) <= fewest + 1
    path = folder / "found.tflite"
    path.write_bytes(mix.content)
    assert check_integer_only(read(path)) == []  # 16 bits were enough: all integers
    assert {"int8", "int16"} <= set(read(path).dtype_counts)


@pytest.mark.parametrize("name", ["soft", "residual"])
def test_a_model_that_int8_keeps_stays_in_int8(name: str, folder: Path) -> None:
    quantizer = trained_quantizer(name, folder)
    mix = search(quantizer, goal(quantizer, 0.01), ["int16"])
    assert mix.precisions == {}
    assert len(mix.trials) == 1


def test_an_unreachable_target_is_refused_with_the_best_point(folder: Path) -> None:
    quantizer = trained_quantizer("hard", folder)
    with pytest.raises(
        TargetNotMetError, match=r"no mix of int8 keeps the drop within 0.01: the best of 1, all in int8, has 0"
    ):
        search(quantizer, goal(quantizer, 0.01), [])
    float_quality = goal(quantizer, 0.01).float_quality
    unreachable_goal = QualityGoal(quality, True, float_quality + 0.1, 0.0)  # better than float: nothing gets there
    with pytest.raises(TargetNotMetError, match=r"no mix of int8 and int16 and float16 .* \d of 8 layers in"):
        search(quantizer, unreachable_goal, ["int16", "float16"])


@pytest.mark.parametrize("needed_layers", [{"p3"}, {"d1", "p2"}])
def test_some_layers_are_found_where_all_together_do_not_hold(needed_layers: set[str], folder: Path) -> None:
    """Quality need not rise with every promoted layer: here only one set of layers meets the goal."""
    quantizer = trained_quantizer("soft", folder)

    def only_needed(content: bytes) -> float:
        with temporary_tflite(content) as path:
            types = {tensor.name: tensor.dtype for tensor in read(path).tensors}
        outputs = {layer.name: layer.operators[0].outputs[0] for layer in quantizer.layers}
        return float(
            {name for name, output in outputs.items() if output and types.get(output.name) == "int16"} == needed_layers
        )

    mix = search(quantizer, QualityGoal(only_needed, True, 1.0, 0.0), ["int16", "float16"])
    assert mix.precisions == dict.fromkeys(needed_layers, "int16")


def test_float16_is_the_last_resort(folder: Path) -> None:
    """Without 16-bit integers: some float layers, but fewer than all."""
    quantizer = trained_quantizer("hard", folder)
    mix = search(quantizer, goal(quantizer, 0.02), ["float16"])
    assert set(mix.precisions.values()) == {"float16"}
    assert 0 < len(mix.precisions) < 8
    path = folder / "half.tflite"
    path.write_bytes(mix.content)
    assert check_integer_only(read(path))


def test_suspects_are_ranked_first(folder: Path) -> None:
    quantizer = trained_quantizer("hard", folder)
    mix = search(quantizer, goal(quantizer, 1.0), ["int16"], ["scores", "p3"])
    assert {name for name, _ in mix.layer_ranking[:2]} == {"scores", "p3"}


@pytest.mark.parametrize(
    ("device", "expected", "reason"),
    [
        (None, ["int16", "float16"], ""),
        ("host", ["int16", "float16"], ""),
        ("nucleo-l4r5zi", ["int16"], "no layer is promoted to float16: nucleo-l4r5zi is for integers only"),
        ("ethos-u55-128", ["int16"], "no layer is promoted to float16: ethos-u55-128 is for integers only"),
        ("stm32h747i-disco", ["float16"], "no layer is promoted to int16: x-cube-ai on stm32h747i-disco does not take"),
    ],
)
def test_what_a_device_allows(device: str | None, expected: list[str], reason: str) -> None:
    allowed_precisions, reasons = device_bit_widths.allowed_precisions(
        None if device is None else device_profile.load(device, Path.cwd())
    )
    assert allowed_precisions == expected
    assert any(entry.startswith(reason) for entry in reasons) if reason else reasons == []
