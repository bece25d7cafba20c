"""The program for `torchrun`, which fails if DDP outlives its process group.

It would then be removed while Python ends. Waiting for the group's threads can hang there.
"""

import gc
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from mixout_export_cli.main import main

destroy = torch.distributed.destroy_process_group


def checked_destroy(*arguments: Any) -> None:
    """Destroy the process group if no model uses it."""
    assert not any(isinstance(each, DistributedDataParallel) for each in gc.get_objects())
    destroy(*arguments)


if __name__ == "__main__":
    torch.distributed.destroy_process_group = checked_destroy
    main()
