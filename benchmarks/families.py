"""Every model family from plain Keras 3 to a proven int8 model: `make families`.

Each of the 14 families of keras.applications is built at its smallest legal input, every weight perturbed (fresh ones
hide mistakes), bridged, given fake-quant, trained for an epoch, converted to full int8 and compared tensor by tensor.
Each runs in a process of its own. Without names, the table goes to docs/families.md.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SIZES = {
    "MobileNet": 32, "MobileNetV2": 32, "MobileNetV3Small": 32, "MobileNetV3Large": 32, "EfficientNetB0": 32,
    "EfficientNetV2B0": 32, "ResNet50": 32, "ResNet50V2": 32, "DenseNet121": 32, "NASNetMobile": 32, "Xception": 71,
    "InceptionV3": 75, "VGG16": 32, "ConvNeXtTiny": 32,
}  # fmt: skip
SAMPLES = 64
PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
COLUMNS = ("family", "input", "layers", "by training", "by calibration", "float", "bridge differs", "operators",
           "float operators", "tensors compared", "p99 LSB (worst)", "logits p99 LSB", "labels equal", "seconds",
           "stock tfmot behind this bridge")  # fmt: skip


def measure(family: str) -> dict[str, Any]:
    """One row of the table."""
    from edgepipe.models.startup import load_tensorflow

    load_tensorflow()
    import keras
    import numpy as np

    from edgepipe.compress.keras_to_tflite import convert_keras
    from edgepipe.compress.qat import range_initialization
    from edgepipe.compress.qat.coverage import count_coverage
    from edgepipe.compress.qat.fake_quant import QatRecipe, build_fake_quant, freeze_batch_norms
    from edgepipe.compress.quantizer.quantization import QuantizationRequest
    from edgepipe.models.bridge import bridge
    from edgepipe.models.perturb import perturb
    from edgepipe.tflite.integer_check import check_integer_only
    from edgepipe.tflite.reader import read

    size = SIZES[family]
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, family)(weights=None, input_shape=(size, size, 3), classes=10)
    perturb(model)
    x = np.random.default_rng(0).normal(0, 1, (SAMPLES, size, size, 3)).astype("float32")
    if any(type(layer).__name__ == "Rescaling" for layer in model.layers):
        x = np.clip(x * 60 + 127, 0, 255)
    start = time.perf_counter()
    bridged = bridge(model)
    made = build_fake_quant(bridged.model, QatRecipe(), x[:2])
    range_initialization.initialize_ranges(made.model, x, 0, use_batch_statistics=False)
    freeze_batch_norms(made.model)
    made.model.compile("adam", "sparse_categorical_crossentropy")
    made.model.optimizer.learning_rate = 1e-5
    made.model.fit(x, np.arange(SAMPLES) % 10, batch_size=16, epochs=1, verbose=0)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.tflite"
        quantized_model = convert_keras(made.model, QuantizationRequest(), x, x[:16])
        path.write_bytes(quantized_model.content)
        lite = read(path)
        agreement = quantized_model.agreement
        found, equal = agreement.tensors, agreement.labels_equal
        offenders = check_integer_only(lite)
    seconds = time.perf_counter() - start
    by, known = count_coverage(made.layer_coverages), [entry for entry in found if not entry.missing_reason]
    return {
        "family": family, "input": f"{size} x {size}", "layers": sum(by.values()), "by training": by["training"],
        "by calibration": by["calibration"], "float": by["float"],
        "bridge differs": f"{bridged.difference.worst_difference.relative_error:.1e}",
        "operators": len(lite.operators), "float operators": len(offenders),
        "tensors compared": f"{len(known)} of {len(found)}",
        "p99 LSB (worst)": int(max(entry.p99_lsb for entry in known)), "logits p99 LSB": int(known[-2].p99_lsb),
        "labels equal": f"{equal:.0%}", "seconds": round(seconds),
        "stock tfmot behind this bridge": stock(bridged.model),
        "most frequent operators": Counter(op.name for op in lite.operators).most_common(4),
    }  # fmt: skip


def stock(model: Any) -> str:
    """What tfmot's own `quantize_model` says of the bridged model."""
    import tensorflow_model_optimization as tfmot

    try:
        tfmot.quantization.keras.quantize_model(model)
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        return f"refuses: {' '.join(str(error).split())[:60]}"
    return "accepts"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(str(row.get(name, "")) for name in COLUMNS) + " |" for row in rows)])


def main(families: list[str]) -> None:
    """Measure each family in a process of its own; write the page if it was all of them."""
    rows = []
    for family in families or SIZES:
        command = [sys.executable, __file__, "--one", family]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{family}: {done.stderr[-2000:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    if not families:
        head, _, _ = PAGE.read_text().partition("<!-- measured -->")
        PAGE.write_text(f"{head}<!-- measured -->\n\n{table(rows)}\n")
    print(table(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main(sys.argv[1:])
