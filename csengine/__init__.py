"""csengine: inference for networks that are sparse twice, in weights and in activations.

>>> from csengine import Engine
>>> engine = Engine.load("kws.safetensors")
>>> y = engine.run(x)
"""

from csengine.engine import Engine
from csengine.errors import (
    BackendUnavailableError,
    CsengineError,
    DeviceError,
    GraphError,
    ModelFormatError,
    PackingError,
    QuantizationError,
    ShapeError,
    UnsupportedModelError,
)

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "CsengineError",
    "DeviceError",
    "Engine",
    "GraphError",
    "ModelFormatError",
    "PackingError",
    "QuantizationError",
    "ShapeError",
    "UnsupportedModelError",
    "__version__",
]
