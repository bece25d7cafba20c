"""Tell which versions of onnxruntime and Triton can load a graph."""

from dataclasses import dataclass

#: ONNX operator set → the first releases of onnxruntime and of Triton's container that load it.
#: onnxruntime 1.15 to 1.23 were tried with one graph per operator set; the two older ones are those
#: of its compatibility table. Triton's are in the release branches of its `build.py`.
_FIRST_RELEASES = {
    17: ("1.12", "22.07"),
    18: ("1.14", "23.03"),
    19: ("1.15", "23.05"),
    20: ("1.17", "24.03"),
    21: ("1.18", "24.05"),
    22: ("1.21", "25.03"),
    23: ("1.23", "25.08"),
}

#: IR version → the first operator set whose releases read it.
_FIRST_OPSETS = {9: 19, 10: 21, 11: 23, 12: 24}


@dataclass(frozen=True)
class OldestRuntimes:
    """The oldest releases that load a graph; "" where unknown.

    Attributes:
        onnxruntime: Version of onnxruntime, for example "1.17".
        triton: Version of Triton's container, for example "24.03".
    """

    onnxruntime: str = ""
    triton: str = ""

    @property
    def sentence(self) -> str:
        """What to say on a page; "" if nothing is known."""
        if not self.onnxruntime:
            return ""
        triton = f", and Triton {self.triton} or newer" if self.triton else ""
        return f"It needs onnxruntime {self.onnxruntime} or newer{triton}."


def oldest_runtimes(
    opset: int, ir_version: int, *, optimized_by: str | None = None
) -> OldestRuntimes:
    """Return the oldest runtimes that load a graph.

    Args:
        opset: The graph's ONNX operator set.
        ir_version: The version of its file format.
        optimized_by: The onnxruntime that fused operators of its own into the graph. Older
            ones may not know them. None if the graph has only operators of the ONNX standard.
    """
    if optimized_by is not None:
        return OldestRuntimes(onnxruntime=optimized_by)
    needed = max(opset, _FIRST_OPSETS.get(ir_version, 0), min(_FIRST_RELEASES))
    return OldestRuntimes(*_FIRST_RELEASES.get(needed, ("", "")))
