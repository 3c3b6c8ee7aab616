"""Every `data:` key shown in docs/data.md is accepted, where the files it names exist."""

import re
from pathlib import Path

import pytest

from edgepipe.core import config
from edgepipe.data.data_spec import parse

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("text", BLOCKS, ids=range(len(BLOCKS)))
def test_the_examples_are_accepted(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_DATA", str(tmp_path / "mnist"))
    for folder in ("mnist", "photos", "recordings"):
        (tmp_path / folder).mkdir()
    for split in ("train", "t10k"):
        (tmp_path / "mnist" / f"{split}-images-idx3-ubyte").touch()
        (tmp_path / "mnist" / f"{split}-labels-idx1-ubyte").touch()
    (tmp_path / "signals.npz").touch()
    (tmp_path / "mydata.py").write_text("def load(speaker): ...\n")
    document = config.parse(text, "p.yaml")
    assert parse(document, ("data",), document.content["data"], tmp_path) is not None, document.problems
