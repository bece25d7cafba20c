"""Run a script in two processes that form a process group on a CPU."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

_START = """
import json, sys, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
"""

_END = """
sys.stdout.flush()
dist.barrier()
dist.destroy_process_group()
"""


def run_two_ranks(script: str, folder: Path, *, timeout: int = 120) -> list[str]:
    """Return what each rank prints.

    Args:
        script: Python text; `rank`, `torch`, `dist`, `nn`, `json` and `DistributedDataParallel`
            are defined.
        folder: An empty folder to work in.
        timeout: Seconds, after which a rank counts as hanging.
    """
    path = folder / "ranks.py"
    path.write_text(_START + textwrap.dedent(script) + _END)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(path), str(rank), str(folder / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=timeout) for rank in ranks]
    finally:
        for process in ranks:
            process.kill()
    # Not the exit codes: gloo's threads now and then abort a process that has come to its end.
    for out, err in said:
        assert out, err
    return [out for out, _ in said]
