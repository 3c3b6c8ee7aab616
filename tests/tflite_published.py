"""Where the published models are: `EDGEPIPE_SHARED`, or `../shared` beside the repository."""

import os
from pathlib import Path

SHARED = Path(os.environ.get("EDGEPIPE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
MODELS = SHARED / "latency" / "models" if (SHARED / "latency" / "models").is_dir() else None
MISSING = f"the published models are not at {SHARED / 'latency' / 'models'}; EDGEPIPE_SHARED may name the folder"
FILES = sorted(MODELS.glob("*.tflite")) if MODELS is not None else []
