from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mixout_export.files.tensors import read_tensors
from mixout_export.parity.compare import Tolerance
from mixout_export.parity.weights import WeightAudit, WeightSet, audit_folders


def tensors(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key.replace("__", "."): torch.randn(shape, generator=generator)
        for key, shape in shapes.items()
    }


class Folders:
    """Writes tensors to files and audits one against another."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def weights(
        self, values: dict[str, Tensor], parameters: set[str] | None = None, prefix: str = ""
    ) -> WeightSet:
        file = self.path / f"{len(list(self.path.iterdir()))}.safetensors"
        save_file({key: value.clone() for key, value in values.items()}, file)
        return WeightSet(read_tensors(file), parameters or values.keys(), prefix)

    def audit(self, left: dict[str, Tensor], right: dict[str, Tensor], **options) -> WeightAudit:
        return audit_folders(self.weights(left), self.weights(right), **options)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


BODY = tensors(a__weight=(4, 3), a__bias=(4,), b__weight=(2, 4))


def changed(key: str, value: Tensor) -> dict[str, Tensor]:
    return {**BODY, key: value}


def test_equal_folders_hold(folders: Folders) -> None:
    audit = folders.audit(BODY, dict(reversed(BODY.items())))
    assert audit.holds
    assert (audit.total, audit.accounted, dict(audit.counts)) == (3, 3, {"identical": 3})


def test_one_scalar_of_one_tensor_is_found_and_named(folders: Folders) -> None:
    other = BODY["a.weight"].clone()
    other[2, 1] = torch.nextafter(other[2, 1], torch.tensor(torch.inf))
    audit = folders.audit(BODY, changed("a.weight", other))
    assert not audit.holds
    assert [problem.key for problem in audit.problems] == ["a.weight"]
    expected = float((other.double() - BODY["a.weight"].double()).abs().max())
    assert audit.problems[0].max_abs == expected > 0
    assert audit.accounted == 2


def test_other_shape_is_named(folders: Folders) -> None:
    audit = folders.audit(BODY, changed("b.weight", torch.zeros(3, 4)))
    assert "(3, 4), expected (2, 4)" in audit.problems[0].reason


@pytest.mark.parametrize("drop_from", ["the candidate", "the reference"])
def test_missing_tensor_is_named(folders: Folders, drop_from: str) -> None:
    less = {key: value for key, value in BODY.items() if key != "b.weight"}
    pair = (BODY, less) if drop_from == "the candidate" else (less, BODY)
    audit = folders.audit(*pair)
    assert [(problem.key, problem.reason) for problem in audit.problems] == [
        ("b.weight", f"is missing from {drop_from}")
    ]


def test_rounded_weights_are_found_and_said(folders: Folders) -> None:
    rounded = {key: value.to(torch.bfloat16) for key, value in BODY.items()}
    for pair in ((BODY, rounded), (rounded, BODY)):
        audit = folders.audit(*pair)
        assert audit.holds
        assert dict(audit.counts) == {"rounded to bf16": 3}
        assert audit.notes == ("3 tensors differ in dtype and are equal when rounded to bf16",)


def test_wrongly_rounded_weights_are_not(folders: Folders) -> None:
    other = {key: (value * 1.01).to(torch.float16) for key, value in BODY.items()}
    assert len(folders.audit(BODY, other).problems) == 3


def test_given_tolerance_judges_weights(folders: Folders) -> None:
    near = changed("a.bias", BODY["a.bias"] + 0.01)
    assert folders.audit(BODY, near, tolerance=Tolerance(0.02, 0.0)).holds
    assert not folders.audit(BODY, near, tolerance=Tolerance(0.005, 0.0)).holds


def test_nan_is_a_problem_whatever_the_tolerance(folders: Folders) -> None:
    other = changed("a.bias", torch.full((4,), torch.nan))
    assert not folders.audit(BODY, other, tolerance=Tolerance(1e9, 1e9)).holds


def test_headless_folder_is_compared_with_the_body(folders: Folders) -> None:
    headed = {f"bert.{key}": value for key, value in BODY.items()}
    headed["classifier.weight"] = torch.ones(2, 2)
    bare = folders.weights({**BODY, "position_ids": torch.arange(4.0)}, set(BODY))
    full = folders.weights(headed, prefix="bert")
    audit = audit_folders(bare, full, headless=True)
    assert audit.holds
    assert dict(audit.counts) == {"identical": 3}
    assert dict(audit.ignored) == {
        "classifier.weight": "not part of the other side's architecture",
        "position_ids": "no parameter of the architecture",
    }
    assert not audit_folders(bare, full).holds


def test_headless_comparison_still_misses_nothing_of_the_body(folders: Folders) -> None:
    headed = {f"bert.{key}": value for key, value in BODY.items() if key != "a.bias"}
    bare = folders.weights(BODY)
    full = folders.weights(headed, {f"bert.{key}" for key in BODY}, "bert")
    audit = audit_folders(bare, full, headless=True)
    assert [problem.key for problem in audit.problems] == ["a.bias"]


def test_tied_tensor_saved_once_is_explained(folders: Folders) -> None:
    twice = {**BODY, "head.weight": BODY["b.weight"]}
    audit = folders.audit(twice, BODY)
    assert audit.holds
    assert dict(audit.ignored) == {"head.weight": "tied to another tensor"}


def test_empty_folders_do_not_hold(folders: Folders) -> None:
    assert not folders.audit({}, {}).holds
