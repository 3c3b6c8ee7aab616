"""Reads what TensorFlow Lite's benchmark_model and LiteRT's CompiledModel benchmark print, of all their generations.

count=50 first=9 curr=8 min=7 max=9 avg=8.1 std=1 p5=7 median=8 p95=9       microseconds; percentiles since 2024
Inference timings in us: Init: 5, First inference: 9, Warmup (avg): 9, Inference (avg): 8.1
Average inference timings in us: Warmup: 9, Init: 5, no stats: 8.1          until 2019
===== BENCHMARK RESULTS ===== .. Inference (avg):  8.10 ms (50 runs)         CompiledModel, milliseconds
"""

import re
from dataclasses import dataclass, replace

MICROSECOND = 1e-6
MILLISECOND = 1e-3
MEBIBYTE = 1 << 20  # what the tools mean by MB: kilobytes of the system over 1024
_NUMBER = r"([-+0-9.eE]+)"
_STATISTICS = re.compile(r"count=(\d+)\b([^\n]*)")
_FIELD = re.compile(rf"(\w+)={_NUMBER}")
_SUMMARY = re.compile(
    rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, Warmup \(avg\): {_NUMBER}, "
    rf"Inference \(avg\): {_NUMBER}"
)
_OLD_SUMMARY = re.compile(
    rf"Average inference timings in us: (?:Warmup: {_NUMBER}, )?Init: {_NUMBER}, (?:no stats|Inference): {_NUMBER}"
)
_BLOCK_LINE = re.compile(
    rf"(Model initialization|(?:Warmup|Inference) \(\w+\)):\s+{_NUMBER} ?(?:ms)?(?: \((\d+) runs\))?"
)
_MEMORY = (
    re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: {_NUMBER}"),
    re.compile(
        rf"(?:Peak memory footprint|Memory footprint delta from the start of the tool) \(MB\): .*overall={_NUMBER}"
    ),
    re.compile(rf"Overall footprint:\s+{_NUMBER} MB"),
)
_REPLACED = re.compile(r"Replacing (\d+)(?: out of (\d+))? node\(s\) with delegate \((\w+)\)")
_EXPLICIT = re.compile(r"xplicitly applied (\S+) delegate, and the model graph will be (completely|partially) executed")
_NOT_EXECUTED = re.compile(r"hough (\S+) delegate is explicitly applied, the model graph will not be executed")


@dataclass(frozen=True)
class DelegateUse:
    """Nodes that a delegate has taken; `total` and `share` are what the tool said, if it did."""

    delegate: str
    replaced: int | None = None
    total: int | None = None
    share: str = ""  # completely, partially, not

    def text(self) -> str:
        """For example `TfLiteGpuDelegateV2: 5 of 64 nodes`."""
        if self.replaced is None:
            return f"{self.delegate}: {self.share} executed by it"
        total_text = f" of {self.total}" if self.total is not None else ""
        return f"{self.delegate}: {self.replaced}{total_text} nodes"


@dataclass(frozen=True)
class BenchmarkResult:
    """What the tool measured, in seconds and bytes; None where this generation does not tell."""

    average: float
    runs: int | None = None
    p5: float | None = None
    median: float | None = None
    p95: float | None = None
    initialization: float | None = None
    first: float | None = None
    memory: float | None = None
    delegates: tuple[DelegateUse, ...] = ()


def parse_output(text: str) -> BenchmarkResult | None:
    """The result in what the tool printed; None if it ended without one."""
    plain_text = text.replace("\r", "")
    result = _parse_block(plain_text) if "BENCHMARK RESULTS" in plain_text else _parse_lines(plain_text)
    if result is None:
        return None
    memory = next((float(m[1]) * MEBIBYTE for p in _MEMORY if (m := p.search(plain_text)) and float(m[1]) > 0), None)
    return replace(result, memory=memory, delegates=parse_delegates(plain_text))


def _parse_lines(text: str) -> BenchmarkResult | None:
    """Of benchmark_model: the last line of statistics is that of the timed runs, those before are of the warm-up."""
    statistics = _STATISTICS.findall(text)
    runs = int(statistics[-1][0]) if statistics else None
    fields = dict(_FIELD.findall(statistics[-1][1])) if statistics else {}
    p5, median, p95 = (
        float(fields[name]) * MICROSECOND if name in fields else None for name in ("p5", "median", "p95")
    )
    if (m := _SUMMARY.search(text)) is not None:
        initialization, first, _, average = (float(number) * MICROSECOND for number in m.groups())
        return BenchmarkResult(average, runs, p5, median, p95, initialization, first)
    if (m := _OLD_SUMMARY.search(text)) is not None:
        return BenchmarkResult(float(m[3]) * MICROSECOND, runs, initialization=float(m[2]) * MICROSECOND)
    return None


def _parse_block(text: str) -> BenchmarkResult | None:
    """Of the CompiledModel tool, after its heading."""
    block = text.rpartition("BENCHMARK RESULTS")[2]
    lines = {m[1]: (float(m[2]) * MILLISECOND, m[3]) for m in _BLOCK_LINE.finditer(block)}
    if "Inference (avg)" not in lines:
        return None
    average, runs = lines["Inference (avg)"]
    titles = ("Inference (p5)", "Inference (median)", "Inference (p95)", "Model initialization", "Warmup (first)")
    p5, median, p95, initialization, first = (lines[title][0] if title in lines else None for title in titles)
    return BenchmarkResult(average, int(runs) if runs else None, p5, median, p95, initialization, first)


def parse_delegates(text: str) -> tuple[DelegateUse, ...]:
    """What each delegate took, in the order of the output: what the last one left, LiteRT's own kernels run."""
    uses = [DelegateUse(m[3], int(m[1]), int(m[2]) if m[2] is not None else None) for m in _REPLACED.finditer(text)]
    uses += [DelegateUse(m[1], share=m[2]) for m in _EXPLICIT.finditer(text)]
    uses += [DelegateUse(m[1], share="not") for m in _NOT_EXECUTED.finditer(text)]
    return tuple(uses)
