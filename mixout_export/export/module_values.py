"""Which values of a graph are the outputs of which modules."""

from collections.abc import Iterator, Mapping

import onnx_ir as ir

_FLOATING = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
)


def _with_ancestors(module: str) -> Iterator[str]:
    """Yield a module's name and those of the modules around it; none for ""."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _is_inside(module: str, ancestor: str) -> bool:
    return module == ancestor or module.startswith(f"{ancestor}.")


def values_by_module(
    model: ir.Model, modules_by_node: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Find the values that leave each module: made inside it, used outside it.

    The last value that a module makes itself need not be what it returns, for the modules in it
    may go on from there; what leaves it is.

    Args:
        model: The graph, its values' types still known.
        modules_by_node: For each node, the module that made it; "" where none did.

    Returns:
        For each module of which floating-point values leave, their names in the graph's order;
        the one that the module returns is the last, and a module that is called several times has
        one a call.
    """
    found: dict[str, list[str]] = {}
    outputs = {id(value) for value in model.graph.outputs}
    for node in model.graph:
        maker = modules_by_node.get(node.name or "", "")
        for value in node.outputs:
            if value.dtype not in _FLOATING or not value.name:
                continue
            users = {modules_by_node.get(use.node.name or "", "") for use in value.uses()}
            for module in _with_ancestors(maker):
                inside = all(_is_inside(user, module) for user in users)
                if id(value) in outputs or not inside:
                    found.setdefault(module, []).append(value.name)
    return {module: tuple(names) for module, names in sorted(found.items())}
