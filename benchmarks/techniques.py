"""Every technique on one network, beside plain tfmot: `python benchmarks/techniques.py [--folder F] [--quick]`.

Fashion-MNIST (Debian's dataset-fashion-mnist, see docs/data.md), three convolutions of 94,000 parameters. Each row of
edgepipe is a pipeline, written below the folder and run by `edgepipe.run`; stages that rows have in common run once.
The stock rows (`techniques_stock.py`) begin with the same float model and train for the same steps on the same samples.

Validation decides whatever is decided; the test split is read once for each row. A row that is done is kept in the
folder as JSON, and a second call goes on from there. Latency is measured in the end, all rows in turn and in rounds, so
that whatever else the machine does meets all of them alike; the lowest of the rounds' medians is taken.

Letters in the last column: the row is Pareto-optimal in accuracy against Size, compressed size (Z) or Latency; capital
among all rows, small among those of its own table alone. The hypervolume is what the rows of a table dominate: see
`gains`. `--quick` trains on next to nothing, to see whether all runs.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import networks
import numpy as np
import techniques_stock as stock
import yaml

import edgepipe
from edgepipe.core.artifact import write_text
from edgepipe.models.bridge import bridge
from edgepipe.models.model_files import load_model
from edgepipe.tflite import host_latency
from edgepipe.tflite.compressed_size import zstd_size
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.reader import read
from edgepipe.training.training_loop import set_seeds

ROUNDS = 5
CALIBRATING = 200
FLOOR = 5.0  # points of accuracy below the float model at which a row is worth nothing
COSTS = ("size", "compressed", "latency")
STUDENT: dict[str, Any] = {"function": "edgepipe.zoo:small_cnn", "args": {"filters": [32, 64, 128]}}
Row = dict[str, Any]  # side, name, accuracy, validation, parameters, nonzero, size, compressed, seconds, model


@dataclass(frozen=True)
class Plan:
    """How much is trained on, and how long."""

    train: int = 9_600
    validation: int = 4_000
    float_epochs: int = 16
    teacher_epochs: int = 8
    steps: stock.Steps = field(default_factory=stock.Steps)
    seed: int = 7


QUICK = Plan(640, 400, 1, 1)


@dataclass(frozen=True)
class Technique:
    """One row of edgepipe: where the model comes from, and the stages up to `convert`."""

    name: str
    stages: list[dict[str, Any]]
    model: Any = None
    origin: str = "train"  # the float model that it is compared with

    def pipeline(self, plan: Plan) -> dict[str, Any]:
        """As it stands in the YAML file."""
        data = {"function": "networks:fashion_splits", "args": {"train": plan.train, "validation": plan.validation}}
        last = {"validate": {"against": self.origin, "compared_samples": 1}}
        return {
            "name": "techniques", "description": self.name, "model": self.model or STUDENT,
            "data": {**data, "representative": CALIBRATING}, "task": "classification", "seed": plan.seed,
            "stages": [*self.stages, last],
        }  # fmt: skip


def techniques(plan: Plan) -> list[Technique]:
    """The rows of edgepipe. After the float model all that train have the epochs of `plan.steps` in all."""
    steps = plan.steps
    batch, half, quarter = {"batch_size": steps.batch}, steps.epochs // 2, steps.epochs // 4
    down = {**batch, "decay": "cosine"}
    taught = {"teacher": "train"}

    def train(epochs: int) -> dict[str, Any]:
        return {"train": {**down, "epochs": epochs, "learning_rate": steps.float_rate}}

    def stage(name: str, epochs: int, **options: Any) -> dict[str, Any]:
        return {name: {**batch, "epochs": epochs, "learning_rate": steps.rate, **options}}

    def last(epochs: int, **options: Any) -> list[dict[str, Any]]:
        return [stage("quantize", epochs, decay="cosine", **options), {"convert": {}}]

    def pruned(what: dict[str, Any], **options: Any) -> dict[str, Any]:
        return stage("prune", half, ramp=steps.ramp, **what, **options)

    base = train(plan.float_epochs)
    longer = [base, {"train": {**train(steps.longer)["train"], "as": "longer"}}]
    zeros, channels = {"sparsity": steps.sparsity}, {"granularity": "channel", "sparsity": steps.channels}
    clusters = {"clusters": steps.clusters}
    student = {**down, "student": STUDENT, "epochs": plan.float_epochs, "learning_rate": steps.float_rate}

    def distilled(name: str, *stages: dict[str, Any]) -> Technique:
        first = [train(plan.teacher_epochs), {"distill": student}]
        return Technique(name, [*first, *stages], {"function": "edgepipe.zoo:resnet8"}, "distill")

    return [
        Technique("float", [base, {"convert": {"scheme": "float32"}}]),
        Technique("PTQ", [base, {"convert": {}}]),
        Technique("PTQ, equalized", [base, {"convert": {"equalize": "data_free", "bias_correction": "samples"}}]),
        Technique("mixed", [base, {"convert": {"scheme": "mixed", "max_drop": "0.1 point"}}]),
        Technique("QAT", [base, *last(steps.epochs)]),
        Technique("prune + QAT", [base, pruned(zeros), *last(half)]),
        Technique("channel-prune + QAT", [base, pruned(channels), *last(half)]),
        Technique("cluster + QAT", [base, stage("cluster", half, **clusters), *last(half)]),
        distilled("distil + prune + QAT", pruned(zeros, **taught), *last(half, **taught)),
        distilled("distil + channel-prune + QAT", pruned(channels, **taught), *last(half, **taught)),
        Technique("longer float, channel-prune + QAT", [*longer, pruned(channels), *last(half)]),
        Technique("longer float, channel-prune + cluster + QAT",
                  [*longer, pruned(channels), stage("cluster", quarter, **clusters), *last(quarter)]),
    ]  # fmt: skip


def ours(technique: Technique, plan: Plan, folder: Path) -> Row:
    """The row of a pipeline, from its report."""
    slug = technique.name.replace(" + ", "-").replace(", ", "-").replace(" ", "-")
    file = folder / "pipelines" / f"{slug}.yaml"
    write_text(file, yaml.safe_dump(technique.pipeline(plan), sort_keys=False))
    report = edgepipe.run(file, output_dir=folder / "reports" / slug, cache_dir=folder / "cache")
    converted, validated = report.stage("convert"), report.stage("validate")
    trained = [stage.cost.wall for stage in report.stages if stage.type not in ("model", "convert", "validate")]
    path = folder / "reports" / slug / str(converted.artifact)
    return {
        "accuracy": _value(validated, "accuracy"), "validation": _value(converted, "accuracy"),
        "seconds": sum(trained), **counted(path, folder),
    }  # fmt: skip


def _value(stage: Any, name: str) -> float:
    return 100 * float(stage.metric(name).value)


def stocks(name: str, plan: Plan, folder: Path) -> Row:
    """The row of a stock way; it begins with the float model that edgepipe's rows begin with."""
    way, scheme = stock.WAYS[name]
    data = networks.fashion(28, plan.train, plan.validation)
    report = json.loads((folder / "reports" / "float" / "report.json").read_text())
    trained = next(stage for stage in report["stages"] if stage["name"] == "train")
    set_seeds(plan.seed)
    start = time.perf_counter()
    model = way(bridge(load_model(folder / "reports" / "float" / trained["artifact"])).model, data, plan.steps)
    seconds = time.perf_counter() - start
    path = folder / "stock" / f"{list(stock.WAYS).index(name)}.tflite"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(stock.converted(model, scheme, data, CALIBRATING))
    return {
        "accuracy": accuracy(path, *data.test), "validation": accuracy(path, *data.validation),
        "seconds": trained["cost"]["wall"] + seconds, **counted(path, folder),
    }  # fmt: skip


