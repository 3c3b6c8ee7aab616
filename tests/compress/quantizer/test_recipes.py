"""Recipes of litert-quantizer: read as it reads them, or refused with the invalid rule."""

import json
import re
from pathlib import Path
from typing import Any

import hard_models as hm
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from reference_quantizers import quantize_with_litert

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.quantizer import recipe_files, recipes
from edgepipe.compress.quantizer.activation_calibration import calibrate
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.compress.schemes import ActivationCalibration
from edgepipe.core.errors import InputError
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read
from edgepipe.tflite.sample_conversion import convert_samples

VALID_RECIPE = recipes.scheme_recipe("int8")


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("recipes") / "m.tflite"
    path.write_bytes(convert(hm.depthwise(), "float32"))
    return read(path)


@pytest.mark.filterwarnings("ignore:.*experimental_preserve_all_tensors")  # of the library called here directly
@pytest.mark.parametrize(
    "name", ["static_wi8_ai8", "static_wi8_ai16", "dynamic_wi8_afp32", "weight_only_wi8_afp32", "weight_only_wi4_afp32"]
)
def test_every_named_recipe_of_the_library_passes_through_a_file(name: str, lite: Model, tmp_path: Path) -> None:
    from litert_quantizer import recipe

    library_recipe = getattr(recipe, name)()
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(library_recipe))
    x = hm.data()[0][:20]
    own_path, library_path = tmp_path / "own.tflite", tmp_path / "library.tflite"
    request = QuantizationRequest("recipe", recipe=recipe_files.read(file))
    own_path.write_bytes(quantize_tflite(lite, request, convert_samples(lite, x)).content)
    ranges = calibrate(lite, x, ActivationCalibration()).by_tensor if name.startswith("static") else None
    library_path.write_bytes(quantize_with_litert(lite.content, ranges, library_recipe))
    assert _operator_types(read(own_path)) == _operator_types(read(library_path))
    truth, own, library = (np.asarray(predict(path, x).real_values) for path in (lite.path, own_path, library_path))
    assert np.square(own - truth).mean() <= 1.1 * np.square(library - truth).mean() + 1e-9


def _operator_types(model: Model) -> list[tuple[str, list[str]]]:
    """Every operator with the types that it reads and writes."""
    return [(op.name, [t.dtype for t in (*op.inputs, *op.outputs) if t is not None]) for op in model.operators]


_CONFIGS = [None, recipes.integer_config(8), recipes.integer_config(16), recipes.weight_config(8)]
_RULE = st.builds(
    lambda config, regex, operation: recipes.make_rule(config, regex, operation),
    st.sampled_from(_CONFIGS),
    st.sampled_from([".*", "^a;$", "b", "^.*$", "c;"]),
    st.sampled_from(["*", "CONV_2D", "ADD", "OUTPUT"]),
)


@given(st.lists(_RULE, min_size=1, max_size=6))
def test_what_a_recipe_gives_an_operator_is_read_as_the_library_reads_it(recipe: list[recipes.RecipeRule]) -> None:
    from litert_quantizer.qtyping import TFLOperationName
    from litert_quantizer.recipe_manager import RecipeManager

    library = RecipeManager()
    try:
        library.load_quantization_recipe(recipe)
    except ValueError:  # a form that the library does not have for an operator that is named
        assume(False)
    for kind in ("ADD", "MAXIMUM"):
        for outputs in (["a"], ["b"], ["b", "c"]):
            name = "".join(f"{output};" for output in outputs)
            _, config = library.get_quantization_configs(TFLOperationName(kind), name)
            expected_bits = config.activation_tensor_config.num_bits if config.activation_tensor_config else None
            assert recipes.activation_bits(recipe, kind, outputs) == expected_bits


