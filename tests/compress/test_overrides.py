"""Options for some layers only: which one wins, and names that match no layer."""

import pytest
import tf_keras

from edgepipe.compress.overrides import Overrides
from edgepipe.core.errors import InputError

LAYERS = [tf_keras.layers.Conv2D(2, 3, name="conv1"), tf_keras.layers.Dense(2, name="dense")]


def test_a_name_is_stronger_than_a_class_and_a_later_name_than_an_earlier() -> None:
    overrides = Overrides({"Conv2D": 1}, {"conv.*": 2, ".*1": 3})
    assert overrides.for_layer(LAYERS[0]) == [1, 2, 3]
    assert overrides.for_layer(LAYERS[1]) == []


@pytest.mark.parametrize(("types", "layers", "alone"), [
    ({"Conv2D": None}, {}, True), ({"Conv2D": None}, {"conv1": 4}, False), ({"Conv2D": 4}, {"conv1": None}, True),
    ({}, {"conv": None}, False), ({}, {}, False),
])  # fmt: skip
def test_null_leaves_a_layer_alone(types: dict[str, int | None], layers: dict[str, int | None], alone: bool) -> None:
    assert Overrides(types, layers).is_excluded(LAYERS[0]) is alone


@pytest.mark.parametrize(("overrides", "message"), [
    (Overrides({}, {"cnv1": None}), "no layer is called 'cnv1' (a regular expression); did you mean 'conv1'?"),
    (Overrides({"LSTM": None}, {}), "no layer is of the class 'LSTM'; allowed: Conv2D, Dense"),
])  # fmt: skip
def test_a_name_that_no_layer_has_is_refused(overrides: Overrides[int], message: str) -> None:
    with pytest.raises(InputError) as error:
        overrides.check(LAYERS)
    assert str(error.value) == message
