"""`predict` answers every task, writes what it read, and scores as the readers do."""

import gzip
import json
import math
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from checkpoints import TinyCheckpoints, save_checkpoint
from checkpoints import make_model as make_tiny
from cli_runs import Program
from report_pages import LABELS as HOSTILE
from served_models import served
from task_data import KINDS, write_jsonl

from mixout_export.artifacts.opening import open_artifact
from mixout_export.bundling.plan import BundleOptions
from mixout_export.data.columns import ColumnNames
from mixout_export.data.evaluation import evaluation_data
from mixout_export.data.separated import FieldFormat
from mixout_export.data.tables import read_table
from mixout_export.errors import ArgumentError, CheckpointError, DataError, OutputError
from mixout_export.prediction.result import PredictionResult
from mixout_export.stages import predict as stage
from mixout_export.stages.bundle import bundle_onnx
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.predict import PredictionObserver, PredictOptions, predict_file
from mixout_export.tasks import TASKS

WORDS = ("dog", "cat", "bird", "sees", "hears", "likes", "good", "bad", "small")

#: Task → architecture and head.
HEADS = {
    "multi-label": ("bert", "ForSequenceClassification"),
    "token-classification": ("bert", "ForTokenClassification"),
    "question-answering": ("bert", "ForQuestionAnswering"),
    "multiple-choice": ("bert", "ForMultipleChoice"),
    "masked-lm": ("bert", "ForMaskedLM"),
    "causal-lm": ("gpt2", "LMHeadModel"),
}
COLUMNS = {
    "multi-label": ["predicted", "probability"],
    "token-classification": ["predicted", "entities"],
    "question-answering": ["predicted", "start", "score"],
    "multiple-choice": ["predicted", "predicted_text", "probability"],
    "masked-lm": ["predicted", "probability", "loss"],
    "causal-lm": ["predicted", "loss"],
}


