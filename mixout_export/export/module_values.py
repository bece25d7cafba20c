"""Find which values of an ONNX graph are the outputs of which modules."""

from collections.abc import Iterator, Mapping

import onnx_ir as ir

_FLOATING = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
)


def _with_ancestors(module: str) -> Iterator[str]:
    """Yield a module's name and the names of all modules that contain it; nothing for ""."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _is_inside(module: str, ancestor: str) -> bool:
    return module == ancestor or module.startswith(f"{ancestor}.")


def values_by_module(
    model: ir.Model, modules_by_node: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Find each module's output values: those created inside it and used outside it.

    The last value that a module creates itself may differ from what it returns, because its
    submodules may process that value further.

    Args:
        model: The graph. The types of its values must still be known.
        modules_by_node: Node name → name of the module that created the node; "" if none did.

    Returns:
        Module → names of its floating-point output values, in the graph's order. The last name is
        the value that the module returns. A module that is called several times has one name per
        call.
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
