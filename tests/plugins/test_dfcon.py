"""
Deepfakes: the votes by hand, frozen weights, layouts, balance, self-blended faces, bad inputs.
"""

import numpy as np
import pandas as pd
import pytest
import torch

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import ConfigError, DataError
from butterfly_sdm.plugins.dfcon.blending import self_blend
from butterfly_sdm.plugins.dfcon.method import Dfcon, face_scores
from butterfly_sdm.plugins.dfcon.votes import hard_vote, soft_vote
from butterfly_sdm.plugins.runner import evaluate, predict, train

from . import made


def test_two_of_three_win_and_even_counts_fall_back_to_the_mean():
    three = np.array([[0.9, 0.4, 0.6], [0.8, 0.45, 0.1], [0.1, 0.99, 0.2]])
    assert hard_vote(three).tolist() == [True, False, False]
    # the second face: the mean says real, the votes fake
    assert soft_vote(three).round(3).tolist() == [
        0.6,
        0.613,
        0.3,
    ]
    assert hard_vote(np.array([[0.9, 0.9], [0.2, 0.05]])).tolist() == [True, False]
    assert hard_vote(np.array([[0.5]])).tolist() == [True]


def test_scores_of_hand_cases():
    found = face_scores(np.array([1, 1, 1, 0]), np.array([0.9, 0.8, 0.3, 0.1]))
    assert found["accuracy"] == 0.75 and found["balanced_accuracy"] == pytest.approx(
        (2 / 3 + 1) / 2
    )
    assert found["auc"] == 1.0 and found["equal_error_rate"] == 0.0


def _config(data, **changes):
    value = {
        "accelerator": "cpu",
        "size_px": 32,
        "data": str(data),
        "epochs": 6,
        "head_epochs": 20,
        "head_learning_rate": 0.02,
        "backbones": {
            name: {"model": f"small:{width}", "weights": None}
            for name, width in (("a", 4), ("b", 5), ("c", 6))
        },
        "projection": 16,
        "batch_size": 16,
        "learning_rate": 0.01,
        "fractions": [0.6, 0.2, 0.2],
    }
    return load_settings(Dfcon.config, value | changes)[0]


def test_the_ensemble_tells_fakes_and_scores_every_member(tmp_path):
    run = train(
        Dfcon(),
        "dfcon",
        _config(made.faces(tmp_path / "data"), epochs=3),
        tmp_path / "run",
    )
    report = evaluate(run)
    assert report.tables["scores"]["model"].tolist() == ["a", "b", "c", "soft_vote", "hard_vote"]
    assert report.metrics["soft_vote_auc"] >= 0.95
    table = pd.read_csv(predict(run, tmp_path / "data" / "0"))
    np.testing.assert_allclose(
        table["score"], table[["score_a", "score_b", "score_c"]].mean(axis=1)
    )
    label = np.array(["fake"] * 3 + ["real"] * 3)
    assert (table["vote"] == label).mean() >= 5 / 6


def test_backbone_and_projection_are_bit_identical_after_the_head_was_trained(tmp_path):
    table = made.faces(tmp_path / "data")
    one = {"a": {"model": "small:4", "weights": None}}
    models = [
        train(
            Dfcon(),
            "dfcon",
            _config(table, epochs=2, head=head, backbones=one),
            tmp_path / head,
        ).model("a")
        for head in ("adam", "converged")
    ]
    first, second = (model.state_dict() for model in models)
    moved = {name.partition(".")[0] for name in first if not torch.equal(first[name], second[name])}
    assert moved == {"head"}


def test_a_member_has_epochs_and_a_rate_of_its_own(tmp_path):
    own = {"model": "small:4", "weights": None, "epochs": 3, "learning_rate": 0.001}
    config = _config(
        tmp_path, backbones={"a": {"model": "small:4", "weights": None}, "b": own}, warmup_epochs=1
    )
    data = Dfcon().load(_config(made.faces(tmp_path / "data")))
    stages = {
        part: Dfcon().stages(config, data, Dfcon().build(config, data.facts, part), part)
        for part in ("a", "b")
    }
    weight = [torch.nn.Parameter(torch.zeros(1))]
    assert [
        (stages[part][0].epochs, stages[part][0].optimizer(weight).param_groups[0]["lr"])
        for part in ("a", "b")
    ] == [
        (6, 0.01),
        (3, 0.001),
    ]
    assert [stages["b"][0].rate(epoch) for epoch in range(3)] == [0.5, 1.0, 1.0]
    falling = config.model_copy(update={"decay": "cosine"})
    stage = Dfcon().stages(falling, data, Dfcon().build(config, data.facts, "b"), "b")[0]
    assert [stage.rate(epoch) for epoch in range(3)] == pytest.approx([0.5, 0.75, 0.25])


