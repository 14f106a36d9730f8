"""
Backdoor defence: permutation, counting, formulas, models read without pickle, bad inputs, and that
it defends.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import ConfigError, DataError, ModelError
from butterfly_sdm.losses.contrastive import ContrastiveLoss
from butterfly_sdm.losses.pairs import same_class
from butterfly_sdm.plugins.networks import unit
from butterfly_sdm.plugins.refine import method
from butterfly_sdm.plugins.refine.method import Refine, load_defended
from butterfly_sdm.plugins.refine.network import (
    DefendedClassifier,
    FixedClassifier,
    UNet,
    check_classifier,
    derangement,
    load_classifier,
)
from butterfly_sdm.plugins.refine.triggers import backdoor_rates, stamp_blend, stamp_patch
from butterfly_sdm.plugins.runner import evaluate, predict, train

from .conftest import Stripes, settings_of, striped_classifier


@given(st.integers(2, 12), st.integers(0, 20))
def test_the_permutation_has_no_fixed_point(classes, seed):
    drawn = derangement(classes, seed)
    assert sorted(drawn) == list(range(classes))
    assert all(place != number for number, place in enumerate(drawn))


def test_the_output_is_remapped_as_the_paper_writes_it():
    class Known(nn.Module):
        def forward(self, images):
            return torch.log(torch.tensor([[0.7, 0.2, 0.1]])).repeat(len(images), 1)

    permutation = [1, 2, 0]
    q = DefendedClassifier(nn.Identity(), Known(), permutation)(torch.zeros(1, 1, 16, 16))[0]
    for j, p in enumerate((0.7, 0.2, 0.1)):
        assert q[permutation[j]] == pytest.approx(p)  # q_{pi(j)} = p_j


def test_a_surviving_backdoor_is_counted_at_the_remapped_class():
    permutation = [2, 0, 1]  # the target 0 shows as 2
    label = np.array([0, 1, 1, 2, 1])
    survived = np.array([2, 2, 2, 2, 1])
    found = backdoor_rates(survived, label, target=0, permutation=permutation)
    assert found["attack_success"] == 0.0  # which alone would call it defended
    # of the images of neither class 0 nor 2
    assert found["remapped_target"] == pytest.approx(2 / 3)
    assert found["triggered_accuracy"] == 0.5
    assert backdoor_rates(np.array([0, 0, 0, 2, 1]), label, target=0)["attack_success"] == 0.5
    # of two classes no image is of neither
    assert set(backdoor_rates(np.array([0, 1]), np.array([0, 1]), 0, [1, 0])) == {
        "attack_success",
        "triggered_accuracy",
    }


def test_triggers_are_stamped_where_they_belong():
    images = np.full((2, 1, 4, 4), 100, np.uint8)
    patch, mask = np.full((1, 4, 4), 255, np.uint8), np.eye(4, dtype=bool)
    stamped = stamp_patch(images, patch, mask)
    assert (stamped[:, 0][:, mask] == 255).all() and (stamped[:, 0][:, ~mask] == 100).all()
    assert (stamp_blend(images, patch, 0.2) == 131).all()


def test_the_rewriting_network_keeps_shape_and_range():
    images = torch.rand(2, 3, 32, 48)
    rewritten = UNet(3, 4)(images)
    assert rewritten.shape == images.shape and rewritten.min() >= 0 and rewritten.max() <= 1


def test_an_image_that_left_the_range_everywhere_finds_back():
    """The derivative of a clamp alone is 0 there: nothing would ever be learnt."""
    torch.manual_seed(0)
    network = UNet(1, 2)
    with torch.no_grad():
        network.leave.bias.fill_(-3.0)
    images = torch.rand(4, 1, 16, 16)
    assert network(images).max() == 0
    optimizer = torch.optim.SGD(network.parameters(), 0.3)
    for _ in range(20):
        optimizer.zero_grad()
        (network(images) - 0.5).square().mean().backward()
        optimizer.step()
    assert abs(float(network(images).mean()) - 0.5) < 0.1


class _Brightness(nn.Module):
    """Dark images are of class 0, bright ones of class 1; it counts how often it is asked."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        light = images.mean(dim=(1, 2, 3))
        return torch.stack([0.5 - light, light - 0.5], dim=1) * 20


def _released(**changes):
    value = settings_of_any() | {"form": "released", "crop": 0.5, "flip": False} | changes
    return load_settings(Refine.config, value)[0]


def settings_of_any():
    return {"model": "m.pt2", "classes": ["dark", "bright"], "channels": 1, "clean": "c.npz"}


def test_the_released_form_asks_the_classifier_about_the_very_view_it_rewrites():
    config, classifier = _released(contrast=0.0), _Brightness()
    seen = []
    model = DefendedClassifier(nn.Identity(), classifier, [1, 0])
    model.unet.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    images = torch.rand(6, 1, 16, 16) * 0.4
    images[3:] += 0.6
    batch = {"image": images, "pseudo": torch.tensor([1, 1, 1, 0, 0, 0])}  # of no use here
    torch.manual_seed(0)
    found = method._rewriting_loss(config, model, batch)
    assert torch.equal(classifier.seen[0], seen[0]) and not torch.equal(seen[0], images)
    pseudo = torch.tensor([0, 0, 0, 1, 1, 1])
    q = model.remapped(seen[0])
    by_hand = nn.functional.binary_cross_entropy(q, nn.functional.one_hot(pseudo, 2).float())
    torch.testing.assert_close(found, by_hand)


