"""The location of the new pipeline: paths in it are relative to its folder, where its modules are looked up too."""

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
        """The folder of the file `out`."""
        return cls(out.parent.resolve())

    def relative_path(self, name: str | Path) -> str:
        """The file or folder `name` as the pipeline writes it, with forward slashes."""
        # A link keeps its own name; only the folders above it are resolved.
        file = Path(os.path.abspath(name))  # noqa: PTH100 - Path.resolve would follow the link
        text = Path(os.path.relpath(file.parent.resolve() / file.name, self.folder)).as_posix()
        if not text.isprintable():
            raise InputError(f"'{text!a}': a name that cannot be written into a text file; rename it")
        return text

    def device_reference(self, name: str) -> str:
        """A device as the pipeline names it: a profile file by its relative path, a built-in profile by its name."""
        return self.relative_path(name) if name.endswith(PROFILE_SUFFIXES) else name