def test_training_continues_with_the_backbone_that_was_interrupted(tmp_path):
    config = _config(made.faces(tmp_path / "data"), epochs=1, head_epochs=1)

    def stop(task, done, total):
        if task == "b: head":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Dfcon(), "dfcon", config, tmp_path / "run", progress=stop)
    done = tmp_path / "run.partial" / "a.safetensors"
    written = done.stat().st_mtime_ns
    tasks = []
    train(
        Dfcon(),
        "dfcon",
        config,
        tmp_path / "run",
        progress=lambda task, done, total: tasks.append(task),
    )
    assert tasks == ["c: representation", "c: head"]
    assert (tmp_path / "run" / "a.safetensors").stat().st_mtime_ns == written


def test_people_stay_in_one_part(tmp_path):
    data = Dfcon().load(_config(made.faces(tmp_path / "data")))
    assert (data.table.groupby("group")["split"].nunique() == 1).all()


@pytest.mark.parametrize("layout", ["{part}_{label}", "{part}/{label}"])
def test_folders_of_the_challenge_are_read(layout, tmp_path):
    for part in ("train", "valid"):
        for label in ("real", "fake"):
            for number in range(2):
                made.save(
                    tmp_path / layout.format(part=part, label=label) / f"{number}.png",
                    np.zeros((8, 8)),
                )
    data = Dfcon().load(_config(tmp_path))
    assert data.table["split"].tolist() == ["train"] * 4 + ["test"] * 4
    assert data.label.tolist() == [0, 0, 1, 1] * 2


def test_bad_inputs_are_explained(tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        Dfcon().load(_config(tmp_path))
    made.save(tmp_path / "plain" / "0.png", np.zeros((8, 8)))
    with pytest.raises(DataError, match=r"'label' is needed too\. Put them into folders named by"):
        Dfcon().load(_config(tmp_path / "plain"))
    table = made.faces(tmp_path / "data")
    rows = pd.read_csv(table)
    rows.assign(label="swapped").to_csv(tmp_path / "data" / "wrong.csv", index=False)
    with pytest.raises(DataError, match="The label 'swapped' is unknown; faces are real"):
        Dfcon().load(_config(tmp_path / "data" / "wrong.csv"))
    rows[rows["label"] == "real"].to_csv(tmp_path / "data" / "one.csv", index=False)
    with pytest.raises(DataError, match="The train part has only real faces"):
        Dfcon().load(_config(tmp_path / "data" / "one.csv"))
    with pytest.raises(ConfigError, match="A backbone is called 'a b'"):
        Dfcon().parts(_config(table, backbones={"a b": {"model": "small:4", "weights": None}}))


def test_a_self_blended_face_differs_inside_an_ellipse_only():
    y, x = np.mgrid[:64, :64]
    face = (120 + 40 * np.sin(x / 5) + 30 * np.cos(y / 7)).astype(np.uint8)
    fake = self_blend(face, np.random.default_rng(0))
    assert fake.shape == face.shape and fake.dtype == np.uint8
    changed = np.abs(fake.astype(int) - face) > 2
    assert changed[28:40, 28:40].mean() > 0.5
    border = np.ones((64, 64), bool)
    border[4:-4, 4:-4] = False
    assert not changed[border].any()
    np.testing.assert_array_equal(fake, self_blend(face, np.random.default_rng(0)))
    assert self_blend(np.repeat(face[..., None], 3, axis=2), np.random.default_rng(1)).shape == (
        64,
        64,
        3,
    )


def test_the_published_backbones_are_models_of_timm():
    import timm

    for member in load_settings(Dfcon.config, {"data": "x.csv"})[0].backbones.values():
        assert timm.is_model(member.model)
