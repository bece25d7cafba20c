"""Compare two artefacts: a mixout checkpoint, a Hugging Face folder, an ONNX graph."""

from pathlib import Path

from mixout_export.errors import ArgumentError
from mixout_export.parity.result import ParityResult
from mixout_export.parity.runners import CPU_PROVIDER
from mixout_export.parity.subject import open_subject
from mixout_export.parity.verdict import compare_subjects


def _check_tolerance(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value < float("inf"):
        raise ArgumentError(f"{name}: got {value!r}, expected a finite number of at least 0")


def verify_checkpoints(
    reference: Path,
    candidate: Path,
    *,
    data: Path | None = None,
    max_examples: int | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    provider: str = CPU_PROVIDER,
    seed: int = 0,
) -> ParityResult:
    """Compare two artefacts; see `ParityResult` for what it takes for parity to hold.

    Args:
        reference: What the candidate should be: a mixout checkpoint, a Hugging Face folder, an
            ONNX folder or an `.onnx` file.
        candidate: What is judged, any of the same.
        data: A table whose texts are run besides the battery.
        max_examples: Most rows of `data` to run; None is all.
        atol: Absolute tolerance; None is 1e-5 for fp32, 5e-3 where weights were rounded.
        rtol: Relative tolerance; None is 1e-4.
        provider: onnxruntime's execution provider.
        seed: Of the battery.

    Raises:
        ArgumentError: An argument is outside its domain, or there is no such provider.
        CheckpointError: An artefact cannot be opened or run.
        DataError: `data` cannot be read.
    """
    _check_tolerance("atol", atol)
    _check_tolerance("rtol", rtol)
    return compare_subjects(
        open_subject(reference, provider=provider),
        open_subject(candidate, provider=provider),
        atol=atol,
        rtol=rtol,
        seed=seed,
    )