def test_jitter_lets_the_network_see_other_light_and_nothing_else():
    seen = []
    model = DefendedClassifier(nn.Identity(), _Brightness(), [1, 0])
    model.unet.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    images = 0.3 + 0.4 * torch.rand(6, 1, 16, 16)
    batch = {"image": images, "pseudo": torch.zeros(6, dtype=torch.long)}
    for jitter in (0.0, 0.4):
        config = _released(form="sound", crop=1.0, jitter=jitter)
        method._rewriting_loss(config, model, batch)
        assert ("jitter" in config.model_dump()) == (jitter > 0)  # earlier runs keep their key
    torch.testing.assert_close(seen[0], images)
    for before, after in zip(images, seen[1], strict=True):  # pixel = a * pixel + b in each image
        x, y = before.flatten(), after.flatten()
        slope, level = np.polyfit(x, y, 1)
        np.testing.assert_allclose(y, slope * x + level, atol=1e-5)
        assert 0.6 <= slope <= 1.4 and 0.6 <= float(y.mean() / x.mean()) <= 1.4
    assert (seen[1].mean(dim=(1, 2, 3)) - images.mean(dim=(1, 2, 3))).abs().max() > 0.02


def test_in_the_released_form_an_image_is_a_positive_of_its_copy():
    pseudo = torch.tensor([0, 1, 1])  # the first image has no other of its class
    images = torch.rand(3, 1, 16, 16)
    z = unit(images.flatten(1))
    found = method._contrast(_released(), images, pseudo)
    total = 0.0
    rows = [(z[i], int(pseudo[i]), i) for i in (0, 1, 2, 0, 1, 2)]
    for a, (anchor, kind, _) in enumerate(rows):
        others = [(b, row) for b, row in enumerate(rows) if b != a]
        log_sum = torch.stack([anchor @ row[0] / 0.07 for _, row in others]).logsumexp(dim=0)
        terms = [log_sum - anchor @ row[0] / 0.07 for _, row in others if row[1] == kind]
        total = total + sum(terms) / len(terms) / 6
    torch.testing.assert_close(found, total)
    sound = ContrastiveLoss(0.07)(z, same_class(pseudo))
    torch.testing.assert_close(method._contrast(_released(form="sound"), images, pseudo), sound)


def test_the_released_network_rises_by_interpolation_and_has_the_channels_of_the_authors():
    network = UNet(3, 4, bilinear=True)
    assert network(torch.rand(2, 3, 32, 48)).shape == (2, 3, 32, 48)
    assert not any(isinstance(inner, nn.ConvTranspose2d) for inner in network.modules())
    lowest, first_up = network.down[-1], network.up[0]
    assert [lowest[0].in_channels, lowest[-3].out_channels] == [32, 32]
    assert [first_up[0].in_channels, first_up[0].out_channels, first_up[-3].out_channels] == [
        64,
        32,
        16,
    ]


def test_adam_is_an_option_and_the_paper_decays_by_sgd(settings):
    weight = [nn.Parameter(torch.zeros(1))]

    def made(**changes):
        config = load_settings(Refine.config, settings("refine") | changes)[0]
        data = Refine().load(config)
        return Refine().stages(config, data, nn.Identity(), "model")[0].optimizer(weight)

    adam, sgd = made(optimizer="adam", learning_rate=0.002), made(learning_rate=0.01)
    assert isinstance(adam, torch.optim.Adam) and adam.defaults["weight_decay"] == 0
    assert adam.defaults["lr"] == 0.002 and sgd.defaults["momentum"] == 0.9
    assert sgd.defaults["weight_decay"] == 5e-4


def test_the_classifier_never_changes(finished):
    _, run = finished("refine")
    fixed = run.model().classifier
    assert torch.equal(fixed.inner.scale, torch.tensor(10.0))
    assert not FixedClassifier(nn.BatchNorm2d(1), (0.0,), (1.0,)).train().training


def test_the_backdoor_goes_and_the_classes_stay(settings, tmp_path):
    value = settings("refine") | {"epochs": 9, "learning_rate": 0.02, "first_channels": 6}
    config, _ = load_settings(Refine.config, value)
    run = train(Refine(), "refine", config, tmp_path / "run")
    found = evaluate(run).metrics
    assert found["benign_accuracy_before"] == 1.0 and found["attack_success_before"] == 1.0
    assert found["benign_accuracy_after"] >= 0.8 and found["triggered_accuracy_after"] >= 0.8
    assert found["attack_success_after"] <= 0.2 and found["remapped_target_after"] <= 0.2

    defended = load_defended(run.folder, trust=True)
    table = pd.read_csv(predict(run, config.inputs))
    images = torch.from_numpy(np.load(config.clean)["image"][:3, None]).float() / 255
    with torch.no_grad():
        np.testing.assert_allclose(
            defended(images).numpy(),
            table[["p_level", "p_upright", "p_neither"]].to_numpy(),
            atol=1e-5,
        )


