"""The command line: thin commands, each of which imports what it needs when it runs.

Results go to stdout, progress and errors to stderr. `--help` loads no large package but click.
"""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from edgepipe.commands import completion
from edgepipe.core import interrupts
from edgepipe.core.errors import EdgepipeError, ExitCode, InputError, did_you_mean
from edgepipe.core.escape import escape_line
from edgepipe.core.output import escaped_output, print_document, print_line

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from edgepipe.render.report import Report

# TensorFlow's C++ code logs to the terminal unless this is set before it is loaded.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SCHEMES = click.Choice(
    ["int8", "int16x8", "dynamic", "weight_only_int8", "weight_only_int4", "float16", "float32", "recipe"]
)
INTERFACE_TYPES = click.Choice(["int8", "uint8", "int16", "float32"])
CALIBRATION_METHODS = click.Choice(["min_max", "moving_average", "percentile", "mse"])
CALIBRATION = click.option(
    "--calibration",
    type=CALIBRATION_METHODS,
    default="min_max",
    show_default=True,
    help="Activation-range calibration method.",
)
PERCENTILE = click.option(
    "--percentile", type=click.FloatRange(50, 100, min_open=True), default=99.99, show_default=True,
    help="For --calibration percentile: percentage of values inside the range.",
)  # fmt: skip
SETTINGS = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="PATH=VALUE",
    help="Override an option of the file, such as stages.prune.sparsity=0.8; repeatable.",
)
ALLOW_CODE = click.option(
    "--allow-code",
    is_flag=True,
    help="Allow a model that contains executable code (Lambda layers, a SavedModel).",
)
CUSTOM_OBJECTS = click.option(
    "--custom-objects", metavar="MODULE:NAME", help="Custom classes of the model: a dictionary, or a single class."
)
INPUT_SHAPE = click.option(
    "--input-shape", multiple=True, metavar="SHAPE",
    help="Sizes of open input dimensions, such as 224x224x3, or NAME=224x224x3 for one of several inputs; repeatable.",
)  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
FULL = click.option("--full", is_flag=True, help="Show everything that the report holds, not only what matters first.")
CACHE_DIR = click.option(
    "--cache-dir",
    type=click.Path(file_okay=False),
    help="Where results are cached; default: $EDGEPIPE_CACHE_DIR, else ~/.cache/edgepipe.",
)
RUNS_DIR = click.option(
    "--runs-dir", type=click.Path(file_okay=False), default="runs", show_default=True, help="The folder of all runs."
)
GOLDEN_DATA = click.option(
    "--data", type=click.Path(), help="Inputs of the golden vectors, .npy or .npz; default: random numbers."
)
GOLDEN_SAMPLES = click.option(
    "--samples", type=click.IntRange(1), default=200, show_default=True, help="The most golden vectors."
)
TOLERANCE = click.option(
    "--tolerance", type=click.IntRange(0), metavar="LSB",
    help="The largest difference that passes; default: twice what this machine's own kernels differ.",
)  # fmt: skip
DEVICE_LIMITS = click.option(
    "--max", "limits", multiple=True, metavar="METRIC=LIMIT",
    help="What the device must meet, such as latency=20ms or ram=64MiB; repeatable.",
)  # fmt: skip
BOARD = click.option("--device", help="Profile of the board, by name or path; default: none.")
INTERPRETER_THREADS = click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of the interpreter."
)
LOCK_WAIT = click.option(
    "--wait", type=click.FloatRange(0), default=120, show_default=True, metavar="SECONDS",
    help="How long to wait for a device that another deployment works on.",
)  # fmt: skip
DEVICE_PYTHON = click.option("--python", default="python3", show_default=True, help="The Python on the device.")
INSTALL_RUNTIME = click.option(
    "--install", is_flag=True, help="Install the runtime there, into a virtual environment of the folder."
)
BENCHMARK_MODEL = click.option(
    "--benchmark-model",
    type=click.Path(),
    help="For adb: your benchmark_model, or CompiledModel benchmark, for Android.",
)
DELEGATE = click.option(
    "--delegate", type=click.Choice(["cpu", "xnnpack", "gpu", "nnapi", "npu"]), default="xnnpack", show_default=True,
    help="For adb: what must run the whole model.",
)  # fmt: skip
ACCEPT_NEW_HOST_KEY = click.option(
    "--accept-new-host-key", is_flag=True, help="Trust a host that is met for the first time."
)
CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def former_option(former: str, present: str) -> Callable[[CommandT], CommandT]:
    """An option that was renamed: refused, with its present name as the suggestion."""

    def refuse(ctx: click.Context, _: click.Parameter, option_text: str | None) -> None:
        if option_text is not None:
            raise click.UsageError(f"No such option: {former}. Did you mean {present}?", ctx)

    return click.option(former, hidden=True, expose_value=False, callback=refuse)


