"""
The soft form agrees with plain loops, and the log tells a collapsed embedding from one that knows
its labels. Two processes are in ``test_gathering``.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from butterfly_sdm.errors import DataError
from butterfly_sdm.losses.contrastive import SoftRegulariser
from butterfly_sdm.losses.options import RegulariserOptions
from butterfly_sdm.losses.pairs import communities, cosine, soft_targets
from butterfly_sdm.losses.regulariser import Regulariser

SITES, SPECIES = 9, 5
BATCHES = ([0, 3, 5, 8, 1], [2, 0, 7, 4, 6], [5, 1, 8, 3, 0])


def labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    visits = torch.randint(2, 40, (SITES,), generator=generator).float()
    rates = torch.rand(SITES, SPECIES, generator=generator)
    return torch.floor(rates * (visits[:, None] + 1)), visits


def units(rows: int, seed: int, length: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(rows, length, generator=generator), dim=1)


def soft(**change) -> Regulariser:
    return Regulariser(RegulariserOptions(form="soft", **change), *labels(), length=4)


def plain_similarity(prior: float = 2.0) -> list[list[float]]:
    """The communities as the design writes them, species by species."""
    k, n = (value.double().tolist() for value in labels())
    logits = [[0.0] * SPECIES for _ in range(SITES)]
    for s in range(SPECIES):
        mean = sum(k[i][s] for i in range(SITES)) / sum(n)
        mean = min(max(mean, 1e-3), 1 - 1e-3)
        for i in range(SITES):
            p = (k[i][s] + prior * mean) / (n[i] + prior)
            logits[i][s] = math.log(p / (1 - p))
        middle = sum(logits[i][s] for i in range(SITES)) / SITES
        for i in range(SITES):
            logits[i][s] -= middle
    lengths = [math.sqrt(sum(x * x for x in row)) for row in logits]
    return [
        [
            sum(a * b for a, b in zip(logits[i], logits[j], strict=True))
            / (lengths[i] * lengths[j])
            for j in range(SITES)
        ]
        for i in range(SITES)
    ]


def plain_loss(
    anchors: list[list[float]],
    places: list[int],
    references: dict[int, list[float]],
    *,
    sharpness: float = 0.1,
    temperature: float = 0.2,
    prior: float = 2.0,
) -> float:
    """Cross-entropy between the two softmaxes, site by site."""
    alike = plain_similarity(prior)
    total = 0.0
    for z, i in zip(anchors, places, strict=True):
        others = [j for j in references if j != i]
        wanted = [math.exp(alike[i][j] / sharpness) for j in others]
        found = [
            math.exp(sum(a * b for a, b in zip(z, references[j], strict=True)) / temperature)
            for j in others
        ]
        total -= sum(
            w / sum(wanted) * math.log(f / sum(found)) for w, f in zip(wanted, found, strict=True)
        )
    return total / len(places)


@pytest.mark.parametrize(
    "change",
    [{}, {"sharpness": 0.5, "temperature": 1.0}, {"prior_visits": 10.0}],
    ids=["defaults", "softer", "shrunk"],
)
def test_the_soft_form_within_a_batch_agrees_with_plain_loops(change: dict[str, float]) -> None:
    places, z = BATCHES[0], units(5, seed=1)
    value = soft(**change)(z, torch.tensor(places)).loss
    rows = z.double().tolist()
    names = {"sharpness": "sharpness", "temperature": "temperature", "prior_visits": "prior"}
    expected = plain_loss(
        rows,
        places,
        dict(zip(places, rows, strict=True)),
        **{names[key]: number for key, number in change.items()},
    )
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_with_memory_the_references_are_the_last_embeddings_of_all_sites_seen() -> None:
    term = soft(memory=True)
    kept: dict[int, list[float]] = {}
    for number, places in enumerate(BATCHES):
        z = units(5, seed=number)
        rows = z.double().tolist()
        kept |= dict(zip(places, rows, strict=True))
        value = term(z, torch.tensor(places)).loss
        assert value.item() == pytest.approx(plain_loss(rows, places, kept), rel=1e-6)
    assert len(kept) == SITES
    # looking changes nothing
    term.eval()
    before = term.bank.clone()
    term(units(5, seed=9), torch.tensor(BATCHES[0]))
    assert torch.equal(term.bank, before)


def test_its_gradient_is_that_of_the_formula() -> None:
    z = units(5, seed=1).double().requires_grad_()
    alike = torch.tensor(plain_similarity())[BATCHES[0]][:, BATCHES[0]]
    own = torch.eye(5, dtype=torch.bool)
    target = (alike / 0.1).masked_fill(own, -torch.inf).softmax(1)
    log_share = (z @ z.T / 0.2).masked_fill(own, -torch.inf).log_softmax(1).masked_fill(own, 0)
    (-(target * log_share).sum(1).mean()).backward()
    single = z.detach().float().requires_grad_()
    soft()(single, torch.tensor(BATCHES[0])).loss.backward()
    torch.testing.assert_close(single.grad.double(), z.grad, rtol=1e-4, atol=1e-6)


def test_the_published_form_is_the_published_loss_on_rates() -> None:
    detections, visits = labels()
    options = RegulariserOptions(weight=0.1, bottom=3, nearest=2)
    term = Regulariser(options, detections, visits, length=4)
    z, places = units(5, seed=1), torch.tensor(BATCHES[0])
    alone = SoftRegulariser(temperature=0.5, nearest=2, bottom=3)
    expected = alone(z, (detections / visits[:, None])[places])
    assert torch.equal(term(z, places).loss, expected)


def test_targets_share_one_among_the_references_and_leave_the_site_itself_out() -> None:
    similarity = torch.tensor([[1.0, 0.5, 0.5], [0.2, 1.0, 0.2], [0.0, 0.1, 1.0]])
    targets = soft_targets(similarity, sharpness=0.1)
    assert targets[0].tolist() == [0.0, 0.5, 0.5]
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(3))
    e = math.e
    assert targets[2].tolist() == pytest.approx([1 / (1 + e), e / (1 + e), 0.0])
    nobody = soft_targets(similarity, exclude=torch.ones(3, 3, dtype=torch.bool))
    assert nobody.abs().sum() == 0
    with pytest.raises(DataError, match="sharpness of soft targets must be above 0; it is 0"):
        soft_targets(similarity, sharpness=0.0)


def test_few_visits_lie_near_the_mean_and_what_is_unknown_at_it() -> None:
    detections = torch.tensor([[1.0, 4.0], [30.0, 4.0], [0.0, 4.0], [-1.0, 4.0]])
    visits = torch.tensor([1.0, 30.0, 20.0, 20.0])
    p = (communities(detections, visits)[:, 0]).double()
    assert p[1] > p[0] > p[3] > p[2]  # the same rate says more with more visits
    mean = 31 / 51
    expected = [math.log(q / (1 - q)) for q in ((1 + 2 * mean) / 3, mean)]
    assert float(p[0] - p[3]) == pytest.approx(expected[0] - expected[1], rel=1e-5)


def test_what_all_sites_share_makes_none_of_them_alike() -> None:
    k = torch.tensor([[20.0, 9.0, 1.0], [20.0, 1.0, 9.0], [20.0, 9.0, 1.0]])
    n = torch.full((3,), 20.0)
    rates = cosine(communities(k, n, "rates"))
    logit = cosine(communities(k, n))
    assert rates[0, 1] > 0.8
    assert logit[0, 1] < -0.5
    assert logit[0, 2] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("form", ["published", "soft"])
def test_the_log_tells_a_collapsed_embedding(form: str) -> None:
    options = RegulariserOptions(form=form, weight=0.1, nearest=2, bottom=2)
    detections, visits = labels()
    term = Regulariser(options, detections, visits, length=SPECIES)
    places = torch.arange(SITES)
    told = term(units(1, 0, SPECIES).expand(SITES, -1), places)
    assert float(told.above_collapse) == pytest.approx(0.0, abs=1e-5)
    assert float(told.alike) == pytest.approx(1.0)
    assert float(told.unlike) == pytest.approx(1.0)
    # an embedding that is the labels
    vectors = communities(detections, visits, options.similarity)
    told = term(nn.functional.normalize(vectors, dim=1), places)
    assert told.above_collapse < -0.02
    assert told.alike > told.unlike + 0.1


def test_a_site_alone_and_a_batch_of_none_have_loss_zero() -> None:
    term = soft()
    z = units(1, 0).requires_grad_()
    told = term(z, torch.tensor([4]))
    told.loss.backward()
    assert told.loss == 0
    assert told.above_collapse == 0
    assert z.grad.abs().sum() == 0
    told = term(torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.int64))
    told.loss.backward()
    assert told.loss == 0


def test_settings_of_another_form_and_older_settings_keep_their_meaning() -> None:
    old = {"weight": 0.1, "temperature": 0.5, "nearest": 5, "bottom": 32}
    assert RegulariserOptions(**old).model_dump() == old  # nothing newer in what is stored
    assert RegulariserOptions().weight == 0
    chosen = RegulariserOptions(form="soft", bottom=16)
    assert (chosen.layer, chosen.similarity) == ("projection", "logit")
    assert (chosen.weight, chosen.temperature) == (0.3, 0.2)
    assert RegulariserOptions(**chosen.model_dump()) == chosen
    assert RegulariserOptions(form="soft", weight=0.0).weight == 0
    moved = RegulariserOptions(weight=0.1, layer="projection")
    assert RegulariserOptions(**moved.model_dump()) == moved
    with pytest.raises(ValueError, match="memory needs form: soft"):
        RegulariserOptions(memory=True)
