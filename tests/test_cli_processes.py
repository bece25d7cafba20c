"""What only a process of its own shows: signals, pipes, terminals, and libraries' own voices."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Way, a_copy, content, environment, in_new_process, make_way
from training_runs import sentences, write_tsv

from mixout_export_cli.output import next_command

PROGRAM = [sys.executable, "-m", "mixout_export_cli"]


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> Way:
    return make_way(tmp_path_factory.mktemp("way"), tiny)


STEPS = 120
#: So many that a signal arrives in time on a busy machine.
MANY_STEPS = 240


def long_run(way: Way, out: Path, *options: object, steps: int = STEPS) -> list[str]:
    """Return the command of a run of a second or more with a checkpoint every few steps."""
    data = ("--train-file", way.train_file, "--eval-file", way.eval_file)
    rhythm = ("--save-every", 20, "--eval-every", steps, "--batch-size", 8)
    return [
        *PROGRAM,
        *map(str, ("train", way.prepared, out, *data, "--max-steps", steps, *rhythm, *options)),
    ]


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def start_long_run(way: Way, out: Path, *options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        long_run(way, out, *options, steps=MANY_STEPS),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # A shell's background job ignores Ctrl-C, and so do its children unless told otherwise.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def steps_of(checkpoints: Path) -> list[int]:
    names = [path.name.removeprefix("step-") for path in checkpoints.glob("step-*")]
    return sorted(int(name) for name in names if name.isdigit())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_checkpoint_leaves_out_as_it_was_and_resume_completes(
    number: signal.Signals, code: int, way: Way, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    process = start_long_run(way, out, "--overwrite", "--save-every", 7)
    checkpoints = tmp_path / "out.partial" / "checkpoints"
    wait_for(lambda: steps_of(checkpoints) or process.poll() is not None)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (code, ""), stderr
    last = steps_of(checkpoints)[-1]
    resume = ("train", way.prepared, out, "--overwrite", "--resume")
    assert stderr.splitlines()[-1] == (
        f"mixout-export: stopped after step {last} of {MANY_STEPS}; the checkpoint is in "
        f"{out}.partial, and {out} was not changed; to continue: {next_command(*resume)}"
    )
    assert content(out) == {"mine": b"precious"}
    first = json.loads((tmp_path / "out.partial" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0
    done = in_new_process(*resume, "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["steps"] == MANY_STEPS
    assert (out / "model.safetensors").is_file()
    assert not (out / "mine").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_reader_that_leaves_early_is_no_error_report(way: Way) -> None:
    for flags in ((), ("--json",)):
        process = subprocess.Popen(
            [*PROGRAM, "inspect", str(way.prepared), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_result_that_cannot_be_written_is_one_sentence(way: Way) -> None:
    with Path("/dev/full").open("w") as full:
        done = in_new_process("inspect", way.prepared, stdout=full)
    assert (done.returncode, done.stderr) == (1, "mixout-export: No space left on device\n")


def test_nobody_reading_notes_does_not_stop_the_work(way: Way, tmp_path: Path) -> None:
    later = a_copy(way.prepared, tmp_path / "later")
    (later / "manifest.json").unlink()  # which would say that the next line changes a file
    file = later / "mixout_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "later": 1}))
    reading, writing = os.pipe()
    assert "warning: " in in_new_process("inspect", later, "--json").stderr
    os.close(reading)
    done = in_new_process("inspect", later, "--json", stderr=writing)
    os.close(writing)
    assert done.returncode == 0
    assert json.loads(done.stdout)["kind"] == "mixout"


def all_in_a_process(
    *commands: tuple[object, ...], option: str | None = None, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run commands one after another in one process; "CODE n" on stderr ends each."""
    script = """
import json, sys
from mixout_export_cli.main import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as ending:
        print("CODE", ending.code, file=sys.stderr)
"""
    suffix = [] if option is None else [option]
    listed = json.dumps([[*map(str, arguments), *suffix] for arguments in commands])
    return subprocess.run(
        [sys.executable, "-c", script, listed],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
    )


