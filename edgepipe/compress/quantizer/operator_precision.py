"""What an operator computes in, and how its weights are stored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

from edgepipe.compress.quantizer.kernel_requirements import BitWidth

WeightType = Literal["int8", "int4", "float16", "float32"]


@final
@dataclass(frozen=True)
class OperatorPrecision:
    """Activations in integers of some bits, or in float with weights that may be stored in fewer bits."""

    activation_bits: BitWidth | None = None  # None: the operator computes in float
    weight_type: WeightType = "float32"
    is_hybrid: bool = False  # the kernel takes integer weights as they are, and quantizes activations at run time
    is_per_channel: bool = True  # weights have one scale for each filter, not one for all
    min_weight_elements: int = 0  # weights with fewer elements stay float32 where the operator computes in float


# (kind of an operator, names of its outputs) -> its precision
PrecisionPolicy = Callable[[str, Sequence[str]], OperatorPrecision]
