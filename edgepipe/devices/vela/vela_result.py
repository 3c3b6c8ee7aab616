"""What one compilation by Vela told: cycles, memory, and where each operator runs."""

from typing import Literal

from pydantic import Field

from edgepipe.core.metric import Record


class VelaSettings(Record):
    """What Vela is told besides the model: names of its own configuration file, Arm/vela.ini."""

    accelerator: str = Field(description="for example ethos-u55-128")
    system_config: str = Field(description="clock and memories")
    memory_mode: str = Field(description="what lives where")

    def text(self) -> str:
        """For example `ethos-u55-128, Ethos_U55_High_End_Embedded, Shared_Sram`."""
        return f"{self.accelerator}, {self.system_config}, {self.memory_mode}"


class VelaMemory(Record):
    """One memory as Vela models it."""

    name: str = Field(description="SRAM, DRAM, on-chip flash or off-chip flash")
    used: int = Field(description="bytes at the peak")
    bandwidth: float = Field(description="peak, in bytes per second")
    traffic: int = Field(description="bytes read and written in one inference")
    cycles: int = Field(description="NPU cycles that the accesses take")


class VelaLayer(Record):
    """One operation of the NPU; an operator of the model may become several, several may become one."""

    operator: str = Field(description="the operator of the model it comes from, for example `CONV_2D #3`")
    operation: str = Field(description="what the NPU does, in Vela's words")
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
    operator: str = Field(description="its name alone; of a custom operator the custom code")
    runs_on: Literal["NPU", "CPU"]
    reason: str = Field(default="", description="Vela's own words on why it runs on the CPU")


class VelaCompilation(Record):
    """One model compiled for one accelerator."""

    version: str = Field(description="of the package ethos-u-vela")
    settings: VelaSettings
    clock: float = Field(description="of the NPU in the system configuration, in hertz")
    cycles: int = Field(description="of the NPU for one inference, memory accesses included, by Vela's model")
    subgraphs: int = Field(description="of the model; with more than one, the cycles are those of the last alone")
    npu_cycles: int = Field(description="the same if memory cost nothing")
    macs: int = Field(description="multiply-accumulates that the NPU does, padding of its own included")
    size: int = Field(description="bytes of the compiled .tflite")
    original_weights: int = Field(description="bytes of the weights before Vela encodes them")
    encoded_weights: int = Field(description="bytes of the weights as the NPU reads them")
    memories: tuple[VelaMemory, ...]
    layers: tuple[VelaLayer, ...]
    placements: tuple[VelaPlacement, ...] = Field(description="one for each operator of the model, in its order")

    @property
    def fallbacks(self) -> tuple[VelaPlacement, ...]:
        """The operators that the NPU does not run."""
        return tuple(placement for placement in self.placements if placement.runs_on == "CPU")

    def peak_bytes(self, name: str) -> int:
        """Bytes of the memory `name` that are in use at the peak, 0 if Vela models no such memory."""
        return sum(memory.used for memory in self.memories if memory.name == name)
