"""Rows that are longer than a sequence may be are counted, and the length goes with the model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from checkpoints import POSITIONS, TinyCheckpoints, make_tokenizer
from cli_runs import Program
from datasets_setup import encoding, read, table
from tiny_models import make_model
from training_runs import TrainingGround, write_tsv

from mixout_export import MixoutConfig, inject_mixout, load_mixout, save_mixout
from mixout_export.artifacts.opening import open_artifact
from mixout_export.bundling.plan import BundleOptions
from mixout_export.checkpoint.tokenizer import load_tokenizer, trained_max_length
from mixout_export.checkpoint.tokenizer_file import record_reading
from mixout_export.data.columns import ColumnNames
from mixout_export.data.lengths import CutRows, choose_max_length, cut_sentence
from mixout_export.data.separated import FieldFormat
from mixout_export.data.tables import read_table
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.export.precision import Conversion
from mixout_export.files.graph_metadata import GraphMetadata
from mixout_export.stages.bundle import bundle_onnx
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.data_inspection import inspect_data
from mixout_export.stages.onnx_export import ExportData, export_onnx
from mixout_export.stages.predict import PredictOptions, predict_file
from mixout_export.stages.train import DataOptions, TrainResult
from mixout_export.stages.verify import verify_checkpoints
from mixout_export.stages.verify_data import read_data

#: What the model is trained on: "[CLS]", six words, "[SEP]".
LENGTH = 8
SHORT, LONG = "the dog", "the dog sees the good cat in the old house"
QUESTION = {"question": "who", "context": LONG, "answers": {"text": ["dog"], "answer_start": [4]}}


def tokens(*texts: str) -> int:
    return len(make_tokenizer()(*texts)["input_ids"])


# Each task counts the rows that lose text


@pytest.mark.parametrize(
    ("task", "rows", "expected"),
    [
        ("text-classification", [{"text": SHORT}, {"text": LONG}], {1: tokens(LONG)}),
        (
            "regression",
            [{"premise": LONG, "hypothesis": SHORT}, {"premise": "the", "hypothesis": "dog"}],
            {0: tokens(LONG, SHORT)},
        ),
        ("token-classification", [{"text": SHORT}, {"text": LONG}], {1: tokens(LONG)}),
        (
            "multiple-choice",
            [
                {"question": "who", "choice1": "dog", "choice2": "cat"},
                {"question": "who", "choice1": SHORT, "choice2": LONG},
            ],
            {1: tokens("who", LONG)},
        ),
        ("causal-lm", [{"text": LONG}, {"text": SHORT}], {0: tokens(LONG)}),
        ("masked-lm", [{"text": LONG}, {"text": SHORT}], {0: tokens(LONG)}),
        ("question-answering", [QUESTION], {}),
    ],
)
def test_each_task_counts_them(task: str, rows: list[Any], expected: dict[int, int]) -> None:
    tags = ("O",) if task == "token-classification" else ()
    made = read(task, table(*rows), encoding(*tags, max_length=LENGTH), labeled=False)
    assert dict(made.cut) == expected


def test_a_row_of_exactly_the_greatest_length_is_whole() -> None:
    made = read(
        "text-classification",
        table({"text": "the dog sees the good cat"}),
        encoding(max_length=LENGTH),
        labeled=False,
    )
    assert made.lengths.tolist() == [LENGTH]
    assert not made.cut


def test_texts_that_are_joined_to_blocks_lose_nothing() -> None:
    packed = encoding(max_length=LENGTH, pack_sequences=True)
    assert not read("masked-lm", table({"text": LONG}, {"text": LONG}), packed).cut


# The sentence


def counted(**changes: Any) -> CutRows:
    return replace(CutRows("rows of a.csv", 3, 40, 302, 128, 512, as_trained=False), **changes)


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({}, "to read them whole, give --max-length 302"),
        ({"limit": None}, "to read them whole, give --max-length 302"),
        ({"longest": 900}, "to read more of them, give --max-length 512, the model's limit"),
        ({"longest": 900, "max_length": 512}, "no more tokens, so split long texts"),
    ],
)
def test_the_sentence_says_what_to_do(changes: dict[str, Any], end: str) -> None:
    said = cut_sentence(counted(**changes))
    assert said is not None
    assert said.startswith("3 of 40 rows of a.csv have more than ")
    assert said.endswith(end)


def test_one_sentence_is_about_several_files() -> None:
    said = cut_sentence(counted(), counted(cut=0), counted(name="rows of b.csv", longest=400))
    assert said is not None
    assert "3 of 40 rows of a.csv and 3 of 40 rows of b.csv have more than 128 tokens" in said
    assert "the longest has 400; to read them whole, give --max-length 400" in said
    assert cut_sentence(counted(cut=0, longest=0)) is None


def test_the_sentence_says_whether_the_training_cut_them_too() -> None:
    said = cut_sentence(counted(as_trained=True))
    assert said is not None
    assert "so their ends were cut off, as in the model's training; the longest has 302" in said
    assert said.endswith("give --max-length 302")


# Which length counts


@pytest.mark.parametrize(
    ("requested", "recorded", "limit", "expected"),
    [
        (None, None, 64, 32),
        (None, 16, 64, 16),
        (None, 48, 64, 48),
        (None, 100, 64, 64),
        (None, 100, None, 100),
        (20, 16, 64, 20),
        (None, "16", 64, 32),
    ],
)
def test_a_request_goes_before_the_training_and_that_before_the_default(
    requested: int | None, recorded: Any, limit: int | None, expected: int
) -> None:
    tokenizer = make_tokenizer()
    if recorded is not None:
        tokenizer.init_kwargs["trained_max_length"] = recorded
    interface = replace(encoding().interface, sequence_limit=limit)
    assert choose_max_length(requested, interface, tokenizer, default=32) == expected


@pytest.mark.parametrize("kept", ["all", "tokenizer.json"])
def test_a_tokenizer_with_the_record_is_the_same_otherwise(kept: str, tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    if kept != "all":
        (tmp_path / "tokenizer_config.json").unlink()
    before = load_tokenizer(tmp_path)
    record_reading(tmp_path, LENGTH, limits_others=False)
    after = load_tokenizer(tmp_path)
    assert before is not None
    assert after is not None
    assert (trained_max_length(before), trained_max_length(after)) == (None, LENGTH)
    assert type(after) is type(before)
    assert after.model_max_length == before.model_max_length
    assert after(LONG, SHORT)["input_ids"] == before(LONG, SHORT)["input_ids"]


def test_a_folder_without_a_tokenizer_gets_none(tmp_path: Path) -> None:
    assert not record_reading(tmp_path, LENGTH, limits_others=True)
    assert not list(tmp_path.iterdir())


def test_a_length_that_is_no_number_is_refused() -> None:
    metadata = GraphMetadata({"trained_max_length": "long"}, Path("model.onnx"))
    with pytest.raises(CheckpointError, match="'long', expected a number"):
        _ = metadata.trained_max_length
    assert GraphMetadata({}, Path("model.onnx")).trained_max_length is None


# The whole way


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("ground"), tiny)


@pytest.fixture(scope="module")
def data(ground: TrainingGround) -> DataOptions:
    """Texts whose label is beyond the length, so that a longer one gives other metrics."""
    files = ground.root / "long.tsv", ground.root / "some.tsv"
    for file, texts in zip(files, ([LONG] * 6, [SHORT, LONG, LONG]), strict=True):
        rows = [(f"{text} {('bad', 'good')[n % 2]}", n % 2) for n, text in enumerate(texts)]
        write_tsv(file, ("sentence", "label"), rows)
    return DataOptions(*files)


@pytest.fixture(scope="module")
def trained(ground: TrainingGround, data: DataOptions) -> TrainResult:
    out = ground.root / "trained"
    return ground.run(out, data=data, max_length=LENGTH, max_steps=2, batch_size=3)


@pytest.fixture(scope="module")
def way(trained: TrainResult) -> dict[str, Path]:
    """What the trained model becomes."""
    root = trained.out.parent
    collapse_checkpoint(trained.out, root / "collapsed")
    export_onnx(root / "collapsed", root / "onnx", verify=False)
    for server in ("triton", "optimum"):
        bundle_onnx(root / "onnx", root / server, BundleOptions(server, "tiny"))
    return {"trained": trained.out} | {
        name: root / name for name in ("collapsed", "onnx", "triton", "optimum")
    }


def metrics_of(trained: TrainResult) -> dict[str, float]:
    """Return the metrics that other commands compute, too."""
    return {name: value for name, value in trained.metrics.items() if name != "loss"}


def test_train_says_how_many_rows_were_cut(trained: TrainResult) -> None:
    longest = tokens(f"{LONG} good")
    said = (
        "6 of 6 training rows (long.tsv) and 2 of 3 evaluation rows (some.tsv) have more than 8 "
        f"tokens, so their ends were cut off; the longest has {longest}; to read them whole, give "
        f"--max-length {longest}"
    )
    assert said in trained.notes
    record = json.loads((trained.out / "training.json").read_text())["result"]
    assert record["max_length"] == LENGTH
    assert [(each["cut"], each["rows"]) for each in record["cut"]] == [(6, 6), (2, 3)]
    card = (trained.out / "README.md").read_text()
    assert "8 tokens; 6 of 6 training rows (long.tsv) and 2 of 3 evaluation rows" in card


def test_train_does_not_speak_of_rows_that_are_whole(
    ground: TrainingGround, data: DataOptions, tmp_path: Path
) -> None:
    result = ground.run(tmp_path / "out", data=data, max_steps=1)
    assert result.max_length == POSITIONS
    assert [each["cut"] for each in result.cut] == [0, 0]
    assert "cut" not in " ".join(result.notes)
    assert "| 64 tokens |" in (result.out / "README.md").read_text()


@pytest.mark.parametrize("name", ["trained", "collapsed", "onnx", "triton", "optimum"])
def test_the_length_goes_with_the_model(way: dict[str, Path], name: str) -> None:
    opened = open_artifact(way[name])
    tokenizer = opened.tokenizer
    assert tokenizer is not None
    assert trained_max_length(tokenizer) == LENGTH
    assert tokenizer.model_max_length == LENGTH  # so that pipelines cut there, too
    assert "8 tokens" in (way[name] / "README.md").read_text()
    if opened.graph is not None:
        entries = {each.key: each.value for each in onnx.load(opened.graph).metadata_props}
        assert entries["trained_max_length"] == "8"


@pytest.mark.parametrize("name", ["trained", "collapsed", "onnx", "triton"])
def test_predict_reads_as_train_did(
    way: dict[str, Path], trained: TrainResult, data: DataOptions, tmp_path: Path, name: str
) -> None:
    assert data.eval_file is not None
    found = predict_file(way[name], data.eval_file, tmp_path / "out.tsv")
    assert (found.max_length, found.cut.cut, found.cut.rows) == (LENGTH, 2, 3)
    assert found.metrics == pytest.approx(metrics_of(trained))
    kept = " ".join(LONG.split()[: LENGTH - 2])
    short = write_tsv(tmp_path / "short.tsv", ("sentence",), [(SHORT + " bad",), (kept,), (kept,)])
    again = predict_file(way[name], short, tmp_path / "again.tsv")
    assert again.cut.cut == 0
    ours, theirs = (
        read_table(tmp_path / file).columns["probability"] for file in ("out.tsv", "again.tsv")
    )
    assert [float(value) for value in ours] == pytest.approx([float(value) for value in theirs])


def test_a_length_that_is_given_overrides_that_of_the_training(
    way: dict[str, Path], data: DataOptions, tmp_path: Path
) -> None:
    assert data.eval_file is not None
    options = PredictOptions(max_length=20)
    whole = predict_file(way["onnx"], data.eval_file, tmp_path / "out.tsv", options)
    assert (whole.max_length, whole.cut.cut) == (20, 0)
    predict_file(way["onnx"], data.eval_file, tmp_path / "cut.tsv")
    assert (tmp_path / "out.tsv").read_text() != (tmp_path / "cut.tsv").read_text()


def test_rows_are_counted_in_all_parts_of_a_file(
    way: dict[str, Path], data: DataOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data.train_file is not None
    monkeypatch.setattr("mixout_export.stages.predict.PART", 4)
    found = predict_file(way["onnx"], data.train_files[0], tmp_path / "out.tsv")
    assert (found.cut.cut, found.cut.rows) == (6, 6)


def test_verify_reads_as_train_did_and_counts(
    way: dict[str, Path], trained: TrainResult, data: DataOptions
) -> None:
    found = verify_checkpoints(way["collapsed"], way["onnx"], data=data.eval_file)
    assert found.passed
    assert found.cut is not None
    assert (found.cut.cut, found.cut.rows, found.cut.max_length) == (2, 3, LENGTH)
    assert found.metrics is not None
    ours = {name: reference for name, (reference, _) in found.metrics.items()}
    assert ours == pytest.approx(metrics_of(trained))
    assert verify_checkpoints(way["collapsed"], way["onnx"]).cut is None


def test_the_commands_show_them(
    way: dict[str, Path], data: DataOptions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = "2 of 3 rows of some.tsv have more than 8 tokens, so their ends were cut off"
    program = Program(capfd)
    run = program("verify", way["collapsed"], way["onnx"], "--data", data.eval_file).done()
    assert f"note         {said}, as in the model's training; the longest has" in run.out
    report = tmp_path / "report.html"
    run = program(
        "predict", way["onnx"], data.eval_file, tmp_path / "out.tsv", "--report", report
    ).done()
    assert f"note         {said}, as in the model's training; the longest has" in run.out
    assert "give --max-length" in run.out
    assert said in report.read_text()
    assert "trained max length" in program("inspect", way["onnx"]).done().out


def test_verify_takes_a_length(
    way: dict[str, Path], data: DataOptions, capfd: pytest.CaptureFixture[str]
) -> None:
    program, sides = Program(capfd), (way["collapsed"], way["onnx"])
    given = ("--data", data.eval_file, "--max-length")
    cut = program("verify", *sides, *given, 6, "--json").done().json["cut"]
    assert (cut["cut"], cut["max_length"], cut["as_trained"]) == (2, 6, False)
    whole = program("verify", *sides, *given, 20).done()
    assert "--max-length" not in whole.out
    program("verify", *sides, "--max-length", 6).failed(2, "max-length: cuts the texts of a data")
    program("verify", *sides, *given, POSITIONS + 1).failed(2, "takes at most 64 tokens")


def test_onnx_takes_a_length(
    way: dict[str, Path], data: DataOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ArgumentError, match="max-length: cuts the texts of a data file"):
        ExportData(max_length=6).check(Conversion(), verify=True)
    given = ExportData(data=data.eval_file, max_length=6)
    with caplog.at_level("WARNING", logger="mixout_export"):
        export_onnx(way["collapsed"], tmp_path / "onnx", data=given)
    assert "2 of 3 rows of some.tsv have more than 6 tokens" in caplog.text
    manifest = json.loads((tmp_path / "onnx" / "manifest.json").read_text())
    assert manifest["options"]["max_length"] == 6


def test_calibration_warns_of_them_in_any_format(
    way: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "some.csv"
    file.write_text(f"text;label\n{SHORT}, good;1\n{LONG}, good;1\n")
    data = ExportData(data=file, fields=FieldFormat("semicolon"))
    with caplog.at_level("WARNING", logger="mixout_export"):
        export_onnx(way["collapsed"], tmp_path / "onnx", data=data)
    assert "1 of 2 rows of some.csv have more than 8 tokens" in caplog.text


def test_a_second_training_reads_as_the_first(
    way: dict[str, Path], ground: TrainingGround, data: DataOptions, tmp_path: Path
) -> None:
    again = ground.run(tmp_path / "again", prepared=way["trained"], data=data, max_steps=1)
    assert again.max_length == LENGTH
    longer = {"prepared": way["trained"], "data": data, "max_steps": 1, "max_length": 12}
    out = ground.run(tmp_path / "longer", **longer).out
    assert load_tokenizer(out).model_max_length == 12  # type: ignore[union-attr]


def test_a_model_that_continues_texts_keeps_its_limit(
    ground: TrainingGround, tmp_path: Path
) -> None:
    file = write_tsv(tmp_path / "texts.tsv", ("text",), [(LONG,), (SHORT,)])
    result = ground.run(
        tmp_path / "out",
        prepared=ground.prepared("gpt2", "causal-lm"),
        data=DataOptions(file),
        max_length=LENGTH,
        max_steps=1,
    )
    assert [each["cut"] for each in result.cut] == [1]
    tokenizer = load_tokenizer(result.out)
    assert tokenizer is not None
    assert (trained_max_length(tokenizer), tokenizer.model_max_length) == (LENGTH, POSITIONS)


# A loop of one's own


def test_save_mixout_records_the_length(
    ground: TrainingGround, data: DataOptions, tmp_path: Path
) -> None:
    model = load_mixout(ground.prepared())
    save_mixout(model, tmp_path / "saved", max_length=LENGTH)
    tokenizer = load_tokenizer(tmp_path / "saved")
    assert tokenizer is not None
    assert (trained_max_length(tokenizer), tokenizer.model_max_length) == (LENGTH, LENGTH)
    assert data.eval_file is not None
    found = predict_file(tmp_path / "saved", data.eval_file, tmp_path / "out.tsv")
    assert (found.max_length, found.cut and found.cut.as_trained) == (LENGTH, True)


def test_save_mixout_records_a_length_only_with_a_tokenizer(tmp_path: Path) -> None:
    model = make_model("bert", vocab_size=len(make_tokenizer()))
    inject_mixout(model, MixoutConfig(exclude_modules="classifier"))
    with pytest.raises(ArgumentError, match="max_length: there is no tokenizer to record it with"):
        save_mixout(model, tmp_path / "saved", max_length=LENGTH)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArgumentError, match="max_length: got 0, expected at least 1"):
        save_mixout(model, tmp_path / "saved", max_length=0, tokenizer=make_tokenizer())
    save_mixout(model, tmp_path / "saved", max_length=LENGTH, tokenizer=make_tokenizer())
    saved = load_tokenizer(tmp_path / "saved")
    assert saved is not None
    assert trained_max_length(saved) == LENGTH


# Windows


def test_windows_share_what_they_shared_in_training(ground: TrainingGround, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(QUESTION) + "\n")

    def train(out: str, prepared: Path, **options: Any) -> Path:
        run = ground.run(
            tmp_path / out, prepared=prepared, data=DataOptions(file), max_steps=1, **options
        )
        return run.out

    def windows(model: Path, **options: Any) -> int:
        opened = open_artifact(model)
        interface = opened.described_by(None)
        columns, given = ColumnNames(), {"max_examples": None, **options}
        return len(read_data(file, opened, opened, interface, columns=columns, **given).examples)

    prepared = ground.prepared("bert", "question-answering")
    usual = train("usual", prepared, max_length=LENGTH)
    trained = train("trained", prepared, max_length=LENGTH, doc_stride=3)
    assert "| windows of a context share | 3 tokens |" in (trained / "README.md").read_text()
    collapse_checkpoint(trained, tmp_path / "collapsed")
    export_onnx(tmp_path / "collapsed", tmp_path / "onnx", verify=False)
    # four tokens of ten fit into a window: sharing 2, three begin; sharing 3, seven do
    assert windows(usual) == 4
    for model in (trained, tmp_path / "collapsed", tmp_path / "onnx"):
        assert windows(model) == 7
    again = train("again", trained)
    assert windows(again) == 7
    # a stride that is longer than the sequences is not used
    assert windows(train("other", train("wide", prepared, max_length=20, doc_stride=15))) == 1
    assert windows(tmp_path / "other", max_length=LENGTH) == 4


# A look at a file before


def test_inspect_takes_the_length_of_the_training(way: dict[str, Path], data: DataOptions) -> None:
    found = inspect_data(data.train_files[0], model=way["trained"])
    assert (found.max_length, found.cut, found.split) == (LENGTH, 6, 0)


def test_inspect_counts_the_longest_choice(ground: TrainingGround, tmp_path: Path) -> None:
    rows = [{"question": "who", "choices": [SHORT, LONG], "label": 0}]
    file = tmp_path / "choices.jsonl"
    file.write_text(json.dumps(rows[0]) + "\n")
    found = inspect_data(file, model=ground.prepared(task="multiple-choice"), max_length=LENGTH)
    assert (found.tokens["longest"], found.cut) == (tokens("who", LONG), 1)


def test_inspect_does_not_count_windows_as_cut(
    ground: TrainingGround, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(QUESTION) + "\n")
    model = ground.prepared(task="question-answering")
    found = inspect_data(file, model=model, max_length=LENGTH)
    assert (found.cut, found.split) == (0, 1)
    run = Program(capfd)("inspect", file, "--model", model, "--max-length", LENGTH).done()
    assert "1 row longer than --max-length 8, none is cut" in run.out
