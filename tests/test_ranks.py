"""Anchors in several processes."""

import copy
import json
import pickle

import pytest
import torch
from rank_runs import run_two_ranks
from torch import nn

from mixout_export import MixoutConfig, collapse_mixout, inject_mixout
from mixout_export.surgery import ranks

#: Each case prints a line of its own; a case that hangs makes the whole script time out.
_CASES = """
from mixout_export import MixoutConfig, collapse_mixout, inject_mixout
from mixout_export.errors import TrainingError
from mixout_export.surgery import ranks

checks = []
compare = ranks.require_same_anchors
ranks.require_same_anchors = lambda *given: (checks.append(1), compare(*given))

def model(different=(), names="0,2,4,6"):
    torch.manual_seed(0)
    linears = [nn.Linear(4, 4) for _ in range(4)]
    made = nn.Sequential(*(m for linear in linears for m in (linear, nn.Tanh())))
    inject_mixout(made, MixoutConfig(p=0.5, target_modules=names))
    for index in different:
        made[index].pretrained_weight[1, 2] += rank * 1e-3
    return made

def step(network, rows=8):
    network(torch.randn(rows, 4)).square().sum().backward()

def outcome(case, run):
    checks.clear()
    try:
        said = run() or "passed"
    except TrainingError as error:
        said = str(error)
    print(json.dumps({"case": case, "said": said, "checks": len(checks)}))

def equal():
    ddp = DistributedDataParallel(model())
    for _ in range(3):
        step(ddp)

def accumulated():
    ddp = DistributedDataParallel(model([2]))
    with ddp.no_sync():
        step(ddp)
        assert not checks
    step(ddp)

def other_layers():
    step(DistributedDataParallel(model(names="0,2" if rank else "0,4")))

def only_rank_0_evaluates():
    ddp = DistributedDataParallel(model([2]))
    if rank == 0:
        ddp.module(torch.ones(1, 4))
        ddp.eval()(torch.ones(1, 4))
        with torch.no_grad():
            ddp.train()(torch.ones(1, 4))

def no_wrapper():
    alone = model([2])
    if rank == 0:
        step(alone)

class Sometimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = model(), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.inner(x) if rank == 0 else x)

def a_part_that_only_rank_0_runs():
    step(DistributedDataParallel(Sometimes(), find_unused_parameters=True))

def uneven_inputs():
    from torch.distributed.algorithms.join import Join
    ddp = DistributedDataParallel(model())
    with Join([ddp]):
        for _ in range(2 * rank):
            step(ddp)

def compiled():
    ddp = DistributedDataParallel(model())
    step(torch.compile(ddp, backend="eager"))

def collapsed_from_inside():
    network = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))
    inject_mixout(network)
    collapse_mixout(network[0])
    step(DistributedDataParallel(network))

def one_rank_groups():
    groups = [dist.new_group([index]) for index in range(2)]
    step(DistributedDataParallel(model([2]), process_group=groups[rank]))

def sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    network = model()
    fully_shard(network, mesh=init_device_mesh("cpu", (2,)))
    step(network)

def under_accelerate():
    import os
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    from accelerate import Accelerator
    network = Accelerator(cpu=True).prepare(model([2]))
    assert isinstance(network, DistributedDataParallel)
    step(network)

def broadcast():
    network = model()
    network.register_buffer("control", torch.full((2,), float(rank)))
    ddp = DistributedDataParallel(network)
    step(ddp)
    with torch.no_grad():
        network[0].pretrained_weight.fill_(float(rank))
        network.control.fill_(float(rank))
    torch.manual_seed(10 + rank)
    ddp.zero_grad()
    step(ddp)
    gradients = [torch.empty(4, 4) for _ in range(2)]
    dist.all_gather(gradients, network[0].weight.grad)
    return json.dumps({
        "control": network.control.mean().item(),
        "anchor": network[0].pretrained_weight.mean().item(),
        "gradients are equal": torch.equal(*gradients),
    })

outcome("equal", equal)
outcome("one", lambda: step(DistributedDataParallel(model([2]))))
outcome("all", lambda: step(DistributedDataParallel(model([0, 2, 4, 6]))))
for run in (
    accumulated, other_layers, only_rank_0_evaluates, no_wrapper, a_part_that_only_rank_0_runs,
    uneven_inputs, compiled, one_rank_groups, collapsed_from_inside, sharded, under_accelerate,
    broadcast,
):
    outcome(run.__name__, run)
"""

_ERROR = (
    "pretrained_weight: the anchors of these processes differ from those of rank 0: rank 1 in {}. "
    "All processes must load the same pretrained weights"
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[str, int]]]:
    """Return, for each rank, what each case said, and how often the anchors were compared."""
    said = run_two_ranks(_CASES, tmp_path_factory.mktemp("ranks"))
    found = [[json.loads(line) for line in text.splitlines()] for text in said]
    return [{one["case"]: (one["said"], one["checks"]) for one in lines} for lines in found]


@pytest.mark.parametrize(
    ("case", "layers"),
    [
        ("one", "'2'"),
        ("all", "'0', '2', '4' and 1 more"),
        ("accumulated", "'2'"),
        ("other_layers", "'4', '2'"),
        ("under_accelerate", "'2'"),  # which `train` uses
    ],
)
def test_both_ranks_name_the_layers_that_differ(case, layers, outcomes) -> None:
    assert [rank[case] for rank in outcomes] == [(_ERROR.format(layers), 1)] * 2


def test_equal_anchors_are_compared_once(outcomes) -> None:
    assert [rank["equal"] for rank in outcomes] == [("passed", 1)] * 2


@pytest.mark.parametrize(
    "case",
    [
        "only_rank_0_evaluates",
        "no_wrapper",
        "a_part_that_only_rank_0_runs",
        "uneven_inputs",
        "compiled",
        "sharded",
    ],
)
def test_nothing_is_compared_unless_every_rank_takes_part(case, outcomes) -> None:
    assert [rank[case] for rank in outcomes] == [("passed", 0)] * 2


@pytest.mark.parametrize("case", ["one_rank_groups", "collapsed_from_inside"])
def test_there_may_be_nothing_to_compare(case, outcomes) -> None:
    assert [rank[case] for rank in outcomes] == [("passed", 1)] * 2


def test_ddp_does_not_broadcast_anchors(outcomes) -> None:
    for number, rank in enumerate(outcomes):
        found = json.loads(rank["broadcast"][0])
        assert found["control"] == 0.0, "DDP broadcast no buffer at all"
        assert found["anchor"] == number, "the anchor was broadcast"
        assert found["gradients are equal"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_value_of_an_anchor_counts(dtype: torch.dtype) -> None:
    anchor = torch.randn(5, 6).to(dtype)
    whole = ranks._describe(anchor)
    assert ranks._describe(anchor.t().contiguous().t()) == whole
    assert ranks._describe(anchor.flip(0)) != whole
    for row, column in [(0, 0), (2, 3), (4, 5)]:
        other = anchor.clone()
        other[row, column] = -other[row, column]
        assert ranks._describe(other) != whole
    assert ranks._describe(torch.empty(0, 4)) != ranks._describe(torch.empty(4, 0))


def test_the_check_follows_copies_and_leaves_with_collapse() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    before = set(vars(model))
    inject_mixout(model, MixoutConfig(p=0.5))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(twin._forward_pre_hooks) == 1
        collapse_mixout(twin)
        assert len(twin._forward_pre_hooks) == 0
        assert set(vars(twin)) == before
    assert len(model._forward_pre_hooks) == 1
