"""Whatever a file from a stranger holds, it is read or refused with an error of this package."""

import json
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from butterfly_sdm.config import dump_config, load_config, starter_yaml
from butterfly_sdm.data.dataset import read_card
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import ButterflySDMError
from butterfly_sdm.predictors import load_predictor
from data_prep.grid_references import GridSquare
from data_prep.readers.markup import parse_xml
from data_prep.readers.registry import open_records

INPUTS = int(os.environ.get("BUTTERFLY_SDM_FUZZ", "1000000"))
TOKENS = (
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\t", b"\r\n", b"null", b"-1", b"1e999", b"NaN", b"true", b"- "),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\x00", b"\xc3\xa9", b"<", b"/>", b"&x;", b"../", b"SU", b"0" * 30, b"!!python/object:x "),
)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Change a valid input: flip, cut, repeat, insert what formats trip over."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, len(out) + 1))
        kind = rng.integers(0, 5)
        if kind == 0 and out:
            out[min(at, len(out) - 1)] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del out[at : at + int(rng.integers(1, 20))]
        elif kind == 2:
            out[at:at] = TOKENS[int(rng.integers(len(TOKENS)))]
        elif kind == 3:
            out[at:at] = out[at : at + int(rng.integers(1, 60))]
        else:
            del out[at:]
    return bytes(out)


class Target:
    """A reader, a valid input of it, and the share of all inputs it gets."""

    def __init__(self, folder: Path, name: str, valid: bytes, read, share: float) -> None:
        self.path, self.valid, self.read, self.share = folder / name, valid, read, share

    def tries(self, data: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.read(self.path)
        except ButterflySDMError as error:
            assert str(error)


def _read_rows(path: Path) -> None:
    source = open_records(path)
    for _ in source.blocks():
        pass


def _zip(path: Path, members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)
    return path.read_bytes()


def _targets(finished, folder: Path) -> list[Target]:
    with zipfile.ZipFile(finished.config.parent / "records.zip") as archive:
        rows = b"\n".join(archive.read("occurrence.txt").split(b"\n")[:12]) + b"\n"
        meta = archive.read("meta.xml")
    whole = _zip(folder / "valid.zip", {"meta.xml": meta, "occurrence.txt": rows})
    text = starter_yaml().encode()
    dataset, run = finished.work / "dataset", finished.work / "run"
    grid = [b"SU8741", b"SU87", b"SU84X", b"H35", b"TQ123456", b"NN1663971278"]
    return [
        Target(folder, "grid.txt", b"\n".join(grid), lambda p: [_square(t) for t in p.read_text("latin-1").split("\n")], 0.40),
        Target(folder, "config.yaml", text[:1500], load_config, 0.02),
        Target(folder, "resolved.yaml", dump_config(load_config(finished.config)).encode(), load_config, 0.02),
        Target(folder, "meta.xml", meta, lambda p: parse_xml(p.read_bytes(), p.name), 0.30),
        Target(folder, "split.json", (dataset / "split.json").read_bytes(), Split.from_json, 0.10),
        Target(folder / "card", "dataset.json", (dataset / "dataset.json").read_bytes(), lambda p: read_card(p.parent), 0.10),
        Target(folder / "model", "model.json", (run / "model.json").read_bytes(), lambda p: load_predictor(p.parent), 0.03),
        Target(folder, "records.csv", rows.replace(b"\t", b","), _read_rows, 0.015),
        Target(folder, "archive.zip", whole, _read_rows, 0.015),
    ]


def _square(text: str) -> None:
    try:
        GridSquare.parse(text)
    except ButterflySDMError as error:
        assert str(error)


def _fuzz(finished, folder: Path, inputs: int) -> dict[str, int]:
    rng = np.random.default_rng(0)
    tried = {}
    for target in _targets(finished, folder):
        target.tries(target.valid)
        tried[target.path.name] = max(20, int(inputs * target.share))
        for _ in range(tried[target.path.name]):
            data = mutate(target.valid, rng)
            try:
                target.tries(data)
            except Exception as error:
                raise AssertionError(f"{target.path.name}: {type(error).__name__}: {error}\n{data[:2000]!r}") from error
    return tried


def test_mutated_files_are_read_or_refused(finished, tmp_path):
    _fuzz(finished, tmp_path, 1000)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_a_million_mutated_files_are_read_or_refused(finished, tmp_path, record_property):
    tried = _fuzz(finished, tmp_path, INPUTS)
    record_property("inputs", json.dumps(tried))
