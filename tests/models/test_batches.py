"""
Augmentation acts on the training part and nowhere else, and turns images only in ways that are true
from above.
"""

import numpy as np
import pytest
import torch

from butterfly_sdm.data.predictor import FitContext
from butterfly_sdm.data.tiles import TileReader
from butterfly_sdm.models import batches
from butterfly_sdm.models import fit as fitting
from butterfly_sdm.models.augment import Augmentation, Blur, dihedral, distance_to_neighbour, turned
from butterfly_sdm.models.batches import Feed, Shuffled, SiteBatches, image_of
from butterfly_sdm.models.inputs import site_tensors
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.models.presence_net import Architecture, PresenceNet

SMALL = {
    "backbone": "test_resnet",
    "embedding": 8,
    "window_px": 32,
    "margin_px": 0,
    "batch_size": 8,
    "epochs": 2,
    "accelerator": "cpu",
}


def test_the_eight_ways_are_the_symmetries_of_a_square() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    seen = {tuple(dihedral(image, way).flatten().tolist()) for way in range(8)}
    assert len(seen) == 8
    corners = {tuple(sorted(np.asarray(s).reshape(3, 3)[[0, 0, 2, 2], [0, 2, 0, 2]])) for s in seen}
    assert corners == {(0.0, 2.0, 6.0, 8.0)}  # corners stay corners


def test_light_changes_brightness_a_little_and_turns_keep_the_values() -> None:
    generator = torch.Generator().manual_seed(0)
    ways, light = Augmentation().draw(2000, 4, generator)
    assert light.mean().item() == pytest.approx(1, abs=0.01)
    assert light.std().item() == pytest.approx((0.05**2 + 0.02**2) ** 0.5, rel=0.1)
    # most of it in all bands
    assert (light - light.mean(dim=1, keepdim=True)).std().item() == pytest.approx(0.02, rel=0.2)
    assert torch.bincount(ways, minlength=8).min() > 200
    assert not Augmentation(turn=False).draw(9, 4)[0].any()
    values = torch.randint(1, 60_000, (16, 4, 4, 4), generator=generator).to(torch.uint16)
    out = turned(values, [2] * 8)
    for place in range(16):
        assert torch.equal(
            out[place].long(), dihedral(values[place : place + 1].long(), place // 2)[0]
        )
    assert torch.equal(turned(values, [16, 0, 0, 0, 0, 0, 0, 0]).long(), values.long())


def test_the_image_is_standardised_reflectance_whatever_was_drawn(make) -> None:
    """
    Few passes over the pixels, yet what the parts give: turn, light, standardise, nothing where
    nothing was measured.
    """
    from dataclasses import replace

    dataset = make(5)
    card = dataset.card.model_copy(
        update={"tiles": dataset.card.tiles.model_copy(update={"offset": 100.0, "nodata": 7})}
    )
    tiles = dataset.tiles.copy()
    tiles[:, 1, 10:20, 30:50] = 7
    reader = TileReader(replace(dataset, card=card, tiles=tiles), dataset.card.tiles.bands, 64)
    net = PresenceNet(
        Architecture(
            species=1,
            bands=dataset.card.tiles.bands,
            backbone="test_resnet",
            window_px=64,
            margin_px=0,
        )
    )
    net.mean.copy_(torch.tensor([0.05, 0.06, 0.07, 0.3]))
    net.std.copy_(torch.tensor([0.01, 0.02, 0.03, 0.1]))
    counts, turns = reader.read(torch.arange(5)), [2, 0, 0, 1, 0, 0, 0, 2]
    light = Augmentation().draw(5, 4, torch.Generator().manual_seed(0))[1]
    values, valid = reader.reflectance(turned(counts, turns))
    assert not bool(valid.all())
    expected = net.standardise(values * light[:, :, None, None], valid)
    image = image_of(net, counts, reader, light=light, turns=turns)
    torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-4)
    assert image.is_contiguous(memory_format=torch.channels_last)


def test_augmentation_acts_on_training_batches_and_nowhere_else(make, monkeypatch) -> None:
    """Every image that reaches the trunk is looked up among the plain ones."""
    dataset = make(24)
    seen: dict[str, list[torch.Tensor]] = {"train": [], "other": []}
    reads: dict[str, int] = {"train": 0, "other": 0}
    plain = batches.predict_batch

    def spy(net, batch, reader):
        part = "train" if net.training else "other"
        reads[part] += 1
        assert ("light" in batch) == ("turns" in batch) == (part == "train")
        seen[part].append(batch["counts"].clone())
        return plain(net, batch, reader)

    monkeypatch.setattr(fitting, "predict_batch", spy)
    network = NetworkPredictor(**SMALL).fit(
        dataset, dataset.split.train, context=FitContext(validation=dataset.split.validation)
    )
    assert reads["train"] > 0
    assert reads["other"] > 0
    rows = dataset.tile_rows(dataset.split.validation)
    middle = torch.from_numpy(dataset.tiles[rows][:, :, 16:48, 16:48])
    for counts in seen["other"]:
        assert torch.equal(counts, middle)  # the middle of the tile, as it is, in every epoch
    first = torch.cat(seen["train"])
    centre = torch.from_numpy(
        dataset.tiles[dataset.tile_rows(dataset.split.train)][:, :, 16:48, 16:48]
    )
    # training crops move
    assert not any(torch.equal(image, other) for image in first[:4] for other in centre)
    before = network.predict(dataset, dataset.site_ids)
    assert network.predict(dataset, dataset.site_ids).equals(before)  # and prediction never does


