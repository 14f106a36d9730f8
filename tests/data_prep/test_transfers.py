"""Every transfer ends, stays on https, and sends nothing that nobody handed over."""

import base64
import logging
import socketserver
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from butterfly_sdm.core.addresses import shown
from butterfly_sdm.errors import RasterError, SourceError
from butterfly_sdm.imagery.options import StacOptions
from butterfly_sdm.imagery.products import open_raster
from data_prep.input_files import file_sources
from data_prep.options import BuildOptions
from data_prep.sources import transfer
from data_prep.sources.gbif import request_download
from data_prep.sources.signing import PlanetaryComputer, signer_of
from data_prep.sources.sparse import SparseCopies
from data_prep.sources.stac import _bands_of, _keep_item
from data_prep.sources.transfer import Service, open_session
from data_prep.workbench import Workbench

QUICK = Service(attempts=3, pause_s=0.0, timeout_s=0.2, wait_s=5.0, sleep=lambda _: None)


@contextmanager
def answering(talk):
    """Serve each connection by ``talk(head, send)``; yield the address and the heads."""
    heads = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            head = b""
            while b"\r\n\r\n" not in head:
                part = self.request.recv(65536)
                if not part:
                    return
                head += part
            heads.append(head.decode("latin-1"))
            with suppress(OSError):
                talk(heads[-1], self.request.sendall)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", heads
        server.shutdown()


def whole(status="200 OK", body=b"abc", more=""):
    about = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return about.encode() + body


@pytest.fixture
def netrc(tmp_path, monkeypatch):
    path = tmp_path / "netrc"
    path.write_text("default login kim password hush\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))


@pytest.mark.parametrize("way", ["fetch", "ask", "hold"])
def test_what_netrc_holds_is_sent_to_nobody(tmp_path, netrc, way):
    def talk(head, send):
        if "GET /moved" in head:
            send(whole("302 Found", b"", "Location: /there.tif\r\n"))
        else:
            send(whole())

    with answering(talk) as (url, heads):
        if way == "fetch":
            QUICK.fetch(f"{url}/moved.tif", tmp_path / "a.tif")
        elif way == "ask":
            QUICK.ask("GET", f"{url}/moved")
        else:
            SparseCopies(service=QUICK).hold(f"{url}/moved.tif", tmp_path / "a.tif")
    assert len(heads) >= 2
    assert not any("authorization" in head.lower() for head in heads)


def test_credentials_that_are_handed_over_do_not_follow_a_redirect_elsewhere():
    with answering(lambda head, send: send(whole())) as (other, heads):
        moved = other.replace("127.0.0.1", "localhost")

        def talk(head, send):
            send(whole("302 Found", b"", f"Location: {moved}/there\r\n"))

        with answering(talk) as (url, first):
            QUICK.ask("GET", f"{url}/a", auth=("kim", "hush"))
    expected = base64.b64encode(b"kim:hush").decode()
    assert expected in first[0]
    assert expected not in heads[0]


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ("https://a/x?sig=hush", "http://a/x?sig=hush", True),
        ("https://a/x", "https://b/y", False),
        ("http://a/x", "https://a/x", False),
        ("http://a/x", "http://b/x", False),
        ("http://a/x", "ftp://a/x", True),
    ],
)
def test_no_redirect_leaves_https(before, after, refused):
    response = SimpleNamespace(request=SimpleNamespace(url=before))
    prepared = SimpleNamespace(url=after, headers={})
    if not refused:
        open_session().rebuild_auth(prepared, response)
        return
    with pytest.raises(SourceError, match="away from https") as told:
        open_session().rebuild_auth(prepared, response)
    assert "hush" not in str(told.value)


def test_redirects_have_an_end(tmp_path):
    def talk(head, send):
        send(whole("302 Found", b"", "Location: /again\r\n"))

    with answering(talk) as (url, heads), pytest.raises(SourceError, match="TooManyRedirects"):
        QUICK.fetch(f"{url}/a", tmp_path / "a")
    assert len(heads) <= 3 * (transfer.MOST_REDIRECTS + 1)