class SuggestingGroup(click.Group):
    """A group that suggests the nearest command for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As in click, with a suggestion in the error."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(f"no command '{name}'{did_you_mean(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, _: click.Parameter, is_requested: bool) -> None:
    if is_requested:
        from importlib.metadata import version

        print_line(f"edgepipe {version('edgepipe')}")
        ctx.exit()


@click.group(cls=SuggestingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--version", is_flag=True, callback=_print_version, expose_value=False, is_eager=True, help="Show the version."
)
def cli(debug: bool) -> None:
    """Turn a Keras model into a validated int8 TFLite model for a small device, with evidence for every number.

    Exit codes: 0 success; 1 a bug in edgepipe; 2 bad input or usage; 3 a budget or a rule was not met, or nothing can
    tell; 4 a tool or a device could not be reached; 130 interrupted; 141 broken pipe.
    """


@cli.command(short_help="Run a pipeline.")
@click.argument("pipeline", type=click.Path(), required=False, shell_complete=completion.complete_pipeline)
@click.option(
    "--from",
    "report",
    type=click.Path(),
    metavar="REPORT",
    help="Run the pipeline of an earlier report again, on the same data and models, and compare the artifacts. "
    "This runs the code that the report names, as a pipeline does.",
)
@click.option(
    "--pipeline-folder",
    type=click.Path(file_okay=False),
    help="For --from: the folder that the pipeline's paths start from; default: the one of that run.",
)
@SETTINGS
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False),
    help="Write the report and the artifacts exactly here, replacing those of an earlier run; default: a new folder in "
    "runs/NAME.",
)
@CUSTOM_OBJECTS
@CACHE_DIR
@FULL
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@JSON
def run(
    pipeline: str | None, report: str | None, pipeline_folder: str | None, settings: tuple[str, ...],
    output_dir: str | None, custom_objects: str | None, cache_dir: str | None, full: bool, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run a pipeline, a YAML file or the name of a shipped one; unchanged stages are taken from the cache.

    Each run gets a folder of its own below runs/NAME, where `latest` is the newest; `edgepipe runs` lists and compares
    them.
    """
    from edgepipe import api
    from edgepipe.core.progress import show_progress

    settings += (f"model.custom_objects={custom_objects}",) if custom_objects is not None else ()
    _check_run_arguments(pipeline, report, pipeline_folder, settings)
    command = ("edgepipe", *sys.argv[1:])
    # stdout is for the report: what the user's own functions print goes to stderr.
    with show_progress(quiet) as progress, redirect_stdout(sys.stderr):
        if report is not None:
            run_report = api.reproduce(
                report, pipeline_folder=pipeline_folder, output_dir=output_dir, cache_dir=cache_dir, progress=progress,
                command=command,
            )  # fmt: skip
        else:
            run_report = api.run(
                str(pipeline), settings=settings, output_dir=output_dir, cache_dir=cache_dir, progress=progress,
                command=command,
            )  # fmt: skip
    _print_report(run_report, as_json, full)
    if not quiet:
        print_line(f"wrote report.json, report.md and artifacts/ to {run_report.folder}", to_stderr=True)
    if run_report.reproduction is not None:
        from edgepipe.render.reproduction import describe

        print_line(describe(run_report.reproduction), to_stderr=True)
        _exit_if_not_met(run_report.reproduction.is_equal)
    _exit_if_not_met(run_report.met)


def _check_run_arguments(
    pipeline: str | None, report: str | None, pipeline_folder: str | None, settings: tuple[str, ...]
) -> None:
    if (pipeline is None) == (report is None):
        raise InputError("give a pipeline, or an earlier report with --from REPORT, and not both")
    if report is not None and settings:
        raise InputError("--from runs what the report says; for other options run the pipeline file with --set")
    if report is None and pipeline_folder is not None:
        raise InputError("--pipeline-folder is for --from REPORT; the paths of a pipeline file start from its folder")


@cli.command(short_help="Check pipeline files without running them.")
@click.argument("pipelines", nargs=-1, required=True, type=click.Path(), shell_complete=completion.complete_pipeline)
@SETTINGS
def check(pipelines: tuple[str, ...], settings: tuple[str, ...]) -> None:
    """Check pipelines without running anything: options, order of stages, devices, budget, model against data.

    What cannot run exits with 2, or with 4 if a package is missing; what will break a rule or miss a limit, with 3.
    """
    from edgepipe.pipeline import preflight, schema

    problems: list[str] = []
    findings: list[str] = []
    missing_tools: list[str] = []
    for file in pipelines:
        try:
            checked_pipeline = schema.load(file, settings)
            early_findings = preflight.find_early_findings(checked_pipeline)
            missing_tools += [f"{file}: {text}" for text in preflight.find_missing_tools(checked_pipeline)]
        except EdgepipeError as error:
            problems += error.lines
        else:
            verdict = "ok" if not early_findings else "will break a rule"
            print_line(f"{file}: {verdict}: {' -> '.join(step.name for step in checked_pipeline.steps)}")
            findings += [f"{file}: {finding}" for finding in early_findings]
            _print_notes(checked_pipeline.source.notes(checked_pipeline.base_folder))
    for line in (*problems, *missing_tools, *findings):
        print_line(line, to_stderr=True)
    if problems or missing_tools:
        raise SystemExit(ExitCode.BAD_INPUT if problems else ExitCode.UNREACHABLE)
    _exit_if_not_met(not findings)


