"""
Two processes with half a batch each see the loss and the gradients of one process with all of it.
"""

from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn

from butterfly_sdm.errors import DataError
from butterfly_sdm.losses.contrastive import SoftRegulariser
from butterfly_sdm.losses.gathering import gather_rows

ROWS = (5, 3)  # processes may hold batches of other lengths


def inputs() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    return net, torch.randn(sum(ROWS), 6), torch.rand(sum(ROWS), 5)


def loss_of(net: nn.Module, x: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    return SoftRegulariser(temperature=0.5, nearest=3, bottom=4)(
        nn.functional.normalize(net(x), dim=1), rates
    )


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    net, x, rates = inputs()
    rows = slice(0, ROWS[0]) if rank == 0 else slice(ROWS[0], None)
    everyone, start = gather_rows(x[rows])
    assert torch.equal(everyone, x)
    assert start == (0 if rank == 0 else ROWS[0])
    wrapped = nn.parallel.DistributedDataParallel(net)
    value = loss_of(wrapped, x[rows], rates[rows])
    value.backward()  # averages the gradients of both processes
    mean = value.detach() / 2
    dist.all_reduce(mean)
    torch.save(
        {"loss": mean, "gradients": [p.grad for p in net.parameters()]}, f"{folder}/{rank}.pt"
    )
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    mp.start_processes(work, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    net, x, rates = inputs()
    value = loss_of(net, x, rates)
    value.backward()
    for rank in range(2):
        kept = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(kept["loss"], value.detach())
        for gradient, parameter in zip(kept["gradients"], net.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)


def test_a_batch_of_one_site_has_loss_zero_and_no_gradient() -> None:
    z = nn.functional.normalize(torch.ones(1, 4), dim=1).requires_grad_()
    value = SoftRegulariser()(z, torch.rand(1, 5))
    value.backward()
    assert value == 0
    assert z.grad.abs().sum() == 0


def test_the_regulariser_needs_a_neighbour() -> None:
    with pytest.raises(DataError, match="at least 1 nearest site"):
        SoftRegulariser(nearest=0)
