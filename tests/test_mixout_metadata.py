import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mixout_export import MixoutConfig, __version__
from mixout_export.checkpoint.mixout_metadata import (
    Base,
    ConfigChange,
    Head,
    MixedModule,
    MixoutMetadata,
    parse_metadata,
)
from mixout_export.errors import CheckpointError

ORIGIN = Path("here/mixout_config.json")

MANIFEST = MixoutMetadata(
    config=MixoutConfig(0.4, "element", "query,value", "embeddings"),
    modules=(
        MixedModule("a.query", "Linear", "a.query.weight", "a.query.pretrained_weight"),
        MixedModule("a.value", "Conv1D", "a.value.weight", "a.value.pretrained_weight"),
    ),
    base=Base("org/base", "abc", "00ff"),
    pretrained_sha256="1234",
    task="multi-label",
    labels=("yes", "größer"),
    head=Head("mixout", 0.1, ("classifier.weight", "classifier.bias")),
    dropout=0.0,
    config_changes=(
        ConfigChange("hidden_dropout_prob", 0.1, 0.0, True),
        ConfigChange("classifier_dropout", None, 0.1, False),
    ),
    seed=7,
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "mixout_config.json"
    MANIFEST.write(path)
    assert parse_metadata(json.loads(path.read_text("utf-8")), path) == MANIFEST


def test_minimal_metadata_gets_the_defaults() -> None:
    data = {"format_version": 1, "p": 0.5, "granularity": "neuron", "modules": []}
    assert parse_metadata(data, ORIGIN) == MixoutMetadata(MixoutConfig(0.5), ())


def test_file_says_what_the_contract_lists() -> None:
    data = MANIFEST.to_dict()
    assert data["format_version"] == 1
    assert data["tool_version"] == __version__
    assert (data["p"], data["granularity"]) == (0.4, "element")
    assert (data["target_modules"], data["exclude_modules"]) == ("query,value", "embeddings")
    assert data["modules"][1]["weight_key"] == "a.value.weight"
    assert data["base"] == {"name": "org/base", "revision": "abc", "sha256": "00ff"}
    assert data["pretrained_sha256"] == "1234"
    assert (data["task"], data["labels"]) == ("multi-label", ["yes", "größer"])
    assert data["head"]["treatment"] == "mixout"
    assert data["config_changes"][0] == {
        "key": "hidden_dropout_prob",
        "before": 0.1,
        "after": 0.0,
        "present": True,
    }


def test_unknown_entries_are_kept_and_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    data: dict[str, Any] = {**copy.deepcopy(MANIFEST.to_dict()), "tool_version": "9.9"}
    data["schedule"] = {"p": [0.1, 0.7]}
    data["base"]["license"] = "mit"
    data["head"]["depth"] = 2
    data["modules"][1]["p"] = 0.9
    data["config_changes"][0]["why"] = "paper"
    with caplog.at_level(logging.WARNING, logger="mixout_export"):
        metadata = parse_metadata(data, ORIGIN)
    (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith("here/mixout_config.json: ")
    assert "version 9.9" in text
    for name in ("schedule", "base.license", "head.depth", "modules.p", "config_changes.why"):
        assert name in text
    assert metadata.to_dict() == data
    assert metadata.with_p(0.2).to_dict() == {**data, "p": 0.2}


def test_known_entries_warn_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    parse_metadata(MANIFEST.to_dict(), ORIGIN)
    assert not caplog.records


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_an_unknown_format_version_is_refused(version: object) -> None:
    data = {**MANIFEST.to_dict(), "format_version": version, "tool_version": "9.9"}
    with pytest.raises(CheckpointError, match=r"has format version .* reads 1; .*\(9\.9\)"):
        parse_metadata(data, ORIGIN)


@pytest.mark.parametrize("missing", ["p", "granularity", "modules", "format_version"])
def test_a_missing_entry_is_refused(missing: str) -> None:
    data = MANIFEST.to_dict()
    del data[missing]
    with pytest.raises(CheckpointError, match=rf"here/mixout_config\.json: .*{missing[:6]}"):
        parse_metadata(data, ORIGIN)


@pytest.mark.parametrize(
    "entry",
    [
        {"p": 1.0},
        {"p": "0.5"},
        {"granularity": "row"},
        {"target_modules": "("},
        {"modules": 3},
        {"modules": ["query"]},
        {"modules": [{"name": "a"}]},
        {"modules": [{"kind": "Linear"}]},
        {"base": [1]},
        {"head": "none"},
        {"head": {"keys": 3}},
        {"labels": 2},
        {"config_changes": [{"key": "a"}]},
        {"config_changes": {"key": "a"}},
    ],
)
def test_a_malformed_entry_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"here/mixout_config\.json: is malformed"):
        parse_metadata({**MANIFEST.to_dict(), **entry}, ORIGIN)