def test_without_augmentation_training_sees_the_middle_of_every_tile(make, monkeypatch) -> None:
    dataset = make(12)
    monkeypatch.setattr(Augmentation, "draw", lambda *_: pytest.fail("something was drawn"))
    monkeypatch.setattr(batches, "turned", lambda *_: pytest.fail("an image was turned"))
    NetworkPredictor(**SMALL | {"augment": False, "epochs": 1}).fit(dataset, dataset.split.train)


def test_a_part_reads_the_tile_of_each_site(make) -> None:
    dataset = make(10)
    reader = TileReader(dataset, dataset.card.tiles.bands, 64)
    part = SiteBatches(site_tensors(dataset, ["s007", "s002"], image=True, reader=reader), reader)
    counts = part[[0, 1], 0]["counts"].numpy()
    np.testing.assert_array_equal(counts, dataset.tiles[dataset.tile_rows(["s007", "s002"])])


def test_mapped_tiles_are_opened_again_in_another_process(make, tmp_path) -> None:
    import pickle
    from dataclasses import replace

    dataset = make(4)
    np.save(tmp_path / "tiles.npy", dataset.tiles)
    mapped = replace(dataset, tiles=np.load(tmp_path / "tiles.npy", mmap_mode="r"))
    packed = pickle.dumps(TileReader(mapped, ("nir", "red"), 32))
    assert len(packed) < 5_000  # a path, not the pixels
    again = pickle.loads(packed)
    assert torch.equal(
        again.read(torch.tensor([2])),
        TileReader(dataset, ("nir", "red"), 32).read(torch.tensor([2])),
    )


def test_every_site_comes_once_per_epoch_in_an_order_that_follows_from_seed_and_epoch() -> None:
    order = Shuffled(10, 4, seed=1)
    first, again = [[place for places, _ in order for place in places] for _ in range(2)]
    assert first == again
    assert sorted(first) == list(range(10))
    order.set_epoch(1)
    assert [place for places, _ in order for place in places] != first


def test_a_last_batch_of_one_joins_the_one_before_it() -> None:
    assert [len(places) for places, _ in Shuffled(9, 4, seed=0)] == [4, 5]
    assert len(Shuffled(9, 4, seed=0)) == 2
    assert [len(places) for places, _ in Shuffled(1, 4, seed=0)] == [1]
    assert [len(places) for places, _ in Shuffled(9, 4, seed=0, shuffle=False)] == [4, 4, 1]


def test_processes_share_the_sites_and_take_equally_many_steps() -> None:
    parts = [Shuffled(11, 3, seed=2, rank=rank, processes=2) for rank in range(2)]
    places = [[place for places, _ in part for place in places] for part in parts]
    assert [len(part) for part in parts] == [2, 2]
    assert set(places[0]) | set(places[1]) == set(range(11))
    whole = [
        [
            p
            for places, _ in Shuffled(11, 3, seed=0, rank=r, processes=2, shuffle=False)
            for p in places
        ]
        for r in range(2)
    ]
    assert sorted(whole[0] + whole[1]) == list(range(11))  # scores count every site once


def test_hidden_modalities_are_missing_not_zero(make) -> None:
    dataset = make(200, tile_px=32)
    reader = TileReader(dataset, dataset.card.tiles.bands, 32)
    inputs = site_tensors(
        dataset,
        dataset.site_ids,
        image=True,
        covariates=("warmth", "rain"),
        position=True,
        reader=reader,
    )
    part = SiteBatches(inputs, reader, augmentation=Augmentation(), hide=0.3)
    batch = part[range(200), 5]
    for hidden in (
        batch["covariates"].isnan().all(dim=1),
        batch["position"].isnan().all(dim=1),
        ~batch["has_image"],
    ):
        assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.1)
    rows = inputs.tile_rows[batch["place"]][batch["has_image"]]
    # no tile is read in vain
    assert torch.equal(batch["counts"].int(), torch.from_numpy(dataset.tiles[rows.numpy()]).int())
    assert sum(batch["turns"]) == len(batch["light"]) == len(rows)
    assert not inputs.covariates.isnan().all(dim=1).any()
    assert torch.equal(part[range(200), 5]["place"], batch["place"])
    assert not torch.equal(part[range(200), 6]["has_image"], batch["has_image"])