def test_more_bytes_than_promised_are_not_kept(tmp_path):
    def talk(head, send):
        send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(1000):
            send(bytes(100_000))

    with (
        answering(talk) as (url, _),
        pytest.raises(SourceError, match="sends more bytes than were promised"),
    ):
        QUICK.fetch(f"{url}/a?sig=hush", tmp_path / "a", size=250_000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 250_000


def test_a_server_that_trickles_is_given_up(tmp_path):
    def talk(head, send):
        send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(100):
            send(b"x")
            time.sleep(0.05)

    began = time.monotonic()
    with answering(talk) as (url, _), pytest.raises(SourceError, match="could not be fetched"):
        QUICK.fetch(f"{url}/a", tmp_path / "a")
    assert time.monotonic() - began < 4


def test_what_is_sent_packed_is_refused(tmp_path):
    packed = whole(more="Content-Encoding: gzip\r\n")
    refused = pytest.raises(SourceError, match="sent packed")
    with answering(lambda head, send: send(packed)) as (url, _), refused:
        QUICK.fetch(f"{url}/a", tmp_path / "a")


@pytest.mark.parametrize("told", ["0", "-5", "nan", "inf", "1e99", "soon"])
def test_waiting_for_what_is_not_ready_has_an_end(tmp_path, told):
    not_ready = whole("202 Accepted", b"", f"Retry-After: {told}\r\n")
    ended = pytest.raises(SourceError, match="was not ready after")
    with answering(lambda head, send: send(not_ready)) as (url, heads), ended:
        QUICK.fetch(f"{url}/a?sig=hush", tmp_path / "a")
    assert len(heads) <= 6


@pytest.mark.parametrize(
    ("api", "confirmed", "sent"),
    [
        ("https://evil.example/v1", "", False),
        ("http://api.gbif.org/v1", "", False),
        ("https://api.gbif.org.evil.example/v1", "", False),
        ("https://proxy.example/v1", "proxy.example", True),
        ("https://api.gbif.org/v1", "", True),
    ],
)
def test_the_password_of_gbif_goes_to_gbif_alone(api, confirmed, sent):
    asked = []

    class Spy:
        def ask(self, method, url, **options):
            asked.append(url)
            return SimpleNamespace(text='"0001234-240101000000000"')

    account = {"GBIF_USER": "kim", "GBIF_PWD": "hush", "GBIF_EMAIL": "k@e.org"}
    environment = account | ({"GBIF_HOST": confirmed} if confirmed else {})
    if sent:
        request_download({}, environment=environment, api=api, service=Spy())
        assert asked == [f"{api}/occurrence/download/request"]
    else:
        with pytest.raises(SourceError, match="GBIF_HOST="):
            request_download({}, environment=environment, api=api, service=Spy())
        assert not asked


def test_a_token_is_kept_until_shortly_before_it_ends():
    class Tokens:
        asked = 0

        def ask(self, method, url):
            assert url == "https://tokens/sentinel/l2"
            self.asked += 1
            until = "2000-01-01T00:00:00Z" if self.asked == 1 else "2999-01-01T00:00:00Z"
            return SimpleNamespace(
                json=lambda: {"token": f"sig={self.asked}", "msft:expiry": until}
            )

    tokens = Tokens()
    sign = PlanetaryComputer("https://tokens", service=tokens)
    address = "https://sentinel.blob.core.windows.net/l2/a/B04.tif"
    assert [sign(address) for _ in range(3)] == [f"{address}?sig={n}" for n in (1, 2, 2)]
    assert sign("https://elsewhere.org/l2/a.tif") == "https://elsewhere.org/l2/a.tif"
    assert sign(f"{address}?sig=own") == f"{address}?sig=own"


def test_a_signer_that_nobody_offers_is_named():
    with pytest.raises(SourceError, match="planetary_computer"):
        signer_of("planetary_computr")
    assert isinstance(signer_of("planetary_computer"), PlanetaryComputer)
    assert "sign" not in StacOptions(url="x", start="2020-01-01", end="2020-01-02").model_dump()


def test_secrets_in_addresses_are_not_told(tmp_path, caplog):
    secret = "https://kim:hush@host:8443/a/b.tif?sig=hush#hush"
    assert shown(secret) == "https://host:8443/a/b.tif"
    item = {"id": "P", "assets": {"red": {"href": "ftp://kim:hush@h/a.tif?sig=hush"}}}
    with caplog.at_level(logging.DEBUG), pytest.raises(SourceError) as told:
        _keep_item(item, tmp_path, partial(_bands_of, wanted={"red"}), lambda *_: None)
    assert "hush" not in str(told.value) + caplog.text
    denied = whole("403 Forbidden", b"no: /a?sig=hush")
    with answering(lambda head, send: send(denied)) as (url, _):
        for fetch in (QUICK.fetch, SparseCopies(service=QUICK).hold):
            with pytest.raises(SourceError) as told:
                fetch(f"{url}/a.tif?sig=hush", tmp_path / "a.tif")
            assert "hush" not in str(told.value)
    refused = whole("400 Bad", b"no: /a?sig=hush")
    with (
        answering(lambda head, send: send(refused)) as (url, _),
        pytest.raises(SourceError) as told,
    ):
        QUICK.ask("GET", f"{url}/a?sig=hush")
    assert "hush" not in str(told.value)


@pytest.mark.parametrize("before", ["", "/vsicurl/"])
def test_an_address_of_a_scene_is_told_without_what_is_secret_in_it(before, caplog):
    address = f"{before}https://kim:hush@127.0.0.1:1/a.tif?sig=hush"
    with caplog.at_level(logging.WARNING), pytest.raises(RasterError) as told:
        open_raster(address)
    assert "hush" not in str(told.value) and "127.0.0.1:1/a.tif" in str(told.value)
    config = BuildOptions.model_validate({"records": {"path": Path("r")}, "scenes": {"paths": ()}})
    bench = Workbench(Path("w"))
    bench.notes.imagery[address.removeprefix(before)] = None
    (source,) = file_sources(config, bench)
    assert "hush" not in source.name and "127.0.0.1:1/a.tif" in source.name
    bench.notes.warn(f"{address} is cloudy")
    assert "hush" not in caplog.text + "".join(bench.notes.warnings)
