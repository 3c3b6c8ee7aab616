"""Child process of `operator_latency.measure`: LiteRT's compiled-model C interface through ctypes.

Only this process is lost if the library's interface differs from what is declared here.
"""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.core.errors import InputError
from edgepipe.tflite import child_process, cpu_cores
from edgepipe.tflite.child_process import Json

CPU_ACCELERATOR = 1  # kLiteRtHwAcceleratorCpu
OPERATOR_EVENT, DELEGATE_EVENT, DELEGATE_OPERATOR_EVENT = 2, 4, 8  # the event types of litert_profiler_event.h
WARM_UP_RUNS = 10
RANKED_TENSOR_TYPE_BYTES = 256  # more than LiteRtRankedTensorType has
Pointer = ctypes.c_void_p


class ProfilerEvent(ctypes.Structure):
    """`ProfiledEventData`; each of the two memory usages is three words."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("start", ctypes.c_uint64),
        ("microseconds", ctypes.c_uint64),
        ("memory", ctypes.c_int64 * 6),
        ("metadata", ctypes.c_uint64 * 2),
        ("source", ctypes.c_int),
    )


class LiteRtLibrary:
    """`libLiteRt.so`, with every status checked."""

    def __init__(self) -> None:
        import ai_edge_litert

        self.library = ctypes.CDLL(str(Path(str(ai_edge_litert.__file__)).parent / "libLiteRt.so"))

    def call(self, name: str, *arguments: Any) -> None:
        """Call `name`; a status other than 0 is an `InputError`."""
        status = getattr(self.library, name)(*arguments)
        if status:
            raise InputError(f"LiteRT's {name} gives status {status}")

    def get_handle(self, name: str, *arguments: Any) -> Pointer:
        """Call `name`, whose last parameter receives a new object."""
        handle = Pointer()
        self.call(name, *arguments, ctypes.byref(handle))
        return handle


def handle_request(request: Json) -> Json:
    """The request of `operator_latency.measure` in, its times out."""
    cpu_cores.pin(request["threads"])
    profiled_model = _ProfiledModel(LiteRtLibrary(), request["path"], request["threads"])
    for _ in range(WARM_UP_RUNS):
        profiled_model.run()
    run_events = [profiled_model.profile_run() for _ in range(request["runs"])]
    usual_events = max(run_events, key=lambda run: sum(len(run) == len(other_run) for other_run in run_events))
    run_events = [run for run in run_events if len(run) == len(usual_events)]
    event_microseconds = np.array([[event.microseconds for event in run] for run in run_events], np.float64)
    operator_times = [
        {"name": event.tag.decode(errors="replace"), "seconds": _trimmed_mean(event_microseconds[:, index]) * 1e-6,
         "delegated": event.type in (DELEGATE_EVENT, DELEGATE_OPERATOR_EVENT)}
        for index, event in enumerate(usual_events)
        if event.type in (OPERATOR_EVENT, DELEGATE_EVENT, DELEGATE_OPERATOR_EVENT)
    ]  # fmt: skip
    invoke_index = next(
        (index for index, event in enumerate(usual_events) if event.type == 1 and event.tag == b"Invoke"), None
    )
    total_seconds = None if invoke_index is None else _trimmed_mean(event_microseconds[:, invoke_index]) * 1e-6
    if not operator_times:
        raise InputError("LiteRT's profiler reports no operator")
    return {"times": {"operators": operator_times, "total": total_seconds, "runs": len(run_events)}}


def _trimmed_mean(microseconds: Any) -> float:
    """The mean of times clipped from above, against interruptions; the median of whole microseconds is too coarse."""
    upper_bound = max(np.median(microseconds) + 1, 1.5 * np.median(microseconds))
    return float(np.minimum(microseconds, upper_bound).mean())


class _ProfiledModel:
    """A compiled model with its buffers and its profiler."""

    def __init__(self, library: LiteRtLibrary, path: str, threads: int) -> None:
        self.library = library
        self.environment_handle = library.get_handle("LiteRtCreateEnvironment", 0, None)
        self.model_handle = library.get_handle("LiteRtCreateModelFromFile", self.environment_handle, path.encode())
        # LiteRT keeps pointers to these texts and to the callback.
        self.option_texts = (b"enable_profiling = true\n", f"num_threads = {threads}\n".encode())
        self.free_callback = ctypes.CFUNCTYPE(None, Pointer)(lambda _: None)
        options = library.get_handle("LiteRtCreateOptions")
        library.call("LiteRtSetOptionsHardwareAccelerators", options, CPU_ACCELERATOR)
        for name, text in zip((b"runtime_options_string", b"xnnpack"), self.option_texts, strict=True):
            opaque_options = library.get_handle("LiteRtCreateOpaqueOptions", name, text, self.free_callback)
            library.call("LiteRtAddOpaqueOptions", options, opaque_options)
        self.compiled_model_handle = library.get_handle(
            "LiteRtCreateCompiledModel", self.environment_handle, self.model_handle, options
        )
        self.profiler_handle = library.get_handle("LiteRtCompiledModelGetProfiler", self.compiled_model_handle)
        if not self.profiler_handle:
            raise InputError("LiteRT gives no profiler for this model")
        self.input_buffers, self.output_buffers = self._create_buffers("Input"), self._create_buffers("Output")

    def _create_buffers(self, side: str) -> Any:
        library, buffer_count = self.library, ctypes.c_size_t()
        subgraph_handle = library.get_handle("LiteRtGetModelSubgraph", self.model_handle, ctypes.c_size_t(0))
        library.call(f"LiteRtGetNumSubgraph{side}s", subgraph_handle, ctypes.byref(buffer_count))
        buffers = []
        for index in range(buffer_count.value):
            tensor_handle = library.get_handle(f"LiteRtGetSubgraph{side}", subgraph_handle, ctypes.c_size_t(index))
            tensor_type = (ctypes.c_char * RANKED_TENSOR_TYPE_BYTES)()
            library.call("LiteRtGetRankedTensorType", tensor_handle, tensor_type)
            name = f"LiteRtGetCompiledModel{side}BufferRequirements"
            requirements = library.get_handle(
                name, self.compiled_model_handle, ctypes.c_size_t(0), ctypes.c_size_t(index)
            )
            create_name = "LiteRtCreateManagedTensorBufferFromRequirements"
            buffers.append(library.get_handle(create_name, self.environment_handle, tensor_type, requirements))
        return (Pointer * len(buffers))(*buffers)

    def run(self) -> None:
        """One inference."""
        signature_index = ctypes.c_size_t(0)
        input_arguments = (ctypes.c_size_t(len(self.input_buffers)), self.input_buffers)
        output_arguments = (ctypes.c_size_t(len(self.output_buffers)), self.output_buffers)
        self.library.call(
            "LiteRtRunCompiledModel", self.compiled_model_handle, signature_index, *input_arguments, *output_arguments
        )

    def profile_run(self) -> Any:
        """The events of one inference."""
        library, event_count = self.library, ctypes.c_int()
        library.call("LiteRtResetProfiler", self.profiler_handle)
        library.call("LiteRtStartProfiler", self.profiler_handle)
        self.run()
        library.call("LiteRtStopProfiler", self.profiler_handle)
        library.call("LiteRtGetNumProfilerEvents", self.profiler_handle, ctypes.byref(event_count))
        events = (ProfilerEvent * event_count.value)()
        library.call("LiteRtGetProfilerEvents", self.profiler_handle, event_count, events)
        return events


if __name__ == "__main__":
    child_process.serve(handle_request)
