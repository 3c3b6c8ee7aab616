"""YAML with places: what is read, what is refused, and that no text whatever gets past as an exception."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from edgepipe.core import config
from edgepipe.core.config import MAX_DEPTH, Document, Options, assign, describe_value, parse, validate
from edgepipe.core.errors import ConfigError, InputError


class Inner(Options):
    size: int = Field(default=1, ge=1)


class Example(Options):
    count: int = Field(default=1, ge=1, le=9)
    share: float = Field(default=0.5, ge=0, lt=1)
    upto: float = Field(default=1.0, gt=0, le=1)
    on: bool = False
    name: str = "a"
    kind: Literal["fast", "slow"] = "fast"
    number: Literal[1, 3] = 3
    sizes: tuple[int, ...] = ()
    pair: tuple[int, int] | None = None
    inner: Inner = Inner()
    free: dict[str, Any] = Field(default_factory=dict)


class Part(Options):
    part: Annotated[float, Field(gt=0, lt=1)] = 0.9


class Shares(Options):
    share: float = Field(default=0.9, ge=0, lt=1)
    upto: float = Field(default=0.9, gt=0, le=1)
    maybe: Annotated[float, Field(gt=0, lt=1)] | None = None
    inner: Part = Part()
    parts: dict[str, Part | None] = Field(default_factory=dict)


def messages(document: Document) -> list[str]:
    return [str(problem) for problem in document.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("007", 7),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2026-11-23", "2026-11-23"),
        ("1e-3", 0.001),
        ("1.", 1.0),
        ("+.5e2", 50.0),
        ("-.inf", float("-inf")),
        ("'1'", "1"),
        ("[1, a]", [1, "a"]),
        ("a b", "a b"),
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, value: object) -> None:
    document = parse(f"a: {text}", "f")
    assert messages(document) == []
    assert document.content == {"a": value}
    assert type(document.content["a"]) is type(value)


def test_positions_of_keys_and_values() -> None:
    document = parse("a:\n  - b: {c: 1}\n", "f")
    assert document.key_positions["a", 0, "b", "c"] == ("f", 2, 9)
    assert document.value_positions["a", 0, "b", "c"] == ("f", 2, 12)
    document.add_problem(("a", 0, "b", "gone"), "m")
    assert messages(document) == ["f:2:8: a.0.b.gone: m"], "an unknown place is told at the nearest one above"


@pytest.mark.slow
def test_the_depth_that_is_read_and_the_one_that_is_not() -> None:
    def nested(depth: int) -> str:
        return "[" * depth + "1" + "]" * depth

    assert messages(parse(nested(MAX_DEPTH), "f")) == []
    assert [m.split(": ")[-1] for m in messages(parse(nested(MAX_DEPTH + 1), "f"))] == [
        "values nested more than 50 deep"
    ]
    assert messages(parse("{a: " * 200 + "}" * 200, "f"))[0].endswith("values nested more than 50 deep")
    assert messages(parse(nested(5000), "f")) == ["f:1:202: values nested more than 50 deep"]


def test_aliases_are_copied_up_to_a_limit() -> None:
    assert parse("a: &x {b: 1}\nc: *x\n", "f").content == {"a": {"b": 1}, "c": {"b": 1}}
    bomb = "a: &a [" + "x, " * 999 + "x]\nb: [" + "*a, " * 99 + "*a]\nc: *a\n"
    assert messages(parse(bomb, "f")) == [
        "f:1:2942: b.18.978: more than 20000 values (aliases count each time they are used)"
    ]


PLACES = [  # text, the problem when held against Example
    ("{cuont: 1}", "f:1:2: cuont: unknown option; did you mean 'count'?"),
    ("{inner: {sise: 1}}", "f:1:10: inner.sise: unknown option; did you mean 'size'?"),
    ("{count: 0}", "f:1:9: count: should be greater than or equal to 1; found the number 0"),
    ("{count: 10}", "f:1:9: count: should be less than or equal to 9; found the number 10"),
    ("{count: yes}", "f:1:9: count: should be an integer; found the text 'yes'"),
    ("{count: true}", "f:1:9: count: should be an integer; found true"),
    ("{count: 1.0}", "f:1:9: count: should be an integer; found the number 1.0"),
    ("{share: 75}", "f:1:9: share: should be less than 1; found the number 75; 75 % is written 0.75"),
    ("{upto: 12.5}", "f:1:8: upto: should be less than or equal to 1; found the number 12.5; 12.5 % is written 0.125"),
    ("{share: 125 %}", "f:1:9: share: should be less than 1; found the number 1.25"),
    ("{share: 12.5 percent}", "f:1:9: share: should be a number; found the text '12.5 percent'"),
    ("{share: -1}", "f:1:9: share: should be greater than or equal to 0; found the number -1"),
    ("{share: 1000}", "f:1:9: share: should be less than 1; found the number 1000"),
    ("{share: .nan}", "f:1:9: share: should be a finite number; found the number nan"),
    ("{on: yes}", "f:1:6: on: should be true or false; found the text 'yes'"),
    ("{on: 1}", "f:1:6: on: should be true or false; found the number 1"),
    ("{name: 3}", "f:1:8: name: should be a text; found the number 3"),
    ("{name: }", "f:1:7: name: should be a text; found nothing"),
    ("{kind: fats}", "f:1:8: kind: found 'fats'; allowed: fast, slow; did you mean 'fast'?"),
    ("{kind: 3}", "f:1:8: kind: found the number 3; allowed: fast, slow"),
    ("{number: 2}", "f:1:10: number: found the number 2; allowed: 1 or 3"),
    ("{sizes: 3}", "f:1:9: sizes: should be a list; found the number 3"),
    ("{sizes: [1, a]}", "f:1:13: sizes.1: should be an integer; found the text 'a'"),
    ("{pair: [1, 2, 3]}", "f:1:8: pair: should have at most 2 items, found 3"),
    ("{pair: [1]}", "f:1:8: pair.1: is required but missing"),
    ("{inner: 3}", "f:1:9: inner: should be a mapping; found the number 3"),
    ("{inner: []}", "f:1:9: inner: should be a mapping; found an empty list"),
    ("{free: [1]}", "f:1:8: free: should be a mapping; found a list"),
    ("[1]", "f:1:1: must be a mapping of options, found a list"),
    ("text", "f:1:1: must be a mapping of options, found the text 'text'"),
]


@pytest.mark.parametrize(("text", "problem"), PLACES, ids=[text for text, _ in PLACES])
def test_validate(text: str, problem: str) -> None:
    document = parse(text, "f")
    assert validate(document, (), document.content, Example) is None
    assert messages(document) == [problem]


def test_all_problems_at_once() -> None:
    document = parse("count: 0\nshare: 2\nzoo: 1\n", "f")
    assert validate(document, (), document.content, Example) is None
    with pytest.raises(ConfigError) as caught:
        document.raise_problems()
    assert [problem.line for problem in caught.value.problems] == [1, 2, 3]


def test_good_options_and_nothing_at_all() -> None:
    document = parse("{count: 3, sizes: [1, 2], pair: [1, 2], inner: {size: 4}, share: 1e-1}", "f")
    found = validate(document, (), document.content, Example)
    assert found == Example(count=3, sizes=(1, 2), pair=(1, 2), inner=Inner(size=4), share=0.1)
    assert validate(document, (), None, Example) == Example()


PERCENTAGES = [
    ("{share: 12.5 %}", 0.125), ("{share: 30%}", 0.3), ("{upto: 100 %}", 1.0), ("{share: 57 %}", 0.57),
    ("{maybe: 30 %}", 0.3), ("{inner: {part: 5 %}}", 0.05), ("{parts: {a: {part: 5 %}, b: null}}", 0.05),
]  # fmt: skip


@pytest.mark.parametrize(("text", "fraction"), PERCENTAGES)
def test_a_percentage_wherever_a_fraction_is(text: str, fraction: float) -> None:
    document = parse(text, "f")
    found = validate(document, (), document.content, Shares)
    assert found is not None, document.problems
    assert fraction in (found.share, found.upto, found.maybe, found.inner.part,
                        *(part.part for part in found.parts.values() if part is not None))  # fmt: skip


def test_a_percentage_is_no_count_and_no_text() -> None:
    document = parse("{count: 5 %, name: 5 %}", "f")
    assert validate(document, (), document.content, Example) is None
    assert messages(document) == ["f:1:9: count: should be an integer; found the text '5 %'"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "nothing"), (True, "true"), (1, "the number 1"), ("x", "the text 'x'"), ([], "an empty list"),
     ([1], "a list"), ({}, "an empty mapping"), ({"a": 1}, "a mapping"), ("x" * 99, f"the text '{'x' * 60}'")],
)  # fmt: skip
def test_describe(value: object, text: str) -> None:
    assert describe_value(value) == text


def test_assign_makes_what_is_missing_and_names_itself() -> None:
    document = parse("a: {b: 1}\nc:\n", "f")
    assign(document, ("a", "b"), "[1, 2]", "--set a.b")
    assign(document, ("c", "d", "e"), "x", "--set c.d.e")
    assert document.content == {"a": {"b": [1, 2]}, "c": {"d": {"e": "x"}}}
    document.add_problem(("a", "b", 1), "m")
    document.add_problem(("c", "d"), "m")
    assert messages(document) == ["--set a.b: a.b.1: m", "--set c.d.e: c.d: m"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.yaml: cannot be read: No such file or directory"):
        config.read(tmp_path / "gone.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        config.read(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin.yaml:2:7: not UTF-8 text: found the byte 0xe9$"):
        config.read(tmp_path / "latin.yaml")


_YAML = st.text(st.sampled_from("ab:- \n\t#&*!|>'\"%@`{}[],?~<=.0123e+\\\ud800\x00é")) | st.text()


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(_YAML)
def test_any_text_is_data_or_problems(text: str) -> None:
    document = parse(text, "f")
    assert document.problems or document.content is not None or text.strip()
    for problem in document.problems:
        assert problem.line >= 1
        assert problem.column >= 1
    validate(document, (), document.content, Example)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(_VALUES)
@example({"k" * 1025: None})  # longer than YAML's keys may be
def test_json_is_read_as_it_is(value: object) -> None:
    document = parse(json.dumps({"a": value}), "f")
    assert messages(document) == []
    assert document.content == {"a": value}


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*Example.model_fields, "zoo"]), _VALUES, max_size=4))
def test_any_options_are_valid_or_told(options: dict[str, object]) -> None:
    document = Document("f", options)
    assert (validate(document, (), options, Example) is None) == bool(document.problems)