BAD_RECIPES: list[tuple[str, Any, str]] = [
    ("no JSON", "[{", r"recipe.json:1:3: is not valid JSON"),
    ("no list", {"regex": ".*"}, r"a recipe is a list of rules with regex, operation, .*; found dict"),
    ("empty", [], r"a recipe is a list of rules"),
    ("a rule that is none", ["int8"], r"rule 1: is a mapping with .*; found str"),
    ("a key missing", [{k: v for k, v in VALID_RECIPE[0].items() if k != "regex"}], r"rule 1: has no 'regex'"),
    (
        "a key too many",
        [*VALID_RECIPE, {**VALID_RECIPE[0], "regexp": ".*"}],
        r"rule 2: unknown key 'regexp'; did you mean 'regex'\?",
    ),
    (
        "operation",
        [{**VALID_RECIPE[0], "operation": "CONV2D"}],
        r"unknown operation 'CONV2D'; did you mean 'CONV_2D'\?",
    ),
    ("algorithm", [{**VALID_RECIPE[0], "algorithm_key": "min_max"}], r"unknown algorithm_key 'min_max'"),
    ("config", [{**VALID_RECIPE[0], "op_config": 5}], "rule 1: op_config and the tensor configs in it are mappings"),
    (
        "tensors",
        [{**VALID_RECIPE[0], "op_config": {"weight_tensor_config": "x"}}],
        "the tensor configs in it are mappings",
    ),
    (
        "bits",
        [recipes.make_rule(recipes.weight_config(3))],
        r"rule 1: weight_tensor_config has num_bits 3; known: 8, 4, 16",
    ),
    (
        "an algorithm of the library",
        [{**VALID_RECIPE[0], "algorithm_key": "OCTAV"}],
        r"unknown algorithm_key 'OCTAV'.*; known: min_max",
    ),
    ("expression", [{**VALID_RECIPE[0], "regex": "("}], r"regex '\(' is not a regular expression: "),
]


@pytest.mark.parametrize(("content", "message"), [row[1:] for row in BAD_RECIPES], ids=[row[0] for row in BAD_RECIPES])
def test_bad_recipes(content: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message):
        recipe_files.read(file)


def test_a_missing_and_a_binary_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        recipe_files.read(tmp_path / "no.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text"):
        recipe_files.read(tmp_path / "b.json")


def test_operator_codes_of_old_files_are_found(lite: Model, tmp_path: Path) -> None:
    """Files from before 2020 store them in another field; both are read."""
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray, read_model_from_bytearray

    model = read_model_from_bytearray(bytearray(lite.content))
    for code in model.operatorCodes:
        code.deprecatedBuiltinCode, code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode), 0
    old = bytes(convert_object_to_bytearray(model))
    path = tmp_path / "old.tflite"
    path.write_bytes(recipes.quantize_with_recipe(old, recipes.scheme_recipe("weight_only_int8"), None).content)
    assert "int8" in read(path).dtype_counts
    x = hm.data()[0][:5]
    np.testing.assert_allclose(predict(path, x).real_values, predict(lite.path, x).real_values, atol=0.05)


def test_a_rule_that_matches_nothing_is_reported(lite: Model) -> None:
    first_operator = lite.operators[0]
    scope = "".join(f"{tensor.name};" for tensor in first_operator.outputs if tensor is not None)
    user_recipe = [
        *recipes.scheme_recipe("int8"),
        recipes.make_rule(recipes.integer_config(8), f"^{re.escape(scope)}$"),
        recipes.make_rule(None, "softmax_of_old"),
        recipes.make_rule(recipes.integer_config(8), ".*", "CONV_2D_TRANSPOSE"),
        *recipes.io_rules("int8", "int8"),
    ]
    notes = quantize_tflite(lite, QuantizationRequest("recipe", recipe=user_recipe), [hm.data()[0][:20]]).notes
    rule_notes = [note for note in notes if note.startswith("rule")]
    assert rule_notes == [
        "rule 3 of the recipe has no effect: no operator of kind * matches 'softmax_of_old'",
        "rule 4 of the recipe has no effect: no operator of kind CONV_2D_TRANSPOSE matches '.*'",
    ]
