"""Makes the part of a profile that holds a fitted latency, from a table of measurements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from edgepipe.core.artifact import write_text
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.devices.latency import cross_validation, fit_domain, measurement_table
from edgepipe.devices.latency import latency_fit as fits
from edgepipe.devices.latency.cross_validation import HeldOut
from edgepipe.devices.latency.latency_fit import Rates, Row
from edgepipe.devices.latency.latency_record import FamilyError, Fit, HeldOutError
from edgepipe.devices.latency.measurement_table import Measured, Rows
from edgepipe.devices.latency.processor_kinds import KINDS

DIGITS = 4  # significant ones that are stored
HEADER = "# Written by `edgepipe device fit`: what an operator costs, for a profile to inherit. Do not edit.\n"


@dataclass(frozen=True)
class Request:
    """What to fit: a group of the table, with neighbours that share its structure."""

    target: str  # device and runtime, as `table.Measured.group`
    kind: str
    clock: float  # hertz
    source: str
    dtype: Literal["int8", "float32"] = "int8"
    on_chip: int | None = None
    neighbours: Mapping[str, float] = field(default_factory=dict)  # group to clock
    without: frozenset[str] = frozenset()  # families whose rows are left out

    @property
    def clocks(self) -> dict[str, float]:
        """The clock of every group."""
        return {self.target: self.clock, **self.neighbours}


@dataclass(frozen=True)
class Built:
    """A fit, its held-out predictions for the target, and the lines of the table that it could not use."""

    fit: Fit
    held_out: list[HeldOut]
    left_out: list[str]


def build(path: Path, models: Path, request: Request) -> Built:
    """Fit the table at `path`, whose models are in the folder `models`.

    Raises:
        InputError: a wrong table, an unknown kind or group, or no row of the target that can be used.
    """
    if request.kind not in KINDS:
        raise InputError(f"unknown kind of processor '{request.kind}'{did_you_mean(request.kind, KINDS)}")
    kind, measured = KINDS[request.kind], measurement_table.read(path)
    found = usable(measured, models, request)
    if not any(row.group == request.target for row in found.rows):
        raise InputError(f"{path}: no model of '{request.target}' is at hand: {'; '.join(found.left_out[:3])}")
    rates = fits.fit(kind, request.clocks, found.rows)[request.target]
    held_out = cross_validation.leave_families_out(kind, request.clocks, found.rows)
    return Built(_record(request, rates, found.rows, held_out), _of(request.target, held_out), found.left_out)


def usable(measured: Sequence[Measured], models: Path, request: Request) -> Rows:
    """The rows of the target and its neighbours whose models are at hand, and why the others are left out."""
    lines = [line for group in request.clocks for line in measurement_table.of_group(measured, group)]
    wanted = [line for line in lines if line.family not in request.without]
    found = measurement_table.rows(wanted, models, KINDS[request.kind].tile, request.on_chip)
    asked = [f"line {line.line}: {line.model}: --without {line.family}" for line in lines if line not in wanted]
    return Rows(found.rows, [*found.left_out, *asked])


def _of(target: str, held_out: Sequence[HeldOut]) -> list[HeldOut]:
    return [one for one in held_out if one.row.group == target]


def _record(request: Request, rates: Rates, rows: Sequence[Row], held_out: Sequence[HeldOut]) -> Fit:
    own = [row for row in rows if row.group == request.target]
    seen = fit_domain.of_rows(own, rates.features)
    return Fit(
        source=request.source,
        kind=request.kind,
        dtype=request.dtype,
        clock=request.clock,
        on_chip=request.on_chip,
        points=len(own),
        neighbours=tuple(request.neighbours),
        rates={name: _short(rate) for name, rate in zip(rates.features, rates.seconds, strict=True)},
        covariance=tuple(tuple(_short(v) for v in row[: n + 1]) for n, row in enumerate(rates.covariance)),
        noise=rates.noise,
        factor=_short(cross_validation.factor(_of(request.target, held_out) or held_out)),
        rate=cross_validation.RATE,
        error=_error(_of(request.target, held_out)),
        operators=tuple(sorted(seen.operators)),
        largest={name: _short(amount) for name, amount in seen.largest.items()},
        seconds=seen.seconds,
    )


def _short(value: float) -> float:
    return float(f"{float(value):.{DIGITS}g}")


def _error(held_out: Sequence[HeldOut]) -> HeldOutError | None:
    if not held_out:
        return None
    whole = cross_validation.errors(held_out)
    families = {
        family: cross_validation.errors([one for one in held_out if one.row.family == family])
        for family in sorted({one.row.family for one in held_out})
    }
    return HeldOutError(
        points=whole.points,
        median=_short(whole.median),
        p90=_short(whole.p90),
        worst=_short(whole.worst),
        families={
            family: FamilyError(points=found.points, median=_short(found.median), worst=_short(found.worst))
            for family, found in families.items()
        },
    )


@dataclass(frozen=True)
class Carried:
    """One factor from a fitted device to another one, and how far single models stray from it."""

    scale: float
    error: float  # standard deviation of the logarithm
    points: int


def carry(fit: Fit, path: Path, models: Path, target: str, clock: float) -> Carried:
    """The factor that takes what `fit` predicts at `clock` to the measurements of `target`.

    Raises:
        InputError: as `build`.
    """
    kind = KINDS[fit.kind]
    found = measurement_table.rows(
        measurement_table.of_group(measurement_table.read(path), target), models, kind.tile, fit.on_chip
    )
    if not found.rows:
        raise InputError(f"{path}: no model of '{target}' is at hand: {'; '.join(found.left_out[:3])}")
    prices = np.array(list(fit.rates.values())) * fit.clock / clock
    ratios = [np.log(row.seconds / (prices @ fits.vector(kind.features, row.features))) for row in found.rows]
    strays = float(np.std(ratios, ddof=1)) if len(ratios) > 1 else 0.0
    return Carried(_short(np.exp(np.median(ratios))), _short(strays), len(ratios))


def write(fit: Fit, target: Path) -> None:
    """The part of a profile, for others to `inherit`."""
    latency = {"evidence": "estimated", "by": "fit", "fit": fit.model_dump(mode="json", exclude_none=True)}
    document = {"abstract": True, "latency": latency}
    write_text(target, HEADER + yaml.safe_dump(document, sort_keys=False, width=120, default_flow_style=None))
