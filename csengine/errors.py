"""What can go wrong, as types.

Every message says what was got, what was expected and what to do about it.
"""

from __future__ import annotations


class CsengineError(Exception):
    """Base of every error that csengine raises on purpose."""


class ModelFormatError(CsengineError):
    """A packed file is damaged, out of range, or of a version this engine does not read."""


class GraphError(CsengineError):
    """A network cannot be built as asked: wrong order, wrong shapes, wrong types, values out of range."""


class UnsupportedModelError(CsengineError):
    """A source model uses something that csengine cannot represent exactly."""


class QuantizationError(CsengineError):
    """A float network cannot be turned into an integer one as asked."""


class PackingError(CsengineError):
    """A weight matrix cannot be packed as asked."""


class ShapeError(CsengineError, ValueError):
    """An input's shape, type or content is not what the model takes."""


class BackendUnavailableError(CsengineError):
    """The backend, tier or device that was asked for is not available here."""


class DeviceError(CsengineError):
    """An FPGA, or its emulation, does not answer, answers wrongly, or holds another network than the model's."""
