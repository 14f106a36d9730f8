"""Make the figure of the paper: four species of the simulated region, predicted and true."""

from __future__ import annotations

import argparse
from pathlib import Path

import butterfly_sdm as bs
from butterfly_sdm import figures


def main() -> None:
    """Walk the whole way where it was not walked yet, and save the figure beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("paper_demo"), help="for all it makes")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("figure.png"))
    options = parser.parse_args()
    region = bs.simulate_region(options.folder / "region")
    dataset = bs.build(region.config, options.folder / "dataset")
    run = bs.train(region.config, options.folder / "run", dataset=dataset)
    species_map = bs.predict_map(run, out=options.folder / "map.tif")
    varied = dataset.rates.std().sort_values(ascending=False).index[:4]
    maps = {"predicted": species_map.path, "true": region.truth_map}
    figures.show_maps(maps, list(varied)).save(options.out, dpi=200)


if __name__ == "__main__":
    main()
