"""From a trained PyTorch module to the engine's float32 graph. Needs the extra `csengine[torch]`.

The module is traced by `torch.fx`: branches, residual additions and concatenations are followed. One that this cannot
trace, because its code asks for shapes, say, or that calls functions unknown here, such as `topk`, is exported to ONNX
in memory and imported from there. Control flow that depends on data cannot be followed. What cannot be imported is
collected: one error lists every such operation with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import operator
import os
import pickle
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from csengine import reference
from csengine.errors import GraphError, ModelFormatError, UnsupportedModelError
from csengine.graph import Graph
from csengine.importers.builder import Builder, Padded, Problems, Repeated, UnsupportedError, Value
from csengine.importers.torch_operations import FUNCTIONS, METHODS, MODULES, REMEDIES, SIGNAL_MODULES, operation_of
from csengine.torch.layers import attach_masks

log = logging.getLogger(__name__)
_TOLERANCE = 1e-3  # of the imported network, relative to the largest value of the module's result


def load(module: nn.Module, input_shape: tuple[int, ...], *, check: bool = True) -> Graph:
    """The float32 graph of a module in evaluation mode; masks go along as the packing that layers want.

    input_shape: of one sample, (C, H, W), (C, W), (positions, features) or (features,). check: whether to compare what
    both give for random samples. Batch normalization becomes an affine, which `csengine.quantization` folds. A module
    of 16-bit numbers is imported as float32; what `torch.compile` or `nn.DataParallel` wraps is unwrapped. A module
    that goes through ONNX (needs onnx and onnxscript) loses the names of its layers, and of masks all but the zeros.
    Raises UnsupportedModelError with everything that cannot be imported, or if the graph computes something else.
    """
    input_shape = _checked_shape(input_shape)
    module = _plain(module)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        x, answer = _run(module, input_shape)
        try:
            graph = _import(module, input_shape)
            if check:
                _check(graph, x, answer)
        except UnsupportedModelError as error:
            if not isinstance(answer, Exception):
                raise
            why = f"the module itself does not run on samples of shape {input_shape} ({answer!s:.300})"
            raise UnsupportedModelError(f"{error}\n{why}; expected the shape of one, without the batch") from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    return graph


def _checked_shape(shape: Iterable[int]) -> tuple[int, ...]:
    try:
        extents = tuple(operator.index(extent) for extent in shape)
    except TypeError:
        extents = ()
    if not extents or min(extents) < 1:
        raise ValueError(f"input_shape is {shape!r}; expected the shape of one sample, such as (3, 224, 224)")
    return extents


def _plain(module: nn.Module) -> nn.Module:
    """The module without wrappers, of numbers that every operation takes."""
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModelError("the module is a ScriptModule; give the nn.Module that it was made from")
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is a {type(module).__name__}; expected an nn.Module (load_checkpoint fills one)")
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        module = module.module
    is_short = any(item.dtype in (torch.float16, torch.bfloat16) for item in module.parameters())
    module = copy.deepcopy(module).float() if is_short else module
    return nn.Sequential(module) if _Tracer().is_leaf_module(module, "") else module  # which is then looked at whole


def load_checkpoint(module: nn.Module, checkpoint: str | os.PathLike[str] | Mapping[str, Any]) -> nn.Module:
    """Fill a module with a `state_dict`, or the file that holds one, by the names of its keys.

    Layers get the masks of `csengine.torch` that the checkpoint holds. The checkpoints of the k-winners literature wrap
    sparse layers (`linear.module.weight`) and keep duty cycles of other shapes; both are understood. No checkpoint
    holds the number of winners, their scope, strides or padding: those are the module's own. Files are read with
    `weights_only=True`, so that nothing in them is executed. Raises FileNotFoundError, ModelFormatError (not such a
    file), UnsupportedModelError (which lists keys that are missing, left over or of another shape).
    """
    state = _read_checkpoint(checkpoint) if isinstance(checkpoint, (str, os.PathLike)) else checkpoint
    state = state.get("state_dict", state)
    given = {_plain_key(key): tensor for key, tensor in state.items() if isinstance(tensor, Tensor)}
    attach_masks(module, given)
    wanted = module.state_dict()
    problems = [f"{key}: missing" for key in wanted if key not in given and not key.endswith(_OWN_ATTRIBUTES)]
    left_over = [key for key in given if key not in wanted and given[key].is_floating_point()]
    problems += [f"{key}: left over; the module has no such parameter" for key in left_over]
    chosen = {}
    for key in wanted.keys() & given.keys():
        if given[key].numel() == wanted[key].numel() and given[key].squeeze().shape == wanted[key].squeeze().shape:
            chosen[key] = given[key].reshape(wanted[key].shape)
        else:
            shapes = f"{tuple(given[key].shape)}; expected {tuple(wanted[key].shape)}"
            problems.append(f"{key}: has shape {shapes}: build the module as it was trained")
    if problems:
        raise UnsupportedModelError("the checkpoint does not fit the module:\n  " + "\n  ".join(sorted(problems)))
    module.load_state_dict(chosen, strict=False)
    return module.eval()


#: Buffers that the module has from its constructor where a checkpoint lacks them.
_OWN_ATTRIBUTES = ("boost_strength", "num_batches_tracked")


def _plain_key(key: str) -> str:
    """A key without the wrappers around a layer."""
    return ".".join(part for part in key.split(".") if part != "module")


def _read_checkpoint(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelFormatError(
            f"{path}: holds something else than tensors ({error!s:.200}); save the module's state_dict()"
        ) from error
    if not isinstance(found, Mapping):
        raise ModelFormatError(f"{path}: holds a {type(found).__name__}; expected a state_dict")
    return found


def _import(module: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    try:
        trace = _Tracer().trace(module)
    except Exception as error:  # noqa: BLE001 - whatever the module's code raises when it meets no numbers
        log.info("torch.fx cannot trace the module (%.300s); it goes through ONNX", error)
        return _import_through_onnx(module, input_shape, error)
    importer = _Importer(module, trace, input_shape)
    try:
        return importer.run()
    except UnsupportedModelError as error:
        if importer.knows_all_functions:
            raise
        log.info("%.300s; the module goes through ONNX", error)
        with contextlib.suppress(UnsupportedModelError):  # then the first error says more
            return _import_through_onnx(module, input_shape, error)
        raise


def _import_through_onnx(module: nn.Module, input_shape: tuple[int, ...], reason: Exception) -> Graph:
    """The graph of a module that `torch.export` can follow. reason: why fx cannot."""
    why = f"torch.fx cannot trace the module ({reason!s:.300})"
    try:
        import onnxscript  # noqa: F401 - the exporter's own import would say less

        from csengine.importers import onnx
    except ImportError as error:
        remedy = "pip install 'csengine[onnx]' onnxscript lets it go through ONNX"
        raise UnsupportedModelError(f"{why}; {remedy} ({error})") from error
    parameter = next(module.parameters(), torch.zeros(()))
    x = torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # PyTorch's own
            warnings.simplefilter("ignore")
            model = torch.onnx.export(module, (x,), dynamo=True, verbose=False).model_proto  # type: ignore[union-attr]
    except Exception as error:
        found = str(error.__cause__ or error).partition("\n")[0]
        remedy = "control flow must not depend on data"
        raise UnsupportedModelError(f"{why}, and torch.export cannot follow it ({found:.300}); {remedy}") from error
    return onnx.read(model).graph


def _run(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[Tensor, Any]:
    """Random samples, and what the module gives for them, or its error.

    Before it runs, hooks such as those of spectral normalization have not made the weights that belong to its state.
    """
    x = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
    parameter = next(module.parameters(), None)
    try:
        with torch.no_grad():
            given = x.clone() if parameter is None else x.to(parameter.device, parameter.dtype, copy=True)
            return x, module(given)  # which may work in place
    except Exception as error:  # noqa: BLE001 - whatever the module's code raises
        return x, error


def _check(graph: Graph, x: Tensor, answer: Any) -> None:
    """Raise UnsupportedModelError unless the graph gives for x what the module gave."""
    if not isinstance(answer, Tensor):
        given = "an error" if isinstance(answer, Exception) else f"a {type(answer).__name__}"
        raise UnsupportedModelError(f"the module gives {given}; expected one tensor")
    wanted = answer.float().cpu().numpy()
    got = graph.to_caller(reference.run(graph, graph.from_caller(x.numpy())))
    if got.size != wanted.size:
        raise UnsupportedModelError(
            f"the imported network gives shape {got.shape}; the module gives {wanted.shape}: report this module"
        )
    scale = float(np.abs(wanted).max(initial=0.0)) or 1.0
    error = float(np.abs(got.reshape(wanted.shape) - wanted).max(initial=0.0)) / scale
    if not error <= _TOLERANCE:
        raise UnsupportedModelError(
            f"the imported network differs from the module by {error:.2e} of its largest value; expected at most "
            f"{_TOLERANCE:g}: replace operations in place by others, or report this module"
        )


class _Tracer(fx.Tracer):
    """Does not look into modules that have a counterpart."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if operation_of(m) is not None:
            return True
        if parametrize.is_parametrized(m) and not type(m).__bases__[0].__module__.startswith("torch."):
            return False  # its class, which parametrizing made, is one of PyTorch's
        return super().is_leaf_module(m, module_qualified_name)


