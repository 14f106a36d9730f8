"""
The soft contrastive regulariser, forward and backward, next to a loop over rows and to two bare
matrix products.

    python benchmarks/contrastive.py [--size small|full] [--threads N]

All candidates of a batch size are run in turn within one process; values and gradients are compared
before anything is timed.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from butterfly_sdm.losses.contrastive import SoftRegulariser

NEAREST, BOTTOM, TEMPERATURE = 5, 32, 0.5


def row_loop(z: Tensor, rates: Tensor) -> Tensor:
    """The formula row by row, as it is usually written first."""
    n = len(z)
    unit = nn.functional.normalize(rates, dim=1)
    similarity = unit @ unit.T
    logits = z @ z.T / TEMPERATURE
    total, pairs = z.new_zeros(()), 0
    for i in range(n):
        others = similarity[i].clone()
        others[i] = -torch.inf
        near = others.topk(min(NEAREST, n - 1)).indices
        far = similarity[i].topk(min(BOTTOM, n), largest=False).indices
        below = torch.exp(logits[i, far]).sum()
        for j in near:
            weight = similarity[i, j] ** 2
            if weight > 0:
                total = total - weight * torch.log(
                    torch.exp(logits[i, j]) / (torch.exp(logits[i, j]) + below)
                )
                pairs += 1
    return total / pairs


def two_products(z: Tensor, rates: Tensor) -> Tensor:
    """
    Two matrix products of the same shape: what no exact implementation over a full matrix can
    undercut by much.
    """
    s = z.detach() @ z.detach().T
    return (s @ z.detach()).sum()


def seconds(action: Callable[[], object], least: float) -> float:
    start = time.perf_counter()
    runs = 0
    while runs < 1 or time.perf_counter() - start < least:
        action()
        runs += 1
    return (time.perf_counter() - start) / runs


def gradient(
    loss: Callable[[Tensor, Tensor], Tensor], z: Tensor, rates: Tensor
) -> tuple[Tensor, Tensor]:
    z = z.detach().clone().requires_grad_()
    value = loss(z, rates)
    value.backward()
    assert z.grad is not None
    return value.detach(), z.grad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    loss = SoftRegulariser(temperature=TEMPERATURE, nearest=NEAREST, bottom=BOTTOM)
    print(
        f"batch  loop_ms  ours_ms  products_ms  loop/ours  ours/products   ({arguments.threads} "
        "thread, d 256, 62 species)"
    )
    for n in (64, 256) if arguments.size == "small" else (64, 256, 1024, 4096):
        generator = torch.Generator().manual_seed(n)
        z = nn.functional.normalize(torch.randn(n, 256, generator=generator), dim=1)
        rates = torch.rand(n, 62, generator=generator) ** 3
        # at 4,096 the loop takes minutes; its time is not shown rather than guessed
        with_loop = n <= 1024
        if with_loop:
            expected, ours = gradient(row_loop, z, rates), gradient(loss, z, rates)
            torch.testing.assert_close(ours[0], expected[0], rtol=2e-6, atol=0)
            difference = (ours[1] - expected[1]).abs().max() / expected[1].abs().max()
            assert difference < 1e-5, f"gradients differ by {difference:.1e} of the largest"
        times: dict[str, list[float]] = {"loop": [], "ours": [], "products": []}
        for _ in range(3):
            times["ours"].append(seconds(lambda z=z, r=rates: gradient(loss, z, r), 0.2))
            times["products"].append(seconds(lambda z=z, r=rates: two_products(z, r), 0.2))
            if with_loop:
                times["loop"].append(seconds(lambda z=z, r=rates: gradient(row_loop, z, r), 0.0))
        loop, ours_s, products = (
            statistics.median(times[name]) if times[name] else float("nan") for name in times
        )
        cells = f"{n:5d} {loop * 1e3:8.1f} {ours_s * 1e3:8.2f} {products * 1e3:12.2f}"
        print(f"{cells} {loop / ours_s:10.0f} {ours_s / products:14.1f}", flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
