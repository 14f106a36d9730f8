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
from butterfly_sdm.losses.options import RegulariserOptions
from butterfly_sdm.losses.regulariser import Regulariser

ROWS = (5, 3)  # processes may hold batches of other lengths
SOFT_BATCHES = ([0, 3, 5, 7, 1], [2, 0, 7, 4, 6], [5, 1, 6, 3, 0])


def inputs() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    return net, torch.randn(sum(ROWS), 6), torch.rand(sum(ROWS), 5)


def loss_of(net: nn.Module, x: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    return SoftRegulariser(temperature=0.5, nearest=3, bottom=4)(
        nn.functional.normalize(net(x), dim=1), rates
    )


def soft_fit(memory: bool) -> tuple[nn.Module, Regulariser, torch.Tensor]:
    net, x, rates = inputs()
    generator = torch.Generator().manual_seed(3)
    visits = torch.randint(2, 40, (len(x),), generator=generator).float()
    options = RegulariserOptions(form="soft", memory=memory)
    return net, Regulariser(options, torch.floor(rates * visits[:, None]), visits, length=4), x


def soft_steps(
    net: nn.Module, term: Regulariser, x: torch.Tensor, mine: slice
) -> list[torch.Tensor]:
    """Three steps of a fit; what a later one compares with follows from those before."""
    losses = []
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for places in SOFT_BATCHES:
        own = torch.tensor(places)[mine]
        value = term(nn.functional.normalize(net(x[own]), dim=1), own).loss
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.detach())
    return losses


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
    for memory in (False, True):
        net, term, x = soft_fit(memory)
        wrapped = nn.parallel.DistributedDataParallel(net)
        mine = slice(0, 3) if rank == 0 else slice(3, None)
        losses = torch.stack(soft_steps(wrapped, term, x, mine)) / 2
        dist.all_reduce(losses)
        kept = {"losses": losses, "bank": term.bank, "weights": net.state_dict()}
        torch.save(kept, f"{folder}/soft{memory}{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """What two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    mp.start_processes(work, args=(str(folder),), nprocs=2, start_method="spawn")
    return folder


def test_two_processes_give_the_loss_and_gradients_of_one(both: Path) -> None:
    net, x, rates = inputs()
    value = loss_of(net, x, rates)
    value.backward()
    for rank in range(2):
        kept = torch.load(both / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(kept["loss"], value.detach())
        for gradient, parameter in zip(kept["gradients"], net.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("memory", [False, True])
def test_two_processes_fit_the_soft_form_as_one(both: Path, memory: bool) -> None:
    net, term, x = soft_fit(memory)
    losses = torch.stack(soft_steps(net, term, x, slice(None)))
    for rank in range(2):
        kept = torch.load(both / f"soft{memory}{rank}.pt", weights_only=True)
        torch.testing.assert_close(kept["losses"], losses, rtol=0, atol=1e-6)
        torch.testing.assert_close(kept["bank"], term.bank, rtol=0, atol=1e-6)
        for name, value in net.state_dict().items():
            torch.testing.assert_close(kept["weights"][name], value, rtol=0, atol=1e-6)


def test_a_batch_of_one_site_has_loss_zero_and_no_gradient() -> None:
    z = nn.functional.normalize(torch.ones(1, 4), dim=1).requires_grad_()
    value = SoftRegulariser()(z, torch.rand(1, 5))
    value.backward()
    assert value == 0
    assert z.grad.abs().sum() == 0


def test_the_regulariser_needs_a_neighbour() -> None:
    with pytest.raises(DataError, match="at least 1 nearest site"):
        SoftRegulariser(nearest=0)
