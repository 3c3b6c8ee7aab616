"""The `data:` key: what is accepted, and every problem with its line, column and message."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgepipe.core import config
from edgepipe.data.data_spec import DataSpec, FashionSpec, FunctionSpec, ImagesSpec, NpzSpec, parse

FORMS = (
    "write module:function (for example edgepipe.data:digits) or a mapping with one of: "
    "function, npz, images, fashion_mnist, idx, csv, parquet, audio, spoken_digits"
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), y=np.arange(4))
    (tmp_path / "photos").mkdir()
    (tmp_path / "mine.py").write_text("def load(n=1):\n    return None\n")
    (tmp_path / "bad.py").write_text("def load(:\n")
    return tmp_path


def read(text: str, base: Path) -> tuple[DataSpec | None, list[str]]:
    document = config.parse(text, "p.yaml")
    spec = parse(document, ("data",), document.content["data"], base)
    return spec, [str(problem) for problem in document.problems]


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("data: edgepipe.data:digits", FunctionSpec(function="edgepipe.data:digits")),
        ("data: mine:load", FunctionSpec(function="mine:load")),
        ("data: {function: mine:load, args: {n: 3}}", FunctionSpec(function="mine:load", args={"n": 3})),
        ("data: {function: mine:load, files: [a.npz]}", FunctionSpec(function="mine:load", files=("a.npz",))),
        ("data: {npz: a.npz, test: 0.25, validation: 0.1}", NpzSpec(npz="a.npz", test=0.25, validation=0.1)),
        ("data: {npz: a.npz, representative: 50}", NpzSpec(npz="a.npz", representative=50)),
        (
            "data: {images: photos, size: [8, 9], channels: 1}",
            ImagesSpec(images="photos", size=(8, 9), channels=1, rescale="unit"),
        ),
    ],
)
def test_accepted(text: str, spec: DataSpec, base: Path) -> None:
    assert read(text, base) == (spec, [])


MALFORMED_SPECS = [
    ("data: digits", f"1:7: data: found the text 'digits'; {FORMS}"),
    ("data: 3", f"1:7: data: found the number 3; {FORMS}"),
    ("data: [a]", f"1:7: data: found a list; {FORMS}"),
    ("data:", f"1:6: data: found nothing; {FORMS}"),
    ("data: {test: 0.2}", f"1:7: data: no source; {FORMS}"),
    ("data: {nzp: a.npz}", "1:8: data.nzp: unknown source; did you mean 'npz'?"),
    ("data:\n  npz: a.npz\n  tset: 0.2", "3:3: data.tset: unknown option; did you mean 'test'?"),
    ("data:\n  npz: a.npz\n  images: photos", "3:3: data.images: a dataset has one source; 'npz' is there already"),
    ("data:\n  npz:", "2:7: data.npz: names nothing; write what to read"),
    ("data: {npz: gone.npz}", "1:13: data.npz: no such file: {base}/gone.npz"),
    ("data: {images: gone}", "1:16: data.images: no such folder: {base}/gone"),
    ("data: {idx: gone}", "1:13: data.idx: no such folder: {base}/gone"),
    (
        "data: {idx: photos}",
        "1:13: data.idx: {base}/photos lacks train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte (each may also end in .gz)",
    ),
    ("data: {npz: a.npz, test: 1}", "1:26: data.test: should be less than 1; found the number 1"),
    ("data: {npz: a.npz, test: 0}", "1:26: data.test: should be greater than 0; found the number 0"),
    (
        "data: {npz: a.npz, test: 20 percent}",
        "1:26: data.test: should be a number; found the text '20 percent'",
    ),
    (
        "data: {npz: a.npz, test: 0.6, validation: 0.4}",
        "1:7: data: validation and test take 1 of the samples; together they must stay below 1",
    ),
    (
        "data: {npz: a.npz, representative: 0}",
        "1:36: data.representative: should be greater than or equal to 1; found the number 0",
    ),
    (
        "data: {npz: a.npz, rescale: units}",
        "1:29: data.rescale: found 'units'; allowed: unit, signed, none; did you mean 'unit'?",
    ),
    ("data: {images: photos, channels: 4}", "1:34: data.channels: found the number 4; allowed: 1 or 3"),
    (
        "data: {images: photos, skip_corrupt: yes}",
        "1:38: data.skip_corrupt: should be true or false; found the text 'yes'",
    ),
    ("data: mine:lod", "1:7: data: module 'mine' has no 'lod'"),
    ("data: gone:load", "1:7: data: no module 'gone' beside the pipeline ({base}) or on Python's path"),
    ("data: bad:load", "1:7: data: {base}/bad.py:1:10: not valid Python: invalid syntax"),
    ("data: {function: mine.load}", "1:18: data.function: 'mine.load' is not of the form module:function"),
    (
        "data: {function: mine:load, files: [a.npz, b.npz]}",
        "1:44: data.files.1: no such file or folder: {base}/b.npz",
    ),
]


@pytest.mark.parametrize(("text", "message"), MALFORMED_SPECS, ids=[text for text, _ in MALFORMED_SPECS])
def test_malformed(text: str, message: str, base: Path) -> None:
    spec, problems = read(text, base)
    assert spec is None
    assert problems == [f"p.yaml:{message.replace('{base}', str(base))}"]


def test_all_problems_at_once(base: Path) -> None:
    _, problems = read("data:\n  npz: a.npz\n  test: 2\n  raw: 1\n  rescale: 3", base)
    assert [problem.split(": ")[1] for problem in sorted(problems)] == ["data.test", "data.raw", "data.rescale"]


def test_missing_fashion_mnist(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepipe.data.idx.DEBIAN_FOLDER", base / "debian")
    monkeypatch.setenv("EDGEPIPE_DATA", str(base / "photos"))
    for text, column in (("data: {fashion_mnist: }", 22), ("data: edgepipe.data:fashion_mnist", 7)):
        spec, problems = read(text, base)
        assert spec is None
        assert problems[0].startswith(f"p.yaml:1:{column}: ")
        assert "`apt install dataset-fashion-mnist`" in problems[0]
        assert f"{base}/photos" in problems[0]


def test_fashion_mnist_function_is_the_source(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_DATA", str(base))
    for split in ("train", "t10k"):
        (base / f"{split}-images-idx3-ubyte").touch()
        (base / f"{split}-labels-idx1-ubyte.gz").touch()
    assert read("data: edgepipe.data:fashion_mnist", base) == (FashionSpec(), [])


def test_parsing_the_key_imports_nothing_heavy() -> None:
    code = (
        "import sys, pathlib; from edgepipe.core import config; from edgepipe.data import data_spec, dataset_identity\n"
        "d = config.parse('data: edgepipe.data:digits', 'p')\n"
        "s = data_spec.parse(d, ('data',), d.content['data'], pathlib.Path('.'))\n"
        "dataset_identity.compute_identity(s, pathlib.Path('.'))\n"
        "print([m for m in ('numpy', 'sklearn', 'PIL', 'tensorflow', 'keras') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
