"""Discrepancies between groups of embeddings."""

import pytest
import torch

from butterfly_sdm.errors import DataError
from butterfly_sdm.losses.discrepancy import class_discrepancy, mean_discrepancy


def test_equal_samples_have_no_discrepancy_and_moved_ones_have_their_distance() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert mean_discrepancy(x, x) == 0
    torch.testing.assert_close(
        mean_discrepancy(x, x + torch.tensor([3.0, 4.0, 0.0])), torch.tensor(25.0)
    )
    assert mean_discrepancy(x, x, width=1.0) == pytest.approx(0, abs=1e-6)
    assert mean_discrepancy(x, x + 2, width=1.0) > 0.1


def test_classes_are_compared_across_domains_and_with_one_another() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [1.0, 3.0], [9.0, 9.0]])
    classes, domains = torch.tensor([0, 0, 1, 1, -1]), torch.tensor([0, 1, 0, 1, 0])
    value = class_discrepancy(z, classes, domains)
    assert value.within == pytest.approx(1.0)
    # Pairs of other classes: squared distances 9, 10, 10, 9, each with weight 1/4, counted in both
    # orders, over 2 classes.
    assert value.between == pytest.approx(9.5)


def test_what_cannot_be_compared_is_said() -> None:
    z = torch.zeros(3, 2)
    with pytest.raises(DataError, match="compares two domains; these are 1"):
        class_discrepancy(z, torch.tensor([0, 0, 1]), torch.zeros(3))
    with pytest.raises(DataError, match="No class is in both domains"):
        class_discrepancy(z, torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]))
    with pytest.raises(DataError, match=r"\(n, d\) embeddings"):
        class_discrepancy(z, torch.zeros(2), torch.zeros(3))
    with pytest.raises(DataError, match="vectors of one length"):
        mean_discrepancy(z, torch.zeros(3, 4))
    with pytest.raises(DataError, match="width of the kernel"):
        mean_discrepancy(z, z, width=0)
