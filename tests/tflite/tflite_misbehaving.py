"""A worker that does what its request says, for the tests of child processes."""

import os
import signal
import sys
import time

from edgepipe.errors import InputError
from edgepipe.tflite import child
from edgepipe.tflite.child import Json


def work(request: Json) -> Json:
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
        case "hang":
            time.sleep(60)
    return {}


if __name__ == "__main__":
    child.serve(work)
