"""Pair weights: which pairs attract, and how much."""

import pytest
import torch

from butterfly_sdm.errors import DataError
from butterfly_sdm.losses import pairs


def test_the_same_class_attracts_and_an_unknown_class_attracts_nothing() -> None:
    weights = pairs.same_class(torch.tensor([2, -1, 2, 0, -1]))
    assert weights.nonzero().tolist() == [[0, 0], [0, 2], [2, 0], [2, 2], [3, 3]]


def test_classes_of_rows_attract_those_of_references() -> None:
    assert pairs.same_class(torch.tensor([0, 1]), torch.tensor([1, 1, 0])).tolist() == [
        [0, 0, 1],
        [1, 1, 0],
    ]


def test_jaccard_is_intersection_over_union_from_the_threshold_on() -> None:
    labels = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 0], [0, 0, 0]])
    plain = pairs.jaccard(labels)
    torch.testing.assert_close(plain[0], torch.tensor([1.0, 1 / 3, 1.0, 0.0]))
    assert plain[3].tolist() == [0, 0, 0, 0]
    assert pairs.jaccard(labels, threshold=1 / 3)[0, 1] > 0
    assert pairs.jaccard(labels, threshold=0.4)[0].tolist() == [1, 0, 1, 0]


def test_the_cosine_of_a_site_without_any_detection_is_zero() -> None:
    similarity = pairs.cosine(torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]]))
    torch.testing.assert_close(
        similarity, torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    )


def test_nearest_keeps_the_squared_similarity_of_the_k_nearest_other_rows() -> None:
    similarity = torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, 0.4], [0.2, 0.4, 1.0]])
    torch.testing.assert_close(
        pairs.nearest(similarity, 1),
        torch.tensor([[0.0, 0.25, 0.0], [0.25, 0.0, 0.0], [0.0, 0.16, 0.0]]),
    )


def test_more_neighbours_than_rows_means_all_of_them_and_never_the_row_itself() -> None:
    weights = pairs.nearest(torch.full((3, 3), 0.5), 99)
    assert (weights > 0).sum(dim=1).tolist() == [2, 2, 2]
    assert weights.diagonal().tolist() == [0, 0, 0]
    assert pairs.nearest(torch.ones(1, 1), 5).tolist() == [[0.0]]


def test_labels_of_other_length_are_refused() -> None:
    with pytest.raises(DataError, match="the same labels on both sides"):
        pairs.cosine(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(DataError, match="one number per sample"):
        pairs.same_class(torch.ones(2, 3))
    with pytest.raises(DataError, match="At least 1 nearest"):
        pairs.nearest(torch.ones(2, 2), 0)
    with pytest.raises(DataError, match=r"lies in \[0, 1\]"):
        pairs.jaccard(torch.ones(2, 2), threshold=2)