def test_models_are_read_as_script_program_or_function_and_never_from_a_pickle(
    tmp_path, monkeypatch
):
    images = torch.rand(2, 1, 16, 16)
    model = striped_classifier()
    with torch.no_grad():
        expected = model(images)
    torch.jit.trace(model, images).save(str(tmp_path / "m.ts"))
    batch = torch.export.Dim("batch", min=1, max=1024)
    torch.export.save(
        torch.export.export(model, (images,), dynamic_shapes=({0: batch},)), tmp_path / "m.pt2"
    )
    torch.save(model.state_dict(), tmp_path / "m.pth")
    for source, weights in (
        (tmp_path / "m.ts", None),
        (tmp_path / "m.pt2", None),
        ("tests.plugins.conftest:Stripes", "m.pth"),
    ):
        loaded = FixedClassifier(
            load_classifier(str(source), weights and tmp_path / weights, trust=True),
            (0.0,),
            (1.0,),
        ).eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), expected)
    torch.save(model, tmp_path / "pickled.pt")
    with pytest.raises(ModelError, match="A pickled model is not loaded, since it can run code"):
        load_classifier(str(tmp_path / "pickled.pt"), None, trust=True)
    with pytest.raises(ModelError, match="There is no model file"):
        load_classifier("nowhere.ts", None)
    with pytest.raises(ModelError, match="makes an untrained network; name its state dict"):
        load_classifier("tests.plugins.conftest:Stripes", None)
    with pytest.raises(ModelError, match="cannot make the classifier: ModuleNotFoundError"):
        load_classifier("no_such_module:f", None)


def test_a_classifier_of_another_size_is_explained():
    with pytest.raises(
        ModelError, match=r"output for 2 images has shape \(2, 3\); 4 class names need \(2, 4\)"
    ):
        check_classifier(Stripes(), 1, 16, 4)
    with pytest.raises(ModelError, match="does not take images of 1 x 16 x 16"):
        check_classifier(nn.Conv2d(3, 1, 3), 1, 16, 4)


def test_bad_inputs_are_explained(tmp_path):
    good = settings_of("refine", tmp_path)

    def load(**changes):
        return Refine().load(load_settings(Refine.config, good | changes)[0])

    with pytest.raises(ConfigError, match=r"trigger\.target = 'cat' is no class"):
        load(trigger=good["trigger"] | {"target": "cat"})
    with pytest.raises(ConfigError, match="stamped on labelled test images; give test"):
        load(test=None)
    with pytest.raises(ConfigError, match="needs its mask"):
        load(trigger=good["trigger"] | {"mask": None})
    with pytest.raises(ConfigError, match="names one class twice"):
        load(classes=["a", "a"])
    with pytest.raises(ConfigError, match="mean has 2 numbers"):
        load(mean=[0.1, 0.2])
    with pytest.raises(DataError, match="gives of its images the pixels alone; 'label' is needed"):
        load(test=good["clean"])
    np.savez(tmp_path / "wrong.npz", image=np.zeros((2, 8, 8)))
    with pytest.raises(DataError, match=r"image of .* is float64 \(2, 8, 8\); images are whole"):
        load(clean=str(tmp_path / "wrong.npz"))
    np.savez(tmp_path / "named.npz", image=np.zeros((1, 16, 16), np.uint8), label=np.array(["dog"]))
    with pytest.raises(
        DataError, match="has the label 'dog'; the classes are level, upright, neither"
    ):
        load(test=str(tmp_path / "named.npz"))
    image = np.zeros((2, 16, 16), np.uint8)
    np.savez(tmp_path / "numbered.npz", image=image, label=np.array([0, 3]))
    with pytest.raises(DataError, match=r"has the label .3.; the classes .* or in an npz"):
        load(test=str(tmp_path / "numbered.npz"))
    np.savez(tmp_path / "short.npz", image=image, label=np.array([0]))
    with pytest.raises(DataError, match=r"holds 2 images, but label of shape \(1,\)"):
        load(test=str(tmp_path / "short.npz"))
    np.savez(tmp_path / "target.npz", image=image, label=np.array([0, 0]))
    with pytest.raises(DataError, match="All triggered images are of the target class 'level'"):
        load(test=str(tmp_path / "target.npz"))
    with pytest.raises(DataError, match="holds 2 clean images; a network needs at least 4"):
        load(clean=str(tmp_path / "target.npz"))
    (tmp_path / "damaged.npz").write_bytes(b"no archive")
    with pytest.raises(
        DataError, match=r"damaged\.npz is no readable \.npz of plain arrays\. Write it again"
    ):
        load(clean=str(tmp_path / "damaged.npz"))