def accuracy(path: Path, x: Any, y: Any) -> float:
    """In per cent."""
    return float((np.asarray(predict(path, x).real_values).argmax(axis=-1) == y).mean() * 100)


def counted(path: Path, folder: Path) -> Row:
    """What the file alone tells."""
    model = read(path)
    return {
        "parameters": model.parameters, "nonzero": model.parameters - model.zero_parameters, "size": model.bytes,
        "compressed": zstd_size(model.content).size, "model": path.relative_to(folder).as_posix(),
    }  # fmt: skip


def rows(plan: Plan, folder: Path) -> Iterator[Row]:
    """Every row, made now or before."""
    for technique in techniques(plan):
        made = (technique.pipeline(plan), "edgepipe", technique.name)
        yield kept(folder, *made, lambda technique=technique: ours(technique, plan, folder))
    for name in stock.WAYS:
        yield kept(folder, asdict(plan), "stock", name, lambda name=name: stocks(name, plan, folder))


def kept(folder: Path, options: Any, side: str, name: str, make: Callable[[], Row]) -> Row:
    """The row in the folder if it was made with these options, else a new one."""
    file = folder / "rows" / f"{side} {name}.json"
    wanted = json.loads(json.dumps(options))
    if file.exists() and (found := json.loads(file.read_text()))["options"] == wanted:
        return found
    start = time.perf_counter()
    row = {"side": side, "name": name, **make(), "options": wanted}
    row["wall"] = time.perf_counter() - start
    write_text(file, json.dumps(row, indent=1))
    print(f"{side} {name}: {row['wall']:.0f} s, validation {row['validation']:.2f} %", flush=True)
    return row


def timed(found: list[Row], folder: Path) -> None:
    """Put `latency` into each row: the lowest of the medians of `ROUNDS` measurements, taken in turn."""
    file = folder / "latency.json"
    wanted = [[row["side"], row["name"], row["wall"]] for row in found]
    if not file.exists() or json.loads(file.read_text())["rows"] != wanted:
        medians = [[host_latency.measure(folder / row["model"]).p50 for row in found] for _ in range(ROUNDS)]
        write_text(file, json.dumps({"rows": wanted, "medians": medians}))
    measured = np.array(json.loads(file.read_text())["medians"])
    for row, lowest, middle in zip(found, measured.min(axis=0), np.median(measured, axis=0), strict=True):
        row["latency"], row["middle"] = float(lowest), float(middle)


