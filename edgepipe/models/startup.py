"""Loads TensorFlow without its start-up log, which no environment variable silences any more."""

import sys

from edgepipe.core.errors import ToolError
from edgepipe.core.progress import report_step
from edgepipe.models.native_stderr import capture_stderr


def load_tensorflow() -> None:
    """Import TensorFlow and both Keras libraries; keep its C++ log about CPU features and CUDA off the terminal.

    Raises:
        ToolError: it cannot be imported (the message ends with its log), or Keras runs on another backend.
    """
    if "tensorflow" in sys.modules:
        return
    report_step("loading TensorFlow")
    with capture_stderr() as read_stderr:
        try:
            import keras
            import tensorflow
            import tf_keras  # noqa: F401
        except ImportError as error:
            raise ToolError(f"TensorFlow cannot be loaded: {error}; {read_stderr()[-400:]}") from error
    tensorflow.get_logger().setLevel("ERROR")  # its retracing hints are for authors of training loops
    if keras.backend.backend() != "tensorflow":
        raise ToolError(f"Keras runs on '{keras.backend.backend()}'; edgepipe needs KERAS_BACKEND=tensorflow")
