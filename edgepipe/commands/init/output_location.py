"""Where the new pipeline will stand: paths in it are relative to its folder, in which its modules are looked up too."""

import os
from dataclasses import dataclass
from pathlib import Path

from edgepipe.core.errors import InputError
from edgepipe.devices.device_profile import PROFILE_SUFFIXES


@dataclass(frozen=True)
class OutputLocation:
    """The folder of the pipeline, without symbolic links."""

    folder: Path

    @classmethod
    def for_file(cls, out: Path) -> "OutputLocation":
        """The folder that the file `out` will stand in."""
        return cls(out.parent.resolve())

    def relative_path(self, name: str | Path) -> str:
        """The file or folder `name` as the pipeline writes it, with forward slashes."""
        # The link itself stays as it was named; only the folders above it are resolved.
        file = Path(os.path.abspath(name))  # noqa: PTH100 - Path.resolve would follow the link
        text = Path(os.path.relpath(file.parent.resolve() / file.name, self.folder)).as_posix()
        if not text.isprintable():
            raise InputError(f"'{text!a}': a name that cannot be written into a text file; rename it")
        return text

    def device_reference(self, name: str) -> str:
        """A device as the pipeline names it: a profile's file by its path, one that comes with edgepipe by its name."""
        return self.relative_path(name) if name.endswith(PROFILE_SUFFIXES) else name