def dominated(row: Row, others: list[Row], cost: str) -> bool:
    """Whether another row is as accurate and as cheap, and better in one."""
    return any(
        other["accuracy"] >= row["accuracy"] and other[cost] <= row[cost]
        and (other["accuracy"], other[cost]) != (row["accuracy"], row[cost])
        for other in others
    )  # fmt: skip


def marks(row: Row, found: list[Row]) -> str:
    """S, Z, L: see the module's docstring."""
    own = [other for other in found if other["side"] == row["side"]]
    letters = zip("SZL", COSTS, strict=True)
    told = (
        letter if not dominated(row, found, cost) else "" if dominated(row, own, cost) else letter.lower()
        for letter, cost in letters
    )
    return "".join(told)


def gains(row: Row, base: Row, costs: tuple[str, ...], floor: float) -> tuple[float, ...]:
    """What a row is worth in each direction: 1 is the float model's accuracy, and a cost of nothing.

    (accuracy - (float - `floor`)) / `floor`, then 1 - cost / (float's cost) for each of `costs`. The reference point,
    at which all are 0, is the float model's cost at `floor` points below its accuracy.
    """
    worth = (row["accuracy"] - base["accuracy"]) / floor + 1
    return (worth, *(1 - row[cost] / base[cost] for cost in costs))


def hypervolume(points: list[tuple[float, ...]]) -> float:
    """The volume between 0 and the points, exactly: slices along the last direction, each one dimension less."""
    points = sorted((point for point in points if min(point) > 0), key=lambda point: -point[-1])
    if not points:
        return 0.0
    if len(points[0]) == 1:
        return points[0][0]
    lower = [point[-1] for point in points[1:]] + [0.0]
    slices = (point[-1] - below for point, below in zip(points, lower, strict=True))
    return sum(
        height * hypervolume([point[:-1] for point in points[: number + 1]]) if height else 0.0
        for number, height in enumerate(slices)
    )


def table(found: list[Row], side: str) -> Iterator[str]:
    """The rows of one side."""
    yield f"| {side} | test % | validation % | parameters | not 0 | size | zstd | latency p50 | trained | front |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in found:
        if row["side"] == side:
            yield (
                f"| {row['name']} | {row['accuracy']:.2f} | {row['validation']:.2f} | {row['parameters']:,} | "
                f"{row['nonzero']:,} | {row['size']:,} | {row['compressed']:,} | {row['latency'] * 1e6:.0f} µs | "
                f"{row['seconds']:.0f} s | {marks(row, found)} |"
            )


EXTRA = ("distil", "longer float")  # how the names of rows begin that train more than the others


def volumes(found: list[Row]) -> Iterator[str]:
    """Hypervolumes of both sides and their ratio: all rows, then those of equal training; then for other floors."""
    equal = [row for row in found if not row["name"].startswith(EXTRA)]
    three, whole = ("compressed", "latency"), ("size", "latency")
    yield "| rows | accuracy against | floor | edgepipe | stock | ratio |"
    yield "|---|---|---|---|---|---|"
    for name, chosen in (("all", found), ("equal training", equal)):
        for costs in (("size",), ("compressed",), ("latency",), whole, three):
            yield _volume(name, chosen, found[0], costs, FLOOR)
    for floor in (2.0, 10.0):
        yield _volume("all", found, found[0], three, floor)


def _volume(name: str, rows: list[Row], base: Row, costs: tuple[str, ...], floor: float) -> str:
    ours, theirs = (
        hypervolume([gains(row, base, costs, floor) for row in rows if row["side"] == side])
        for side in ("edgepipe", "stock")
    )
    ratio = ours / theirs if theirs else float("inf")
    return f"| {name} | {', '.join(costs)} | {floor:g} points | {ours:.3f} | {theirs:.3f} | {ratio:.2f} |"


def main() -> None:
    """Make what is missing, then print both tables and the hypervolumes."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/techniques"), help="where finished rows are kept")
    parser.add_argument("--seed", type=int, default=7, help="of training; another one needs another folder")
    parser.add_argument("--quick", action="store_true", help="next to no training, to see whether all runs")
    given = parser.parse_args()
    plan, folder = (QUICK, given.folder / "quick") if given.quick else (Plan(seed=given.seed), given.folder)
    for name in ("pipelines", "reports", "rows"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found = list(rows(plan, folder))
    timed(found, folder)
    print(f"{plan}\nmade in {sum(row['wall'] for row in found):.0f} s, this call {time.perf_counter() - start:.0f} s\n")
    for side in ("edgepipe", "stock"):
        print("\n".join(table(found, side)), end="\n\n")
    print("\n".join(volumes(found)))


if __name__ == "__main__":
    main()