@cli.command(short_help="Convert a model to TFLite, without YAML.")
@click.argument("model", type=click.Path())
@click.option(
    "--data",
    help="Representative samples, .npy, .npz, a folder or what `init --data` takes; int8 and int16x8 need them.",
)
@click.option(
    "--scheme",
    type=SCHEMES,
    default="int8",
    show_default=True,
    help="Conversion scheme: the types of weights and activations.",
)
@click.option(
    "--input",
    "input_type",
    type=INTERFACE_TYPES,
    help="Type of the model's inputs; default: set by the scheme, int32 for token ids and categories.",
)
@click.option(
    "--output", "output_type", type=INTERFACE_TYPES, help="Type of the model's outputs; default: set by the scheme."
)
@CALIBRATION
@PERCENTILE
@click.option(
    "--keep-float-types",
    multiple=True,
    metavar="TYPE",
    help="Layer class or TFLite operator to keep in float; repeatable.",
)
@click.option(
    "--keep-float-layers",
    multiple=True,
    metavar="REGEX",
    help="Layers to keep in float: a regular expression that matches the full name; repeatable.",
)
@former_option("--leave-type", "--keep-float-types")
@former_option("--leave", "--keep-float-layers")
@click.option("--recipe", type=click.Path(), help="For --scheme recipe: a litert-quantizer recipe file.")
@click.option(
    "--recurrent",
    type=click.Choice(["unrolled", "fused"]),
    default="unrolled",
    show_default=True,
    help="Recurrent layers in integers: step by step, or one operator for each LSTM, which keeps its state (int8).",
)
@click.option(
    "--streaming",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Steps of the sequence in one call: the states of recurrent and causal layers become inputs and outputs.",
)
@click.option(
    "--split-outputs",
    is_flag=True,
    help="Give each part of an output a scale of its own where one would get fewer than 20 of its steps.",
)
@click.option(
    "--allow-low-fidelity",
    is_flag=True,
    help="Accept an integer model with an output that is too far from the float one (below 5 to 8 dB).",
)
@click.option(
    "--runtime",
    metavar="PACKAGE==VERSION",
    help="Write what this release of a runtime runs right, or say that it cannot: tflite-runtime==2.14, litert==1.0, "
    "tflite-micro==2023-10-10.",
)
@click.option(
    "--keep-open-batch",
    is_flag=True,
    help="Of a float .tflite, which else gets a batch of 1 in schemes that calibrate.",
)
@click.option("--signature", help="The signature of a SavedModel; default: serving_default, or the only one.")
@click.option("-o", "--out", type=click.Path(), help="The .tflite to write; default: next to the model.")
@INPUT_SHAPE
@ALLOW_CODE
@CUSTOM_OBJECTS
@JSON
def convert(
    model: str,
    data: str | None,
    scheme: Any,
    input_type: Any,
    output_type: Any,
    calibration: Any,
    percentile: float,
    keep_float_types: tuple[str, ...],
    keep_float_layers: tuple[str, ...],
    recipe: str | None,
    recurrent: Any,
    streaming: int | None,
    split_outputs: bool,
    allow_low_fidelity: bool,
    runtime: str | None,
    keep_open_batch: bool,
    signature: str | None,
    out: str | None,
    input_shape: tuple[str, ...],
    allow_code: bool,
    custom_objects: str | None,
    as_json: bool,
) -> None:
    """Convert a .keras, .h5, SavedModel or float .tflite to TFLite, without YAML."""
    from edgepipe import api
    from edgepipe.render import convert as renderer
    from edgepipe.render.terminal import show_tables

    with _live_steps():
        conversion = api.convert(
            model, data=data, scheme=scheme, input=input_type, output=output_type, out=out, allow_code=allow_code,
            custom_objects=custom_objects, calibration=calibration, percentile=percentile,
            keep_float_types=keep_float_types, keep_float_layers=keep_float_layers, recipe=recipe,
            allow_low_fidelity=allow_low_fidelity, input_shape=input_shape, signature=signature, recurrent=recurrent,
            streaming=streaming, split_outputs=split_outputs, runtime=runtime, keep_open_batch=keep_open_batch,
        )  # fmt: skip
    if as_json:
        print_document(renderer.document(conversion))
    else:
        show_tables(renderer.tables(conversion))
        _print_notes(conversion.notes)
    _exit_if_not_met(not conversion.findings)


