"""
Domain adaptation: the identity of the paper, discrepancies of hand cases, data layouts, bad inputs,
and that it adapts.
"""

import numpy as np
import pandas as pd
import pytest
import torch

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import ConfigError, DataError, MissingFileError
from butterfly_sdm.losses.contrastive import ContrastiveLoss
from butterfly_sdm.losses.pairs import same_class
from butterfly_sdm.plugins.cmmd.method import Cmmd
from butterfly_sdm.plugins.cmmd.phantoms import phantoms
from butterfly_sdm.plugins.cmmd.separation import class_means, separation
from butterfly_sdm.plugins.contract import PluginRun
from butterfly_sdm.plugins.networks import unit
from butterfly_sdm.plugins.runner import evaluate, train

from . import made


def _clouds(n, seed=0):
    """Embeddings of 2 classes x 2 domains, a quarter of n each."""
    torch.manual_seed(seed)
    label, domain = torch.arange(n) % 2, torch.arange(n) // 2 % 2
    centre = torch.randn(2, 1, 6) + 0.4 * torch.randn(2, 2, 6)
    return unit(centre[label, domain] + 0.7 * torch.randn(n, 6)), label, domain


def _infinite_temperature_limit(z, labels, domains, classes):
    """
    Return what T (L - log(N - 1)) of the supervised contrastive loss tends to as T grows.

    With class shares p_c and domain shares p_0, p_1 that are the same in every class::

        p_0 p_1 sum_c p_c ||mu_c^0 - mu_c^1||^2 - sum_c p_c sum_d p_d ||mu_c^d||^2 + ||mu||^2
    """
    z = z.double()
    means = class_means(z, labels, domains, classes)
    p_class = torch.bincount(labels, minlength=classes).double() / len(z)  # (c,)
    p_domain = torch.bincount(domains, minlength=2).double() / len(z)  # (2,)
    apart = (means[:, 0] - means[:, 1]).square().sum(dim=1)  # (c,)
    norms = (means.square().sum(dim=2) * p_domain).sum(dim=1)  # (c,)
    value = (
        p_domain[0] * p_domain[1] * (p_class * apart).sum()
        - (p_class * norms).sum()
        + z.mean(dim=0).square().sum()
    )
    return float(value)


def test_the_contrastive_loss_tends_to_the_discrepancies_as_the_temperature_grows():
    z, label, domain = _clouds(2000)
    limit = _infinite_temperature_limit(z, label, domain, 2)
    temperature = 1000.0
    # The loss differs from log(N - 1) in the fourth digit: float32 would drown it.
    logits = z.double() @ z.double().T / temperature
    loss = float(ContrastiveLoss(temperature)(z, same_class(label)))
    logits.fill_diagonal_(-torch.inf)
    log_prob = logits - logits.logsumexp(dim=1, keepdim=True)
    positive = (label[:, None] == label).fill_diagonal_(False)
    exact = -float((log_prob.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1)).mean())
    assert loss == pytest.approx(exact, rel=1e-5)
    assert temperature * (exact - np.log(len(z) - 1)) == pytest.approx(limit, rel=0.01)


def test_discrepancies_of_hand_cases():
    label, domain = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    agreeing = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    found = separation(agreeing, label, domain, 2)
    assert (found.cmmd2, found.dcmmd2, found.ratio) == (0.0, 2.0, 0.0)
    swapped = torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0]])
    found = separation(swapped, label, domain, 2)
    # Each class is sqrt 2 apart; of the four domain pairs between classes two coincide.
    assert (found.cmmd2, found.dcmmd2) == (2.0, 1.0)
    collapsed = separation(torch.ones(4, 2), label, domain, 2)
    assert (collapsed.cmmd2, collapsed.ratio) == (0.0, float("inf"))


