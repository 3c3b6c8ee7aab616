"""Code named as module:function: found, checked and digested without running it, then loaded."""

import sys
from pathlib import Path

import pytest

from edgepipe.core import file_memo, module_sources, references
from edgepipe.core.errors import InputError

RUN = "raise SystemExit('this module must not be imported')\n"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("a:b", True), ("a.b:c", True), ("a", False), ("a:", False), (":b", False), ("a/b.py:c", False), ("a:b c", False),
     ("C:\\model.keras", False), ("a:b:c", False), ("a..b:c", False)],
)  # fmt: skip
def test_is_reference(text: str, is_one: bool) -> None:
    assert references.is_reference(text) is is_one


def test_checking_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        RUN + "def build(): ...\nclass Net: ...\nalias = build\nfrom os import path as p\n"
    )
    for name in ("build", "Net", "alias", "p"):
        references.check(f"mine:{name}", tmp_path)
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("gone:build", r"no module 'gone' beside the pipeline \(.*\) or on Python's path"),
        ("mine.gone:build", "no module 'mine.gone'"),
        ("mine:buidl", "module 'mine' has no 'buidl'"),
        ("sys:exit", "no module 'sys'|has no Python source"),
        ("broken:build", r"broken\.py:2:.*not valid Python"),
    ],
)
def test_what_cannot_be_found(reference: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RUN + "def build(): ...\n")
    (tmp_path / "broken.py").write_text("x = 1\ndef build(:\n")
    with pytest.raises(InputError, match=message):
        references.check(reference, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import not_there_at_all\ndef build(): ...\n", "'user_fails:build' cannot be loaded: ModuleNotFoundError"),
        ("1 / 0\ndef build(): ...\n", "'user_fails:build' cannot be loaded: ZeroDivisionError: division by zero"),
        ("build = 3\n", "'user_fails:build' is not callable"),
        ("other = 3\n", "cannot be loaded: AttributeError"),
    ],
)
def test_what_cannot_be_loaded(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "user_fails.py").write_text(text)
    with pytest.raises(InputError, match=message):
        references.load("user_fails:build", tmp_path)
    sys.modules.pop("user_fails", None)


def test_an_edited_module_is_loaded_anew_with_its_helpers(tmp_path: Path) -> None:
    (tmp_path / "user_edited.py").write_text("from user_helper import number\ndef build(): return number\n")
    (tmp_path / "user_helper.py").write_text("number = 1\n")
    assert references.load("user_edited:build", tmp_path)() == 1
    (tmp_path / "user_helper.py").write_text("number = 23\n")
    assert references.load("user_edited:build", tmp_path)() == 23
    assert str(tmp_path) not in sys.path


def _package(folder: Path) -> None:
    (folder / "pkg" / "sub").mkdir(parents=True)
    (folder / "pkg" / "__init__.py").write_text("")
    (folder / "pkg" / "sub" / "__init__.py").write_text("")
    (folder / "pkg" / "main.py").write_text(RUN + "from . import near\nfrom .sub import deep\nimport os, beside\n")
    (folder / "pkg" / "near.py").write_text("x = 1\n")
    (folder / "pkg" / "sub" / "deep.py").write_text("from ..near import x\n")
    (folder / "pkg" / "unused.py").write_text("x = 1\n")
    (folder / "beside.py").write_text("y = 1\n")


def test_the_closure_holds_what_is_imported_and_nothing_else(tmp_path: Path) -> None:
    _package(tmp_path)
    assert sorted(module_sources.import_closure("pkg.main", tmp_path)) == [
        "beside",
        "pkg.main",
        "pkg.near",
        "pkg.sub.deep",
    ]


@pytest.mark.parametrize(
    ("file", "changes"),
    [("pkg/main.py", True), ("pkg/near.py", True), ("pkg/sub/deep.py", True), ("beside.py", True),
     ("pkg/unused.py", False)],
)  # fmt: skip
def test_the_digest_sees_every_edit_that_counts(file: str, changes: bool, tmp_path: Path) -> None:
    _package(tmp_path)
    before = module_sources.source_digest("pkg.main", tmp_path)
    (tmp_path / file).write_text((tmp_path / file).read_text() + "# edited\n")
    assert (module_sources.source_digest("pkg.main", tmp_path) != before) is changes


def test_the_digest_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _package(tmp_path / name)
    assert module_sources.source_digest("pkg.main", tmp_path / "a") == module_sources.source_digest(
        "pkg.main", tmp_path / "b"
    )


def test_one_scan_looks_once_and_the_next_one_anew(tmp_path: Path) -> None:
    _package(tmp_path)
    scan = module_sources.SourceScan()
    with scan.active():
        before = module_sources.source_digest("pkg.main", tmp_path)
        (tmp_path / "pkg" / "near.py").write_text("from . import unused\n")
        assert module_sources.source_digest("pkg.main", tmp_path) == before
    with module_sources.SourceScan().active():
        assert module_sources.source_digest("pkg.main", tmp_path) != before
        assert "pkg.unused" in module_sources.import_closure("pkg.main", tmp_path)


def test_a_module_that_appears_is_part_of_the_next_scan(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("helper = 1\n")
    (tmp_path / "pkg" / "main.py").write_text("from pkg import helper\n")
    assert sorted(module_sources.import_closure("pkg.main", tmp_path)) == ["pkg", "pkg.main"]
    (tmp_path / "pkg" / "helper.py").write_text("x = 1\n")
    assert sorted(module_sources.import_closure("pkg.main", tmp_path)) == ["pkg.helper", "pkg.main"]


def test_unchanged_sources_are_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _package(tmp_path)
    monkeypatch.setattr(file_memo, "SETTLING_SECONDS", 0.0)
    digests = []
    for _ in range(2):
        with file_memo.FileMemo(tmp_path / "memo.sqlite"):
            digests.append(module_sources.source_digest("pkg.main", tmp_path))
        monkeypatch.setattr(module_sources, "parse_source", lambda file: pytest.fail(f"{file} was parsed again"))
        monkeypatch.setattr(file_memo, "file_digest", lambda file: pytest.fail(f"{file} was read again"))
    assert digests[0] == digests[1]


def test_versions() -> None:
    assert references.installed_version("click")[0].isdigit()
    assert references.installed_version("no-such-package-at-all") == "absent"
