"""Names that a shell completes: devices, shipped pipelines, stages, architectures; files come from the shell itself."""

import os
from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem, shell_complete

from edgepipe.core.errors import InputError

REQUEST_VARIABLE = "_EDGEPIPE_COMPLETE"  # the name that click's completion scripts set


def answer_completion_request(cli: click.Command) -> bool:
    """Print completions, or a shell's completion script, if the environment asks for it; whether it did.

    Raises:
        InputError: the shell or the request is unknown.
    """
    request = os.environ.get(REQUEST_VARIABLE)
    if request is None:
        return False
    if shell_complete(cli, {}, "edgepipe", REQUEST_VARIABLE, request) != 0:
        raise InputError(f"{REQUEST_VARIABLE}={request}: must be bash_source, zsh_source or fish_source")
    return True


def complete_device(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Devices, and files, for a profile of one's own."""
    from edgepipe.devices.device_profile import device_names

    return _name_or_file(device_names(), incomplete)


def complete_pipeline(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped pipelines and files."""
    from edgepipe.pipeline.shipped_pipelines import pipeline_names

    return _name_or_file(pipeline_names(), incomplete)


def complete_shipped_pipeline(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped pipelines."""
    from edgepipe.pipeline.shipped_pipelines import pipeline_names

    return _names(pipeline_names(), incomplete)


def complete_stage(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Stages: built in, and of installed packages."""
    from edgepipe.stages import registry

    return _names([*registry.STAGE_REFERENCES, *(source.name for source in registry.installed_stages())], incomplete)


def complete_architecture(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Architectures of the zoo."""
    from edgepipe import zoo

    return _names(zoo.__all__, incomplete)


def _names(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _name_or_file(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    # A file only where no name begins so: the shells that click writes for take one kind or the other.
    return _names(names, incomplete) or [CompletionItem(incomplete, type="file")]
