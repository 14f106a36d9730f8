"""The one contrastive loss agrees with independent values and with the plain sum of each paper."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from butterfly_sdm.errors import DataError
from butterfly_sdm.losses import pairs
from butterfly_sdm.losses.contrastive import ContrastiveLoss, SoftRegulariser


def units(n: int, d: int = 6, seed: int = 0) -> Tensor:
    return nn.functional.normalize(
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float32), dim=1
    )


def plain_sum(
    z: Tensor,
    weights: Tensor,
    references: Tensor,
    own: set[tuple[int, int]],
    loss: ContrastiveLoss,
    bottom: list[list[int]] | None = None,
) -> float:
    """The two formulas of the family, written as the papers write them."""
    t = loss.temperature
    s = [
        [sum(a * b for a, b in zip(x, y, strict=True)) for y in references.tolist()]
        for x in z.tolist()
    ]
    w = weights.tolist()
    rows, columns = len(z), len(references)
    terms: list[float] = []
    total, count = 0.0, 0
    for i in range(rows):
        positives = [j for j in range(columns) if (i, j) not in own and w[i][j] > 0]
        if loss.denominator == "others":
            stand = [k for k in range(columns) if (i, k) not in own]
        else:
            stand = [k for k in range(columns) if (i, k) not in own and w[i][k] == 0]
        if not positives or (loss.denominator != "bottom" and not stand):
            continue
        if loss.positives == "inside":
            inner = sum(w[i][j] * math.exp(s[i][j] / t) for j in positives)
            total += math.log(sum(math.exp(s[i][k] / t) for k in stand)) - math.log(inner)
            count += 1
            continue
        terms = []
        for j in positives:
            if bottom is not None:
                below = math.exp(s[i][j] / t) + sum(math.exp(s[i][k] / t) for k in bottom[i])
            else:
                below = sum(math.exp(s[i][k] / t) for k in stand)
            terms.append(w[i][j] * (math.log(below) - s[i][j] / t))
        if loss.reduction == "pairs":
            total, count = total + sum(terms), count + len(terms)
        else:
            divisor = (
                len(positives) if loss.reduction == "anchors" else sum(w[i][j] for j in positives)
            )
            total, count = total + sum(terms) / divisor, count + 1
    return total / max(count, 1)


def reference_cases(shared: Path) -> list[dict]:
    value = json.loads((shared / "reference" / "contrastive.json").read_text())
    return value if isinstance(value, list) else value["cases"]


def reference_loss(case: dict, z: Tensor) -> Tensor:
    if "rates" in case:
        similarity = pairs.cosine(torch.tensor(case["rates"]))
        loss = ContrastiveLoss(
            case["temperature"], denominator="bottom", reduction="pairs", bottom=case["k_bottom"]
        )
        return loss(z, pairs.nearest(similarity, case["k_nearest"]), similarity=similarity)
    if "multi_hot" in case:
        weights = pairs.jaccard(torch.tensor(case["multi_hot"]), threshold=case["threshold"])
    else:
        weights = pairs.same_class(torch.tensor(case["labels"]))
    return ContrastiveLoss(case["temperature"])(z, weights)


@pytest.mark.shared
def test_every_reference_value_and_gradient_holds(shared: Path) -> None:
    cases = reference_cases(shared)
    assert len(cases) >= 7
    for case in cases:
        z = torch.tensor(case["embeddings"], requires_grad=True)
        value = reference_loss(case, z)
        value.backward()
        assert value.item() == pytest.approx(case["loss"], rel=1e-5), case["name"]
        assert z.grad.norm().item() == pytest.approx(case["grad_norm"], rel=1e-4), case["name"]


@pytest.mark.shared
def test_reference_values_hold_under_bf16_autocast(shared: Path) -> None:
    for case in reference_cases(shared):
        z = torch.tensor(case["embeddings"])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = reference_loss(case, z)  # float32 inside: nothing is lost
            # embeddings that arrive in bf16 carry 8 bits
            rounded = reference_loss(case, z.bfloat16())
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(case["loss"], rel=1e-5)
        assert rounded.item() == pytest.approx(case["loss"], rel=0.02)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 7),
    extra=st.integers(0, 4),
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.1, 0.5, 3.0]),
    denominator=st.sampled_from(["others", "negatives", "bottom"]),
    positives=st.sampled_from(["outside", "inside"]),
    reduction=st.sampled_from(["pairs", "anchors", "weights"]),
    duplicates=st.booleans(),
    share=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_any_batch_gives_the_plain_sum(
    n: int,
    extra: int,
    seed: int,
    temperature: float,
    denominator,
    positives,
    reduction,
    duplicates: bool,
    share: float,
) -> None:
    if denominator == "bottom":
        positives = "outside"
    generator = torch.Generator().manual_seed(seed)
    z = units(n, seed=seed)
    if duplicates and n > 1:
        z[1] = z[0]
    references = torch.cat([z, units(extra, seed=seed + 1)]) if extra else None
    columns = n + extra
    weights = torch.rand(n, columns, generator=generator) * (
        torch.rand(n, columns, generator=generator) < share
    )
    similarity = torch.rand(n, columns, generator=generator).round(decimals=1)  # many ties
    loss = ContrastiveLoss(
        temperature,
        denominator=denominator,
        positives=positives,
        reduction=reduction,
        bottom=3,
        without_positives="zero",
    )
    own = {(i, i) for i in range(n)}
    exclude = None
    if references is not None:
        exclude = torch.zeros(n, columns, dtype=torch.bool)
        exclude[:, :n].fill_diagonal_(True)
    bottom = (
        pairs.ranked(similarity, min(3, columns), largest=False).tolist()
        if denominator == "bottom"
        else None
    )
    z = z.requires_grad_()
    value = loss(z, weights, references, similarity=similarity, exclude=exclude)
    expected = plain_sum(
        z.detach(), weights, z.detach() if references is None else references, own, loss, bottom
    )
    assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    value.backward()
    assert torch.isfinite(z.grad).all()


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 8),
    nearest=st.integers(1, 12),
    bottom=st.integers(1, 12),
    seed=st.integers(0, 10**6),
)
def test_the_soft_regulariser_is_finite_for_empty_and_equal_rate_vectors(
    n: int, nearest: int, bottom: int, seed: int
) -> None:
    rates = (torch.rand(n, 4, generator=torch.Generator().manual_seed(seed)) - 0.4).clamp(min=0)
    rates[0] = 0
    rates[-1] = rates[n // 2]
    similarity = pairs.cosine(rates)
    loss = ContrastiveLoss(
        0.5, denominator="bottom", reduction="pairs", bottom=bottom, without_positives="zero"
    )
    z = units(n, seed=seed).requires_grad_()
    value = loss(z, pairs.nearest(similarity, nearest), similarity=similarity)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 12),
    nearest=st.integers(1, 14),
    bottom=st.integers(1, 14),
    seed=st.integers(0, 10**6),
)
def test_the_regulariser_is_the_one_loss_on_fewer_pairs(
    n: int, nearest: int, bottom: int, seed: int
) -> None:
    rates = (torch.rand(n, 4, generator=torch.Generator().manual_seed(seed)) - 0.3).clamp(min=0)
    similarity = pairs.cosine(rates)
    loss = ContrastiveLoss(
        0.5, denominator="bottom", reduction="pairs", bottom=bottom, without_positives="zero"
    )
    first, second = units(n, seed=seed).requires_grad_(), units(n, seed=seed).requires_grad_()
    whole = loss(first, pairs.nearest(similarity, nearest), similarity=similarity)
    fewer = SoftRegulariser(temperature=0.5, nearest=nearest, bottom=bottom)(second, rates)
    (whole.backward(), fewer.backward())
    torch.testing.assert_close(fewer, whole)
    torch.testing.assert_close(second.grad, first.grad)


@pytest.mark.shared
def test_the_regulariser_gives_the_reference_values(shared: Path) -> None:
    for case in reference_cases(shared):
        if "rates" in case:
            z = torch.tensor(case["embeddings"], requires_grad=True)
            term = SoftRegulariser(
                temperature=case["temperature"], nearest=case["k_nearest"], bottom=case["k_bottom"]
            )
            value = term(z, torch.tensor(case["rates"]))
            value.backward()
            assert value.item() == pytest.approx(case["loss"], rel=1e-5), case["name"]
            assert z.grad.norm().item() == pytest.approx(case["grad_norm"], rel=1e-4), case["name"]


def test_rows_against_other_embeddings_count_every_reference() -> None:
    z, memory = units(3), units(5, seed=1)
    weights = pairs.same_class(torch.tensor([0, 1, 9]), torch.tensor([0, 0, 1, 2, 1]))
    loss = ContrastiveLoss(0.2)
    assert loss(z, weights, memory).item() == pytest.approx(
        plain_sum(z, weights, memory, set(), loss), rel=1e-5
    )


def test_a_sample_may_count_as_its_own_positive_where_a_method_wants_it() -> None:
    z = units(4)
    weights = pairs.same_class(torch.tensor([0, 0, 1, 1]))
    loss = ContrastiveLoss(0.05, denominator="negatives", positives="inside")
    value = loss(z, weights, exclude=torch.zeros(4, 4, dtype=torch.bool))
    assert value.item() == pytest.approx(plain_sum(z, weights, z, set(), loss), rel=1e-5)


def test_the_parts_of_a_batch_add_up_to_the_whole() -> None:
    z, rates = units(9), torch.rand(9, 5, generator=torch.Generator().manual_seed(3))
    similarity = pairs.cosine(rates)
    weights = pairs.nearest(similarity, 3)
    loss = ContrastiveLoss(0.5, denominator="bottom", reduction="pairs", bottom=4)
    parts = [
        loss.terms(z[rows], weights[rows], z, similarity=similarity[rows])
        for rows in (slice(0, 2), slice(2, 9))
    ]
    total, count = (sum(part) for part in zip(*parts, strict=True))
    torch.testing.assert_close(total / count, loss(z, weights, similarity=similarity))


def test_what_is_wrong_is_said() -> None:
    z, weights = units(3), torch.ones(3, 3)
    with pytest.raises(DataError, match="temperature must be above 0; it is 0"):
        ContrastiveLoss(0)
    with pytest.raises(
        DataError, match="denominator is one of others, bottom, negatives; 'all' is none"
    ):
        ContrastiveLoss(1, denominator="all")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the positives stand outside"):
        ContrastiveLoss(1, denominator="bottom", positives="inside")
    with pytest.raises(DataError, match="needs at least 1 reference"):
        ContrastiveLoss(1, denominator="bottom", bottom=0)
    with pytest.raises(DataError, match=r"at least 0; the least is -1"):
        ContrastiveLoss(1)(z, -weights)
    with pytest.raises(
        DataError, match=r"The weights have shape \(3, 2\); these embeddings need \(3, 3\)"
    ):
        ContrastiveLoss(1)(z, weights[:, :2])
    with pytest.raises(DataError, match="the same length on both sides"):
        ContrastiveLoss(1)(z, weights, units(3, d=4))
    with pytest.raises(DataError, match=r"pass similarity, such as pairs.cosine"):
        ContrastiveLoss(1, denominator="bottom")(z, weights)
    with pytest.raises(DataError, match="No pair of the batch has a weight"):
        ContrastiveLoss(1)(z, torch.eye(3))
