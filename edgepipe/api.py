"""edgepipe from Python: the functions behind the commands, with typed results.

    import edgepipe
    report = edgepipe.run("pipelines/digits.yaml")
    report.met, report.stage("validate").metric("accuracy").value

Importing edgepipe imports nothing heavy; each function imports what it needs when it is called.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from edgepipe.commands.convert import Conversion, Verification
    from edgepipe.commands.dataset import Described
    from edgepipe.commands.footprint import Footprint
    from edgepipe.commands.profile import Profiled
    from edgepipe.commands.sensitivity import Sensed
    from edgepipe.compress.schemes import Method, Number, SchemeName
    from edgepipe.core.arrays import Arrays
    from edgepipe.core.progress import Progress
    from edgepipe.devices.calibration.calibration_record import Calibration
    from edgepipe.devices.latency.profile_fragment import Built
    from edgepipe.pipeline.schema import Pipeline
    from edgepipe.render.report import Report
    from edgepipe.tflite.model import Model

StrPath = str | Path


def run(
    pipeline: StrPath,
    *,
    settings: Mapping[str, object] | Iterable[str] = (),
    output_dir: StrPath | None = None,
    cache_dir: StrPath | None = None,
    progress: "Progress | None" = None,
) -> "Report":
    """Run the pipeline file and give its report; a report that is not `met` is returned, not raised.

    Args:
        pipeline: the YAML file.
        settings: options put over the file: `{"stages.prune.sparsity": 0.8}` or `["stages.prune.sparsity=0.8"]`.
        output_dir: where report.json, report.md and the artifacts are written; None for `runs/<name>`.
        cache_dir: None for `$EDGEPIPE_CACHE_DIR`, else `~/.cache/edgepipe`.
        progress: told what goes on; None for silence.

    Raises:
        ConfigError: everything that is wrong with the file.
        EdgepipeError: bad data or models, a full disk, a missing tool.
    """
    from edgepipe.core.cache import Cache, default_root
    from edgepipe.core.progress import Silent
    from edgepipe.pipeline import schema as pipelines
    from edgepipe.pipeline.runner import run as run_steps
    from edgepipe.render import report as reports

    checked = pipelines.load(pipeline, _settings(settings))
    folder = Path(output_dir) if output_dir is not None else Path("runs") / checked.name
    reports.check_writable(folder)
    cache = Cache(Path(cache_dir) if cache_dir is not None else default_root())
    with cache.held():
        done = run_steps(checked, cache, progress or Silent())
        report = reports.of(done)
        reports.write(done, report, folder)
    return report


def _settings(settings: Mapping[str, object] | Iterable[str]) -> list[str]:
    import json

    if isinstance(settings, Mapping):
        return [f"{path}={json.dumps(value)}" for path, value in settings.items()]  # JSON is YAML
    return list(settings)


def check(pipeline: StrPath, *, settings: Iterable[str] = ()) -> "Pipeline":
    """The checked pipeline of a file, nothing run, no TensorFlow.

    Raises:
        ConfigError: everything that is wrong with the file, each problem with line and column.
    """
    from edgepipe.pipeline.schema import load

    return load(pipeline, settings)


def convert(
    model: StrPath,
    *,
    data: "StrPath | Arrays | None" = None,
    scheme: "SchemeName" = "int8",
    input: "Number | None" = None,  # noqa: A002 - the word of the option
    output: "Number | None" = None,
    out: StrPath | None = None,
    allow_code: bool = False,
    custom_objects: str | None = None,
    calibration: "Method" = "min_max",
    percentile: float = 99.99,
    types: Collection[str] = (),
    layers: Collection[str] = (),
    recipe: StrPath | None = None,
) -> "Conversion":
    """Convert a `.keras`, `.h5`, SavedModel or float `.tflite` to TFLite; see `single.convert`."""
    from edgepipe.commands import convert as single
    from edgepipe.compress.schemes import Calibration

    return single.convert(
        Path(model), data=data, scheme=scheme, input_type=input, output_type=output,
        out=None if out is None else Path(out), allow_code=allow_code, custom_objects=custom_objects,
        calibration=Calibration.asked(calibration, percentile), types=types, layers=layers,
        recipe=None if recipe is None else Path(recipe),
    )  # fmt: skip


def sensitivity(
    model: StrPath,
    *,
    data: "StrPath | Arrays",
    scheme: 'Literal["int8", "int16x8"]' = "int8",
    calibration: "Method" = "min_max",
    percentile: float = 99.99,
    samples: int = 512,
    allow_code: bool = False,
    custom_objects: str | None = None,
    chart: StrPath | None = None,
) -> "Sensed":
    """How much each layer of a model minds being quantized; see `sensing.sense`.

    Args:
        model: a `.keras` or `.h5` file, or a float `.tflite`.
        data: samples (an array, a .npy or .npz file; labels `y` give accuracy too), or what `edgepipe data` takes.
        scheme: what layers are quantized to.
        calibration: how ranges of activations are taken.
        percentile: of `calibration="percentile"`.
        samples: how many the outputs are looked at with.
        allow_code: load a model that carries code.
        custom_objects: `module:attribute`, the model's own classes.
        chart: a .png, .svg or .pdf to draw.

    Raises:
        InputError: a model or samples that cannot be used, or a model that cannot be quantized.
    """
    from edgepipe.commands import sensitivity as sensing
    from edgepipe.compress.schemes import Calibration

    given = str(data) if isinstance(data, Path) else data
    how = sensing.How(scheme, Calibration.asked(calibration, percentile), samples)
    found = sensing.sense(Path(model), given, how, allow_code, custom_objects)
    if chart is not None:
        from edgepipe.render import sensitivity as sensed

        sensed.draw(found, Path(chart))
    return found


def inspect(model: StrPath) -> "Model":
    """The facts of a .tflite: operators, tensors, MACs, parameters; see `tflite.model.Model`. No TensorFlow.

    Raises:
        InputError: not a .tflite, or a damaged one.
    """
    from edgepipe.tflite.reader import read

    return read(Path(model))


def verify(
    model: StrPath,
    *,
    devices: Collection[str] = (),
    limits: Iterable[str] = (),
    integer_only: bool = False,
    zeros_of: StrPath | None = None,
) -> "Verification":
    """Hold a .tflite against devices and limits (`["ram=64KiB"]`), and the zeros of a pruned Keras model against it.

    No TensorFlow unless `zeros_of` names one; see `single.verify`.
    """
    from edgepipe.commands import convert as single

    pruned = Path(zeros_of) if zeros_of is not None else None
    return single.verify(Path(model), devices=devices, limits=limits, integer_only=integer_only, zeros_of=pruned)


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
) -> "Calibration":
    """Measure a suite of small models on `device`, fit a latency model, and write a profile that estimates with it.

    No TensorFlow; an interrupted calibration goes on where it stopped. See `devices.calibration`.

    Raises:
        InputError: a device that cannot be reached, or an `out` that cannot be a profile or exists.
        ToolError: the device runs too little of the suite.
    """
    from edgepipe.core.cache import default_root
    from edgepipe.core.progress import Silent
    from edgepipe.devices.calibration import calibrate as calibrating
    from edgepipe.devices.calibration.suite import Effort

    root = Path(cache_dir) if cache_dir is not None else default_root()
    return calibrating.write(
        device, Path(out), effort=Effort(effort), threads=threads, seed=seed, cache=root, force=force,
        progress=progress or Silent(),
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
) -> "Built":
    """Fit what operators cost on a device to a table of measurements and write the part of a profile; no TensorFlow.

    Args:
        table: CSV with the columns of `edgepipe.devices.latency.measurement_table`.
        models: the folder with the .tflite files it names.
        out: the YAML file to write, for a profile to inherit.
        kind: one of `edgepipe.devices.latency.processor_kinds.KINDS`.
        clock: of the target, in hertz or as text such as "400 MHz".
        target: device and runtime as "DEVICE, RUNTIME"; None if the table has only one.
        neighbours: "TARGET=CLOCK" of other rows that are fitted together with the target's.
        dtype: what the models of the table compute in.
        on_chip: weights that the chip holds, in bytes or as text such as "1 MiB".
        source: where the measurements come from; None for the table's name.
        without: families whose rows are left out, for example because they sit on a timer's floor.

    Raises:
        InputError: a wrong table, an unknown kind or target, no model at hand.
    """
    from edgepipe.devices.latency import fit_request, profile_fragment

    request = fit_request.request(Path(table), target, kind, clock, neighbours, dtype, on_chip, source, without)
    built = profile_fragment.build(Path(table), Path(models), request)
    profile_fragment.write(built.fit, Path(out))
    return built


def profile(model: StrPath, *, devices: Collection[str] = (), cache_dir: StrPath | None = None) -> "Profiled":
    """Latency, RAM and flash of a .tflite on devices, and where each operator runs; no TensorFlow.

    Args:
        model: the .tflite.
        devices: names or paths of profiles; none for all that come with edgepipe.
        cache_dir: where Vela's results are kept; None for `$EDGEPIPE_CACHE_DIR`, else `~/.cache/edgepipe`.

    Raises:
        InputError: no .tflite, a damaged one, or an unknown device.
    """
    from edgepipe.commands import profile as profiling
    from edgepipe.core.cache import Cache

    return profiling.run(Path(model), devices, Cache(Path(cache_dir)) if cache_dir is not None else None)


def footprint(
    architecture: str,
    *,
    input_shape: tuple[int, ...],
    classes: int | None = None,
    options: Mapping[str, object] | None = None,
    devices: Collection[str] = (),
) -> "Footprint":
    """What an architecture of the zoo costs before it is trained: built, converted to int8 and counted.

    Args:
        architecture: a name that `edgepipe.zoo` has.
        input_shape: of one sample, without the batch.
        classes: outputs of a classifier; None for 10, and for an architecture that has none.
        options: of the architecture, such as `{"alpha": 0.5}`.
        devices: names or paths of profiles to hold it against.

    Raises:
        InputError: no such architecture or option, or a shape it does not take.
    """
    from edgepipe.commands import footprint as footprints

    return footprints.of(architecture, input_shape, classes, options or {}, devices)


def describe_data(description: str, *, seed: int | None = None, picture: StrPath | None = None) -> "Described":
    """What a dataset holds, before anyone trains: sizes, shapes, values, balance of classes, notes. No TensorFlow.

    Args:
        description: a pipeline, a YAML file with `data:`, `module:function`, or a mapping such as `{images: photos/}`.
        seed: of the split; None takes the pipeline's, or 0.
        picture: a .png, .svg or .pdf to draw training samples into.

    Raises:
        ConfigError: everything wrong with the description.
        InputError: whatever is wrong with the data.
    """
    from edgepipe.commands.dataset import describe, samples
    from edgepipe.render import dataset

    found, splits = describe(description, Path.cwd(), seed)
    if picture is not None:
        dataset.picture(samples(splits, dataset.EACH), Path(picture))
    return found


def load_report(path: StrPath) -> "Report":
    """The report of an earlier run, from its folder or its `report.json`.

    Raises:
        InputError: there is none there.
    """
    from edgepipe.render.report import load

    return load(Path(path))
