"""The profiles in docs/devices.md load, and the page lists all rules and devices."""

import re
from pathlib import Path

import pytest

from edgepipe.devices import device_profile
from edgepipe.devices.accelerator_rules import RULE_BY_NAME

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("text", BLOCKS, ids=["inherits", "parts", "whole"])
def test_the_profiles_of_the_page_load(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert device_profile.load("mine.yaml", tmp_path).system.memory.ram == 128 * 1024


def test_the_page_lists_every_rule() -> None:
    for name, rule in RULE_BY_NAME.items():
        assert f"| `{name}` | {rule.text} |" in PAGE.read_text()


def test_the_page_names_every_shipped_device() -> None:
    for name in device_profile.device_names():
        assert f"- `{name}`:" in PAGE.read_text()
