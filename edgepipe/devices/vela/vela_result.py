"""The results of one compilation by Vela: cycles, memory, and where each operator runs."""

from typing import Literal

from pydantic import Field

from edgepipe.core.metric import Record


class VelaSettings(Record):
    """Vela's settings besides the model: names in its configuration file, Arm/vela.ini."""

    accelerator: str = Field(description="for example ethos-u55-128")
    system_config: str = Field(description="clock and memories")
    memory_mode: str = Field(description="which data goes to which memory")

    def text(self) -> str:
        """For example `ethos-u55-128, Ethos_U55_High_End_Embedded, Shared_Sram`."""
        return f"{self.accelerator}, {self.system_config}, {self.memory_mode}"


class VelaMemory(Record):
    """One memory as Vela models it."""

    name: str = Field(description="SRAM, DRAM, on-chip flash or off-chip flash")
    used: int = Field(description="peak bytes")
    bandwidth: float = Field(description="peak, in bytes per second")
    traffic: int = Field(description="bytes read and written in one inference")
    cycles: int = Field(description="NPU cycles for the accesses")


class VelaLayer(Record):
    """One NPU operation; operators of the model map to these many to many."""

    operator: str = Field(description="the operator of the model it comes from, for example `CONV_2D #3`")
    operation: str = Field(description="the NPU operation, as named by Vela")
    cycles: int
    npu_cycles: int = Field(description="of the multiply-accumulate array and the element-wise unit")
    sram_cycles: int
    dram_cycles: int
    on_chip_flash_cycles: int
    off_chip_flash_cycles: int
    macs: int
    utilisation: float = Field(description="macs / (cycles * macs per cycle), a fraction")


class VelaPlacement(Record):
    """Where one operator of the model runs."""

    place: str = Field(description="the operator, for example `SOFTMAX #12`")
    operator: str = Field(description="the operator name; the custom code for a custom operator")
    runs_on: Literal["NPU", "CPU"]
    reason: str = Field(default="", description="why it runs on the CPU, as reported by Vela")


class VelaCompilation(Record):
    """One model compiled for one accelerator."""

    version: str = Field(description="of the package ethos-u-vela")
    settings: VelaSettings
    clock: float = Field(description="of the NPU in the system configuration, in hertz")
    cycles: int = Field(description="of the NPU for one inference, memory accesses included, by Vela's model")
    subgraphs: int = Field(description="of the model; with more than one, the cycles are those of the last one only")
    npu_cycles: int = Field(description="the same without memory accesses")
    macs: int = Field(description="multiply-accumulates on the NPU, including its own padding")
    size: int = Field(description="bytes of the compiled .tflite")
    original_weights: int = Field(description="bytes of the weights before Vela encodes them")
    encoded_weights: int = Field(description="bytes of the encoded weights that the NPU reads")
    memories: tuple[VelaMemory, ...]
    layers: tuple[VelaLayer, ...]
    placements: tuple[VelaPlacement, ...] = Field(description="one per operator of the model, in model order")

    @property
    def fallback_placements(self) -> tuple[VelaPlacement, ...]:
        """The operators that the NPU does not run."""
        return tuple(placement for placement in self.placements if placement.runs_on == "CPU")

    def peak_bytes(self, name: str) -> int:
        """Peak bytes used of the memory `name`; 0 if Vela does not model it."""
        return sum(memory.used for memory in self.memories if memory.name == name)