def named(*labels: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model for each task, and a regression."""
    root, made = tmp_path_factory.mktemp("models"), {}
    for task, (kind, head) in HEADS.items():
        labels = KINDS[task].labels
        settings: dict[str, Any] = {} if labels is None else named(*labels)
        if task == "multi-label":
            settings["problem_type"] = "multi_label_classification"
        made[task] = save_checkpoint(make_tiny(kind, head, **settings), root / task)
    for task, count in (("text-classification", 3), ("regression", 1)):
        settings = named(*"abc"[:count])
        model = make_tiny("bert", "ForSequenceClassification", **settings)
        made[task] = save_checkpoint(model, root / task)
    return made


@pytest.fixture(scope="module")
def graph(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graph") / "onnx"
    export_onnx(models["text-classification"], out, verify=False)
    return out


def texts(count: int, *, seed: int = 0, **columns: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "id": row,
            "text": " ".join(rng.choice(WORDS, rng.integers(1, 12))),
            **{name: values[row % len(values)] for name, values in columns.items()},
        }
        for row in range(count)
    ]


def rows_of(path: Path) -> list[dict[str, Any]]:
    table = read_table(path)
    return [
        dict(zip(table.columns, row, strict=True))
        for row in zip(*table.columns.values(), strict=True)
    ]


def scores(model: Path, file: Path, task: str) -> dict[str, float]:
    """Return the metrics that the readers compute of the whole file."""
    opened = open_artifact(model)
    interface = opened.described_by(None)
    data = evaluation_data(
        read_table(file), TASKS[task], opened.tokenizer, interface, labels=opened.labels or ()
    )
    runner = opened.runner(interface.inputs)
    found = data.metrics(runner.run(batch) for batch in data.batches)
    assert found is not None
    return found


def run(model: Path, file: Path, out: Path, **options: Any) -> PredictionResult:
    return predict_file(model, file, out, PredictOptions(**options))


@pytest.mark.parametrize("task", HEADS)
def test_every_task_in_parts_scores_as_the_whole(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    kind = KINDS[task]
    options = {"unanswerable": True} if task == "question-answering" else {}
    rows = [dict(row) for row in kind.rows(21, seed=3)]
    if options:
        draw = random.Random(3)
        rows = [kind.make(draw, **kind.options, **options) for _ in range(21)]
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    monkeypatch.setattr(stage, "PART", 8)
    result = run(models[task], file, tmp_path / "out.jsonl", batch_size=4, max_new_tokens=3)
    found = rows_of(tmp_path / "out.jsonl")
    assert [{name: row[name] for name in rows[0]} for row in found] == rows
    assert list(found[0])[len(rows[0]) :] == COLUMNS[task] == list(result.columns)
    assert result.metrics == pytest.approx(scores(models[task], file, task), rel=1e-5)
    assert result.rows == 21
    assert result.most_wrong
    errors = [row.error for row in result.most_wrong]
    assert errors == sorted(errors, reverse=True)


def test_a_label_and_its_probability(models: dict[str, Path], tmp_path: Path) -> None:
    rows = texts(30, label=["a", "b", "c"])
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    result = run(models["text-classification"], file, tmp_path / "out.jsonl")
    found = rows_of(tmp_path / "out.jsonl")
    opened = open_artifact(models["text-classification"])
    for row in found[:5]:
        inputs = opened.tokenizer([row["text"]], return_tensors="np")
        logits = opened.runner(("input_ids", "attention_mask", "token_type_ids")).run(inputs)
        shares = np.exp(logits["logits"][0]) / np.exp(logits["logits"][0]).sum()
        assert row["predicted"] == "abc"[shares.argmax()]
        assert row["probability"] == pytest.approx(shares.max(), abs=1e-5)
    right = [row["predicted"] == row["label"] for row in found]
    assert result.metrics["accuracy"] == pytest.approx(np.mean(right))
    assert result.wrong == 30 - sum(right)
    assert sum(map(sum, result.confusion)) == 30
    assert sum(it.rows for it in result.sureness) == 30
    assert sum(it.right for it in result.sureness) == sum(right)
    worst = result.most_wrong[0]
    assert worst.where == f"row {worst.row} (line {worst.row}) of in.jsonl"
    assert (worst.predicted, worst.expected) == (
        found[worst.row - 1]["predicted"],
        found[worst.row - 1]["label"],
    )


def test_regression(models: dict[str, Path], tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", texts(20, label=[0.5, 2.0, 1.0]))
    result = run(models["regression"], file, tmp_path / "out.jsonl")
    assert result.metrics == pytest.approx(scores(models["regression"], file, "regression"))
    assert result.wrong is None
    assert isinstance(rows_of(tmp_path / "out.jsonl")[0]["predicted"], float)


@pytest.mark.parametrize("suffix", [".csv", ".tsv.gz", ".jsonl.gz", ".parquet"])
def test_the_format_stays(graph: Path, tmp_path: Path, suffix: str) -> None:
    rows = texts(6)
    rows[2]["text"] = 'a "quoted" dog' if "tsv" in suffix else 'a "quoted", dog\nsees'
    file, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    pack = gzip.compress if suffix.endswith(".gz") else bytes
    if "parquet" in suffix:
        pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), file)
    elif "jsonl" in suffix:
        file.write_bytes(pack("".join(json.dumps(row) + "\n" for row in rows).encode()))
    elif "tsv" in suffix:
        lines = ["id\ttext", *(f"{row['id']}\t{row['text']}" for row in rows)]
        file.write_bytes(pack(("\n".join(lines) + "\n").encode()))
    else:
        lines = [
            "id,text",
            *(f'{r["id"]},"{r["text"].replace(chr(34), chr(34) * 2)}"' for r in rows),
        ]
        file.write_text("\n".join(lines) + "\n")
    result = run(graph, file, out)
    assert result.metrics is None
    before, after = rows_of(file), rows_of(out)
    assert [{name: row[name] for name in ("id", "text")} for row in after] == before
    assert list(after[0]) == ["id", "text", "predicted", "probability"]
    assert {row["predicted"] for row in after} <= set("abc")
    if "parquet" in suffix:
        assert pq.read_schema(out).field("id") == pq.read_schema(file).field("id")


@pytest.mark.parametrize(
    ("suffix", "content", "fields"),
    [
        (".csv", "id;text\n1;the dog\n2;a, cat\n", FieldFormat("semicolon")),
        (".tsv", 'id\ttext\n1\t"the\tdog"\n2\t"a ""good"" cat"\n', FieldFormat(None, "csv")),
        (
            ".csv",
            'id,text\n1,"the \\"good\\" dog"\n2,"a, c:\\\\cat"\n',
            FieldFormat(None, "backslash"),
        ),
        (".csv", 'id|text\n1|the "dog\n2|a cat\n', FieldFormat("pipe", "none")),
    ],
    ids=["semicolons", "quotes in tsv", "backslashes", "pipes without quotes"],
)
def test_an_unusual_format_stays(
    graph: Path, tmp_path: Path, suffix: str, content: str, fields: FieldFormat
) -> None:
    file, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    file.write_text(content)
    run(graph, file, out, fields=fields)
    before, after = read_table(file, fields=fields), read_table(out, fields=fields)
    assert {name: after.columns[name] for name in ("id", "text")} == before.columns
    assert list(after.columns) == ["id", "text", "predicted", "probability"]


def test_bad_rows_are_left_out_of_every_part(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines that are no csv, rows that do not fit, and a last part with nothing else."""
    monkeypatch.setattr(stage, "PART", 4)
    lines = [f"{row},the dog,{'abc'[row % 3]}" for row in range(8)]
    lines[1], lines[6] = "1,the,dog,a", "6,the dog,x"
    file, out = tmp_path / "in.csv", tmp_path / "out.csv"
    file.write_text("\n".join(["id,text,label", *lines, "8,,a"]) + "\n")
    for skip in (0, 2):
        with pytest.raises(DataError, match=r"3 rows cannot be read: .*--skip-bad-rows 3"):
            run(graph, file, out, skip_bad_rows=skip)
        assert not out.exists()
    with caplog.at_level("WARNING", logger="mixout_export"):
        result = run(graph, file, out, skip_bad_rows=3)
    assert (result.rows, result.skipped) == (6, 3)
    assert result.metrics is not None
    assert "skipped 3 rows" in caplog.text
    assert "row 9 (line 10)" in caplog.text
    assert [row["id"] for row in rows_of(out)] == ["0", "2", "3", "4", "5", "7"]
    with pytest.raises(ArgumentError, match="skip-bad-rows: got -1"):
        run(graph, file, out, skip_bad_rows=-1)


def test_a_file_without_a_good_row(graph: Path, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text("text,label\nthe dog,x\na cat,y\n")
    with pytest.raises(DataError, match="label 'x'"):
        run(graph, file, tmp_path / "out.csv", skip_bad_rows=5)


def test_a_graph_and_its_checkpoint_say_the_same(
    models: dict[str, Path], graph: Path, tmp_path: Path
) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", texts(12, label=["a"]))
    ours, theirs = (
        run(model, file, tmp_path / f"{number}.jsonl")
        for number, model in enumerate((models["text-classification"], graph))
    )
    assert ours.metrics == theirs.metrics
    first, second = (
        [row["probability"] for row in rows_of(tmp_path / f"{n}.jsonl")] for n in (0, 1)
    )
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_server_answers_with_the_folder_that_it_serves(graph: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", texts(9, label=["a", "b"]))
    with served(graph / "model.onnx") as server:
        asked = run(server.address, file, tmp_path / "1.jsonl", reference=graph, batch_size=4)
        with pytest.raises(ArgumentError, match="--reference"):
            run(server.address, file, tmp_path / "2.jsonl")
    assert asked.metrics == run(graph, file, tmp_path / "3.jsonl").metrics
    with pytest.raises(ArgumentError, match="is a folder; leave it out"):
        run(graph, file, tmp_path / "4.jsonl", reference=graph)


def test_a_part_of_the_labels_is_missing(graph: Path, tmp_path: Path) -> None:
    rows = texts(4, label=["a", "b", None, "c"])
    with pytest.raises(DataError, match="no value in row 3"):
        run(graph, write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out*"))


def test_labels_of_another_model_can_be_left_unread(graph: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", texts(4, label=["x", "y"]))
    with pytest.raises(DataError, match="label 'x'"):
        run(graph, file, tmp_path / "out.jsonl")
    assert run(graph, file, tmp_path / "out.jsonl", no_labels=True).metrics is None
    with pytest.raises(ArgumentError, match="no_labels: contradicts"):
        run(
            graph, file, tmp_path / "2.jsonl", no_labels=True, columns=ColumnNames(label=("label",))
        )


def test_a_wrong_row_of_the_last_part_is_found_before_anything_is_predicted(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watch(PredictionObserver):
        def started(self, *, rows: int) -> None:
            raise AssertionError

    monkeypatch.setattr(stage, "PART", 4)
    file = write_jsonl(tmp_path / "in.jsonl", [*texts(9), {"id": 9, "text": None}])
    with pytest.raises(DataError, match="no value in row 10"):
        predict_file(graph, file, tmp_path / "out.jsonl", observer=Watch())


def test_masks_are_filled_and_other_texts_get_a_loss(
    models: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"text": "the [MASK] sees a [MASK]"}, {"text": "the dog sees a cat"}]
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    result = run(models["masked-lm"], file, tmp_path / "out.jsonl")
    filled, scored = rows_of(tmp_path / "out.jsonl")
    assert filled["predicted"].startswith("the ")
    assert "[MASK]" not in filled["predicted"]
    assert 0 < filled["probability"] < 1
    assert (filled["loss"], scored["predicted"]) == (None, None)
    assert result.metrics["loss"] == pytest.approx(scored["loss"])
    assert result.metrics["perplexity"] == pytest.approx(math.exp(scored["loss"]))


def test_text_is_continued_as_generate_does_also_by_graphs(
    models: dict[str, Path], tmp_path: Path
) -> None:
    folder, cached, plain = models["causal-lm"], tmp_path / "cached", tmp_path / "plain"
    export_onnx(folder, cached, verify=False)
    shutil.copytree(cached, plain, ignore=shutil.ignore_patterns("model_with_past*"))
    file = write_jsonl(tmp_path / "in.jsonl", texts(5))
    made = []
    for number, model in enumerate((folder, cached, plain)):
        run(model, file, tmp_path / f"{number}.jsonl", max_new_tokens=4)
        made.append([row["predicted"] for row in rows_of(tmp_path / f"{number}.jsonl")])
    assert made[0] == made[1] == made[2]
    opened = open_artifact(folder)
    ids = list(opened.tokenizer(texts(5)[0]["text"])["input_ids"])
    for _ in range(4):
        ids.append(int(opened.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert made[0][0] == opened.tokenizer.decode(ids[-4:], skip_special_tokens=True)


def test_entities_have_their_words(models: dict[str, Path], tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", KINDS["token-classification"].rows(8, seed=0))
    run(models["token-classification"], file, tmp_path / "out.jsonl")
    for row in rows_of(tmp_path / "out.jsonl"):
        assert len(row["predicted"]) == len(row["tokens"])
        for entity in row["entities"]:
            words = row["tokens"][entity["first_word"] : entity["last_word"] + 1]
            assert entity["text"] == " ".join(words)
            kinds = row["predicted"][entity["first_word"] : entity["last_word"] + 1]
            assert {kind[2:] for kind in kinds} == {entity["type"]}


def test_what_cannot_be_written_is_refused_first(graph: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", texts(3))
    out = write_jsonl(tmp_path / "old.jsonl", texts(1))
    before = out.read_bytes()
    for target, error, said in (
        (tmp_path / "out.csv", ArgumentError, "ending in .jsonl"),
        (file, ArgumentError, "the data file itself"),
        (out, OutputError, "give --overwrite"),
        (tmp_path / "no" / "out.jsonl", OutputError, "does not exist"),
        (graph / "out.jsonl", ArgumentError, "inside the source"),
    ):
        with pytest.raises(error, match=said):
            run(graph, file, target)
    assert out.read_bytes() == before
    predict_file(graph, file, out, overwrite=True)
    assert len(rows_of(out)) == 3
    with pytest.raises(DataError, match="has a column 'predicted' already"):
        run(graph, out, tmp_path / "again.jsonl")
    with pytest.raises(ArgumentError, match="batch_size: got 0"):
        run(graph, file, tmp_path / "new.jsonl", batch_size=0)


def test_a_read_only_folder_is_refused_before_anything_is_read(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", texts(3))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr(stage, "_open", None)
    with pytest.raises(OutputError, match="is read-only; choose another place"):
        run(graph, file, tmp_path / "out.jsonl")


def test_an_interruption_leaves_nothing(graph: Path, tmp_path: Path) -> None:
    class Interrupt(PredictionObserver):
        def advanced(self, rows: float) -> None:
            raise KeyboardInterrupt

    file = write_jsonl(tmp_path / "in.jsonl", texts(3))
    with pytest.raises(KeyboardInterrupt):
        predict_file(graph, file, tmp_path / "out.jsonl", observer=Interrupt())
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_sigterm_leaves_nothing_and_says_so(
    graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(stage, "run_part", kill)
    file = write_jsonl(tmp_path / "in.jsonl", texts(3))
    before = signal.getsignal(signal.SIGTERM)
    Program(capsys)("predict", graph, file, tmp_path / "out.jsonl").failed(143, "SIGTERM")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_bundle_answers_as_its_graph(graph: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", texts(3, label=["a"]))
    bundle_onnx(graph, tmp_path / "one", BundleOptions("triton", "tiny"))
    bundled = run(tmp_path / "one", file, tmp_path / "1.jsonl")
    assert bundled.metrics == run(graph, file, tmp_path / "2.jsonl").metrics


def test_a_model_that_cannot_answer(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", texts(3))
    with pytest.raises(CheckpointError, match="has no head"):
        run(tiny.base(), file, tmp_path / "out.jsonl")


def test_outputs_that_are_not_numbers_name_the_row(tmp_path: Path) -> None:
    model = make_tiny("bert", "ForSequenceClassification")
    model.get_input_embeddings().weight.data[40] = math.nan
    folder = save_checkpoint(model, tmp_path / "model")
    word = open_artifact(folder).tokenizer.decode([40])
    rows = [{"text": "the dog"}, {"text": f"the {word} sees"}]
    with pytest.raises(CheckpointError, match=r"outputs for row 2 \(line 2\) are not numbers"):
        run(folder, write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")


def test_the_command(graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = Program(capsys)
    file = write_jsonl(tmp_path / "in.jsonl", texts(30, label=["a", "b", "c"]))
    report = tmp_path / "report.html"
    shown = program("predict", graph, file, tmp_path / "out.jsonl", "--report", report).done().out
    for part in ("accuracy", "precision", "most confused:", "most wrong of ", "rows/s", "report"):
        assert part in shown
    page = report.read_text()
    for part in ("Confusion", "Most wrong", "Least sure", "Probabilities", "mixout-export predict"):
        assert part in page
    result = program("predict", graph, file, tmp_path / "2.jsonl", "--json").json
    assert {"metrics", "by_label", "confusion", "most_wrong", "rows_per_second"} <= set(result)
    program("predict", graph, file, tmp_path / "out.jsonl").failed(1, "--overwrite")
    plain = write_jsonl(tmp_path / "plain.jsonl", texts(5))
    shown = program("predict", graph, plain, tmp_path / "3.jsonl").done().out
    assert "least sure:" in shown
    assert "accuracy" not in shown


def test_a_page_shows_hostile_labels_and_texts_as_text(tmp_path: Path) -> None:
    model = make_tiny("bert", "ForSequenceClassification", **named(*HOSTILE))
    folder = save_checkpoint(model, tmp_path / "model")
    rows = texts(9, label=list(HOSTILE))
    rows[0]["text"] = HOSTILE[0]
    report = tmp_path / "report.html"
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    predict_file(folder, file, tmp_path / "out.jsonl", report_to=report)
    page = report.read_text()
    assert "<script" not in page
    assert "onerror=alert(1)>" not in page.replace("&gt;", "")
    assert "\u202e" not in page


def test_a_carriage_return_stays_within_its_field(models: dict[str, Path], tmp_path: Path) -> None:
    file, out = tmp_path / "in.csv", tmp_path / "out.csv"
    file.write_bytes(b'text,n\n"a\rdog",1\n')
    run(models["text-classification"], file, out)
    assert read_table(out).columns["text"] == ["a\rdog"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_that_out_cannot_have_are_named(
    models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    file, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    if suffix == ".csv":
        file.write_text(",text,id,id\n0,a dog,1,2\n")
    else:
        columns = [pa.array(["a dog"]), pa.array([1]), pa.array([2])]
        pq.write_table(pa.Table.from_arrays(columns, names=["text", "id", "id"]), file)
    run(models["text-classification"], file, out)
    assert list(read_table(out).columns) == ["text", "predicted", "probability"]
    assert "'id'" in caplog.text
    assert ("those without a name" in caplog.text) == (suffix == ".csv")


def test_a_missing_label_is_refused_with_the_option_to_leave_labels_unread(
    models: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "in.csv"
    for content, remedy in (("a dog,\na cat,a\n", True), (",a\na cat,\n", False)):
        file.write_text("text,label\n" + content)
        with pytest.raises(DataError) as caught:
            run(models["text-classification"], file, tmp_path / "out.csv")
        assert ("give --no-labels" in str(caught.value)) == remedy
