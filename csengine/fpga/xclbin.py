"""The container that XRT loads: a header and named sections, little-endian (AMD UG1702; `struct axlf` in xclbin.h).

`v++` makes it for a card. For the emulated device it is written here, with the sections that XRT's software emulation
asks for; the section BITSTREAM then holds a Verilated kernel as a shared object. In both, the section USER_METADATA
holds the description of the network's shape as JSON, so that a model of another shape can be told what differs.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from csengine.errors import DeviceError

KERNEL = "csengine_top"
#: Arguments of the kernel: name, offset of its register, bytes; pointers are 8 bytes.
ARGUMENTS = (("x", 0x10, 8), ("y", 0x1C, 8), ("image", 0x28, 8), ("samples", 0x34, 4), ("load", 0x3C, 4))
#: Name of the platform that the emulated device claims to be.
PLATFORM = "csengine_emulated_device"

_MAGIC = b"xclbin2\0"
_ALIGNMENT = 8
_SECTION = struct.Struct("<I16s4xQQ")  # kind, name, offset, size
_PREFIX = struct.Struct("<8si28s256sQ")  # magic, signature length, reserved, key block, unique id
#: Length, time stamp, feature ROM time stamp, version patch/major/minor, mode, actions, interface id, platform, id,
#: debug file, number of sections.
_HEADER = struct.Struct("<QQQHBBHH16s64s16s16sI4x")
_SOFTWARE_EMULATION = 5
_MEMORY_BYTES = 16 << 30
_UNIT_BYTES = 0x10000


class Section(IntEnum):
    """The kinds that csengine reads or writes."""

    BITSTREAM = 0
    EMBEDDED_METADATA = 2
    MEM_TOPOLOGY = 6
    CONNECTIVITY = 7
    IP_LAYOUT = 8
    USER_METADATA = 16


@dataclass(frozen=True)
class Xclbin:
    """A container that was read and checked."""

    is_emulated: bool
    sections: Mapping[int, bytes]

    @property
    def shape(self) -> Mapping[str, Any] | None:
        """The description of the shape it was built for; None where it holds none."""
        try:
            found = json.loads(self.sections.get(Section.USER_METADATA, b"null").rstrip(b"\0"))
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


def read(path: Path) -> Xclbin:
    """Read a container. Raises DeviceError if it is damaged, FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"no such xclbin: {path}; `csengine fpga build` makes it")
    content = path.read_bytes()
    _require(content.startswith(_MAGIC), path, "does not start with 'xclbin2'")
    start = _PREFIX.size + _HEADER.size
    _require(len(content) >= start, path, f"ends after {len(content)} bytes, within its header")
    length, *_, mode, _, _, _, _, _, count = _HEADER.unpack_from(content, _PREFIX.size)
    _require(length == len(content), path, f"has {len(content)} bytes; its header says {length}")
    _require(start + count * _SECTION.size <= length, path, f"cannot hold {count} sections")
    sections = {}
    for i in range(count):
        kind, _, offset, size = _SECTION.unpack_from(content, start + i * _SECTION.size)
        _require(offset <= length and size <= length - offset, path, f"has a section {kind} that leaves the file")
        sections[kind] = content[offset : offset + size]
    for section in (Section.EMBEDDED_METADATA, Section.IP_LAYOUT, Section.MEM_TOPOLOGY, Section.CONNECTIVITY):
        _require(section in sections, path, f"lacks the section {section.name}")
    holds_kernel = f'name="{KERNEL}"'.encode() in sections[Section.EMBEDDED_METADATA]
    _require(holds_kernel, path, f"holds no kernel {KERNEL}; it was not built by csengine")
    return Xclbin(mode == _SOFTWARE_EMULATION, sections)


def _require(condition: bool, path: Path, problem: str) -> None:
    if not condition:
        raise DeviceError(f"{path} is no usable xclbin: it {problem}; build it again with `csengine fpga build`")


def write_emulated(kernel: bytes, shape: Mapping[str, Any], units: int = 1) -> bytes:
    """The container of an emulated device with so many compute units.

    kernel: shared object of a Verilated `csengine_top`. Its identifier is made of the content, so that XRT loads
    another one where something changed.
    """
    bases = [_UNIT_BYTES * (1 + i) for i in range(units)]
    sections = {
        Section.BITSTREAM: kernel,
        Section.EMBEDDED_METADATA: _metadata(bases).encode(),
        Section.MEM_TOPOLOGY: _memory_topology(),
        Section.IP_LAYOUT: _ip_layout(bases),
        Section.CONNECTIVITY: _connectivity(units),
        Section.USER_METADATA: json.dumps(shape, sort_keys=True).encode(),
    }
    return _container(sections)


