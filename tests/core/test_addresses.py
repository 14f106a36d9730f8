"""What may be secret in addresses is told by no library that this package calls."""

import logging

import pytest

from butterfly_sdm.core.addresses import without_secrets
from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.scene import open_scene
from tests.data_prep.range_server import serving

HOST = "https://me:pass@host.org/a.tif?sig=hush"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"'{HOST}' is missing; see {HOST}", "'https://host.org/a.tif' is missing; see {}"),
        ("/vsicurl/https://h/a.tif?sig=hush: 404", "https://h/a.tif 404"),
        ("/vsicurl?url=https%3A%2F%2Fh%2Fa.tif%3Fsig%3Dhush x", "https://h/a.tif x"),
        ("no address, 3 of 4 (50 %)", "no address, 3 of 4 (50 %)"),
    ],
)
def test_texts_keep_where_and_lose_who(text, told):
    assert without_secrets(text) == told.format("https://host.org/a.tif")


def test_what_rasterio_logs_of_an_address_holds_no_secret(tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="rasterio")
    with serving(tmp_path) as server:
        secret = f"{server.url}/a.tif?sig=hush".replace("//", "//me:pass@")
        with pytest.raises(RasterError) as error:
            open_scene(secret)
    logging.getLogger("rasterio._env").info("GDAL signalled an error: %r of %d", secret, 3)
    assert "a.tif' of 3" in caplog.messages[-1]
    for said in (*caplog.messages, str(error.value)):
        assert "hush" not in said and "pass" not in said
