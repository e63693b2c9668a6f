"""Which operations stay float32 when a network is quantized: islands among integers.

Some operations have no integer form. With them stays what would only be quantized to be dequantized again: whatever
has no weights and reads float32, or is read by nothing else than float32. Layers with weights, where the work is,
always compute integers.
"""

from __future__ import annotations

from csengine.graph import (
    Activation,
    Affine,
    Conv2d,
    Gelu,
    Graph,
    LayerNorm,
    Linear,
    LocalResponseNorm,
    MatMul,
    Node,
    Reshape,
    Softmax,
    Transpose,
)


def float_operations(graph: Graph, integer_output: bool = False) -> frozenset[str]:
    """Names of the operations that stay float32, the input's among them if nothing else reads it.

    None, where all have an integer form, but for a softmax at the end; an activation there is float32, too, which costs
    nothing and is exact. integer_output: whether the result should be integers, if it is not of an operation that has
    none.
    """
    found = {node.name for node in graph.nodes if _has_no_integer_form(graph, node)}
    if not integer_output:
        found |= {node.name for node in graph.nodes if isinstance(node, Activation) and _is_at_the_end(graph, node)}
    size = 0
    while len(found) > size:
        size = len(found)
        found |= {node.name for node in graph.nodes if _belongs(graph, node, found, not integer_output)}
    return frozenset(found)


def _has_no_integer_form(graph: Graph, node: Node) -> bool:
    """Of affines, those of images are convolutions of single channels."""
    if isinstance(node, Affine):
        return len(graph.types[node.name].shape) != 3
    if isinstance(node, Softmax):
        return not _is_at_the_end(graph, node)
    return isinstance(node, (Gelu, LayerNorm, LocalResponseNorm, MatMul))


def _is_at_the_end(graph: Graph, node: Node) -> bool:
    """Whether nothing follows but another order of elements."""
    readers = graph.readers[node.name]
    return all(isinstance(reader, (Reshape, Transpose)) and _is_at_the_end(graph, reader) for reader in readers)


def _belongs(graph: Graph, node: Node, found: set[str], user_reads_floats: bool) -> bool:
    """Whether an operation reads float32, or gives it to nobody else."""
    if isinstance(node, (Conv2d, Linear)) or not found:
        return False
    readers = graph.readers[node.name]
    is_read = all(reader.name in found for reader in readers) if readers else user_reads_floats
    return is_read or any(source in found for source in node.inputs)
