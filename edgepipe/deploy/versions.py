"""The versions in a deployment folder on a device, and which of them runs.

    versions/0007-3fa9c1d2/     complete and proved: model.tflite, manifest.json, runner.py, golden.npz
    versions/0008-77ab10c3.part being staged, or left by an interruption: never switched to
    current -> versions/0007-3fa9c1d2

Where the file system has no symbolic links, `current` is a file whose only line is that path.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.metric import Record
from edgepipe.deploy import staging
from edgepipe.deploy.device import DURABLE, VERSIONS_FOLDER, Device
from edgepipe.deploy.transport import DeviceError

MODEL_FILE = "model.tflite"
MANIFEST_FILE = "manifest.json"
ACTIVE_FILE = "activated"  # present in versions that have been switched to, and were not withdrawn by a rollback
PART_SUFFIX = ".part"
DIGEST_CHARACTERS = 8
_NAME = re.compile(r"(\d{4,})-[0-9a-f]{8}")
MANIFEST_SCHEMA = "edgepipe.version/1"


class Manifest(Record):
    """What a version consists of, written when its proof is complete."""

    model: str
    created: str
    edgepipe: str
    digests: dict[str, str]
    evidence: str


@dataclass(frozen=True)
class Version:
    """One complete version; `activated`: it has run, and no rollback has left it."""

    name: str
    activated: bool

    @property
    def number(self) -> int:
        """Its place in the order of deployments."""
        return int(self.name.partition("-")[0])


@dataclass(frozen=True)
class VersionList:
    """The complete versions in the order of their numbers, the one that runs, and unfinished folders."""

    versions: tuple[Version, ...]
    current: str | None
    leftovers: tuple[str, ...]
    next_number: int

    def find(self, name: str) -> Version:
        """The version of that name.

        Raises:
            InputError: there is none.
        """
        for version in self.versions:
            if version.name == name:
                return version
        raise InputError(f"no version '{name}' on the device{did_you_mean(name, [v.name for v in self.versions])}")

    @property
    def rollback_version(self) -> Version | None:
        """The version that ran before the current one."""
        if self.current is None:
            return None
        earlier = [v for v in self.versions if v.activated and v.number < self.find(self.current).number]
        return earlier[-1] if earlier else None


LIST_SCRIPT = f"""
if [ -L current ]; then readlink current
elif [ -f current ]; then cat current
elif [ -e current ]; then echo '?'
else echo; fi
for folder in {VERSIONS_FOLDER}/*; do
  [ -d "$folder" ] || continue
  if [ -f "$folder/{ACTIVE_FILE}" ]; then echo "+ $folder"; else echo "- $folder"; fi
done
true
"""


def list_versions(device: Device) -> VersionList:
    """What is in the folder.

    Raises:
        DeviceError: `current` is not edgepipe's, or leads to a version that is not there.
    """
    current_line, _, folder_lines = device.check("cannot list versions", LIST_SCRIPT).partition("\n")
    entries = [line.split(f" {VERSIONS_FOLDER}/", 1) for line in folder_lines.splitlines() if "/" in line]
    versions = [Version(name, sign == "+") for sign, name in entries if _NAME.fullmatch(name)]
    versions.sort(key=lambda version: version.number)
    numbers = [int(m[1]) for _, name in entries if (m := _NAME.match(name))]
    current = _parse_current(device, current_line.strip(), {version.name for version in versions})
    leftovers = tuple(name for _, name in entries if name.endswith(PART_SUFFIX))
    return VersionList(tuple(versions), current, leftovers, max(numbers, default=0) + 1)


def _parse_current(device: Device, target: str, names: set[str]) -> str | None:
    if not target:
        return None
    name = target.rstrip("/").rpartition("/")[2]
    if target.rstrip("/") != f"{VERSIONS_FOLDER}/{name}" or not _NAME.fullmatch(name):
        raise DeviceError(
            f"{device.name}: {device.folder}/current is not edgepipe's (it leads to '{target}'); "
            "deploy to a folder of its own"
        )
    if name not in names:
        raise DeviceError(f"{device.name}: {device.folder}/current leads to '{target}', which is not there")
    return name


# Renaming is what makes it atomic; `mv` without -T would move a link into the folder that `current` leads to.
SWITCH_SCRIPT = f"""
version="{VERSIONS_FOLDER}/$1"
[ -d "$version" ] || exit 73
{DURABLE}
date > "$version/{ACTIVE_FILE}" && durable "$version/{ACTIVE_FILE}" "$version" || exit 74
rm -rf current.new
if [ -f current ] && [ ! -L current ] || ! ln -s "$version" current.new 2>/dev/null; then
  echo "$version" > current.new && durable current.new && mv -f current.new current
else
  mv -T -f current.new current 2>/dev/null || python3 -c 'import os; os.replace("current.new", "current")'
fi || exit 74
durable .
"""


def complete(device: Device, part: str, name: str) -> None:
    """Give a folder whose files are proved and durable the name of a version."""
    script = f'{DURABLE}mv "$1" "{VERSIONS_FOLDER}/$2" && durable {VERSIONS_FOLDER}'
    device.change("cannot complete the version", script, part, name)


def switch(device: Device, name: str) -> None:
    """Make `current` lead to the version `name`, atomically and durably."""
    device.change(f"cannot switch to {name}", SWITCH_SCRIPT, name)


def withdraw(device: Device, name: str) -> None:
    """Remember that a rollback has left the version `name`, so that none leads back to it."""
    device.change(f"cannot mark {name}", f'rm -f "{VERSIONS_FOLDER}/$1/{ACTIVE_FILE}"', name)


def remove_leftovers(device: Device, version_list: VersionList) -> None:
    """Remove what interrupted deployments left; the lock is ours, so nobody works on it."""
    if version_list.leftovers:
        paths = [f"{VERSIONS_FOLDER}/{name}" for name in version_list.leftovers]
        device.change("cannot remove leftovers", 'rm -rf "$@"', *paths)


def prune(device: Device, keep: int) -> tuple[str, ...]:
    """Remove the oldest versions beyond `keep`, never the current one nor what a rollback leads to; those removed."""
    version_list = list_versions(device)
    rollback_version = version_list.rollback_version
    kept_names = {version_list.current, rollback_version.name if rollback_version else None}
    removable = [version.name for version in version_list.versions if version.name not in kept_names]
    excess = max(0, len(version_list.versions) - max(keep, len(kept_names - {None})))
    removed_names = tuple(removable[:excess])
    if removed_names:
        # Renamed first, so that an interrupted removal does not leave what looks like a complete version.
        script = f'for path; do mv "$path" "$path{PART_SUFFIX}" && rm -rf "$path{PART_SUFFIX}" || exit 74; done'
        device.change("cannot remove old versions", script, *(f"{VERSIONS_FOLDER}/{name}" for name in removed_names))
    return removed_names


def read_manifest(device: Device, name: str) -> Manifest:
    """The manifest of a version.

    Raises:
        DeviceError: it is damaged.
    """
    text = device.read_text(f"{VERSIONS_FOLDER}/{name}/{MANIFEST_FILE}")
    try:
        content = json.loads(text)
        content.pop("schema", None)
        return Manifest.model_validate(content)
    except (ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"{device.name}: {name}/{MANIFEST_FILE} is damaged ({reason}); deploy again") from None


def verify_version(device: Device, name: str) -> Manifest:
    """Compare the files of a version with its manifest.

    Raises:
        DeviceError: a file is missing or differs.
    """
    manifest = read_manifest(device, name)
    staging.check_digests(device, f"{VERSIONS_FOLDER}/{name}", manifest.digests)
    return manifest


def format_now() -> str:
    """The time of this machine, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
