"""A worker that does what its request says, for the tests of child processes."""

import os
import signal
import sys
import time

from edgepipe.core.errors import InputError
from edgepipe.tflite import child_process
from edgepipe.tflite.child_process import Json

poisoned: list[bool] = []


def handle_request(request: Json) -> Json:  # noqa: C901 - one case for each way to end
    if poisoned:
        os.abort()
    print("noise on stdout, as native libraries make it")
    print("last words", file=sys.stderr, flush=True)
    match request["do"]:
        case "answer":
            return {"got": request["value"], "tensorflow": "tensorflow" in sys.modules}
        case "refuse":
            raise InputError("not this one")
        case "break":
            raise KeyError("oops")
        case "crash":
            os.kill(os.getpid(), signal.SIGABRT)
        case "leave":
            os._exit(0)
        case "pid":
            return {"pid": os.getpid()}
        case "eat":
            return {"eaten": len(bytes(4 << 30))}
        case "poison":
            poisoned.append(True)
        case "hang":
            time.sleep(60)
    return {}


if __name__ == "__main__":
    child_process.serve(handle_request)
