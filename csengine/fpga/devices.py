"""Devices that a pipeline may be for: how much of each resource they have, by AMD's public tables."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Resources:
    """Counts of a device, or of what a design takes. A block RAM is 36 kbit, half ones count half."""

    lut: float
    """Look-up tables, those that hold memory included."""
    ff: float
    dsp: float
    bram: float
    uram: float

    def fits(self, need: Resources) -> int:
        """How many times a design fits, by counts alone: no claim that it can be placed and routed."""
        shares = [getattr(self, it.name) // getattr(need, it.name) for it in fields(self) if getattr(need, it.name)]
        return int(min(shares))

    def scarcest(self, need: Resources) -> str:
        """The resource of which a design takes the largest share."""
        return max((it.name for it in fields(self)), key=lambda name: _share(getattr(need, name), getattr(self, name)))

    def share(self, need: Resources) -> float:
        """That share."""
        name = self.scarcest(need)
        return _share(getattr(need, name), getattr(self, name))


def _share(need: float, have: float) -> float:
    return need / have if have else float("inf") if need else 0.0


@dataclass(frozen=True)
class Device:
    """A device and where its counts are published."""

    name: str
    resources: Resources
    source: str


#: By the names that `csengine fpga plan --device` takes.
DEVICES = {
    "U250": Device(
        "Alveo U250",
        Resources(lut=1_728_000, ff=3_456_000, dsp=12_288, bram=2_688, uram=1_280),
        "AMD DS962, Alveo U200 and U250 data sheet",
    ),
    "ZU3EG": Device(
        "Zynq UltraScale+ ZU3EG",
        Resources(lut=70_560, ff=141_120, dsp=360, bram=216, uram=0),
        "AMD DS891, Zynq UltraScale+ MPSoC overview",
    ),
}
