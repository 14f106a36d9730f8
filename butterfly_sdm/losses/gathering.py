"""Join the batches of all processes, with gradients."""

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """Return the number of processes that train together; 1 without distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of ``value`` over all processes, without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """
    Return the rows of all processes, in the order of their ranks, and where those of this process
    begin.

    Gradients flow back to the process a row came from, summed over all processes. Batches may
    differ in length.
    """
    if world_size() == 1:
        return rows, 0
    from torch.distributed.nn.functional import all_gather  # absent where torch lacks distributed

    lengths = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor(len(rows), device=rows.device))
    sizes = [int(length) for length in lengths]
    padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])])
    parts = all_gather(padded)  # type: ignore[no-untyped-call]
    joined = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return joined, sum(sizes[: dist.get_rank()])