def test_rows_without_a_label_do_not_count_and_an_empty_domain_is_named():
    z, label, domain = _clouds(40)
    more = torch.cat([z, unit(torch.randn(5, 6))])
    unknown = torch.cat([label, torch.full((5,), -1)])
    assert separation(
        more, unknown, torch.cat([domain, torch.ones(5, dtype=torch.long)]), 2
    ) == separation(z, label, domain, 2)
    with pytest.raises(DataError, match="Class 1 has no labelled row in the target domain"):
        separation(z, torch.where((label == 1) & (domain == 1), 0, label), domain, 2)


def test_phantoms_have_three_classes_and_two_tone_curves():
    images, labels, domains = phantoms(6, 64, seed=0)
    again, _, _ = phantoms(6, 64, seed=0)
    assert images.shape == (36, 1, 64, 64) and images.dtype == np.uint8
    np.testing.assert_array_equal(images, again)
    assert np.bincount(labels).tolist() == [12, 12, 12] and np.bincount(domains).tolist() == [
        18,
        18,
    ]
    # x = 127.5 maps to 210, so the second scanner is brighter in the middle tones.
    assert np.median(images[domains == 1]) > np.median(images[domains == 0]) + 20


def _config(table, **changes):
    value = {
        "accelerator": "cpu",
        "size_px": 16,
        "trunk": "small:4",
        "sources": [{"path": str(table)}],
        "batch_size": 32,
        "fractions": [0.5, 0.25, 0.25],
        "learning_rate": 0.02,
        "epochs": 25,
        "head_epochs": 20,
        "head_learning_rate": 0.05,
        "balance_domains": True,
    }
    return load_settings(Cmmd.config, value | changes)[0]


def test_classes_come_together_across_scanners(tmp_path):
    table = made.scanners(tmp_path / "data", count=16)
    adapted = evaluate(train(Cmmd(), "cmmd", _config(table, epochs=20), tmp_path / "run"))
    assert adapted.metrics["target_accuracy"] >= 0.9
    assert adapted.metrics["target_patient_accuracy"] >= 0.9  # two images of each
    assert adapted.metrics["cmmd_ratio"] < 0.3
    assert (tmp_path / "run" / "discrepancy.png").is_file()
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert {"cmmd", "dcmmd", "cmmd_ratio"} <= set(history.columns)


def test_the_trunk_is_bit_identical_after_the_head_was_trained(tmp_path):
    table = made.scanners(tmp_path / "data")
    runs = [
        train(Cmmd(), "cmmd", _config(table, epochs=2, head_epochs=epochs), tmp_path / str(epochs))
        for epochs in (1, 3)
    ]
    first, second = (run.model().trunk.state_dict() for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_target_labels_may_be_missing_in_training(tmp_path):
    table = made.scanners(tmp_path / "data", count=16)
    rows = pd.read_csv(table)
    rows["split"] = np.resize(["train", "validation", "train", "test"], len(rows))
    rows = rows.drop(columns="patient")
    rows.loc[(rows["domain"] == "beta") & (rows["split"] == "train"), "label"] = None
    rows.to_csv(table, index=False)
    config = _config(table, epochs=2)
    data = Cmmd().load(config)
    rows = data.rows("train")
    assert (data.label[rows[data.domain[rows] == 1]] == -1).all()
    assert (
        0
        <= evaluate(train(Cmmd(), "cmmd", config, tmp_path / "run")).metrics["target_accuracy"]
        <= 1
    )


def test_patients_stay_in_one_part(tmp_path):
    data = Cmmd().load(_config(made.scanners(tmp_path / "data")))
    assert (data.table.groupby("patient")["split"].nunique() == 1).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda t: t.assign(domain="alpha"),
            "needs a source and a target; the data have the domains alpha",
        ),
        (lambda t: t.assign(label="one"), "The labels are all 'one'"),
        (
            lambda t: t.assign(domain=np.resize(["a", "b", "c"], len(t))),
            r"domains a, b, c\. Name one as target",
        ),
        (
            lambda t: t[(t.domain == "alpha") | (t.label == "level")],
            "of the target domain has no image of class 'upright'",
        ),
        (lambda t: t.drop(columns="domain"), "does not say of which domain"),
        (lambda t: t.assign(domain=[None, *t.domain[1:]]), r"0_0\.png has no domain\. Fill in"),
    ],
)
def test_bad_tables_are_explained(spoil, message, tmp_path):
    table = made.scanners(tmp_path / "data")
    spoil(pd.read_csv(table)).to_csv(table, index=False)
    with pytest.raises((DataError, ConfigError), match=message):
        Cmmd().load(_config(table))