class _Importer:
    """Walks the traced operations once; `known` holds what they gave, by their names in the trace."""

    def __init__(self, module: nn.Module, trace: fx.Graph, input_shape: tuple[int, ...]) -> None:
        self.module = module
        self.trace = trace
        flat = "NCW" if _reads_signals(module, trace) else "NWC"
        self.builder = Builder(flat if len(input_shape) == 2 else "NCHW")
        self.known: dict[str, Any] = {}
        self.problems = Problems()
        self.knows_all_functions = True
        self.input_shape = input_shape

    def run(self) -> Graph:
        for node in self.trace.nodes:
            if node.op == "output":
                return self._finish(node)
            self._add(node)
        raise AssertionError("a trace ends with its output")

    def _finish(self, node: fx.Node) -> Graph:
        result = self._resolve(node.args[0]) if not self.problems else None
        if not self.problems and not isinstance(result, (Value, Padded)):
            self.problems.append(f"output: is a {type(result).__name__}; expected one tensor")
        if isinstance(result, (Value, Padded)):
            try:
                return self.builder.finish(self.builder.padded("output", result))[0]
            except (UnsupportedError, GraphError) as error:
                self.problems.append(f"output: {error}")
        raise UnsupportedModelError("cannot import:\n  " + "\n  ".join(self.problems))

    def _resolve(self, item: Any) -> Any:
        """Arguments of a call, with what earlier operations gave."""
        if isinstance(item, fx.Node):
            if item.name not in self.known:
                raise _UnknownError
            return self.known[item.name]
        if isinstance(item, (list, tuple)):
            return type(item)(self._resolve(part) for part in item)
        if isinstance(item, Mapping):
            return {key: self._resolve(part) for key, part in item.items()}
        return item

    def _add(self, node: fx.Node) -> None:
        label = f"{node.target if node.op == 'call_module' else node.name} ({self._kind(node)})"
        try:
            self.known[node.name] = self._call(node)
        except _UnknownError:
            pass  # it reads what could not be imported
        except UnsupportedError as error:
            self.problems.add(label, error)
        except GraphError as error:
            self.problems.append(f"{label}: {error}")
        except (TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
            self.problems.append(f"{label}: is called in a way that is not supported ({error!s:.200})")

    def _kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            kind = type(self.module.get_submodule(str(node.target)))
            return f"{kind.__module__}.{kind.__name__}" if kind.__module__.startswith("torch.ao.") else kind.__name__
        return getattr(node.target, "__name__", str(node.target))

    def _call(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            if self.known:
                raise UnsupportedError("is a second input; only one is supported")
            return self.builder.input("input", self.input_shape)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.module)
        if node.op == "call_module":
            return self._call_module(node, self.module.get_submodule(str(node.target)))
        return self._call_function(node)

    def _call_module(self, node: fx.Node, layer: nn.Module) -> Any:
        operation, names = operation_of(layer), [source.name for source in node.all_input_nodes]
        reads_activations = _holds_activations([self.known.get(name) for name in names])
        if operation is None and (reads_activations or not self.known.keys() >= set(names)):
            known = ", ".join(kind.__name__ for kind in MODULES)
            raise UnsupportedError("has no counterpart", _remedy(self._kind(node), known))
        arguments, others = self._resolve(node.args), self._resolve(node.kwargs)
        if operation is None or not reads_activations:
            return _compute(layer, arguments, others)
        tensors, options = _called(layer, arguments, others)
        return operation(self.builder, str(node.target), *tensors, layer, **options)

    def _call_function(self, node: fx.Node) -> Any:
        arguments = self._resolve(node.args)
        options = self._resolve(node.kwargs)
        if not _holds_activations((arguments, options)):
            return _compute(node.target, arguments, options)
        operation = FUNCTIONS.get(node.target) or METHODS.get(node.target if isinstance(node.target, str) else "")
        if operation is None:
            self.knows_all_functions = False
            known = ", ".join(sorted({function.__name__ for function in FUNCTIONS}))
            raise UnsupportedError("has no counterpart", _remedy(self._kind(node), known))
        return operation(self.builder, node.name, *arguments, **options)


def _called(layer: nn.Module, arguments: Any, options: Any) -> tuple[list[Any], dict[str, Any]]:
    """What a layer must be given, in its order, and what else is not as usual."""
    signature = inspect.signature(layer.forward)
    given = signature.bind(*arguments, **options).arguments
    usual = {name: parameter.default for name, parameter in signature.parameters.items()}
    tensors = [value for name, value in given.items() if usual[name] is inspect.Parameter.empty]
    others = {name: value for name, value in given.items() if usual[name] is not inspect.Parameter.empty}
    return tensors, {name: value for name, value in others.items() if value is not usual[name]}


def _compute(target: Any, arguments: Any, options: Mapping[str, Any]) -> Any:
    """What a function, or a method by its name, makes of shapes and constants."""
    try:
        with torch.no_grad():
            if isinstance(target, str):
                return getattr(arguments[0], target)(*arguments[1:], **options)
            return target(*arguments, **options)
    except Exception as error:
        raise UnsupportedError(f"cannot be computed beforehand ({error!s:.200})") from error


def _reads_signals(module: nn.Module, trace: fx.Graph) -> bool:
    """Whether all that reads the input has channels in front of positions."""
    readers = [user for node in trace.nodes if node.op == "placeholder" for user in node.users]
    return all(
        isinstance(module.get_submodule(str(node.target)), SIGNAL_MODULES)
        if node.op == "call_module"
        else node.target is functional.pad
        for node in readers
    )


def _remedy(kind: str, known: str) -> str:
    """What to do about a module or function that has no counterpart."""
    if kind.startswith("torch.ao."):
        return "import the float network, and quantize it with csengine.convert.convert"
    return REMEDIES.get(kind.lower().replace("_", ""), f"known are {known}")


def _holds_activations(item: Any) -> bool:
    if isinstance(item, Mapping):
        return any(map(_holds_activations, item.values()))
    if isinstance(item, (list, tuple)):
        return any(map(_holds_activations, item))
    return isinstance(item, (Value, Padded, Repeated))


class _UnknownError(Exception):
    """An operand could not be imported."""
