"""Studies in processes of their own that are interrupted or killed at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import children, environment
from study_plans import study, write_plan
from test_study import lines, summary
from training_runs import TrainingGround


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("interrupted"), tiny)


def start(plan: Path, out: Path, *, workers: int = 1, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mixout_export_cli", "study", str(plan), str(out)]
    return subprocess.Popen(
        [*command, "--workers", str(workers), "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), **options,
    )  # fmt: skip


def wait_for_records(out: Path, count: int) -> None:
    """Wait until so many runs are recorded."""
    path, until = out / "runs.jsonl", time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < until, "no record was written"
        time.sleep(0.01)


def is_alive(worker: int) -> bool:
    """Return whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def command_line(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text()


def equal(record: dict[str, Any]) -> dict[str, Any]:
    """Return what two records of a run have in common, whenever it ran and was interrupted."""
    return {k: v for k, v in record.items() if "seconds" not in k and k != "attempt"}


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_study_that_was_interrupted_and_killed_ends_like_one_that_was_not(
    ground: TrainingGround, tmp_path: Path
) -> None:
    plan, out = write_plan(tmp_path, ground, seeds=4), tmp_path / "out"
    undisturbed = tmp_path / "undisturbed"
    study(plan, undisturbed)

    # Ctrl-C saves the run in progress
    process = start(plan, out)
    wait_for_records(out, 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert f"study {plan} {out} --workers 1 --device cpu" in err.partition("to continue: ")[2]
    done = len(lines(out))
    assert err.startswith("run 0/8: started\nrun 1/8: moods, plain, seed 0: accuracy ")
    assert f"stopped; {done} of 8 runs are done, and those in progress are saved" in err

    # SIGKILL leaves no time to do anything
    process = start(plan, out)
    wait_for_records(out, done + 1)
    time.sleep(random.uniform(0.0, 0.5))
    workers = children(process.pid)
    process.kill()
    _, err = process.communicate()
    assert err.startswith(f"run {done}/8: resumed, ")
    until = time.monotonic() + 60
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < until, "a worker outlives the study"
        time.sleep(0.05)

    result = study(plan, out)
    assert (result.done, result.crashed) == (8, ())
    found = sorted(lines(out), key=lambda record: record["key"])
    expected = sorted(lines(undisturbed), key=lambda record: record["key"])
    assert list(map(equal, found)) == list(map(equal, expected))
    assert json.dumps(summary(out)) == json.dumps(summary(undisturbed))
    assert not (out / "work").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_worker_gets_the_signals_that_the_study_answers(
    ground: TrainingGround, tmp_path: Path
) -> None:
    """Neither the first worker, with which Python starts a helper process, nor a later one."""
    plan = write_plan(tmp_path, ground, seeds=20)
    process = start(plan, tmp_path / "out", workers=2)
    wait_for_records(tmp_path / "out", 2)
    workers = [each for each in children(process.pid) if "spawn_main" in command_line(each)]
    assert len(workers) == 2
    for worker in workers:
        status = Path(f"/proc/{worker}/status").read_text()
        blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
        assert blocked & 1 << signal.SIGINT - 1
        assert blocked & 1 << signal.SIGTERM - 1
    process.terminate()
    process.communicate(timeout=300)


@pytest.mark.skipif(sys.platform == "win32", reason="has no process groups")
def test_sigterm_to_all_processes_saves_the_run_in_progress(
    ground: TrainingGround, tmp_path: Path
) -> None:
    """As `timeout` and service managers send it."""
    plan, out = write_plan(tmp_path, ground, seeds=20), tmp_path / "out"
    process = start(plan, out, start_new_session=True)
    wait_for_records(out, 1)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert {record["status"] for record in lines(out)} == {"done"}