def test_no_library_is_heard_on_the_whole_way(way: Way, tmp_path: Path) -> None:
    task = ("--task", "text-classification")
    data = ("--train-file", way.train_file, "--max-steps", 3)
    diverging = ("--lr", "1e30", "--warmup-ratio", 0)
    good = (
        ("prepare", way.base, "p", *task),
        ("train", "p", "t", *data, "--eval-file", way.eval_file, "--precision", "bf16"),
        ("collapse", "t", "c", "--dtype", "float16"),
        ("onnx", "t", "g"),
        ("verify", "t", "g", "--data", way.eval_file),
        ("inspect", "g", "--quiet"),
        ("inspect", "t", "--plot", "a.png"),
    )
    bad = (
        ("onnx", "nowhere", "o"),
        ("prepare", "nowhere", "o", *task),
        ("train", "p", "o", *data, *diverging),
    )
    lines = all_in_a_process(*good, *bad, cwd=tmp_path).stderr.splitlines()
    lines = [line for line in lines if not line.startswith("step ")]
    assert lines[: len(good)] == ["CODE 0"] * len(good)
    assert lines[len(good) + 1 :: 2] == ["CODE 1"] * len(bad)
    assert all(line.startswith("mixout-export: ") for line in lines[len(good) :: 2])
    assert len(lines) == len(good) + 2 * len(bad)


def in_terminal(command: list[str], columns: int) -> tuple[int, str, str]:
    """Run a command whose stderr is a terminal; return its exit code, stdout and terminal."""
    terminal, tty = pty.openpty()
    fcntl.ioctl(tty, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {**environment(), "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES"):  # they would win over the terminal's own size
        env.pop(name, None)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=tty, env=env)
    os.close(tty)
    shown = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the program closed its end
            break
        if not chunk:
            break
        shown += chunk
    os.close(terminal)
    assert process.stdout is not None
    stdout = process.stdout.read().decode()
    return process.wait(timeout=60), stdout, shown.decode()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (80, r"training loss \d\.\d{3}  last accuracy \d\.\d{3}  \d+ examples/s"),
        (40, r"loss \d\.\d{3}  accuracy \d\.\d{3}  \d+ ex/s"),
    ],
)
def test_a_terminal_shows_how_training_goes(
    columns: int, said: str, way: Way, tmp_path: Path
) -> None:
    command = long_run(way, tmp_path / "out", "--json")
    code, stdout, shown = in_terminal(command, columns)
    assert code == 0
    assert json.loads(stdout)["steps"] == STEPS
    assert stdout.count("\n") == 1
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    lines = [line for part in plain.split("\n") for line in part.split("\r") if line.strip()]
    assert max(len(line) for line in lines) <= columns
    assert any(re.fullmatch(rf"step \d+/{STEPS} [━╸╺]+ [\d:-]+ left\s*", line) for line in lines)
    assert any(re.fullmatch(rf"{said}\s*", line) for line in lines)
    assert sum(line.startswith(f"step {STEPS}/{STEPS}: evaluation loss ") for line in lines) == 1
    assert shown.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in shown[-200:]  # the cursor is back


def test_quiet_shows_nothing_in_a_terminal_either(way: Way, tmp_path: Path) -> None:
    command = long_run(way, tmp_path / "out", "--quiet", "--max-steps", 2, "--eval-every", 1)
    assert in_terminal(command, 80)[::2] == (0, "")


@pytest.mark.real
def test_the_real_checkpoint_goes_all_the_way(real_checkpoint: Path, tmp_path: Path) -> None:
    header = ("sentence", "label")
    write_tsv(tmp_path / "train.tsv", header, sentences(96, seed=0))
    write_tsv(tmp_path / "dev.tsv", header, sentences(40, seed=1))
    task = ("--task", "text-classification", "--labels", "bad,good")
    data = ("--train-file", "train.tsv", "--eval-file", "dev.tsv")
    settings = ("--epochs", 1, "--batch-size", 16, "--lr", "3e-4", "--max-length", 24)
    commands = (
        ("prepare", real_checkpoint, "prepared", *task),
        ("train", "prepared", "trained", *data, *settings),
        ("collapse", "trained", "collapsed"),
        ("onnx", "collapsed", "onnx", "--no-verify"),
        ("verify", "trained", "onnx", "--data", "dev.tsv", "--max-examples", 20),
        ("inspect", "trained"),
    )
    done = all_in_a_process(*commands, option="--json", cwd=tmp_path)
    said = [line for line in done.stderr.splitlines() if not line.startswith("step ")]
    assert said == ["CODE 0"] * len(commands)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    results = {command: line for (command, *_), line in zip(commands, lines, strict=True)}
    assert len(results["prepare"]["mixed"]) == 37
    training = results["train"]
    assert training["metrics"]["loss"] < training["metrics_before"]["loss"]
    assert results["verify"]["holds"]
    assert results["verify"]["outputs"][0]["max_abs"] < 1e-5
    assert results["verify"]["weights"]["accounted"] == results["verify"]["weights"]["total"]
    moved = [layer["relative"] for layer in results["inspect"]["layers"]]
    assert len(moved) == 37
    assert min(moved) > 0
    assert max(moved) < 0.1
