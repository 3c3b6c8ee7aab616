"""edgepipe from Python: the functions behind the commands, with typed results.

    import edgepipe
    report = edgepipe.run("pipelines/digits.yaml")
    report.met, report.stage("validate").metric("accuracy").value

Importing edgepipe imports nothing heavy; each function imports what it needs when it is called.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

if TYPE_CHECKING:
    from edgepipe.commands.convert import Conversion
    from edgepipe.commands.dataset import DatasetSummary
    from edgepipe.commands.deploy import DeviceListing, FleetDeployment
    from edgepipe.commands.footprint import Footprint
    from edgepipe.commands.measure import DeviceMeasurement
    from edgepipe.commands.profile import ModelProfile
    from edgepipe.commands.sensitivity import SensitivityReport
    from edgepipe.commands.verify import Verification
    from edgepipe.compress.schemes import CalibrationMethod, InterfaceType, RecurrentForm, SchemeName
    from edgepipe.core.arrays import Arrays
    from edgepipe.core.progress import Progress
    from edgepipe.deploy.android_proof import Delegate
    from edgepipe.devices.calibration.calibration_record import DeviceCalibration
    from edgepipe.devices.latency.profile_fragment import DeviceFit
    from edgepipe.pipeline.schema import Pipeline
    from edgepipe.render.report import Report
    from edgepipe.render.run_comparison import RunComparison
    from edgepipe.render.runs import KeptRun
    from edgepipe.tflite.model import Model

StrPath = str | Path


Settings = Mapping[str, object] | Iterable[str]
Parameters = ParamSpec("Parameters")
ReturnT = TypeVar("ReturnT")


def _refuse_former_names(
    **names: str,
) -> Callable[[Callable[Parameters, ReturnT]], Callable[Parameters, ReturnT]]:
    """Make a function refuse arguments by their former names, and suggest the present ones."""

    def decorate(function: Callable[Parameters, ReturnT]) -> Callable[Parameters, ReturnT]:
        @functools.wraps(function)
        def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> ReturnT:
            for former in names.keys() & kwargs.keys():
                raise TypeError(f"{function.__name__}() has no argument '{former}'; did you mean '{names[former]}'?")
            return function(*args, **kwargs)

        return wrapper

    return decorate


def run(
    pipeline: "StrPath | Mapping[str, Any]",
    *,
    settings: Settings = (),
    output_dir: StrPath | None = None,
    cache_dir: StrPath | None = None,
    progress: "Progress | None" = None,
    command: Sequence[str] = (),
) -> "Report":
    """Run a pipeline and return its report, also if the report is not `met`; `report.folder` is where it was written.

    Args:
        pipeline: the YAML file, the name of a shipped pipeline such as `digits`, or a mapping with the same content
            (paths relative to the current folder).
        settings: options that override the file's: `{"stages.prune.sparsity": 0.8}` or `["stages.prune.sparsity=0.8"]`.
        output_dir: the folder for report.json, report.md and the artifacts, where an earlier run is replaced; None for
            a new folder in `runs/<name>`, to which `latest` there then points.
        cache_dir: the folder of cached results; None for `$EDGEPIPE_CACHE_DIR`, else `~/.cache/edgepipe`.
        progress: informed as stages run; None for silence.
        command: the command line to store in the report; empty for a run from Python.

    Raises:
        ConfigError: all problems of the file, each with line and column.
        EdgepipeError: bad data or models, a full disk, a missing tool.
    """
    from edgepipe.pipeline.schema import load

    return _run_pipeline(load(pipeline, settings), None, output_dir, cache_dir, progress, tuple(command))


def reproduce(
    report: StrPath,
    *,
    pipeline_folder: StrPath | None = None,
    output_dir: StrPath | None = None,
    cache_dir: StrPath | None = None,
    progress: "Progress | None" = None,
    command: Sequence[str] = (),
) -> "Report":
    """Run the pipeline of an earlier report again; `reproduction` of the new report compares the artifacts.

    The pipeline in a report may name `module:function`: that code runs.

    Args:
        report: a `report.json`, or the folder of a run.
        pipeline_folder: the folder that the pipeline's paths start from; None for the one of that run.
        output_dir: as in `run`.
        cache_dir: as in `run`.
        progress: as in `run`.
        command: as in `run`.

    Raises:
        ConfigError: data, model files or modules that are not what the report says, by name.
        EdgepipeError: a report that stores no pipeline, or as in `run`.
    """
    from edgepipe.render.reproduction import load_pipeline

    former_report = load_report(report)
    pipeline = load_pipeline(former_report, None if pipeline_folder is None else Path(pipeline_folder))
    return _run_pipeline(pipeline, former_report, output_dir, cache_dir, progress, tuple(command))


def _run_pipeline(
    pipeline: "Pipeline", former_report: "Report | None", output_dir: StrPath | None, cache_dir: StrPath | None,
    progress: "Progress | None", command: tuple[str, ...],
) -> "Report":  # fmt: skip
    from edgepipe.core.cache import Cache, default_root
    from edgepipe.core.progress import SilentProgress, active
    from edgepipe.pipeline import preflight, runner
    from edgepipe.render import report_files, reproduction

    progress = progress or SilentProgress()
    preflight.require_tools(pipeline)
    for finding in preflight.find_early_findings(pipeline):
        progress.note(f"will not be met: {finding}")
    report_files.check_writable(Path(output_dir) if output_dir is not None else report_files.output_parent(pipeline))
    cache = Cache(Path(cache_dir) if cache_dir is not None else default_root())
    with cache.shared_lock(), active(progress):
        pipeline_run = runner.prepare(pipeline, cache, progress, command)
        if former_report is not None:
            reproduction.check_inputs(former_report, pipeline_run)
        runner.run(pipeline_run)
        report = report_files.build_report(pipeline_run)
        if former_report is not None:
            report = report.with_reproduction(reproduction.compare_results(former_report, report))
        return report_files.write_output(pipeline_run, report, None if output_dir is None else Path(output_dir))


def check(pipeline: "StrPath | Mapping[str, Any]", *, settings: Settings = ()) -> "Pipeline":
    """Check a pipeline without running it, and return it; no TensorFlow.

    Args:
        pipeline: as in `run`.
        settings: as in `run`.

    Raises:
        ConfigError: all problems of the file, each with line and column.
    """
    from edgepipe.pipeline.schema import load

    return load(pipeline, settings)


@_refuse_former_names(types="keep_float_types", layers="keep_float_layers")
def convert(
    model: StrPath,
    *,
    data: "StrPath | Arrays | None" = None,
    scheme: "SchemeName" = "int8",
    input: "InterfaceType | None" = None,  # noqa: A002 - the word of the option
    output: "InterfaceType | None" = None,
    out: StrPath | None = None,
    allow_code: bool = False,
    custom_objects: str | None = None,
    calibration: "CalibrationMethod" = "min_max",
    percentile: float = 99.99,
    keep_float_types: Collection[str] = (),
    keep_float_layers: Collection[str] = (),
    recipe: StrPath | None = None,
    allow_low_fidelity: bool = False,
    input_shape: str | Sequence[str] = (),
    signature: str | None = None,
    recurrent: "RecurrentForm" = "unrolled",
    streaming: int | None = None,
    split_outputs: bool = False,
    runtime: str | None = None,
    keep_open_batch: bool = False,
) -> "Conversion":
    """Convert a `.keras`, `.h5`, SavedModel or float `.tflite` to TFLite, and compare it with the original.

    Args:
        model: the model to convert.
        data: representative samples for schemes that calibrate: an array, a .npy or .npz file, or what `init` takes.
        scheme: types of weights and activations.
        input: type of the inputs; None for the scheme's own.
        output: type of the outputs, likewise.
        out: the .tflite to write; None writes it beside the model.
        allow_code: load a model that carries code.
        custom_objects: `module:attribute`, the model's own classes.
        calibration: activation-range calibration method.
        percentile: of `calibration="percentile"`.
        keep_float_types: layer classes or operators that stay in float.
        keep_float_layers: layers that stay in float, by regular expression.
        recipe: a recipe file, for `scheme="recipe"`.
        allow_low_fidelity: accept an integer model with an output that is too far from the float one.
        input_shape: sizes of open input dimensions: "224x224x3", or "name=224x224x3" for each of several inputs.
        signature: which one of a SavedModel; None for `serving_default`, or the only one.
        recurrent: `unrolled` step by step; or, in int8, `fused`: one operator for each LSTM, which keeps its state.
        streaming: steps of the sequence in one call; the states of recurrent and causal layers become inputs and
            outputs, and samples are whole sequences. None converts whole windows.
        split_outputs: an output that joins parts of very different range becomes one output for each part.
        runtime: a release of a runtime that must run the result right, such as "tflite-runtime==2.14".
        keep_open_batch: of a float .tflite, which else gets a batch of 1 in schemes that calibrate.

    Raises:
        InputError: no model, no samples where they are needed, samples that do not fit, options that do not go
            together, or an operator that TFLite, or the release, does not have.
        StorageError: the .tflite cannot be written.
    """
    from edgepipe.commands import convert as command
    from edgepipe.compress.schemes import ActivationCalibration

    return command.convert(
        Path(model), data=data, scheme=scheme, input_type=input, output_type=output,
        out=None if out is None else Path(out), allow_code=allow_code, custom_objects=custom_objects,
        calibration=ActivationCalibration.from_options(calibration, percentile), keep_float_types=keep_float_types,
        keep_float_layers=keep_float_layers, recipe=None if recipe is None else Path(recipe),
        allow_low_fidelity=allow_low_fidelity, input_shapes=_as_list(input_shape), signature=signature,
        recurrent=recurrent, streaming=streaming, split_outputs=split_outputs, runtime=runtime,
        keep_open_batch=keep_open_batch,
    )  # fmt: skip


def _as_list(texts: str | Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def sensitivity(
    model: StrPath,
    *,
    data: "StrPath | Arrays",
    scheme: 'Literal["int8", "int16x8"]' = "int8",
    calibration: "CalibrationMethod" = "min_max",
    percentile: float = 99.99,
    samples: int = 512,
    allow_code: bool = False,
    custom_objects: str | None = None,
    chart: StrPath | None = None,
    input_shape: str | Sequence[str] = (),
) -> "SensitivityReport":
    """Rank the layers of a model by quantization sensitivity.

    Args:
        model: a `.keras` or `.h5` file, or a float `.tflite`.
        data: samples (an array, or a .npy or .npz file, with labels `y` for accuracy), or what `edgepipe data` takes.
        scheme: what layers are quantized to.
        calibration: activation-range calibration method.
        percentile: of `calibration="percentile"`.
        samples: number of samples to compare outputs on.
        allow_code: load a model that carries code.
        custom_objects: `module:attribute`, the model's own classes.
        chart: a .png, .svg or .pdf to draw.
        input_shape: as in `convert`.

    Raises:
        InputError: a model or samples that cannot be used, or a model that cannot be quantized.
    """
    from edgepipe.commands.sensitivity import SensitivityOptions, rank_model_layers
    from edgepipe.compress.schemes import ActivationCalibration

    options = SensitivityOptions(
        scheme, ActivationCalibration.from_options(calibration, percentile), samples, _as_list(input_shape)
    )
    source = str(data) if isinstance(data, Path) else data
    report = rank_model_layers(Path(model), source, options, allow_code, custom_objects)
    if chart is not None:
        from edgepipe.render import sensitivity as renderer

        renderer.draw_chart(report, Path(chart))
    return report


def inspect(model: StrPath) -> "Model":
    """Read a .tflite: operators, tensors, MACs, parameters; see `tflite.model.Model`. No TensorFlow.

    Raises:
        InputError: not a .tflite, or a damaged one.
    """
    from edgepipe.commands.tflite_input import read_tflite

    return read_tflite(Path(model))


def verify(
    model: StrPath,
    *,
    devices: Collection[str] = (),
    limits: Iterable[str] = (),
    integer_only: bool = False,
    zeros_of: StrPath | None = None,
    runtimes: Collection[str] = (),
) -> "Verification":
    """Check a .tflite against devices and limits, and against the zeros of a pruned Keras model.

    No TensorFlow unless `zeros_of` names a model. Without a device, `ram` is TFLite Micro's tensor arena and `flash`
    the bytes of the file.

    Args:
        model: the .tflite.
        devices: names or paths of profiles.
        limits: such as `["ram=64KiB"]`; a limit on a device metric applies to each device.
        integer_only: every operator and tensor must be integer.
        zeros_of: a pruned .keras or .h5 model, whose zeros must be zeros in the .tflite.
        runtimes: releases that must run every operator right, such as `["tflite-runtime==2.14"]`.

    Raises:
        InputError: not a .tflite, an unknown device or release, or a text that is not a limit.
    """
    from edgepipe.commands import verify as command

    pruned_path = Path(zeros_of) if zeros_of is not None else None
    return command.verify(
        Path(model), devices=devices, limits=limits, integer_only=integer_only, zeros_of=pruned_path, runtimes=runtimes
    )


def calibrate(
    device: str,
    out: StrPath,
    *,
    effort: Literal["quick", "full"] = "full",
    threads: int = 1,
    seed: int = 7,
    cache_dir: StrPath | None = None,
    force: bool = False,
    progress: "Progress | None" = None,
) -> "DeviceCalibration":
    """Measure a suite of small models on `device`, fit a latency model, and write a profile that uses it.

    No TensorFlow; an interrupted calibration continues where it stopped.

    Args:
        device: the name or path of a profile that can be measured.
        out: the profile to write, a .yaml file.
        effort: the number of models to measure: about 380, or 970.
        threads: of the runtime.
        seed: of the suite.
        cache_dir: the folder of measurements; None for `$EDGEPIPE_CACHE_DIR`, else `~/.cache/edgepipe`.
        force: replace `out` if it exists.
        progress: informed as the suite runs; None for silence.

    Raises:
        InputError: a device that cannot be reached, or an `out` that cannot be a profile or exists.
        ToolError: the device runs too little of the suite.
    """
    from edgepipe.core.cache import default_root
    from edgepipe.core.progress import SilentProgress
    from edgepipe.devices.calibration import calibrate as calibrating
    from edgepipe.devices.calibration.suite import Effort

    root = Path(cache_dir) if cache_dir is not None else default_root()
    return calibrating.write_profile(
        device, Path(out), effort=Effort(effort), threads=threads, seed=seed, cache=root, force=force,
        progress=progress or SilentProgress(),
    )  # fmt: skip


def fit_device(
    table: StrPath,
    *,
    models: StrPath,
    out: StrPath,
    kind: str,
    clock: str | float,
    target: str | None = None,
    neighbours: Collection[str] = (),
    dtype: Literal["int8", "float32"] = "int8",
    on_chip: str | int | None = None,
    source: str | None = None,
    without: Collection[str] = (),
) -> "DeviceFit":
    """Fit the operator costs of a device to a table of measurements, and write a profile fragment; no TensorFlow.

    Args:
        table: CSV with the columns of `edgepipe.devices.latency.measurement_table`.
        models: the folder with the .tflite files of the table.
        out: the YAML file to write, for a profile to inherit.
        kind: one of `edgepipe.devices.latency.processor_kinds.KINDS`.
        clock: of the target, in hertz or as text such as "400 MHz".
        target: device and runtime as "DEVICE, RUNTIME"; None if the table has only one.
        neighbours: "TARGET=CLOCK" of other rows to include in the fit.
        dtype: arithmetic type of the models.
        on_chip: on-chip memory for weights, in bytes or as text such as "1 MiB"; None if all weights fit.
        source: of the measurements; None for the table's name.
        without: families to exclude, for example because the timer does not resolve their latency.

    Raises:
        InputError: a malformed table, an unknown kind or target, or no model of the table in the folder.
    """
    from edgepipe.devices.latency import fit_request, profile_fragment

    request = fit_request.parse_request(Path(table), target, kind, clock, neighbours, dtype, on_chip, source, without)
    fit_result = profile_fragment.fit_table(Path(table), Path(models), request)
    profile_fragment.write_fragment(fit_result.fit, Path(out))
    return fit_result


def profile(
    model: StrPath,
    *,
    devices: Collection[str] = (),
    cache_dir: StrPath | None = None,
    on: str | None = None,
    python: str = "python3",
    accept_new_host_key: bool = False,
) -> "ModelProfile":
    """Latency, RAM and flash of a .tflite on devices, and where each operator runs; no TensorFlow.

    Args:
        model: the .tflite.
        devices: names or paths of profiles; none for all that come with edgepipe.
        cache_dir: the folder of Vela's results; None for `$EDGEPIPE_CACHE_DIR`, else `~/.cache/edgepipe`.
        on: the address of a board of the only device, where latency and memory are measured; None to measure nowhere.
        python: the interpreter on that board.
        accept_new_host_key: trust a host that is met for the first time.

    Raises:
        InputError: no .tflite, a damaged one, an unknown device, or `on` without exactly one device.
        ToolError: the board cannot be reached or used.
    """
    from edgepipe.commands import profile as profiling
    from edgepipe.core.cache import Cache
    from edgepipe.core.errors import InputError

    cache, health = Cache(Path(cache_dir)) if cache_dir is not None else None, None
    if on is not None:
        if len(devices) != 1:
            raise InputError(f"--on measures on the board of one device; name it with --device, found {len(devices)}")
        (device,) = devices
        health = measure(model, on, device=device, python=python, accept_new_host_key=accept_new_host_key).health
    return profiling.profile_model(Path(model), devices, cache, measured=health)


def footprint(
    architecture: str,
    *,
    input_shape: tuple[int, ...],
    classes: int | None = None,
    options: Mapping[str, object] | None = None,
    devices: Collection[str] = (),
) -> "Footprint":
    """The footprint of an architecture of the zoo before training: built, converted to int8 and counted.

    Args:
        architecture: a name that `edgepipe.zoo` has.
        input_shape: of one sample, without the batch.
        classes: outputs of a classifier; None for 10, and for an architecture that is not a classifier.
        options: of the architecture, such as `{"alpha": 0.5}`.
        devices: names or paths of profiles to estimate it for.

    Raises:
        InputError: no such architecture or option, or a shape it does not take.
    """
    from edgepipe.commands import footprint as footprints

    return footprints.measure_footprint(architecture, input_shape, classes, options or {}, devices)


def describe_data(description: str, *, seed: int | None = None, picture: StrPath | None = None) -> "DatasetSummary":
    """Describe a dataset before training: sizes, shapes, values, class balance, notes. No TensorFlow.

    Args:
        description: a pipeline, a YAML file with `data:`, `module:function`, or a mapping such as `{images: photos/}`.
        seed: of the split; None takes the pipeline's, or 0.
        picture: a .png, .svg or .pdf to draw training samples into.

    Raises:
        ConfigError: all problems of the description.
        InputError: the data cannot be read or used.
    """
    from edgepipe.commands.dataset import describe_dataset, pick_samples
    from edgepipe.render import dataset

    summary, splits = describe_dataset(description, Path.cwd(), seed)
    if picture is not None:
        dataset.draw_picture(pick_samples(splits, dataset.SAMPLES_PER_CLASS), Path(picture))
    return summary


def deploy_model(
    model: StrPath,
    to: Sequence[str],
    *,
    data: "StrPath | Arrays | None" = None,
    samples: int = 200,
    tolerance: int | None = None,
    limits: Iterable[str] = (),
    device: str | None = None,
    threads: int = 1,
    stage_only: bool = False,
    keep: int = 5,
    canary: int = 1,
    parallel: int = 8,
    max_failures: float = 0.2,
    wait: float = 120.0,
    python: str = "python3",
    install: bool = False,
    benchmark_model: StrPath | None = None,
    delegate: "Delegate" = "xnnpack",
    accept_new_host_key: bool = False,
    progress: "Progress | None" = None,
) -> "FleetDeployment":
    """Deploy a .tflite to devices: stage it there, prove it with golden vectors, and switch to it atomically.

    Args:
        model: a .tflite, or the folder or report.json of a run, whose last .tflite is taken.
        to: addresses such as "ssh://pi@raspberrypi/home/pi/app".
        data: inputs of the golden vectors, an array or a .npy or .npz file; None for random numbers.
        samples: the most golden vectors.
        tolerance: the largest difference in LSB that passes; None derives it from this machine's own kernels.
        limits: such as `["latency=20ms"]`, which the device must meet.
        device: the profile of the boards, by name or path.
        threads: of the interpreter.
        stage_only: do not switch.
        keep: complete versions that stay on a device.
        canary: devices that are deployed to first; if one fails, no other is touched.
        parallel: devices at a time.
        max_failures: share of the devices that may fail before no further one is begun.
        wait: seconds to wait for the lock of a device.
        python: the interpreter on the devices.
        install: install the runtime there where it is missing.
        benchmark_model: the benchmark tool for Android, for devices at adb; None: nothing is measured there.
        delegate: what must run the whole model on Android.
        accept_new_host_key: trust hosts that are met for the first time.
        progress: told of waits and installations; None for silence.

    Raises:
        InputError: no .tflite, one that does not run here, samples that do not fit, or a malformed address. What
            happens on a device is in the outcome of that device.
    """
    from edgepipe.commands import deploy as command
    from edgepipe.core.progress import SilentProgress
    from edgepipe.deploy import board_check
    from edgepipe.deploy.android_proof import AndroidOptions
    from edgepipe.deploy.backends import ConnectionOptions
    from edgepipe.deploy.fleet import FleetOptions
    from edgepipe.deploy.golden_vectors import GoldenOptions
    from edgepipe.deploy.health_check import MeasurementOptions, parse_limits
    from edgepipe.deploy.proof import DeploymentOptions

    options = DeploymentOptions(
        stage_only=stage_only, keep=keep, wait_seconds=wait, install=install, limits=parse_limits(limits),
        profile=board_check.load_board(device, Path.cwd()), measurement=MeasurementOptions(threads=threads),
        android=AndroidOptions(Path(benchmark_model) if benchmark_model is not None else None, delegate),
    )  # fmt: skip
    golden_options = GoldenOptions(_read_samples(data), samples, tolerance)
    return command.deploy(
        _find_tflite(Path(model)), to, golden_options, options, ConnectionOptions(python, accept_new_host_key),
        FleetOptions(canary, parallel, max_failures), (progress or SilentProgress()).note,
    )  # fmt: skip


def measure(
    model: StrPath,
    on: str,
    *,
    data: "StrPath | Arrays | None" = None,
    samples: int = 200,
    tolerance: int | None = None,
    limits: Iterable[str] = (),
    device: str | None = None,
    threads: int = 1,
    runs: int = 50,
    wait: float = 120.0,
    python: str = "python3",
    install: bool = False,
    benchmark_model: StrPath | None = None,
    delegate: "Delegate" = "xnnpack",
    accept_new_host_key: bool = False,
    progress: "Progress | None" = None,
) -> "DeviceMeasurement":
    """Measure a .tflite on a device without deploying it: latency, memory, and how far its outputs differ.

    Args:
        model: a .tflite, or the folder or report.json of a run, whose last .tflite is taken.
        on: the address of the device.
        data: as in `deploy_model`.
        samples: as in `deploy_model`.
        tolerance: as in `deploy_model`.
        limits: as in `deploy_model`.
        device: as in `deploy_model`.
        threads: of the interpreter.
        runs: timed calls.
        wait: as in `deploy_model`.
        python: as in `deploy_model`.
        install: as in `deploy_model`.
        benchmark_model: as in `deploy_model`.
        delegate: as in `deploy_model`.
        accept_new_host_key: as in `deploy_model`.
        progress: as in `deploy_model`.

    Raises:
        InputError: no .tflite, one that does not run here, samples that do not fit, or a malformed address.
        ToolError: the device cannot be reached or used.
    """
    from edgepipe.commands import measure as command
    from edgepipe.core.progress import SilentProgress
    from edgepipe.deploy import board_check
    from edgepipe.deploy.android_proof import AndroidOptions
    from edgepipe.deploy.backends import ConnectionOptions
    from edgepipe.deploy.golden_vectors import GoldenOptions
    from edgepipe.deploy.health_check import MeasurementOptions, parse_limits
    from edgepipe.deploy.proof import DeploymentOptions

    options = DeploymentOptions(
        wait_seconds=wait, install=install, limits=parse_limits(limits),
        profile=board_check.load_board(device, Path.cwd()), measurement=MeasurementOptions(threads, runs),
        android=AndroidOptions(Path(benchmark_model) if benchmark_model is not None else None, delegate),
    )  # fmt: skip
    golden_options = GoldenOptions(_read_samples(data), samples, tolerance)
    return command.measure(
        _find_tflite(Path(model)), on, golden_options, options, ConnectionOptions(python, accept_new_host_key),
        (progress or SilentProgress()).note,
    )  # fmt: skip


def _read_samples(data: "StrPath | Arrays | None") -> "Arrays | None":
    if not isinstance(data, str | Path):
        return data
    from edgepipe.data import sample_files

    return sample_files.read(Path(data)).x


def _find_tflite(model_or_run: Path) -> Path:
    """The model itself, or the last .tflite of the run whose folder or report it is."""
    from edgepipe.core.artifact import ArtifactKind
    from edgepipe.core.errors import InputError

    if not model_or_run.is_dir() and model_or_run.suffix != ".json":
        return model_or_run
    run_report = load_report(model_or_run)
    names = [stage.artifact for stage in run_report.stages if stage.kind is ArtifactKind.TFLITE and stage.artifact]
    if not names:
        raise InputError(f"{model_or_run}: this run made no .tflite that a device could run; add a stage `convert`")
    return (run_report.folder or model_or_run) / names[-1]


def switch_version(
    to: Sequence[str],
    version: str | None = None,
    *,
    canary: int = 1,
    parallel: int = 8,
    max_failures: float = 0.2,
    wait: float = 120.0,
    accept_new_host_key: bool = False,
    progress: "Progress | None" = None,
) -> "FleetDeployment":
    """Switch devices to a version that they have, or back to the one that ran before.

    Args:
        to: addresses of devices.
        version: its name; None for a rollback.
        canary: as in `deploy_model`.
        parallel: as in `deploy_model`.
        max_failures: as in `deploy_model`.
        wait: as in `deploy_model`.
        accept_new_host_key: as in `deploy_model`.
        progress: as in `deploy_model`.

    Raises:
        InputError: a malformed address. What happens on a device is in the outcome of that device.
    """
    from edgepipe.commands import deploy as command
    from edgepipe.core.progress import SilentProgress
    from edgepipe.deploy.backends import ConnectionOptions
    from edgepipe.deploy.fleet import FleetOptions
    from edgepipe.deploy.proof import DeploymentOptions

    return command.switch(
        to, version, DeploymentOptions(wait_seconds=wait), ConnectionOptions(accept_new_host_key=accept_new_host_key),
        FleetOptions(canary, parallel, max_failures), (progress or SilentProgress()).note,
    )  # fmt: skip


def list_versions(devices: Sequence[str], *, accept_new_host_key: bool = False) -> "list[DeviceListing]":
    """The versions on each device, and which of them runs; or the error of a device that cannot be reached.

    Args:
        devices: their addresses.
        accept_new_host_key: trust hosts that are met for the first time.

    Raises:
        InputError: a malformed address.
    """
    from edgepipe.commands import deploy as command
    from edgepipe.deploy.backends import ConnectionOptions

    return command.list_devices(devices, ConnectionOptions(accept_new_host_key=accept_new_host_key))


def load_report(path: StrPath) -> "Report":
    """The report of an earlier run, from its `report.json`, its folder, or the folder of the runs: then of the latest.

    Raises:
        InputError: there is none there.
    """
    from edgepipe.render.report import load

    return load(Path(path))


def list_runs(pipeline: str | None = None, *, runs_dir: StrPath = "runs") -> "list[KeptRun]":
    """The runs that are kept below `runs_dir`, of one pipeline or of all, the newest of each first.

    Args:
        pipeline: its name; None for all.
        runs_dir: the folder of all runs.

    Raises:
        InputError: there is no run of that pipeline.
    """
    from edgepipe.render import runs

    return runs.list_runs(Path(runs_dir), pipeline)


def compare_runs(first: StrPath, second: StrPath, *, runs_dir: StrPath = "runs") -> "RunComparison":
    """The options, inputs, versions and metrics that differ between two runs.

    Args:
        first: a report, the folder of a run, or a name below `runs_dir`; the name of a pipeline is its latest run.
        second: likewise.
        runs_dir: the folder of all runs.

    Raises:
        InputError: there is no such run, or its report cannot be read.
    """
    from edgepipe.pipeline.run_folders import resolve_run
    from edgepipe.render.run_comparison import compare

    reports = [load_report(resolve_run(str(name), Path(runs_dir))) for name in (first, second)]
    return compare(*reports)


def prune_runs(pipeline: str | None = None, *, keep: int, runs_dir: StrPath = "runs") -> list[Path]:
    """Remove all but the newest `keep` runs of one pipeline or of all, and return their folders; the latest stays.

    Args:
        pipeline: its name; None for all.
        keep: how many runs of each pipeline stay.
        runs_dir: the folder of all runs.

    Raises:
        InputError: there is no run of that pipeline, or `keep` is less than one.
        StorageError: one cannot be removed.
    """
    from edgepipe.core.errors import InputError
    from edgepipe.render import runs

    if keep < 1:
        raise InputError(f"keep: found {keep}; at least one run of each pipeline stays")
    return runs.prune_runs(Path(runs_dir), keep, pipeline)