def test_vindr_and_cbis_layouts_are_read(tmp_path):
    vindr = tmp_path / "vindr"
    vindr.mkdir()
    pd.DataFrame(
        {
            "study_id": ["s1", "s2"],
            "image_id": ["i1", "i2"],
            "breast_birads": ["BI-RADS 1", "BI-RADS 4"],
            "split": "training",
        }
    ).to_csv(vindr / "breast-level_annotations.csv", index=False)
    pd.DataFrame({"SOP Instance UID": ["i2", "i1"], "Manufacturer": ["SIEMENS", "IMS"]}).to_csv(
        vindr / "metadata.csv", index=False
    )
    from butterfly_sdm.plugins.cmmd import sources

    table = sources.vindr(vindr)
    assert table["domain"].tolist() == ["IMS", "SIEMENS"] and table["patient"].tolist() == [
        "s1",
        "s2",
    ]
    assert table["path"][0].endswith("images/s1/i1.dicom")

    cbis = tmp_path / "cbis"
    cbis.mkdir()
    pd.DataFrame(
        {
            "patient_id": ["p1", "p1", "p2"],
            "pathology": ["BENIGN_WITHOUT_CALLBACK", "MALIGNANT", "BENIGN"],
            "image file path": ["a/1.dcm", "a/1.dcm", "b/1.dcm"],
        }
    ).to_csv(cbis / "mass_case_description_train_set.csv", index=False)
    table = sources.cbis(cbis)
    # the image with two findings counts once
    assert table["label"].tolist() == [
        "malignant",
        "benign",
    ]
    with pytest.raises(MissingFileError, match=r"holds no .*_case_description"):
        sources.cbis(vindr)
    with pytest.raises(MissingFileError, match=r"There is no breast-level_annotations\.csv"):
        sources.vindr(cbis)


def test_synthetic_mammograms_need_no_files(tmp_path):
    config = _config(
        "unused", sources=[{"layout": "synthetic", "count": 8}], size_px=32, epochs=1, head_epochs=1
    )
    run = train(Cmmd(), "cmmd", config, tmp_path / "run")
    assert set(PluginRun.open(Cmmd(), "cmmd", run.folder).facts["classes"]) == {
        "calcification",
        "mass",
        "normal",
    }
    with pytest.raises(ConfigError, match="Synthetic mammograms stand alone"):
        Cmmd().load(_config("unused", sources=[{"layout": "synthetic"}, {"path": "a.csv"}]))


def test_a_source_without_domain_is_told_to_state_one(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.uint8), labels=np.arange(2))
    (tmp_path / "a.csv").write_text("path,label\n1.png,normal\n")
    for place in ("a.npz", "a.csv"):
        config = _config("unused", sources=[{"path": str(tmp_path / place)}])
        with pytest.raises(DataError, match=r"which domain.*domain: NAME"):
            Cmmd().load(config)


def test_evaluating_on_other_data_than_the_training_is_refused(finished):
    _, run = finished("cmmd")
    other = run.config.model_copy(update={"labels": {"level": "flat"}})
    with pytest.raises(DataError, match="differ from those the run was trained on in: classes"):
        evaluate(PluginRun.open(Cmmd(), "cmmd", run.folder, other))
