"""The GPU kit around its checks: its folder, missing packages, results, the document."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from gpu import document, missing, pack
from gpu.fast import _short
from gpu.kit import ROOT, Kit, size_of
from gpu.results import FAILED, CannotRun, CheckFailed, Finding, Results, page
from gpu.whole import _command
from mixout_export.errors import CheckpointError


def raises(error: Exception) -> Finding:
    raise error


def test_results_are_complete_after_every_step(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.describe(device="cpu", seconds=1.0)
    states = [
        results.run("correct", "one", lambda: Finding("fine", "| a |\n| --- |\n| 1 |")).state,
        results.run("correct", "two", lambda: raises(CheckFailed("4 is not | 5"))).state,
        results.run("fast", "three", lambda: raises(CannotRun("needs a GPU"))).state,
    ]
    assert states == ["passed", "failed", "not run"]
    again = Results(tmp_path)
    assert again.steps == results.steps
    assert again.machine == {"device": "cpu", "seconds": 1.0}
    text = (tmp_path / "gpu.md").read_text("utf-8")
    assert text == page(again.machine, again.steps)
    assert "| two | failed | 0.0 | 4 is not \\| 5 |" in text
    assert "checks: 1 passed, 1 failed, 1 not run" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]


def test_an_error_in_one_step_does_not_lose_the_others(tmp_path: Path) -> None:
    results = Results(tmp_path)
    failed = results.run("correct", "one", lambda: raises(RuntimeError("CUDA error:\n  a fault")))
    results.run("correct", "two", lambda: Finding("fine"))
    assert failed.state == FAILED
    assert failed.finding.text.startswith("RuntimeError at test_gpu_kit.py:")
    assert failed.finding.text.endswith("CUDA error: a fault")
    assert "RuntimeError: CUDA error" in "".join(failed.finding.data["traceback"])
    assert [step.name for step in Results(tmp_path).failed] == ["one"]


def run_kit(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gpu", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_parts_without_time_are_failures_and_said(tmp_path: Path) -> None:
    script = "import sys, gpu.__main__ as kit; kit._LEAST = 99; sys.exit(kit.main())"
    words = ["--device", "cpu", "--out", str(tmp_path), "--seconds", "99"]
    command = [sys.executable, "-c", script, *words]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    steps = json.loads((tmp_path / "gpu.json").read_text("utf-8"))["steps"]
    assert [step["part"] for step in steps] == [
        "correctness",
        "kernels",
        "speed",
        "workflow",
        "seeds",
    ]
    assert all("not started" in step["finding"]["text"] for step in steps)
    assert "FAILED seeds: the whole part: not started" in run.stderr


def test_a_part_whose_process_ends_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()  # a checkpoint without files
    words = ["--kit", str(tmp_path), "--out", str(tmp_path / "out"), "--parts", "seeds"]
    run = run_kit("--device", "cpu", "--seconds", "60", *words)
    assert run.returncode == 1
    (step,) = json.loads((tmp_path / "out" / "gpu.json").read_text("utf-8"))["steps"]
    assert step["state"] == "failed"
    assert "the process exited with code 1" in step["finding"]["text"]
    assert "has no config.json; run `make gpu-kit` again" in run.stderr


def test_a_device_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    run = run_kit("--device", "cuda:99", "--out", str(tmp_path))
    assert run.returncode == 2
    assert run.stderr.strip() == "python -m gpu: --device cuda:99: PyTorch does not see this device"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seconds", "0"], "expected at least 15"),
        (["--seconds", "nan"], "expected at least 15"),
        (["--device", "tpu"], "expected cuda, cuda:N or cpu"),
        (["--kit", "/nonexistent"], "/nonexistent is not a folder"),
        (["--parts", "all"], "invalid choice"),
    ],
)
def test_wrong_options_are_refused(words: list[str], said: str, tmp_path: Path) -> None:
    run = run_kit("--out", str(tmp_path / "out"), *words)
    assert run.returncode == 2
    assert said in run.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_and_keeps_the_results(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpu", "--device", "cpu", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--parts", "correctness"], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "layers against the formula" in line:
            break
    process.send_signal(number)
    assert "interrupted; finished checks are in" in process.stderr.read()
    assert process.wait(60) == 130
    json.loads((tmp_path / "out" / "gpu.json").read_text("utf-8"))
    assert not list(tmp_path.glob("mixout-gpu-*"))


def write_wheel(folder: Path, name: str) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
        wheel.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: numpy>=999\n",
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_missing_packages_come_from_the_kit_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    for name in ("quite_new", "numpy"):
        write_wheel(wheels, name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")  # so that it is restored
    assert missing.complete(wheels, site) == ["quite_new"]
    assert sorted(path.name for path in site.iterdir() if path.is_dir()) == [
        "mixout_export_cli",
        "quite_new",
        "quite_new-1.0.dist-info",
    ]
    assert missing.complete(wheels, site) == []  # it is there now
    (wheels / "damaged-1.0-py3-none-any.whl").write_text("no wheel")
    (wheels / "other_damaged-1.0-py3-none-any.whl").write_text("no wheel")
    assert missing.complete(wheels, site) == []  # with a warning for each
    for wheel in wheels.glob("*damaged*"):
        wheel.unlink()
    monkeypatch.setattr(missing, "_requirements", lambda: ["quite_new>=2"])
    assert missing.complete(wheels, tmp_path / "other") == ["quite_new"]  # it is too old
    (text,) = missing.unmet_by(["quite_new"])
    assert text == f"quite_new wants numpy>=999, found {metadata.version('numpy')}"


def test_nothing_is_unmet_where_the_project_is_installed() -> None:
    assert missing.unmet() == []


def test_what_is_carried_is_all_that_such_a_machine_may_lack() -> None:
    carried = pack.carried()
    assert {"datasets", "dill", "httpx2", "rich", "scikit-learn", "xxhash"} <= carried.keys()
    assert not carried.keys() & pack.THERE
    assert not any(name.startswith(("nvidia", "torch", "cuda")) for name in carried)


def test_the_folder_names_its_data(tmp_path: Path) -> None:
    source = tmp_path / "CoLA"
    source.mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (source / name).write_text("sentence\tlabel\nIt works.\t1\nIt work.\t0\n", "utf-8")
    (tmp_path / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "base" / name).touch()
    pack._write_data(tmp_path / "data", source)
    kit = Kit.find(tmp_path / "work", tmp_path)
    assert kit.base == tmp_path / "base"
    assert kit.train_file.parent.name == "CoLA"
    short = kit.data(rows=1, eval_rows=1)
    assert short.train_file is not None
    assert short.train_file.read_text("utf-8") == "sentence\tlabel\nIt works.\t1\n"
    assert size_of([source]) == 2 * (source / "dev.tsv").stat().st_size


def test_the_kits_checkpoint_is_half_the_demos(real_checkpoint: Path, tmp_path: Path) -> None:
    pack._write_base(tmp_path / "base")
    ours, theirs = (
        size_of([path / "model.safetensors"]) for path in (tmp_path / "base", real_checkpoint)
    )
    assert 0.49 < ours / theirs < 0.51
    assert json.loads((tmp_path / "base" / "config.json").read_text())["dtype"] == "bfloat16"


def test_without_a_checkpoint_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Path:
        raise CheckpointError("not installed")

    monkeypatch.setattr("gpu.kit.demo_base", absent)
    with pytest.raises(CheckpointError, match="make gpu-kit"):
        Kit.find(tmp_path / "work", tmp_path / "nothing")


def test_a_command_that_fails_is_named_with_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"inspect ended with exit code 1: .*nothing"):
        _command("inspect", tmp_path / "nothing", deadline=time.monotonic() + 60)


def test_a_command_that_takes_too_long_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="inspect did not end in time"):
        _command("inspect", tmp_path, deadline=time.monotonic() - 60)


def test_the_documents_section_is_what_was_measured() -> None:
    text = document.DOCUMENT.read_text("utf-8")
    assert text == document.with_section(text)


def test_the_section_shows_what_a_gpu_gave(tmp_path: Path) -> None:
    assert "Not run yet" in document.section(tmp_path / "absent.json")
    results = Results(tmp_path)
    results.describe(
        device="cuda", gpu="NVIDIA H100", memory="79 GiB", date="2026-12-01", seconds=400.0,
        command="python -m gpu", torch="2.11.0",
    )  # fmt: skip
    results.run("fast", "a step", lambda: Finding("0.9 of plain", "| arm |\n| --- |\n| plain |"))
    text = document.section(tmp_path / "gpu.json")
    assert text.startswith("NVIDIA H100, 79 GiB; torch 2.11.0. Date: 2026-12-01.")
    assert "1 checks passed, 0 could not run there, none failed." in text
    assert "### Fast" in text
    assert "| plain |" in text
    results.run("fast", "another", lambda: raises(CheckFailed("no")))
    assert "1 failed: another." in document.section(tmp_path / "gpu.json")


def test_results_of_a_cpu_are_no_gpus(tmp_path: Path) -> None:
    Results(tmp_path).describe(device="cpu")
    command = [sys.executable, "-m", "gpu.document", str(tmp_path / "gpu.json")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "these results come from a CPU run" in run.stderr


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"machine": {"device": "cuda"}}'])
def test_what_are_no_results_is_refused_and_nothing_is_written(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpu.json").write_text(text)
    monkeypatch.setattr(document, "MEASURED", tmp_path / "measured.json")
    monkeypatch.setattr(sys, "argv", ["document", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit, match=r"is not a gpu\.json"):
        document.main()
    assert not (tmp_path / "measured.json").exists()


def test_packing_deletes_nothing_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for words in (["--out", str(tmp_path)], ["--data", str(tmp_path)]):
        monkeypatch.setattr(sys, "argv", ["pack", *words])
        with pytest.raises(SystemExit) as ending:
            pack.main()
        assert ending.value.code == 2
    said = capsys.readouterr().err
    assert "exists and is not a GPU kit" in said
    assert "has no train.tsv" in said
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_kernels_have_short_names() -> None:
    name = (
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, "
        "std::array<char*, 3ul> >(int, at::native::CUDAFunctor_add<float>)"
    )
    assert _short(name) == "at::native::vectorized_elementwise_kernel CUDAFunctor_add"
    assert len(_short("x" * 500)) == 80
