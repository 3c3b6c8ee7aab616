"""Mixed precision meets its target with about as few layers as any set of them could, or says how near it came."""

from itertools import combinations
from pathlib import Path

import hard_models as hm
import pytest
from benches import bench

from edgepipe.compress.quantizer import device_bit_widths
from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
from edgepipe.compress.quantizer.layerwise_quantizer import LayerwiseQuantizer
from edgepipe.compress.quantizer.mixed_precision_search import QualityGoal, search
from edgepipe.core.errors import TargetNotMetError
from edgepipe.devices import device_profile
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.reader import read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixed")


def quality(content: bytes) -> float:
    """Accuracy on the held-out digits."""
    _, _, x, y = hm.data()
    with temporary_tflite(content) as path:
        return hm.accuracy(predict(path, x).real_values, y)


def goal(made: LayerwiseQuantizer, drop: float) -> QualityGoal:
    return QualityGoal(quality, True, quality(made.float_model.content), drop)


@pytest.fixture(scope="module")
def every(folder: Path) -> dict[tuple[str, ...], float]:
    """The quality of every set of layers in 16 bits: 256 models."""
    made = bench("hard", folder)
    names = [layer.name for layer in made.layers]
    groups = [group for size in range(len(names) + 1) for group in combinations(names, size)]
    return {group: quality(made.quantize(dict.fromkeys(group, "int16"))) for group in groups}


@pytest.mark.slow
@pytest.mark.parametrize("drop", [0.02, 0.05, 0.2])
def test_no_more_layers_than_one_above_the_optimum(
    drop: float, folder: Path, every: dict[tuple[str, ...], float]
) -> None:
    made = bench("hard", folder)
    assert len(made.layers) == 8
    wanted = goal(made, drop)
    found = search(made, wanted, ["int16", "float16"])
    assert quality(found.content) == found.quality
    assert wanted.is_met(found.quality)
    fewest = min(len(group) for group, value in every.items() if wanted.is_met(value))
    assert 0 < len(found.precisions) <= fewest + 1
    path = folder / "found.tflite"
    path.write_bytes(found.content)
    assert check_integer_only(read(path)) == []  # 16 bits were enough: all integers
    assert {"int8", "int16"} <= set(read(path).dtype_counts)


@pytest.mark.parametrize("which", ["soft", "residual"])
def test_a_model_that_int8_keeps_stays_in_int8(which: str, folder: Path) -> None:
    made = bench(which, folder)
    found = search(made, goal(made, 0.01), ["int16"])
    assert found.precisions == {}
    assert len(found.trials) == 1


def test_an_unreachable_target_is_refused_with_the_best_point(folder: Path) -> None:
    made = bench("hard", folder)
    with pytest.raises(
        TargetNotMetError, match=r"no mix of int8 keeps the drop within 0.01: the best of 1, all in int8, has 0"
    ):
        search(made, goal(made, 0.01), [])
    of_float = goal(made, 0.01).float_quality
    beyond = QualityGoal(quality, True, of_float + 0.1, 0.0)  # better than float: nothing gets there
    with pytest.raises(TargetNotMetError, match=r"no mix of int8 and int16 and float16 .* \d of 8 layers in"):
        search(made, beyond, ["int16", "float16"])


@pytest.mark.parametrize("wanted", [{"p3"}, {"d1", "p2"}])
def test_some_layers_are_found_where_all_together_do_not_hold(wanted: set[str], folder: Path) -> None:
    """Quality need not rise with every layer that is promoted: here it is there for one set alone."""
    made = bench("soft", folder)

    def only(content: bytes) -> float:
        with temporary_tflite(content) as path:
            types = {tensor.name: tensor.dtype for tensor in read(path).tensors}
        outputs = {layer.name: layer.operators[0].outputs[0] for layer in made.layers}
        return float({name for name, made in outputs.items() if made and types.get(made.name) == "int16"} == wanted)

    found = search(made, QualityGoal(only, True, 1.0, 0.0), ["int16", "float16"])
    assert found.precisions == dict.fromkeys(wanted, "int16")


def test_float16_is_the_last_resort(folder: Path) -> None:
    """Where 16-bit integers are not to be had: fewer float layers than all, and none where int8 will do."""
    made = bench("hard", folder)
    found = search(made, goal(made, 0.02), ["float16"])
    assert set(found.precisions.values()) == {"float16"}
    assert 0 < len(found.precisions) < 8
    path = folder / "half.tflite"
    path.write_bytes(found.content)
    assert check_integer_only(read(path))


def test_suspects_are_ranked_first(folder: Path) -> None:
    made = bench("hard", folder)
    found = search(made, goal(made, 1.0), ["int16"], ["scores", "p3"])
    assert {name for name, _ in found.ranking[:2]} == {"scores", "p3"}


@pytest.mark.parametrize(
    ("device", "allowed", "reason"),
    [
        (None, ["int16", "float16"], ""),
        ("host", ["int16", "float16"], ""),
        ("nucleo-l4r5zi", ["int16"], "no layer is promoted to float16: nucleo-l4r5zi is for integers only"),
        ("ethos-u55-128", ["int16"], "no layer is promoted to float16: ethos-u55-128 is for integers only"),
        ("stm32h747i-disco", ["float16"], "no layer is promoted to int16: x-cube-ai on stm32h747i-disco does not take"),
    ],
)
def test_what_a_device_allows(device: str | None, allowed: list[str], reason: str) -> None:
    found, reasons = device_bit_widths.allowed_precisions(
        None if device is None else device_profile.load(device, Path.cwd())
    )
    assert found == allowed
    assert any(entry.startswith(reason) for entry in reasons) if reason else reasons == []
