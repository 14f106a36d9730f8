"""
A network as a predictor: it learns, repeats itself, continues after an interruption and keeps its
word when loaded.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import FitContext, Predictor
from butterfly_sdm.errors import (
    ArtefactError,
    DataError,
    MissingFileError,
    MissingPackageError,
    ModelError,
)
from butterfly_sdm.models.network_predictor import NetworkPredictor

SMALL = {
    "backbone": "test_resnet",
    "embedding": 16,
    "window_px": 32,
    "margin_px": 0,
    "batch_size": 8,
    "epochs": 3,
    "accelerator": "cpu",
    "learning_rate": 3e-3,
}
TABLE = SMALL | {"image": False, "covariates": True, "position": True, "epochs": 4}


def mse(predictor: Predictor, dataset: Dataset, sites: tuple[str, ...]) -> np.ndarray:
    return (
        ((predictor.predict(dataset, sites) - dataset.rates.loc[list(sites)]) ** 2)
        .mean()
        .to_numpy()
    )


def mean_rate_mse(dataset: Dataset) -> np.ndarray:
    split = dataset.split
    return (
        (
            (
                dataset.rates.loc[list(split.validation)]
                - dataset.rates.loc[list(split.train)].mean()
            )
            ** 2
        )
        .mean()
        .to_numpy()
    )


def test_it_is_a_predictor_that_can_be_saved() -> None:
    network = NetworkPredictor(**SMALL)
    assert isinstance(network, Predictor)


def test_an_image_network_learns_what_the_image_shows_and_nothing_else(make) -> None:
    dataset = make(90, seed=1, tile_px=32)
    network = NetworkPredictor(
        **SMALL | {"epochs": 12, "patience": None, "learning_rate": 1e-2, "batch_size": 12},
        regulariser=None,
    )
    network.fit(
        dataset, dataset.split.train, context=FitContext(validation=dataset.split.validation)
    )
    gain = 1 - mse(network, dataset, dataset.split.validation) / mean_rate_mse(dataset)
    assert (gain[:2] > 0.5).all()  # the two species of the image
    assert (gain[2:] < 0.1).all()


def test_covariates_and_position_are_the_same_class_without_imagery(make) -> None:
    dataset = make(150, seed=2, image=False)
    network = NetworkPredictor(
        **TABLE | {"epochs": 25, "learning_rate": 1e-2, "batch_size": 32, "patience": None}
    )
    network.fit(
        dataset, dataset.split.train, context=FitContext(validation=dataset.split.validation)
    )
    gain = 1 - mse(network, dataset, dataset.split.validation) / mean_rate_mse(dataset)
    assert (gain[2:] > 0.5).all()
    assert (gain[:2] < 0.2).all()


def test_what_sees_all_learns_from_all_and_no_site_by_heart(make) -> None:
    """
    Positions tell training sites apart long before a trunk has learned anything; the image must be
    learned all the same.
    """
    dataset = make(90, seed=1, tile_px=32)
    settings = SMALL | {
        "epochs": 12,
        "patience": None,
        "learning_rate": 1e-2,
        "batch_size": 12,
        "regulariser": None,
    }
    network = NetworkPredictor(**settings, covariates=True, position=True).fit(
        dataset, dataset.split.train
    )
    gain = 1 - mse(network, dataset, dataset.split.validation) / mean_rate_mse(dataset)
    assert (gain > 0.7).all()


def test_blur_acts_on_training_batches_and_nowhere_else(make, monkeypatch) -> None:
    from butterfly_sdm.models import fit as fitting

    dataset = make(24, image=False)
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    plain = fitting.predict_batch

    def spy(net, batch, reader):
        seen[net.training].append(
            torch.cat([batch["covariates"], batch["position"], batch["place"][:, None]], dim=1)
        )
        return plain(net, batch, reader)

    monkeypatch.setattr(fitting, "predict_batch", spy)
    network = NetworkPredictor(**TABLE | {"epochs": 2}).fit(
        dataset, dataset.split.train, context=FitContext(validation=dataset.split.validation)
    )
    known = torch.from_numpy(
        dataset.sites.loc[list(dataset.split.validation), ["easting", "northing"]]
        .to_numpy("float32")
        .copy()
    )
    for rows in seen[False]:
        assert torch.equal(rows[:, -3:-1], known[rows[:, -1].long()])
    true = torch.from_numpy(
        dataset.sites.loc[list(dataset.split.train), ["easting", "northing"]]
        .to_numpy("float32")
        .copy()
    )
    first = torch.cat(seen[True])
    assert not bool((first[:, -3:-1] == true[first[:, -1].long()]).any())
    seen[True].clear()
    NetworkPredictor(**TABLE | {"epochs": 1, "augment": False}).fit(dataset, dataset.split.train)
    first = torch.cat(seen[True])
    assert torch.equal(first[:, -3:-1], true[first[:, -1].long()])
    assert network.settings()["position_blur"] == 10


def test_predictions_have_the_rows_asked_for_and_the_columns_of_the_species(make) -> None:
    dataset = make(20)
    network = NetworkPredictor(**SMALL | {"epochs": 1}).fit(dataset, dataset.split.train)
    asked = ("s005", "s001", "s019")
    table = network.predict(dataset, asked)
    assert tuple(table.index) == asked
    assert table.index.name == "site_id"
    assert tuple(table.columns) == dataset.species == network.species
    assert table.to_numpy().min() >= 0
    assert table.to_numpy().max() <= 1
    assert network.predict(dataset, ()).shape == (0, 4)
    z = network.embed(dataset, asked)
    np.testing.assert_allclose((z**2).sum(axis=1), 1, atol=1e-5)


def test_the_same_seed_gives_the_same_network_and_another_seed_another(make) -> None:
    dataset = make(24)

    def fitted(seed: int) -> pd.DataFrame:
        network = NetworkPredictor(
            **SMALL | {"covariates": True, "dropout": 0.2, "modality_dropout": 0.2, "seed": seed}
        )
        return network.fit(dataset, dataset.split.train).predict(dataset, dataset.split.validation)

    first = fitted(1)
    torch.rand(7)  # what others draw does not matter
    pd.testing.assert_frame_equal(first, fitted(1))
    assert (first - fitted(2)).abs().max().max() > 1e-4


def test_fitting_leaves_the_random_numbers_of_others_alone(make) -> None:
    dataset = make(12, image=False)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    NetworkPredictor(**TABLE | {"epochs": 1}).fit(dataset, dataset.split.train)
    assert torch.equal(torch.rand(3), expected)


class Stop(Exception):
    pass


def stop_after(epochs: int, how: type[BaseException] = Stop):
    def progress(task: str, done: int, total: int) -> None:
        if done == epochs:
            raise how

    return progress


@pytest.mark.parametrize("how", [Stop, KeyboardInterrupt])
def test_an_interrupted_fit_continues_with_the_result_it_would_have_had(
    make, tmp_path: Path, how
) -> None:
    dataset = make(24)
    settings = SMALL | {"epochs": 5, "dropout": 0.2, "covariates": True}
    part = {"validation": dataset.split.validation}
    whole = NetworkPredictor(**settings).fit(
        dataset, dataset.split.train, context=FitContext(folder=tmp_path / "whole", **part)
    )
    with pytest.raises(how):
        NetworkPredictor(**settings).fit(
            dataset,
            dataset.split.train,
            context=FitContext(folder=tmp_path / "cut", progress=stop_after(3, how), **part),
        )
    told: list[int] = []
    again = NetworkPredictor(**settings).fit(
        dataset,
        dataset.split.train,
        context=FitContext(
            folder=tmp_path / "cut", progress=lambda task, done, total: told.append(done), **part
        ),
    )
    assert told[0] >= 3  # what was done is not done again
    pd.testing.assert_frame_equal(
        whole.predict(dataset, dataset.split.validation),
        again.predict(dataset, dataset.split.validation),
    )
    names = ["epoch", "train_loss", "train_regulariser", "validation_loss", "validation_mse"]
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "whole" / "history.csv")[names],
        pd.read_csv(tmp_path / "cut" / "history.csv")[names],
    )


@pytest.mark.parametrize("damaged", [("last.ckpt",), ("last.ckpt", "previous.ckpt")])
@pytest.mark.parametrize("how", ["flip", "halve", "empty"])
def test_damaged_checkpoints_are_passed_over_with_the_result_of_whole_ones(
    make, tmp_path: Path, damaged, how, caplog
) -> None:
    dataset = make(16, image=False)
    sites = dataset.split.train
    whole = NetworkPredictor(**TABLE).fit(dataset, sites)
    with pytest.raises(Stop):
        context = FitContext(folder=tmp_path, progress=stop_after(3, Stop))
        NetworkPredictor(**TABLE).fit(dataset, sites, context=context)
    for name in damaged:
        path = tmp_path / "checkpoints" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(
            {"flip": content, "halve": content[: len(content) // 2], "empty": b""}[how]
        )
    told: list[int] = []
    again = NetworkPredictor(**TABLE).fit(
        dataset,
        sites,
        context=FitContext(folder=tmp_path, progress=lambda task, done, total: told.append(done)),
    )
    assert caplog.text.count("was damaged since it was written") == len(damaged)
    assert told[0] == (2 if len(damaged) == 1 else 1)
    pd.testing.assert_frame_equal(whole.predict(dataset, sites), again.predict(dataset, sites))


def test_logs_for_tensorboard_hold_every_epoch(make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    dataset = make(24, image=False)
    network = NetworkPredictor(**TABLE | {"tensorboard": True})
    network.fit(
        dataset,
        dataset.split.train,
        context=FitContext(validation=dataset.split.validation, folder=tmp_path),
    )
    log = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in (
        "train_loss",
        "train_regulariser",
        "validation_loss",
        "validation_mse",
        "learning_rate",
    ):
        values = [event.value for event in log.Scalars(name)]
        assert values == pytest.approx(network.history[name].tolist(), rel=1e-5)


def test_without_tensorboard_the_wish_for_its_logs_is_answered(
    make, tmp_path: Path, monkeypatch
) -> None:
    from lightning.pytorch import loggers

    def absent(*_, **__):
        raise ModuleNotFoundError("No module named 'tensorboard'")

    monkeypatch.setattr(loggers, "TensorBoardLogger", absent)
    dataset = make(12, image=False)
    with pytest.raises(MissingPackageError, match=r'pip install .*\[tensorboard\]"'):
        NetworkPredictor(**TABLE | {"tensorboard": True}).fit(
            dataset, dataset.split.train, context=FitContext(folder=tmp_path)
        )


def test_a_finished_fit_is_not_fitted_again(make, tmp_path: Path) -> None:
    dataset = make(24, image=False)
    settings = TABLE | {"epochs": 30, "patience": 2, "learning_rate": 0.5}
    first = NetworkPredictor(**settings).fit(
        dataset,
        dataset.split.train,
        context=FitContext(validation=dataset.split.validation, folder=tmp_path),
    )
    assert len(first.history) < 30
    again = NetworkPredictor(**settings).fit(
        dataset,
        dataset.split.train,
        context=FitContext(validation=dataset.split.validation, folder=tmp_path),
    )
    assert len(again.history) == len(first.history)
    assert again.history["seconds"].tolist() == first.history["seconds"].tolist()


def test_the_best_epoch_is_kept_and_without_validation_or_by_request_the_last(make) -> None:
    dataset = make(30, image=False)
    settings = TABLE | {
        "epochs": 12,
        "learning_rate": 0.3,
        "patience": None,
        "regulariser": None,
        "loss": "mse",
        "score": "mse",
    }
    sites = dataset.split.validation
    best = NetworkPredictor(**settings).fit(
        dataset, dataset.split.train, context=FitContext(validation=sites)
    )
    assert mse(best, dataset, sites).mean() == pytest.approx(
        best.history["validation_mse"].min(), rel=1e-4
    )
    last = NetworkPredictor(**settings | {"keep": "last"}).fit(
        dataset, dataset.split.train, context=FitContext(validation=sites)
    )
    assert mse(last, dataset, sites).mean() == pytest.approx(
        last.history["validation_mse"].iloc[-1], rel=1e-4
    )
    alone = NetworkPredictor(**settings).fit(dataset, dataset.split.train)
    pd.testing.assert_frame_equal(alone.predict(dataset, sites), last.predict(dataset, sites))


def test_a_loaded_network_predicts_what_the_saved_one_did(make, tmp_path: Path) -> None:
    dataset = make(20)
    network = NetworkPredictor(**SMALL | {"epochs": 1, "covariates": True, "position": True}).fit(
        dataset, dataset.split.train
    )
    network.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.safetensors"}
    card = json.loads((tmp_path / "model.json").read_text())
    assert card["kind"] == "network"
    assert card["sees"]["bands"] == ["red", "green", "blue", "nir"]
    assert card["dataset"]["fingerprint"] == dataset.fingerprint
    assert (
        card["normalisation"]["reflectance_mean"][3] > card["normalisation"]["reflectance_mean"][0]
    )
    loaded = NetworkPredictor.load(tmp_path)
    pd.testing.assert_frame_equal(
        loaded.predict(dataset, dataset.site_ids),
        network.predict(dataset, dataset.site_ids),
        check_exact=True,
    )
    assert loaded.settings() == network.settings()


def saved(make, folder: Path) -> Path:
    dataset = make(12, image=False)
    NetworkPredictor(**TABLE | {"epochs": 1}).fit(dataset, dataset.split.train).save(folder)
    return folder


def test_damaged_and_mismatched_files_are_refused(make, tmp_path: Path) -> None:
    folder = saved(make, tmp_path)
    weights, card = (
        (folder / "model.safetensors").read_bytes(),
        json.loads((folder / "model.json").read_text()),
    )

    def with_card(**change) -> None:
        (folder / "model.json").write_text(json.dumps(card | change))

    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ArtefactError, match=r"model.safetensors is damaged"):
        NetworkPredictor.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"lacks model.safetensors"):
        NetworkPredictor.load(folder)
    (folder / "model.safetensors").write_bytes(weights)
    with_card(architecture=card["architecture"] | {"embedding": 99})
    with pytest.raises(ModelError, match="does not belong to"):
        NetworkPredictor.load(folder)
    with_card(architecture=card["architecture"] | {"wings": 2})
    with pytest.raises(ModelError, match="not one this release knows"):
        NetworkPredictor.load(folder)
    with_card(format_version=99)
    with pytest.raises(ArtefactError, match="format version 99; this release reads 1"):
        NetworkPredictor.load(folder)
    with_card(species=card["species"][:2])
    with pytest.raises(ModelError, match="names 2 species, its network has 4"):
        NetworkPredictor.load(folder)
    with_card(kind="mean_rate")
    with pytest.raises(ArtefactError, match="not 'network'"):
        NetworkPredictor.load(folder)
    (folder / "model.json").write_text(
        json.dumps({name: card[name] for name in ("format", "format_version", "kind", "species")})
    )
    with pytest.raises(ArtefactError, match="is damaged"):
        NetworkPredictor.load(folder)
    with_card()
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    save_file(
        state | {"covariate_mean": state["covariate_mean"] * torch.nan},
        folder / "model.safetensors",
    )
    with pytest.raises(ArtefactError, match="not finite, in covariate_mean"):
        NetworkPredictor.load(folder)


def test_a_checkpoint_that_would_run_code_is_passed_over(make, tmp_path: Path, caplog) -> None:
    dataset = make(12, image=False)
    (tmp_path / "checkpoints").mkdir()
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (mark,))

    torch.save({"callbacks": {"Journal": Evil()}}, tmp_path / "checkpoints" / "last.ckpt")
    NetworkPredictor(**TABLE).fit(dataset, dataset.split.train, context=FitContext(folder=tmp_path))
    assert not mark.exists()
    assert "was damaged since it was written (UnpicklingError)" in caplog.text


def test_what_does_not_fit_is_said(make) -> None:
    dataset, bare = make(12), make(12, image=False)
    with pytest.raises(ModelError, match="not fitted"):
        NetworkPredictor(**SMALL).predict(dataset, dataset.site_ids)
    with pytest.raises(ModelError, match="something to see"):
        NetworkPredictor(image=False)
    with pytest.raises(DataError, match="has no tiles"):
        NetworkPredictor(**SMALL).fit(bare, bare.split.train)
    with pytest.raises(ModelError, match="64 px wide; the network looks at 256 px"):
        NetworkPredictor(accelerator="cpu").fit(dataset, dataset.split.train)
    with pytest.raises(
        ModelError, match="window_px is 40; test_resnet needs a multiple of its stride, 32"
    ):
        NetworkPredictor(**SMALL | {"window_px": 40}).fit(dataset, dataset.split.train)
    with pytest.raises(DataError, match="both a training and a validation site"):
        NetworkPredictor(**TABLE).fit(
            bare, bare.site_ids, context=FitContext(validation=bare.site_ids[:1])
        )
    with pytest.raises(ModelError, match="There is no backbone 'resnet_of_dreams'"):
        NetworkPredictor(**SMALL | {"backbone": "resnet_of_dreams"}).fit(
            dataset, dataset.split.train
        )
    with pytest.raises(ModelError, match=r"regulariser\.\w+ = "):
        NetworkPredictor(regulariser={"alpha": 1})
    with pytest.raises(
        ModelError, match="covariate_noise = -1: Input should be greater than or equal to 0"
    ):
        NetworkPredictor(covariate_noise=-1)
    with pytest.raises(ModelError, match="epochs = 0: Input should be greater than or equal to 1"):
        NetworkPredictor(epochs=0)
    with pytest.raises(ModelError, match="accelerator 'abacus'"):
        NetworkPredictor(**TABLE | {"accelerator": "abacus"}).fit(bare, bare.split.train)


def test_a_network_refuses_bands_resolutions_and_positions_it_does_not_know(make) -> None:
    from dataclasses import replace

    dataset = make(12)
    network = NetworkPredictor(**SMALL | {"epochs": 1, "position": True}).fit(
        dataset, dataset.split.train
    )
    card = dataset.card
    coarse = replace(
        dataset,
        card=card.model_copy(
            update={"tiles": card.tiles.model_copy(update={"resolution_m": 120.0})}
        ),
    )
    with pytest.raises(ModelError, match=r"pixels of 10 m; these tiles have 120 m"):
        network.predict(coarse, dataset.site_ids)
    abroad = replace(dataset, card=card.model_copy(update={"position_crs": "EPSG:3035"}))
    with pytest.raises(
        ModelError, match="knows positions in EPSG:27700; these sites have EPSG:3035"
    ):
        network.predict(abroad, dataset.site_ids)
    three = make(12, bands=("red", "green", "blue"))
    with pytest.raises(ModelError, match="needs the band nir; the tiles have red, green, blue"):
        network.predict(three, dataset.site_ids)


def test_one_tile_of_one_cell_is_too_little_for_batch_statistics(make) -> None:
    dataset = make(12)
    stride = (
        NetworkPredictor(**SMALL | {"epochs": 1})
        .fit(dataset, dataset.split.train)
        .network.trunk.stride
    )
    single = SMALL | {"epochs": 1, "batch_size": 1, "window_px": stride, "margin_px": 0}
    with pytest.raises(ModelError, match=r"a single cell per batch.*Raise batch_size \(it is 1\)"):
        NetworkPredictor(**single).fit(dataset, dataset.split.train)
    NetworkPredictor(**single | {"batch_size": 2}).fit(dataset, dataset.split.train)


def test_bands_are_found_by_name_in_any_order(make) -> None:
    from dataclasses import replace

    dataset = make(12)
    network = NetworkPredictor(**SMALL | {"epochs": 1}).fit(dataset, dataset.split.train)
    order = [3, 0, 2, 1]
    bands = tuple(dataset.card.tiles.bands[place] for place in order)
    card = dataset.card.model_copy(
        update={"tiles": dataset.card.tiles.model_copy(update={"bands": bands})}
    )
    turned = replace(dataset, card=card, tiles=dataset.tiles[:, order])
    pd.testing.assert_frame_equal(
        network.predict(turned, dataset.site_ids), network.predict(dataset, dataset.site_ids)
    )


def test_any_modality_may_be_missing_at_prediction(make) -> None:
    from dataclasses import replace

    dataset = make(24)
    settings = SMALL | {"epochs": 2, "covariates": True, "position": True, "modality_dropout": 0.3}
    network = NetworkPredictor(**settings).fit(dataset, dataset.split.train)
    whole = network.predict(dataset, dataset.site_ids)
    blind = replace(dataset, tiles=None, card=dataset.card.model_copy(update={"tiles": None}))
    untabled = replace(dataset, covariates=None)
    sites = dataset.sites.copy()
    sites.loc["s003", "tile_row"] = -1
    one_missing = replace(dataset, sites=sites)
    for other in (blind, untabled):
        table = network.predict(other, dataset.site_ids)
        assert np.isfinite(table.to_numpy()).all()
        assert (table - whole).abs().to_numpy().max() > 1e-4
    part = network.predict(one_missing, dataset.site_ids)
    changed = (part - whole).abs().max(axis=1) > 1e-6
    assert changed[changed].index.tolist() == ["s003"]
    pd.testing.assert_series_equal(
        part.loc["s003"], network.predict(blind, ["s003"]).loc["s003"], rtol=1e-5
    )


def test_normalisation_comes_from_the_training_sites_alone(make) -> None:
    from dataclasses import replace

    dataset = make(24)
    tiles = dataset.tiles.copy()
    rows = dataset.tile_rows(dataset.split.validation)
    tiles[rows] = 60000
    covariates = dataset.covariates.copy()
    covariates.loc[list(dataset.split.validation)] = 1e6
    other = replace(dataset, tiles=tiles, covariates=covariates)
    settings = SMALL | {"epochs": 1, "covariates": True}
    first, second = (
        NetworkPredictor(**settings).fit(data, dataset.split.train).network
        for data in (dataset, other)
    )
    for name in ("mean", "std", "covariate_mean", "covariate_std"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    pixels = dataset.tiles[dataset.tile_rows(dataset.split.train)][:, 3]
    # nodata does not count
    assert float(first.mean[3]) == pytest.approx(pixels[pixels > 0].mean() * 1e-4, rel=1e-3)


@pytest.mark.slow
def test_two_processes_give_the_network_of_one_with_the_joined_batch(make) -> None:
    dataset = make(24, image=False)
    # each process draws its own
    settings = TABLE | {
        "epochs": 3,
        "regulariser": {"weight": 0.5},
        "augment": False,
    }
    one = NetworkPredictor(**settings | {"batch_size": 8})
    two = NetworkPredictor(**settings | {"batch_size": 4, "devices": 2})
    first, second = (
        network.fit(
            dataset, dataset.split.train, context=FitContext(validation=dataset.split.validation)
        ).predict(dataset, dataset.site_ids)
        for network in (one, two)
    )
    pd.testing.assert_frame_equal(first, second, atol=1e-4)
    assert two.history["validation_loss"].to_numpy() == pytest.approx(
        one.history["validation_loss"].to_numpy(), rel=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"covariates": True, "modality_dropout": 0.5}])
def test_images_are_learned_in_two_processes_whatever_a_batch_lacks(make, change) -> None:
    dataset = make(24)
    settings = SMALL | {"window_px": 64, "epochs": 2, "batch_size": 2, "devices": 2} | change
    network = NetworkPredictor(**settings).fit(
        dataset, dataset.split.train, context=FitContext(validation=dataset.split.validation)
    )
    assert len(network.history) == 2
    assert network.history["validation_loss"].notna().all()
    assert np.isfinite(network.predict(dataset, dataset.site_ids).to_numpy()).all()


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16-mixed"},
        {"accumulate": 2},
        {"deterministic": True},
        {"schedule": "constant"},
        {"species_weights": [1.0, 0.0, 2.0, 1.0]},
        {"fusion": "gate"},
        {"loss": "beta_binomial"},
        {"loss": "focal"},
        {"loss": "asymmetric"},
        {"loss": "mae"},
        {"batch_size": 15},  # a last batch of one site
        {"covariates": False},
    ],
)
def test_every_setting_fits_and_predicts(make, change) -> None:
    dataset = make(24, image=False)
    network = NetworkPredictor(**TABLE | {"epochs": 2} | change).fit(dataset, dataset.split.train)
    assert network.history["train_loss"].notna().all()
    assert np.isfinite(network.predict(dataset, dataset.site_ids).to_numpy()).all()


def test_a_species_without_weight_is_left_at_its_mean_rate(make) -> None:
    dataset = make(60, image=False)
    settings = TABLE | {
        "species_weights": [1.0, 1.0, 0.0, 1.0],
        "regulariser": None,
        "learning_rate": 1e-2,
        "epochs": 15,
    }
    network = NetworkPredictor(**settings).fit(dataset, dataset.split.train)
    claims = network.predict(dataset, dataset.site_ids).std()
    assert claims.iloc[2] < 0.5 * claims.iloc[3]


def test_sites_without_visits_or_tiles_are_passed_over(make, caplog) -> None:
    from dataclasses import replace

    dataset = make(12)
    sites, detections = dataset.sites.copy(), dataset.detections.copy()
    sites.loc["s005", "visits"] = 0
    detections.loc["s005"] = 0
    sites.loc["s006", "tile_row"] = -1
    thin = replace(dataset, sites=sites, detections=detections)
    with caplog.at_level("WARNING"):
        network = NetworkPredictor(**SMALL | {"epochs": 1}).fit(thin, thin.split.train)
    assert "2 of 8 training sites have no visit or no tile" in caplog.text
    assert network.card["training"]["sites"] == 6
    with pytest.raises(DataError, match="None of the 1 training sites"):
        NetworkPredictor(**SMALL).fit(thin, ["s005"])
