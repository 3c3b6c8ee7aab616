"""What the Edge TPU compiler maps of a kind of operator, as far as Coral's table and its published pairs tell.

The compiler is closed, and its table of operators is neither complete (TILE is mapped) nor precise ("depending on
input/output size, this operation might not be mapped"). So each pair teaches: an operator that it maps is mapped in
that size and below, and so are versions of operators no newer than those that it maps; one that stays on the CPU
although all it reads comes from the Edge TPU stays there in that size and above. Two reports to the compiler's makers
that give shapes teach the same way. What lies between is open: it may run on either.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from edgepipe.devices.edgetpu.compiled_pairs import SOURCE, CompiledPair
from edgepipe.tflite.minimum_runtimes import first_release, minimum_runtime, release_key
from edgepipe.tflite.model import Operator

# Kinds of which not all sizes are mapped: coral.ai/docs/edgetpu/models-intro for the two RESIZE; MEAN by reports.
SIZE_LIMITED_NAMES = frozenset({"RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "MEAN"})
# Stay on the CPU in front of a model with a float input and do not end the mapping; models-intro, "Float input".
CONVERSION_NAMES = frozenset({"QUANTIZE"})
LAST_COMPILER_RELEASE = "2.6.0"  # of TensorFlow, August 2021; github.com/google-coral/edgetpu/issues/438 shows 16.0
Sizes = tuple[float, ...]  # every one of them counts against an operator


class MappingState(StrEnum):
    """Where the compiler places an operator that it can reach."""

    MAPPED = "mapped"
    CPU = "CPU"
    OPEN_MAPPED = "open, likely mapped"
    OPEN_CPU = "open, likely CPU"

    @property
    def is_open(self) -> bool:
        """Whether what is known does not settle it."""
        return self in (MappingState.OPEN_MAPPED, MappingState.OPEN_CPU)


@dataclass(frozen=True)
class Mapping:
    """Where an operator is placed, and where that is known from."""

    state: MappingState
    basis: str


@dataclass(frozen=True)
class Sighting:
    """One operator that the compiler was seen to map, or not; `source` is a pair or a report."""

    source: str
    version: int
    sizes: Sizes


# 1 x 64 x 128 x 3 and 1 x 256 x 128 x 3; a doubling to 128 x 128 x 32 and to 512 x 512 x 32.
_MEAN_REPORT, _RESIZE_REPORT = (f"github.com/google-coral/edgetpu/issues/{number}" for number in (461, 31))
MAPPED_REPORTS = {
    "MEAN": (Sighting(_MEAN_REPORT, 2, (24_576.0,)),),
    "RESIZE_BILINEAR": (Sighting(_RESIZE_REPORT, 1, (524_288.0, 2.0)),),
}
CPU_REPORTS = {
    "MEAN": (Sighting(_MEAN_REPORT, 2, (98_304.0,)),),
    "RESIZE_BILINEAR": (Sighting(_RESIZE_REPORT, 1, (8_388_608.0, 2.0)),),
}


@dataclass(frozen=True)
class MappingLimits:
    """What pairs show, by the name of an operator."""

    mapped_by_name: dict[str, tuple[Sighting, ...]]
    cpu_by_name: dict[str, tuple[Sighting, ...]]
    leading_names: frozenset[str]  # stay on the CPU at the start without ending the mapping
    newest_release: str  # of TensorFlow Lite, that brought the newest version of an operator that is mapped

    def judge(self, operator: Operator, is_listed: bool) -> Mapping:
        """Where an operator of quantized tensors goes that breaks no rule; `is_listed`: it is in Coral's table."""
        mapped, on_cpu = (table.get(operator.name, ()) for table in (self.mapped_by_name, self.cpu_by_name))
        if not is_listed and not mapped:
            return _judge_unlisted(operator, on_cpu)
        if operator.version > max((sighting.version for sighting in mapped), default=0):
            release = first_release(operator.name, operator.version)
            if release is not None and release_key(release) > release_key(self.newest_release):
                return _judge_version(operator, release, self.newest_release)
        if operator.name in SIZE_LIMITED_NAMES or not is_listed:
            return _judge_size(operator, mapped, on_cpu)
        seen_text = f", and mapped in {_list_sources(mapped)}" if mapped else f"; in none of {SOURCE}"
        return Mapping(MappingState.MAPPED, f"in Coral's table of operators{seen_text}")


