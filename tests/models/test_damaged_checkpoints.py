"""A checkpoint of which one byte changed is not continued from."""

import pytest
import torch

from butterfly_sdm.errors import ArtefactError
from butterfly_sdm.models.fit import _read_checkpoint


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_changed_byte_is_found(tmp_path, share):
    path = tmp_path / "last.ckpt"
    torch.save({"callbacks": {"Journal": {}}, "weights": torch.rand(5000)}, path)
    assert _read_checkpoint(path)["weights"].shape == (5000,)
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"checkpoint .* was damaged since it was written"):
        _read_checkpoint(path)


def test_a_file_cut_in_half_is_found(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"callbacks": {"Journal": {}}, "weights": torch.rand(5000)}, path)
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(ArtefactError, match=r"checkpoint .* was damaged since it was written"):
        _read_checkpoint(path)
