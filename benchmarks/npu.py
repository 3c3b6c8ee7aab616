"""Published models over an Ethos-U55, U65 and U85 by Vela's cycle model: cycles, time, SRAM, operators on the core.

The models are not ours and stay out of the repository: they are looked for in `latency/models` of the folder
`$EDGEPIPE_SHARED`, else of `../shared` beside the repository. The table is that of docs/npu.md.
"""

import os
import sys
from pathlib import Path

from edgepipe.core import units
from edgepipe.core.metric import Metric
from edgepipe.core.units import Dimension
from edgepipe.devices import device_profile
from edgepipe.devices.vela import vela_metrics
from edgepipe.tflite import reader

ROOT = Path(__file__).resolve().parents[1]
DEVICES = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")
MODELS = {  # by the beginning of the file's name
    "MLPerf Tiny anomaly detection": "anomaly_detection__ad01",
    "MLPerf Tiny keyword spotting": "keyword_spotting__kws",
    "MLPerf Tiny image classification": "image_classification__pretrainedResnet",
    "MLPerf Tiny visual wake words": "visual_wake_words__vww",
    "MobileNetV1 0.25 224": "mobilenet_v1_0.25_224_int8",
    "MobileNetV1 0.5 224": "mobilenet_v1_0.5_224_int8",
    "MobileNetV2 0.35 224": "mobilenet_v2_0.35_224_int8",
    "FD-MobileNet 0.25 224": "fdmobilenet_0.25_224_int8",
    "EfficientNet-LC 224": "st_efficientnet_lc_v1_224",
    "YAMNet 256": "yamnet_256_64x96_int8",
    "tiny YOLO LC 256": "st_yolo_lc_v1_256",
    "MoveNet Lightning": "movenet_single_pose_lightning",
    "SSD-MobileNetV1 0.25 192": "ssd_mobilenet_v1_025_192",
}


def models() -> Path:
    """The folder of the models."""
    shared = Path(os.environ.get("EDGEPIPE_SHARED", ROOT.parent / "shared"))
    folder = shared / "latency" / "models"
    if not folder.is_dir():
        sys.exit(f"{folder}: no such folder; set EDGEPIPE_SHARED to the folder that holds latency/models")
    return folder


def row(title: str, file: Path, device: str) -> str:
    """One line of the table."""
    told = vela_metrics.analyze(reader.read(file), device_profile.load(device, ROOT))
    if told.compilation is None:
        return f"| {title} | {device} | - | - | - | {told.reason.rpartition(': ')[2]} |"
    time, share = told.metric("latency"), told.metric("npu_operators")
    sram = units.show(told.compilation.peak_bytes("SRAM"), Dimension.BYTES)
    cells = (
        title,
        device,
        f"{told.compilation.cycles:,}",
        time.text(),
        sram,
        _fallbacks(share, len(told.fallback_findings)),
    )
    return f"| {' | '.join(cells)} |"


def _fallbacks(share: Metric, number: int) -> str:
    return f"{number} ({share.text()} on the NPU)" if number else "none"


def main() -> None:
    """Print the table."""
    folder = models()
    print("| model | device | cycles | time | SRAM | operators on the core |\n|---|---|---:|---:|---:|---|")
    for title, beginning in MODELS.items():
        file = min(folder.glob(f"{beginning}*.tflite"))
        for device in DEVICES:
            print(row(title, file, device))


if __name__ == "__main__":
    main()