def learn_limits(pairs: Iterable[CompiledPair]) -> MappingLimits:
    """The limits that `pairs` show."""
    mapped_by_name: dict[str, tuple[Sighting, ...]] = {}
    cpu_by_name: dict[str, tuple[Sighting, ...]] = {}
    leading_names = set(CONVERSION_NAMES)
    for pair in pairs:
        for operator in pair.model.operators:
            sighting = Sighting(pair.name, operator.version, _measure_sizes(operator))
            if operator.index not in pair.cpu_indices:
                mapped_by_name[operator.name] = (*mapped_by_name.get(operator.name, ()), sighting)
            elif not _cpu_producers(pair, operator):
                cpu_by_name[operator.name] = (*cpu_by_name.get(operator.name, ()), sighting)
                if _is_leading(pair, operator):
                    leading_names.add(operator.name)
    for table, reports in ((mapped_by_name, MAPPED_REPORTS), (cpu_by_name, CPU_REPORTS)):
        table.update({name: (*table.get(name, ()), *sightings) for name, sightings in reports.items()})
    versions = ((name, sighting.version) for name, sightings in mapped_by_name.items() for sighting in sightings)
    return MappingLimits(mapped_by_name, cpu_by_name, frozenset(leading_names), minimum_runtime(versions))


def _judge_unlisted(operator: Operator, on_cpu: tuple[Sighting, ...]) -> Mapping:
    if on_cpu:
        return Mapping(MappingState.CPU, f"not in Coral's table, and on the CPU in {_list_sources(on_cpu)}")
    return Mapping(
        MappingState.OPEN_CPU,
        f"open: {operator.name} is not in Coral's table, which is not complete, and in none of {SOURCE}",
    )


def _judge_version(operator: Operator, release: str, newest_release: str) -> Mapping:
    """The compiler refuses versions of operators that are newer than itself."""
    version_text = f"version {operator.version} of {operator.name} came with TensorFlow Lite {release}"
    if release_key(release) > release_key(LAST_COMPILER_RELEASE):
        return Mapping(MappingState.CPU, f"{version_text}, after the last Edge TPU compiler, 16.0 of July 2021")
    return Mapping(
        MappingState.OPEN_MAPPED,
        f"open: {version_text}, and the newest version mapped in {SOURCE} with {newest_release}",
    )


def _judge_size(operator: Operator, mapped: tuple[Sighting, ...], on_cpu: tuple[Sighting, ...]) -> Mapping:
    sizes = _measure_sizes(operator)
    if larger := [sighting for sighting in mapped if _reaches(sighting.sizes, sizes)]:
        return Mapping(MappingState.MAPPED, f"mapped in this size or a larger one in {_list_sources(larger)}")
    if smaller := [sighting for sighting in on_cpu if _reaches(sizes, sighting.sizes)]:
        return Mapping(MappingState.CPU, f"on the CPU in this size or a smaller one in {_list_sources(smaller)}")
    return Mapping(
        MappingState.OPEN_MAPPED,
        f"open: {operator.name} is mapped up to a size that Coral does not publish, and {_describe_sizes(sizes)} lies "
        f"beyond what {SOURCE} settle",
    )


def _reaches(sizes: Sizes, limits: Sizes) -> bool:
    return all(size >= limit for size, limit in zip(sizes, limits, strict=True))


def _measure_sizes(operator: Operator) -> Sizes:
    """Elements read or written, whichever is more; of a RESIZE, also by how much a side grows or shrinks."""
    elements = max((tensor.element_count for tensor in operator.tensors if not tensor.is_constant), default=0)
    source, target = operator.input(0), operator.outputs[0] if operator.outputs else None
    if not operator.name.startswith("RESIZE_") or source is None or target is None:
        return (elements,)
    sides = zip(source.shape[1:3], target.shape[1:3], strict=False)
    return (elements, max((max(before, after) / max(1, min(before, after)) for before, after in sides), default=1.0))


def _describe_sizes(sizes: Sizes) -> str:
    elements, *factors = sizes
    return f"{elements:,.0f} elements" + (f" at {factors[0]:.3g} times the side" if factors else "")


def _list_sources(sightings: Iterable[Sighting]) -> str:
    sources = list(dict.fromkeys(sighting.source for sighting in sightings))
    return sources[0] + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")


def _cpu_producers(pair: CompiledPair, operator: Operator) -> list[Operator]:
    producers = (pair.model.producer_by_key.get(tensor.key) for tensor in operator.inputs if tensor is not None)
    return [producer for producer in producers if producer is not None and producer.index in pair.cpu_indices]


def _is_leading(pair: CompiledPair, operator: Operator) -> bool:
    """Whether it reads inputs of the model and a mapped operator depends on it."""
    if any(pair.model.producer_by_key.get(tensor.key) for tensor in operator.inputs if tensor is not None):
        return False
    dependent_keys = {tensor.key for tensor in operator.outputs if tensor is not None}
    for later in pair.model.operators[operator.index + 1 :]:
        if dependent_keys.isdisjoint(tensor.key for tensor in later.inputs if tensor is not None):
            continue
        if later.index not in pair.cpu_indices:
            return True
        dependent_keys |= {tensor.key for tensor in later.outputs if tensor is not None}
    return False