@cli.command()
@click.argument("model", type=click.Path())
@click.option(
    "--data", required=True, help="Samples: a .npy, a .npz (with labels `y` for accuracy), a folder, or a pipeline."
)
@click.option(
    "--scheme",
    type=click.Choice(["int8", "int16x8"]),
    default="int8",
    show_default=True,
    help="Scheme that layers are quantized with.",
)
@CALIBRATION
@PERCENTILE
@click.option(
    "--samples", type=click.IntRange(1), default=512, show_default=True, help="Number of samples to compare outputs on."
)
@click.option(
    "--chart", type=click.Path(dir_okay=False), help="Write a chart of the ranking to this .png, .svg or .pdf."
)
@INPUT_SHAPE
@ALLOW_CODE
@CUSTOM_OBJECTS
@JSON
def sensitivity(
    model: str, data: str, scheme: Any, calibration: Any, percentile: float, samples: int, chart: str | None,
    input_shape: tuple[str, ...], allow_code: bool, custom_objects: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Rank layers by quantization sensitivity.

    For each layer, two models are run: one with only that layer quantized, and one with all layers but that one
    quantized.
    """
    from edgepipe import api
    from edgepipe.render import sensitivity as renderer
    from edgepipe.render.terminal import show_tables

    with _live_steps():
        ranking = api.sensitivity(
            model, data=data, scheme=scheme, calibration=calibration, percentile=percentile, samples=samples,
            chart=chart, allow_code=allow_code, custom_objects=custom_objects, input_shape=input_shape,
        )  # fmt: skip
    if as_json:
        return print_document(renderer.document(ranking))
    show_tables(renderer.tables(ranking))
    return _print_notes(ranking.notes)


@cli.command(short_help="Show what is in a .tflite.")
@click.argument("model", type=click.Path())
@click.option(
    "--run", "runs", is_flag=True, help="Also run the model once, in a child process, and report whether it works."
)
@JSON
def inspect(model: str, runs: bool, as_json: bool) -> None:
    """Show what is in a .tflite: operators, shapes, types, MACs, parameters, memory plan."""
    from edgepipe import api
    from edgepipe.render import inspect as renderer

    tflite_model = api.inspect(model)
    run_record = renderer.run_model(tflite_model) if runs else None
    if as_json:
        return print_document(renderer.document(tflite_model, run_record))
    from edgepipe.render.terminal import show_tables

    return show_tables(renderer.tables(tflite_model, run_record))


@cli.command(short_help="Show what a .tflite costs on devices.")
@click.argument("model", type=click.Path())
@click.option(
    "--device", "devices", multiple=True, shell_complete=completion.complete_device,
    help="Device, by name or path; repeatable; default: all.",
)  # fmt: skip
@click.option(
    "--operators",
    is_flag=True,
    help="List every operator on each device; default: only those with a problem.",
)
@click.option(
    "--full",
    is_flag=True,
    help="How each number was obtained, where operators run and what is broken, for all devices; default with --device "
    "and --operators.",
)
@click.option("--on", "url", metavar="URL", help="A board of that device, where latency and memory are measured.")
@DEVICE_PYTHON
@ACCEPT_NEW_HOST_KEY
@CACHE_DIR
@click.option("--quiet", is_flag=True, help="Do not print the elapsed time on stderr.")
@JSON
def profile(
    model: str, devices: tuple[str, ...], operators: bool, full: bool, url: str | None, python: str,
    accept_new_host_key: bool, cache_dir: str | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show what a .tflite costs on devices before it is flashed: latency, RAM, flash, where each operator runs.

    Without --device, one line for each device that edgepipe knows. Every number says how it was obtained. Broken rules
    are listed; `verify` also exits with 3 for them.
    """
    from edgepipe import api
    from edgepipe.render import profile as renderer

    model_profile = api.profile(
        model, devices=devices, cache_dir=cache_dir, on=url, python=python, accept_new_host_key=accept_new_host_key
    )
    if as_json:
        return print_document(renderer.document(model_profile))
    from edgepipe.render.terminal import show_tables

    full = full or bool(devices) or operators
    show_tables(renderer.tables(model_profile, every_operator=operators, full=full))
    _print_notes(model_profile.notes)
    if not quiet:
        print_line(renderer.describe_durations(model_profile), to_stderr=True)
    return None


@cli.command(short_help="Check a .tflite against limits.")
@click.argument("model", type=click.Path())
@click.option(
    "--device", "devices", multiple=True, shell_complete=completion.complete_device,
    help="Device, by name or path; repeatable.",
)  # fmt: skip
@click.option(
    "--max",
    "limits",
    multiple=True,
    metavar="METRIC=LIMIT",
    help="An upper limit, such as ram=64KiB or latency=5ms; repeatable.",
)
@click.option("--integer-only", is_flag=True, help="Every operator and tensor must be integer.")
@click.option(
    "--zeros-of",
    type=click.Path(),
    help="A pruned .keras or .h5 model; weights that are zero in it must be zero in the .tflite.",
)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="PACKAGE==VERSION",
    help="A release that must run every operator right, such as tflite-runtime==2.14; repeatable.",
)
@JSON
def verify(
    model: str,
    devices: tuple[str, ...],
    limits: tuple[str, ...],
    integer_only: bool,
    zeros_of: str | None,
    runtimes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check a .tflite against devices and limits: met, not met, or unknown; exit with 3 unless all are met."""
    from edgepipe import api
    from edgepipe.render import verify as renderer
    from edgepipe.render.terminal import show_tables

    verification = api.verify(
        model, devices=devices, limits=limits, integer_only=integer_only, zeros_of=zeros_of, runtimes=runtimes
    )
    if as_json:
        print_document(renderer.document(verification))
    else:
        show_tables(renderer.tables(verification))
        _print_notes(verification.notes)
        print_line(verification.judgement.value)
    _exit_if_not_met(verification.met)


@cli.command(short_help="Deploy a .tflite to devices.")
@click.argument("model", metavar="[MODEL|RUN]", required=False, type=click.Path())
@click.option(
    "--to", "urls", multiple=True, metavar="URL", required=True,
    help="Device and folder, such as ssh://pi@raspberrypi/home/pi/app; or an alias of ~/.ssh/config; repeatable.",
)  # fmt: skip
@click.option("--rollback", is_flag=True, help="Go back to the version that ran before.")
@click.option("--switch", "version", metavar="VERSION", help="Switch to a version that is on the device.")
@click.option("--list", "lists", is_flag=True, help="List the versions on the devices.")
@click.option("--stage-only", is_flag=True, help="Stage and prove the model, but do not switch to it.")
@GOLDEN_DATA
@GOLDEN_SAMPLES
@TOLERANCE
@DEVICE_LIMITS
@BOARD
@INTERPRETER_THREADS
@click.option(
    "--keep", type=click.IntRange(1), default=5, show_default=True, help="Complete versions that stay on a device."
)
@click.option(
    "--canary", type=click.IntRange(0), default=1, show_default=True,
    help="Devices that go first; if one fails, no other is touched.",
)  # fmt: skip
@click.option("--parallel", type=click.IntRange(1), default=8, show_default=True, help="Devices at a time.")
@click.option(
    "--max-failures", type=click.FloatRange(0, 100), default=20, show_default=True, metavar="PERCENT",
    help="Share of the devices that may fail before no further one is begun.",
)  # fmt: skip
@LOCK_WAIT
@DEVICE_PYTHON
@INSTALL_RUNTIME
@BENCHMARK_MODEL
@DELEGATE
@ACCEPT_NEW_HOST_KEY
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@JSON
def deploy(
    model: str | None, urls: tuple[str, ...], rollback: bool, version: str | None, lists: bool, stage_only: bool,
    data: str | None, samples: int, tolerance: int | None, limits: tuple[str, ...], device: str | None, threads: int,
    keep: int, canary: int, parallel: int, max_failures: float, wait: float, python: str, install: bool,
    benchmark_model: str | None, delegate: Any, accept_new_host_key: bool, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Deploy a .tflite, or the last one of a run, to devices.

    The model is staged beside the version that runs, read back, and proved there: it loads, computes what the reference
    kernels compute here, and is fast enough. Only then the device switches to it, in one atomic step.
    """
    from edgepipe import api
    from edgepipe.core.progress import show_progress
    from edgepipe.render import deploy as renderer

    _check_deploy_actions({"MODEL": model, "--rollback": rollback, "--switch": version, "--list": lists})
    if lists:
        return _print_listings(urls, accept_new_host_key, as_json)
    with show_progress(quiet) as progress:
        if model is None:
            fleet = api.switch_version(
                urls, version, canary=canary, parallel=parallel, max_failures=max_failures / 100, wait=wait,
                accept_new_host_key=accept_new_host_key, progress=progress,
            )  # fmt: skip
        else:
            fleet = api.deploy_model(
                model, urls, data=data, samples=samples, tolerance=tolerance, limits=limits, device=device,
                threads=threads, stage_only=stage_only, keep=keep, canary=canary, parallel=parallel,
                max_failures=max_failures / 100, wait=wait, python=python, install=install,
                benchmark_model=benchmark_model, delegate=delegate, accept_new_host_key=accept_new_host_key,
                progress=progress,
            )  # fmt: skip
    if as_json:
        print_document(renderer.document(fleet))
    elif fleet.sole_error is not None:
        raise fleet.sole_error
    else:
        from edgepipe.render.terminal import show_tables

        show_tables(renderer.tables(fleet))
        _print_notes(renderer.notes(fleet))
    return _exit_with(fleet.exit_code)


@cli.command(short_help="Measure a .tflite on a device.")
@click.argument("model", metavar="MODEL|RUN", type=click.Path())
@click.option("--on", "url", metavar="URL", required=True, help="The device, such as ssh://pi@raspberrypi.")
@GOLDEN_DATA
@GOLDEN_SAMPLES
@TOLERANCE
@DEVICE_LIMITS
@BOARD
@INTERPRETER_THREADS
@click.option(
    "--runs", type=click.IntRange(1), default=50, show_default=True, help="Timed runs; more if they are short."
)
@LOCK_WAIT
@DEVICE_PYTHON
@INSTALL_RUNTIME
@BENCHMARK_MODEL
@DELEGATE
@ACCEPT_NEW_HOST_KEY
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@JSON
def measure(
    model: str, url: str, data: str | None, samples: int, tolerance: int | None, limits: tuple[str, ...],
    device: str | None, threads: int, runs: int, wait: float, python: str, install: bool,
    benchmark_model: str | None, delegate: Any, accept_new_host_key: bool, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure a .tflite on a device without deploying it: latency, memory, and how far its outputs differ from here."""
    from edgepipe import api
    from edgepipe.core.progress import show_progress
    from edgepipe.render import measure as renderer

    with show_progress(quiet) as progress:
        measured = api.measure(
            model, url, data=data, samples=samples, tolerance=tolerance, limits=limits, device=device,
            threads=threads, runs=runs, wait=wait, python=python, install=install, benchmark_model=benchmark_model,
            delegate=delegate, accept_new_host_key=accept_new_host_key, progress=progress,
        )  # fmt: skip
    if as_json:
        print_document(renderer.document(measured))
    else:
        from edgepipe.render.terminal import show_tables

        show_tables(renderer.tables(measured))
        _print_notes((*measured.golden.notes, *measured.health.notes))
    return _exit_if_not_met(measured.health.healthy)


def _check_deploy_actions(actions: "dict[str, object]") -> None:
    named_actions = [name for name, value in actions.items() if value]
    if len(named_actions) != 1:
        found_text = ", ".join(named_actions) if named_actions else "none"
        raise InputError(f"give one of MODEL, --rollback, --switch VERSION and --list; found {found_text}")


def _print_listings(urls: tuple[str, ...], accept_new_host_key: bool, as_json: bool) -> None:
    from edgepipe import api
    from edgepipe.render import deploy as renderer
    from edgepipe.render.terminal import show_tables

    listings = api.list_versions(urls, accept_new_host_key=accept_new_host_key)
    if as_json:
        print_document(renderer.listing_document(listings))
    else:
        show_tables(table for listing in listings for table in renderer.listing_tables(listing))
    errors = [listing.error for listing in listings if listing.error is not None]
    for error in errors[:-1]:
        print_line(f"edgepipe: {error}", to_stderr=True)
    if errors:
        raise errors[-1]


@cli.command(short_help="Show the report of an earlier run.")
@click.argument("run_folder", metavar="RUN", type=click.Path())
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json", "markdown"]),
    default="text",
    show_default=True,
    help="Format of the report; JSON and Markdown hold everything.",
)
@FULL
def report(run_folder: str, style: str, full: bool) -> None:
    """Show the report of an earlier run, from its folder or report.json; of a folder of runs, the latest."""
    from edgepipe import api

    run_report = api.load_report(run_folder)
    if style == "markdown":
        from edgepipe.render.markdown import render

        return print_document(render(run_report))
    return _print_report(run_report, style == "json", full)


@cli.group(cls=SuggestingGroup)
def runs() -> None:
    """List, compare and remove earlier runs."""


@runs.command("list")
@click.argument("name", metavar="[PIPELINE]", required=False)
@RUNS_DIR
@JSON
def runs_list(name: str | None, runs_dir: str, as_json: bool) -> None:
    """List the runs below runs/, of one pipeline or of all, the newest first."""
    from edgepipe import api
    from edgepipe.render import runs as renderer
    from edgepipe.render.terminal import show_tables

    kept_runs = api.list_runs(name, runs_dir=runs_dir)
    if as_json:
        return print_document(renderer.document(kept_runs))
    show_tables(renderer.tables(kept_runs))
    return _print_notes(tuple(run.problem for run in kept_runs if run.problem))


@runs.command("compare", short_help="Show what differs between two runs.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@RUNS_DIR
@JSON
def runs_compare(first: str, second: str, runs_dir: str, as_json: bool) -> None:
    """Show the options, inputs, versions and metrics that differ between two runs.

    A and B are folders of runs, report.json files, or names as `edgepipe runs list` shows them; the name of a pipeline
    is its latest run.
    """
    from edgepipe import api
    from edgepipe.render import runs as renderer
    from edgepipe.render.terminal import show_tables

    comparison = api.compare_runs(first, second, runs_dir=runs_dir)
    if as_json:
        return print_document(renderer.comparison_document(comparison))
    print_line(f"A: {comparison.first_report}")
    print_line(f"B: {comparison.second_report}")
    show_tables(renderer.comparison_tables(comparison))
    if not comparison.differences:
        print_line("the runs do not differ")
    return _print_notes(comparison.notes)


@runs.command("prune", short_help="Remove old runs.")
@click.argument("name", metavar="[PIPELINE]", required=False)
@click.option("--keep", type=click.IntRange(min=1), required=True, help="How many runs of each pipeline stay.")
@RUNS_DIR
def runs_prune(name: str | None, keep: int, runs_dir: str) -> None:
    """Remove all but the newest runs of one pipeline or of all; the latest always stays."""
    from edgepipe import api
    from edgepipe.core.units import plural

    removed_folders = api.prune_runs(name, keep=keep, runs_dir=runs_dir)
    for folder in removed_folders:
        print_line(str(folder))
    print_line(f"removed {plural(len(removed_folders), 'run')}")


@cli.command()
@click.argument("name", metavar="[STAGE]", required=False, shell_complete=completion.complete_stage)
@JSON
def stages(name: str | None, as_json: bool) -> None:
    """List the stages, or the options of one stage."""
    from edgepipe.render import stages as renderer
    from edgepipe.render.terminal import show_tables

    return print_document(renderer.document(name)) if as_json else show_tables(renderer.tables(name))


@cli.command(short_help="Print a JSON Schema for an editor.")
@click.argument("document", type=click.Choice(["pipeline", "device"]))
def schema(document: Any) -> None:
    """Print the JSON Schema of a pipeline or of a device profile, for an editor's completion and checks."""
    from edgepipe.render import json_schema as renderer

    print_document(renderer.document(document))


@cli.command("data", short_help="Show a dataset before training.")
@click.argument("description", required=False)
@click.option(
    "--options", "source", metavar="SOURCE", help="List the options of a source: csv, images, audio, npz, function, ..."
)
@click.option(
    "--picture",
    type=click.Path(dir_okay=False),
    help="Write a picture of training samples to this .png, .svg or .pdf.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Seed of the split; default: the pipeline's, or 0.")
@JSON
def data_command(
    description: str | None, source: str | None, picture: str | None, seed: int | None, as_json: bool
) -> None:
    """Show a dataset before training: sizes, shapes, values, class balance, skipped samples.

    DESCRIPTION is a file or folder of samples, a pipeline, module:function, or a mapping such as '{images: photos/,
    size: [96, 96]}'. Only the size of the test split is shown.
    """
    from edgepipe import api
    from edgepipe.render import dataset
    from edgepipe.render.terminal import show_tables

    if source is not None:
        return (
            print_document(dataset.options_document(source)) if as_json else show_tables(dataset.option_tables(source))
        )
    if description is None:
        raise click.UsageError("name what to show, such as a folder, or --options SOURCE")
    with _live_steps():
        summary = api.describe_data(description, seed=seed, picture=picture)
    if as_json:
        return print_document(dataset.document(summary))
    show_tables(dataset.tables(summary))
    _print_notes(summary.notes)
    hint = f"drew {picture}" if picture else "--picture FILE.png draws samples of each class"
    return print_line(hint, to_stderr=True)


@cli.command(short_help="List the architectures and their footprints.")
@click.argument("name", metavar="[ARCHITECTURE]", required=False, shell_complete=completion.complete_architecture)
@click.option("--input", "shape", metavar="SHAPE", help="Shape of one sample, such as 49x10x1 or 100x6.")
@click.option("--classes", type=int, help="Number of classes of a classifier; default: 10.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="OPTION=VALUE",
    help="An option of the architecture, such as alpha=0.5; repeatable.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    shell_complete=completion.complete_device,
    help="Device to estimate the footprint on, by name or path; repeatable.",
)
@JSON
def zoo(
    name: str | None, shape: str | None, classes: int | None, settings: tuple[str, ...], devices: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    """List the architectures and their footprints, or compute the footprint of one of them, before any training."""
    from edgepipe.render import zoo as renderer
    from edgepipe.render.terminal import show_tables

    if name is None or shape is None:
        if shape is not None or settings or devices or classes is not None:
            raise InputError(
                "--input, --classes, --set and --device go together: edgepipe zoo ARCHITECTURE --input 28x28x1"
            )
        if as_json:
            return print_document(renderer.architecture_document(name))
        return show_tables(renderer.architecture_tables(name))
    from edgepipe import api

    measured_footprint = api.footprint(
        name, input_shape=renderer.parse_shape(shape), classes=classes, options=renderer.parse_options(settings),
        devices=devices,
    )  # fmt: skip
    if as_json:
        return print_document(renderer.document(measured_footprint))
    return show_tables(renderer.tables(measured_footprint))


@cli.group(cls=SuggestingGroup)
def device() -> None:
    """List, show and calibrate device profiles."""


@device.command("list")
@JSON
def device_list(as_json: bool) -> None:
    """List the devices that edgepipe knows."""
    from edgepipe.render import devices as renderer
    from edgepipe.render.terminal import show_tables

    if as_json:
        return print_document(renderer.list_document())
    return show_tables(renderer.list_tables())


@device.command("show", short_help="Show one device.")
@click.argument("name", metavar="DEVICE", shell_complete=completion.complete_device)
@JSON
def device_show(name: str, as_json: bool) -> None:
    """Show one device: hardware, runtime, types, how each metric is obtained, sources."""
    from edgepipe.render import devices as renderer
    from edgepipe.render.terminal import show_tables

    if as_json:
        return print_document(renderer.document(name))
    return show_tables(renderer.tables(name))


@device.command("calibrate", short_help="Measure a device and fit a latency model.")
@click.argument("name", metavar="DEVICE", shell_complete=completion.complete_device)
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False),
    required=True,
    help="The device profile to write, a .yaml file.",
)
@click.option(
    "--effort",
    type=click.Choice(["quick", "full"]),
    default="full",
    show_default=True,
    help="How many models to measure: quick, about 380 (one minute); full, about 970 (two to three minutes).",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of the runtime.")
@click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True, help="Seed of the suite.")
@CACHE_DIR
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@JSON
def device_calibrate(
    name: str,
    out: str,
    effort: Any,
    threads: int,
    seed: int,
    cache_dir: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure a suite of small models on a device, fit a latency model, and write a device profile that uses it.

    DEVICE is the device to measure; only `host` is supported yet. The same command resumes an interrupted calibration.
    """
    from pathlib import Path

    from edgepipe import api
    from edgepipe.core.progress import show_progress
    from edgepipe.render import devices as renderer
    from edgepipe.render.terminal import show_tables

    with show_progress(quiet) as progress:
        api.calibrate(
            name,
            Path(out),
            effort=effort,
            threads=threads,
            seed=seed,
            cache_dir=cache_dir,
            force=force,
            progress=progress,
        )
    if as_json:
        return print_document(renderer.document(out))
    return show_tables([*renderer.tables(out), renderer.calibration_table(out)])


@device.command("fit", short_help="Fit operator costs to measured latencies.")
@click.argument("table", type=click.Path())
@click.option("--models", required=True, type=click.Path(), help="Folder with the .tflite files of the table.")
@click.option("--target", help='Rows to fit, as "DEVICE, RUNTIME"; default: the only pair in the table.')
@click.option("--kind", required=True, help="Processor kind, such as cortex-m; see docs/latency.md.")
@click.option("--clock", required=True, help="Clock of the target, such as 400 MHz.")
@click.option(
    "--neighbour",
    "neighbours",
    multiple=True,
    metavar="TARGET=CLOCK",
    help="Rows of a similar device to include in the fit, with its clock, such as 'BOARD, 8.1=400 MHz'; repeatable.",
)
@click.option(
    "--dtype",
    type=click.Choice(["int8", "float32"]),
    default="int8",
    show_default=True,
    help="Arithmetic type of the models.",
)
@click.option(
    "--on-chip", help="On-chip memory for weights, such as 1 MiB; weights beyond it are read from external memory."
)
@click.option("--without", multiple=True, metavar="FAMILY", help="Exclude this family's rows; repeatable.")
@click.option("--source", help="Where the measurements come from; default: the table's file name.")
@click.option("-o", "--out", required=True, type=click.Path(), help="The profile fragment to write.")
@JSON
def device_fit(
    table: str,
    models: str,
    target: str | None,
    kind: str,
    clock: str,
    neighbours: tuple[str, ...],
    dtype: Any,
    on_chip: str | None,
    without: tuple[str, ...],
    source: str | None,
    out: str,
    as_json: bool,
) -> None:
    """Fit the operator costs of a device to a table of measured latencies, and write a fragment that a device profile
    can inherit.

    TABLE is a CSV file with the columns family, device, runtime, model, latency_ms and file.
    """
    from edgepipe import api
    from edgepipe.render import device_fit as renderer

    fit_result = api.fit_device(
        table,
        models=models,
        out=out,
        target=target,
        kind=kind,
        clock=clock,
        neighbours=neighbours,
        dtype=dtype,
        on_chip=on_chip,
        source=source,
        without=without,
    )
    for reason in fit_result.skip_reasons:
        print_line(f"skipped: {reason}", to_stderr=True)
    if as_json:
        return print_document(renderer.document(fit_result))
    from edgepipe.render.terminal import show_tables

    show_tables(renderer.tables(fit_result))
    return print_line(f"wrote {out}")


@cli.command()
@click.argument("model")
@click.option("-o", "--out", type=click.Path(), default="pipeline.yaml", show_default=True, help="The file to write.")
@click.option("--data", help="The data: a .npz, a table, a folder of images, recordings or tables, or module:function.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    default=("host",),
    show_default="host",
    shell_complete=completion.complete_device,
    help="A device to validate for, by name or path; repeatable.",
)
@CUSTOM_OBJECTS
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def init(
    model: str, out: str, data: str | None, devices: tuple[str, ...], custom_objects: str | None, force: bool
) -> None:
    """Read a model and write a commented pipeline for it."""
    from pathlib import Path

    from edgepipe.commands import init as command

    notes = command.write(model, Path(out), data=data, devices=devices, force=force, custom_objects=custom_objects)
    print_line(f"wrote {out}")
    for note in notes:
        print_line(f"note: {note}", to_stderr=True)


@cli.group(cls=SuggestingGroup)
def pipelines() -> None:
    """List or copy the pipelines that come with edgepipe."""


@pipelines.command("list", short_help="List the shipped pipelines.")
@JSON
def pipelines_list(as_json: bool) -> None:
    """List the pipelines that `edgepipe run` takes by name."""
    from edgepipe.render import pipelines as renderer
    from edgepipe.render.terminal import show_tables

    return print_document(renderer.document()) if as_json else show_tables(renderer.tables())


@pipelines.command("copy", short_help="Copy a shipped pipeline to change it.")
@click.argument("name", shell_complete=completion.complete_shipped_pipeline)
@click.argument("target", metavar="[FILE]", required=False, type=click.Path())
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def pipelines_copy(name: str, target: str | None, force: bool) -> None:
    """Copy a shipped pipeline to FILE, or into the folder FILE; default: the current folder."""
    from pathlib import Path

    from edgepipe.pipeline.shipped_pipelines import copy_pipeline

    print_line(f"wrote {copy_pipeline(name, Path(target or '.'), force)}")


@cli.group(cls=SuggestingGroup)
def cache() -> None:
    """List or clear cached results."""


@cache.command("list")
@CACHE_DIR
@JSON
def cache_list(cache_dir: str | None, as_json: bool) -> None:
    """List the cached results, newest first."""
    from edgepipe.render import cache as renderer
    from edgepipe.render.terminal import show_tables

    return print_document(renderer.document(cache_dir)) if as_json else show_tables(renderer.tables(cache_dir))


@cache.command("clear", short_help="Remove all cached results.")
@CACHE_DIR
def cache_clear(cache_dir: str | None) -> None:
    """Remove all cached results; the readings of `device calibrate` are kept."""
    from pathlib import Path

    from edgepipe.core.cache import Cache, default_root
    from edgepipe.core.units import plural

    store = Cache(Path(cache_dir) if cache_dir else default_root())
    print_line(f"removed {plural(store.clear(), 'entry', 'entries')} from {store.root}")


def _live_steps() -> "AbstractContextManager[object]":
    """What a command is doing, live on a terminal; nothing in a log."""
    from edgepipe.core.progress import show_progress

    return show_progress(has_lines=False)


def _print_report(run_report: "Report", as_json: bool, full: bool = False) -> None:
    if as_json:
        return print_document(run_report.json())
    from edgepipe.render.terminal import show_report

    return show_report(run_report, full)


def _print_notes(notes: "tuple[str, ...]") -> None:
    if notes:
        from edgepipe.render.terminal import show_notes

        show_notes(notes)


def _exit_if_not_met(is_met: bool) -> None:
    _exit_with(ExitCode.SUCCESS if is_met else ExitCode.NOT_MET)


def _exit_with(code: ExitCode) -> None:
    if code is not ExitCode.SUCCESS:
        raise SystemExit(code)


@contextmanager
def _handle_errors(debug: bool) -> Iterator[None]:
    """Print every error as one clear line, and exit with its code."""
    try:
        yield
    except EdgepipeError as error:
        _fail(error.lines, error.exit_code, debug)
    except KeyboardInterrupt:
        _fail_as_interrupted(debug)
    except OSError as error:
        _handle_output_error(error, debug)
    except Exception as error:  # noqa: BLE001 - the last place to turn an unexpected error into one line
        if interrupts.is_requested():  # which a library has turned into an error of its own
            _fail_as_interrupted(debug)
        _fail_with_bug(error, debug)


def _handle_output_error(error: OSError, debug: bool) -> None:
    """Exit for a broken pipe or a full disk; any other operating-system error is a bug."""
    if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        _fail_with_bug(error, debug)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout at exit
    if error.errno == errno.EPIPE:
        raise SystemExit(ExitCode.BROKEN_PIPE)
    _fail([f"the output cannot be written: {error.strerror}"], ExitCode.BAD_INPUT, debug)


def _fail_as_interrupted(debug: bool) -> NoReturn:
    _fail(["interrupted; finished work is kept, the same command resumes it"], ExitCode.INTERRUPTED, debug)


def _fail_with_bug(error: Exception, debug: bool) -> NoReturn:
    description = f"{type(error).__name__}: {error}"
    _fail(
        [f"internal error, a bug in edgepipe: {description} (for the traceback: edgepipe --debug ..)"],
        ExitCode.BUG,
        debug,
    )


def _fail(lines: Sequence[str], code: ExitCode, debug: bool) -> NoReturn:
    prefix = "edgepipe: " if len(lines) == 1 else ""  # several begin with the place of each
    with suppress(OSError):  # a terminal that is gone
        for part in traceback.format_exception(sys.exception()) if debug else ():
            for line in part.splitlines() if part.startswith("  File ") else [part.strip("\n")]:
                print_line(line, to_stderr=True)
        for line in lines:
            print_line(f"{prefix}{line}", to_stderr=True)
    raise SystemExit(code)


def _show_usage_error(error: click.ClickException) -> None:
    if not isinstance(error, click.exceptions.NoArgsIsHelpError):  # whose message is the help
        # It quotes arguments, which may be names of files; click has no other way to change what it shows.
        error.message = escape_line(error.message)  # type: ignore[misc]
    error.show()


def _open_missing_streams() -> None:
    """Give a process that was started with closed streams some, lest a file that it opens takes their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def main() -> None:
    """Run the command line `sys.argv`; ends with SystemExit."""
    _open_missing_streams()
    with escaped_output(), interrupts.handled(), _handle_errors("--debug" in sys.argv[1:]):
        try:
            if completion.answer_completion_request(cli):
                return
            # Not `cli.main`: on a broken pipe it exits with 1, our code for a bug.
            with cli.make_context("edgepipe", sys.argv[1:]) as context:
                cli.invoke(context)
            sys.stdout.flush()
        except click.exceptions.Exit as request:
            sys.stdout.flush()
            raise SystemExit(request.exit_code) from None
        except click.Abort:
            raise KeyboardInterrupt from None
        except click.ClickException as error:
            _show_usage_error(error)
            raise SystemExit(ExitCode.BAD_INPUT) from None


def run_program() -> None:
    """Entry point of the `edgepipe` program: once its work is done, an interrupt changes nothing."""
    try:
        main()
    finally:
        interrupts.ignore()