def _container(sections: Mapping[Section, bytes]) -> bytes:
    place = _aligned(_PREFIX.size + _HEADER.size + len(sections) * _SECTION.size)
    table, body = b"", b""
    for kind, data in sections.items():
        body = body.ljust(_aligned(len(body)), b"\0")
        table += _SECTION.pack(kind, kind.name.encode()[:15], place + len(body), len(data))
        body += data
    digest = hashlib.sha256(table + body).digest()
    prefix = _PREFIX.pack(_MAGIC, -1, b"\xff" * 28, bytes(256), int.from_bytes(digest[16:24], "little"))
    names = (bytes(16), PLATFORM.encode(), digest[:16], b"")
    header = _HEADER.pack(place + len(body), 0, 0, 0, 2, 1, _SOFTWARE_EMULATION, 0, *names, len(sections))
    return (prefix + header + table).ljust(place, b"\0") + body


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _memory_topology() -> bytes:
    """One bank of DDR4 from address 0."""
    ddr4, used = 1, 1
    return struct.pack("<i4x", 1) + struct.pack("<BB6xQQ16s", ddr4, used, _MEMORY_BYTES // 1024, 0, b"bank0")


def _ip_layout(bases: Sequence[int]) -> bytes:
    """Name and place of every compute unit; they are of type kernel and of control protocol ap_ctrl_hs."""
    kernel, ap_ctrl_hs = 1, 0
    units = [
        struct.pack("<IIQ64s", kernel, ap_ctrl_hs, base, f"{KERNEL}:{name}".encode())
        for name, base in zip(unit_names(len(bases)), bases, strict=True)
    ]
    return struct.pack("<i4x", len(units)) + b"".join(units)


def _connectivity(units: int) -> bytes:
    """Every pointer of every unit goes to memory bank 0."""
    pointers = [i for i, (_, _, size) in enumerate(ARGUMENTS) if size == 8]
    links = [struct.pack("<iii", argument, unit, 0) for unit in range(units) for argument in pointers]
    return struct.pack("<i", len(links)) + b"".join(links)


def unit_names(units: int) -> list[str]:
    """Names of so many compute units."""
    return [f"{KERNEL}_{i + 1}" for i in range(units)]


def _metadata(bases: Sequence[int]) -> str:
    """Ports, arguments and units of the kernel, as XML."""
    arguments = "\n".join(
        f'          <arg name="{name}" addressQualifier="{int(size == 8)}" id="{i}" '
        f'port="{"M_AXI_GMEM" if size == 8 else "S_AXI_CONTROL"}" size="{size:#x}" offset="{offset:#x}" '
        f'hostOffset="0x0" hostSize="{size:#x}" type="{"void*" if size == 8 else "uint"}"/>'
        for i, (name, offset, size) in enumerate(ARGUMENTS)
    )
    instances = "\n".join(
        f'          <instance name="{name}">\n'
        f'            <addrRemap base="{base:#x}" range="{_UNIT_BYTES:#x}" port="S_AXI_CONTROL"/>\n'
        f"          </instance>"
        for name, base in zip(unit_names(len(bases)), bases, strict=True)
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<project name="{KERNEL}">
  <platform vendor="csengine" boardid="emulated" name="device" featureRomTime="0">
    <device name="fpga0" fpgaDevice="emulated" addrWidth="0">
      <core name="OCL_REGION_0" target="sw_emu" type="clc_region" clockFreq="250MHz" numComputeUnits="{len(bases)}">
        <kernel name="{KERNEL}" language="ip_c" type="pl" hwControlProtocol="ap_ctrl_hs" workGroupSize="1">
          <port name="S_AXI_CONTROL" mode="slave" range="0x1000" dataWidth="32" portType="addressable" base="0x0"/>
          <port name="M_AXI_GMEM" mode="master" range="0xFFFFFFFFFFFFFFFF" dataWidth="512" portType="addressable" \
base="0x0"/>
{arguments}
{instances}
        </kernel>
      </core>
    </device>
  </platform>
</project>
"""