def test_positions_are_blurred_by_how_thin_the_sites_lie() -> None:
    position = torch.tensor([[0.0, 0.0], [0.0, 30.0], [40.0, 0.0], [9000.0, 0.0], [torch.nan, 0.0]])
    assert distance_to_neighbour(position, 2).tolist() == [40.0, 50.0, 50.0, 9000.0, 0.0]
    assert distance_to_neighbour(position, 99)[:2].tolist() == [
        9000.0,
        pytest.approx((9000**2 + 30**2) ** 0.5),
    ]
    assert distance_to_neighbour(position[:1], 5).tolist() == [0.0]


def test_noise_has_the_size_asked_for_follows_the_draw_and_leaves_what_is_missing_missing(
    make,
) -> None:
    dataset = make(200, image=False)
    inputs = site_tensors(
        dataset, dataset.site_ids, image=False, covariates=("warmth", "rain"), position=True
    )
    blur = Blur(torch.tensor([0.5, 20.0]), torch.full((200,), 3000.0))
    blurred, plain = (
        SiteBatches(inputs, None, blur=blur)[range(200), 3],
        SiteBatches(inputs, None)[range(200), 3],
    )
    off = blurred["covariates"] - plain["covariates"]
    assert off[:, 0].std().item() == pytest.approx(0.5, rel=0.2)
    assert off[:, 1].nanmean().abs().item() < 6
    assert blurred["covariates"][3, 1].isnan()
    assert (blurred["position"] - plain["position"]).std().item() == pytest.approx(3000, rel=0.2)
    assert torch.equal(
        SiteBatches(inputs, None, blur=blur)[range(200), 3]["position"], blurred["position"]
    )


def test_a_feed_gives_the_batches_of_its_order_in_memory_that_is_used_again(make) -> None:
    dataset = make(10)
    reader = TileReader(dataset, dataset.card.tiles.bands, 32)
    part = SiteBatches(
        site_tensors(dataset, dataset.site_ids, image=True, reader=reader),
        reader,
        augmentation=Augmentation(),
    )
    order = Shuffled(10, 3, seed=1)
    feed = Feed(part, order, keep=2)
    assert len(feed) == len(order) == 3
    for _ in range(2):
        places = set()
        for batch, draw in zip(feed, order, strict=True):
            own = part[draw]
            assert all(
                torch.equal(batch[name].int(), own[name].int())
                for name in ("place", "counts", "detections")
            )
            places.add(batch["counts"].data_ptr())
        assert len(places) == 2


@pytest.mark.parametrize("augmented", [False, True])
def test_a_frozen_trunk_runs_once_over_every_tile(make, monkeypatch, augmented) -> None:
    dataset = make(24, tile_px=32)
    settings = SMALL | {"freeze": "trunk", "augment": augmented, "epochs": 4}
    from butterfly_sdm.models.presence_net import PresenceNet

    looked = []
    features = PresenceNet.features
    monkeypatch.setattr(
        PresenceNet,
        "features",
        lambda net, image: looked.append(len(image)) or features(net, image),
    )
    network = NetworkPredictor(**settings).fit(
        dataset, dataset.split.train, context=FitContext(validation=dataset.split.validation)
    )
    assert sum(looked) == 16 * (8 if augmented else 1) + 8
    assert len(network.history) == 4


def test_cached_features_give_the_result_of_running_the_trunk_every_epoch(make) -> None:
    dataset = make(24, tile_px=32)
    settings = SMALL | {"augment": False, "epochs": 3, "freeze": "trunk"}
    cached = NetworkPredictor(**settings).fit(dataset, dataset.split.train)
    run = NetworkPredictor(**settings | {"unfreeze_after": 99}).fit(dataset, dataset.split.train)
    difference = cached.predict(dataset, dataset.site_ids) - run.predict(dataset, dataset.site_ids)
    assert difference.abs().max().max() < 1e-4


def test_a_trunk_may_be_frozen_for_the_first_epochs_only(make) -> None:
    dataset = make(16, tile_px=32)
    settings = SMALL | {"freeze": "trunk", "augment": False, "schedule": "constant"}
    start, early, late = (
        NetworkPredictor(**settings | {"unfreeze_after": after, "epochs": epochs})
        .fit(dataset, dataset.split.train)
        .network
        for after, epochs in ((9, 1), (2, 2), (2, 3))
    )
    assert torch.equal(start.stem.weight, early.stem.weight)
    assert not torch.equal(start.stem.weight, late.stem.weight)
