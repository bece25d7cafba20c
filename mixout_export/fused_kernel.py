"""The Triton kernel of `fused`. It has its own module because importing it imports Triton."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def mix(  # type: ignore[no-untyped-def]
    factors, weight, pretrained_weight, mixed, count, columns, scale,
    IN_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write u + scale · factor · (w − u) for `BLOCK` weights, computed in float32.

    Args:
        factors: Pointer to one factor per input neuron.
        weight: Pointer to w, row by row.
        pretrained_weight: Pointer to u.
        mixed: Pointer to Φ.
        count: Number of weights.
        columns: Size of the weight's last dimension.
        scale: 1/(1 − p) if `factors` is only the mask, else 1.
        IN_LAST: True if the last dimension counts input neurons, False if the first does.
        BLOCK: Number of weights per program.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    neuron = at % columns if IN_LAST else at // columns
    factor = tl.load(factors + neuron, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(pretrained_weight + at, mask=inside, other=0.0).to(tl.float32)
    phi = u + scale * factor * (w - u)
    tl.store(mixed + at, phi.to(mixed.dtype.element_ty), mask=inside)
