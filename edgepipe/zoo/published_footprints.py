"""Papers and precomputed footprints of the architectures, without building them.

`tools/footprints.py` counts; `tests/zoo/test_zoo_footprints.py` counts some of them again.
"""

import inspect
import json
from pathlib import Path
from typing import Any

FOOTPRINTS_FILE = Path(__file__).with_name("footprints.json")

PAPER_BY_ARCHITECTURE = {
    "small_cnn": "three plain convolutions, for a start",
    "ds_cnn": "Zhang et al. 2017, arXiv 1711.07128 (Hello Edge)",
    "mobilenet_v1": "Howard et al. 2017, arXiv 1704.04861",
    "mobilenet_v2": "Sandler et al. 2018, arXiv 1801.04381",
    "resnet8": "He et al. 2015, arXiv 1512.03385; Banbury et al. 2021, arXiv 2106.07597 (MLPerf Tiny)",
    "autoencoder": "Banbury et al. 2021, arXiv 2106.07597 (MLPerf Tiny)",
    "attention": "Hassani et al. 2021, arXiv 2104.05704; Berg et al. 2021, arXiv 2104.00769",
    "temporal_cnn": "Zhang et al. 2017, arXiv 1711.07128; Bai et al. 2018, arXiv 1803.01271",
}
# precomputed: architecture, sample shape, classes, options
FOOTPRINT_CASES: tuple[tuple[str, tuple[int, ...], int | None, dict[str, Any]], ...] = (
    ("small_cnn", (8, 8, 1), 10, {}),
    ("small_cnn", (28, 28, 1), 10, {}),
    ("ds_cnn", (49, 10, 1), 12, {}),
    ("ds_cnn", (49, 10, 1), 12, {"size": "medium"}),
    ("ds_cnn", (49, 10, 1), 12, {"size": "large"}),
    ("ds_cnn", (49, 40, 1), 12, {}),
    ("mobilenet_v1", (96, 96, 3), 2, {"alpha": 0.25}),
    ("mobilenet_v1", (224, 224, 3), 1000, {"alpha": 0.25}),
    ("mobilenet_v1", (224, 224, 3), 1000, {"alpha": 1.0}),
    ("mobilenet_v2", (96, 96, 3), 2, {"alpha": 0.35}),
    ("mobilenet_v2", (224, 224, 3), 1000, {"alpha": 1.0}),
    ("resnet8", (32, 32, 3), 10, {}),
    ("autoencoder", (640,), None, {"widths": [128, 128, 128, 128], "batch_norm": True}),
    ("attention", (8, 8, 1), 10, {}),
    ("attention", (28, 28, 1), 10, {}),
    ("attention", (49, 10, 1), 12, {}),
    ("attention", (49, 40, 1), 12, {}),
    ("attention", (100, 6), 4, {}),
    ("attention", (29, 12), 9, {}),
    ("temporal_cnn", (100, 6), 4, {}),
    ("temporal_cnn", (29, 12), 9, {}),
)


def read_footprints() -> dict[str, Any]:
    """The footprints that ship with edgepipe, and the versions they were counted with."""
    footprints: dict[str, Any] = json.loads(FOOTPRINTS_FILE.read_text())
    return footprints


def default_options(architecture: str) -> dict[str, Any]:
    """The options of an architecture besides input and classes, with their defaults."""
    from edgepipe import zoo

    parameters = inspect.signature(getattr(zoo, architecture)).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.name not in ("input_shape", "classes")
    }
