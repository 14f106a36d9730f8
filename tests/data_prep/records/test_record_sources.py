"""
Downloads from GBIF and of the published data set, against a local server that behaves like them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import butterfly_sdm
from butterfly_sdm.config import load_config
from butterfly_sdm.errors import ArtefactError, ConfigError, SourceError
from data_prep.records.count import record_sources
from data_prep.records.options import GbifOptions, RecordsOptions
from data_prep.sources import gbif, s2bms
from data_prep.sources.fetching import fetch_records
from data_prep.sources.provenance import read_provenance, side_file
from data_prep.sources.transfer import Service
from tests.data_prep.records.making_records import archive, row

LARGE = bytes(range(256)) * 2000
KEY = "0001234-240101000000000"
ACCOUNT = {"GBIF_USER": "kim", "GBIF_PWD": "hush", "GBIF_EMAIL": "kim@example.org"}


class Server(ThreadingHTTPServer):
    """What the services hold, how they misbehave, and what they were asked."""

    content = b""
    etag = '"v1"'
    states = ("PREPARING", "RUNNING", "SUCCEEDED")  # of the download, one per question
    break_after: list[int]  # bytes after which each of the next transfers breaks off
    not_ready = 0  # transfers answered with 202
    busy = 0  # questions answered with 503
    checksum = ""
    file_name = "data set.zip"

    def start(self) -> None:
        self.break_after, self.asked, self.posted = [], [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        expected = base64.b64encode(b"kim:hush").decode()
        if self.headers.get("Authorization") != f"Basic {expected}":
            return self.reply(401)
        self.server.posted.append(body)
        return self.reply(201, KEY.encode())

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(
            (self.path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        if server.busy:
            server.busy -= 1
            return self.reply(503)
        if self.path == f"/v1/occurrence/download/{KEY}":
            state, *rest = server.states
            server.states = rest or (state,)
            about = {
                "key": KEY,
                "status": state,
                "doi": "10.15468/dl.abc",
                "created": "2024-03-05T10:00:00.000+00:00",
            }
            about |= {
                "license": "http://creativecommons.org/licenses/by-nc/4.0/legalcode",
                "size": len(server.content),
            }
            return self.reply(
                200, json.dumps(about | {"downloadLink": f"{server.url}/moved/{KEY}.zip"}).encode()
            )
        if self.path.startswith("/moved/"):
            return self.reply(302, Location="/file")
        if self.path == "/api/records/15198884":
            files = [
                {
                    "key": server.file_name,
                    "size": len(server.content),
                    "checksum": server.checksum or "md5:" + hashlib.md5(server.content).hexdigest(),
                    "links": {"self": f"{server.url}/file"},
                }
            ]
            meta = {
                "title": "S2BMS",
                "creators": [{"name": "van der Plas, Thijs"}],
                "publication_date": "2025-04-11",
            }
            return self.reply(
                200,
                json.dumps(
                    {
                        "doi": s2bms.DOI,
                        "files": files,
                        "metadata": meta | {"license": {"id": "cc-by-4.0"}},
                    }
                ).encode(),
            )
        if self.path == "/file":
            return self.send_file()
        return self.reply(404, b"nothing here")

    def send_file(self) -> None:
        server = self.server
        if server.not_ready:
            server.not_ready -= 1
            return self.reply(202, Retry_After="7")
        start, status = 0, 200
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range") == server.etag:
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            if start >= len(server.content):
                return self.reply(416)
        body = server.content[start:]
        self.send_response(status)
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            )
        self.end_headers()
        if server.break_after:
            self.wfile.write(body[: server.break_after.pop(0)])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return None
        self.wfile.write(body)
        return None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.content = archive(
        tmp_path / "source.zip", [row(n % 5, ident=n) for n in range(500)]
    ).read_bytes()
    made.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def naps() -> list[float]:
    return []


@pytest.fixture
def service(naps: list[float]) -> Service:
    return Service(attempts=3, timeout_s=5, poll_s=20, sleep=naps.append)


def fetch_gbif(server: Server, folder: Path, service: Service) -> Path:
    return gbif.download(KEY, folder, api=f"{server.url}/v1", service=service)


def test_a_download_is_awaited_followed_through_redirects_and_kept_with_its_citation(
    server, tmp_path, service, naps
):
    path = fetch_gbif(server, tmp_path / "out", service)
    assert path.read_bytes() == server.content
    assert naps == [20, 20]  # preparing, running
    held = read_provenance(path)
    assert held is not None
    assert (held.doi, held.licence) == ("10.15468/dl.abc", "CC BY-NC 4.0")
    assert (
        held.citation
        == "GBIF.org (5 March 2024) GBIF Occurrence Download https://doi.org/10.15468/dl.abc"
    )
    (source,) = record_sources(RecordsOptions(path=path))
    assert (source.licence, source.citation) == (held.licence, held.citation)


def test_a_file_that_is_there_is_not_fetched_again(server, tmp_path, service):
    fetch_gbif(server, tmp_path, service)
    before = len([path for path, *_ in server.asked if path == "/file"])
    fetch_gbif(server, tmp_path, service)
    assert len([path for path, *_ in server.asked if path == "/file"]) == before == 1


def test_a_transfer_that_breaks_off_goes_on_where_it_was(server, tmp_path, service):
    server.content = LARGE
    server.break_after = [100_000, 150_000]
    path = fetch_gbif(server, tmp_path, service)
    assert path.read_bytes() == server.content
    assert [wanted for place, wanted, _ in server.asked if place == "/file"] == [
        None,
        "bytes=100000-",
        "bytes=250000-",
    ]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path, service):
    server.content = LARGE
    server.break_after = [70_000] * 3
    with pytest.raises(
        SourceError,
        match=r"could not be fetched from 127.0.0.1 in 3 attempts .*it goes on after the 210,000 "
        r"bytes",
    ):
        fetch_gbif(server, tmp_path, service)
    server.etag = '"v2"'
    server.content = server.content[::-1]
    assert fetch_gbif(server, tmp_path, service).read_bytes() == server.content


def test_a_later_call_goes_on_after_an_earlier_one_failed(server, tmp_path, service):
    server.content = LARGE
    server.break_after = [70_000] * 3
    with pytest.raises(SourceError):
        fetch_gbif(server, tmp_path, service)
    assert fetch_gbif(server, tmp_path, service).read_bytes() == server.content
    assert server.asked[-1][1] == "bytes=210000-"


def test_a_leftover_that_is_longer_than_the_file_is_thrown_away(server, tmp_path, service):
    (tmp_path / f"{KEY}.zip.part").write_bytes(server.content + b"more")
    (tmp_path / f"{KEY}.zip.part.version").write_text(server.etag)
    assert fetch_gbif(server, tmp_path, service).read_bytes() == server.content


def test_a_file_that_is_not_ready_is_awaited_as_long_as_the_service_says(
    server, tmp_path, service, naps
):
    server.not_ready = 2
    fetch_gbif(server, tmp_path, service)
    assert naps[-2:] == [7, 7]


def test_waiting_has_an_end(server, tmp_path, naps):
    server.states = ("RUNNING",)
    with pytest.raises(SourceError, match=r"still preparing .* Run the same command later"):
        fetch_gbif(server, tmp_path, Service(wait_s=60, poll_s=20, sleep=naps.append))
    assert naps == [20, 20, 20]


@pytest.mark.parametrize("state", ["FAILED", "KILLED", "FILE_ERASED"])
def test_a_download_that_gbif_could_not_prepare_says_so(server, tmp_path, service, state):
    server.states = (state,)
    with pytest.raises(SourceError, match=f"is {state.lower().replace('_', ' ')}. Request it anew"):
        fetch_gbif(server, tmp_path, service)


def test_a_busy_service_is_asked_again_and_not_for_ever(server, tmp_path, service, naps):
    server.busy = 2
    fetch_gbif(server, tmp_path, service)
    assert naps[:2] == [1.0, 2.0]
    server.busy = 99
    with pytest.raises(SourceError, match=r"did not answer after 3 attempts \(status 503\)"):
        fetch_gbif(server, tmp_path / "other", service)


def test_a_service_that_is_not_there_is_named(tmp_path, service):
    with pytest.raises(SourceError, match=r"127.0.0.1 did not answer after 3 attempts"):
        gbif.download(KEY, tmp_path, api="http://127.0.0.1:9/v1", service=service)


def test_an_unknown_key_is_refused(server, tmp_path, service):
    with pytest.raises(SourceError, match=r"status 404: nothing here\). Check the key"):
        gbif.download("0009999-240101000000000", tmp_path, api=f"{server.url}/v1", service=service)
    with pytest.raises(SourceError, match="is no key of a GBIF download"):
        gbif.download("../../etc/passwd", tmp_path, api=f"{server.url}/v1", service=service)


def test_a_query_is_sent_with_the_account_and_gives_a_key(server, service):
    asked = gbif.query(GbifOptions(taxon_keys=(7017,), countries=("GB", "IE"), years=(2018, 2019)))
    assert (
        gbif.request_download(asked, environment=ACCOUNT, api=f"{server.url}/v1", service=service)
        == KEY
    )
    (body,) = server.posted
    assert (body["creator"], body["format"], body["notificationAddresses"]) == (
        "kim",
        "DWCA",
        ["kim@example.org"],
    )
    assert {"type": "in", "key": "COUNTRY", "values": ["GB", "IE"]} in body["predicate"][
        "predicates"
    ]
    assert {"type": "greaterThanOrEquals", "key": "YEAR", "value": "2018"} in body["predicate"][
        "predicates"
    ]


def test_credentials_that_are_missing_or_wrong_are_named_but_never_shown(server, service):
    with pytest.raises(SourceError, match="set GBIF_PWD, GBIF_EMAIL in the environment"):
        gbif.request_download(
            gbif.query(GbifOptions(countries=("GB",))),
            environment={"GBIF_USER": "kim"},
            api=f"{server.url}/v1",
            service=service,
        )
    with pytest.raises(SourceError, match="refuses the credentials") as caught:
        gbif.request_download(
            gbif.query(GbifOptions(countries=("GB",))),
            environment={**ACCOUNT, "GBIF_PWD": "wrong"},
            api=f"{server.url}/v1",
            service=service,
        )
    assert "wrong" not in str(caught.value)
    with pytest.raises(ValueError, match="state either the key of a download, or a query"):
        GbifOptions()


def fetch_s2bms(server: Server, folder: Path, service: Service, **options: object) -> list[Path]:
    return s2bms.download_s2bms(folder, api=f"{server.url}/api", service=service, **options)  # type: ignore[arg-type]


def test_the_published_data_set_is_fetched_by_doi_and_checked(server, tmp_path, service):
    (path,) = fetch_s2bms(server, tmp_path, service, files=("*.zip",))
    assert path.name == "data set.zip" and path.read_bytes() == server.content
    held = read_provenance(path)
    assert held is not None and held.licence == "cc-by-4.0"
    assert (
        held.citation == f"van der Plas, Thijs (2025). S2BMS. Zenodo. https://doi.org/{s2bms.DOI}"
    )


def test_a_wrong_checksum_is_refused_and_the_file_removed(server, tmp_path, service):
    server.checksum = "md5:" + "0" * 32
    with pytest.raises(
        SourceError,
        match=r"not the file that was promised: md5:0+ was expected, md5:[0-9a-f]+ arrived",
    ):
        fetch_s2bms(server, tmp_path / "out", service)
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_copy_is_fetched_again(server, tmp_path, service):
    (path,) = fetch_s2bms(server, tmp_path, service)
    path.write_bytes(b"x" * len(server.content))
    (path,) = fetch_s2bms(server, tmp_path, service)
    assert path.read_bytes() == server.content


def test_names_that_are_not_there_or_escape_the_folder_are_refused(server, tmp_path, service):
    with pytest.raises(SourceError, match=r"has no file named \*.tif; it has data set.zip"):
        fetch_s2bms(server, tmp_path, service, files=("*.tif",))
    with pytest.raises(SourceError, match="is no DOI of Zenodo"):
        fetch_s2bms(server, tmp_path, service, doi="10.1234/x")
    server.file_name = "../evil.zip"
    with pytest.raises(SourceError, match="would escape its folder"):
        fetch_s2bms(server, tmp_path, service)


def test_an_unknown_kind_of_checksum_is_refused(server, tmp_path, service):
    server.checksum = "crc:1"
    with pytest.raises(SourceError, match="'crc:1' is of an unknown kind"):
        fetch_s2bms(server, tmp_path, service)


def test_provenance_of_another_file_is_refused(server, tmp_path, service):
    (path,) = fetch_s2bms(server, tmp_path, service)
    path.write_bytes(b"another")
    with pytest.raises(ArtefactError, match="speaks of another file"):
        read_provenance(path)
    side_file(path).write_text("{}")
    with pytest.raises(ArtefactError, match="not a provenance"):
        read_provenance(path)
    assert read_provenance(tmp_path / "unknown.zip") is None


def config_of(server: Server, folder: Path, **source: object) -> dict[str, object]:
    """Return a config that names its records by their source."""
    api = {"gbif": f"{server.url}/v1", "s2bms": f"{server.url}/api"}
    records = {name: {**value, "api": api[name]} for name, value in source.items()}  # type: ignore[dict-item]
    build = {"records": {**records, "min_records": 0}, "split": {"method": "random"}}
    return {"name": "fetched", "out": str(folder), "build": build}


def times_fetched(server: Server) -> int:
    return len([path for path, *_ in server.asked if path == "/file"])


def test_build_fetches_a_download_by_its_key_and_the_card_cites_it(server, tmp_path):
    server.states = ("SUCCEEDED",)
    config = config_of(server, tmp_path, gbif={"key": KEY})
    dataset = butterfly_sdm.build(config)
    assert dataset.visits.sum() == 5
    (source,) = [source for source in dataset.card.sources if source.role == "records"]
    assert source.name == f"{KEY}.zip" and source.licence == "CC BY-NC 4.0"
    assert (
        source.citation
        == "GBIF.org (5 March 2024) GBIF Occurrence Download https://doi.org/10.15468/dl.abc"
    )
    assert (tmp_path / "downloads" / f"{KEY}.zip").is_file()
    asked = len(server.asked)
    butterfly_sdm.build(config, tmp_path / "again")  # another data set from the same file
    assert len(server.asked) == asked


def test_a_query_is_asked_once_and_an_interrupted_build_goes_on(
    server, tmp_path, monkeypatch, service
):
    for name, value in ACCOUNT.items():
        monkeypatch.setenv(name, value)
    config = load_config(
        config_of(server, tmp_path, gbif={"countries": ["GB"], "years": [2018, 2019]})
    ).build.records
    server.content, server.break_after, server.states = LARGE, [70_000] * 3, ("SUCCEEDED",)
    with pytest.raises(SourceError, match="it goes on after the 210,000 bytes"):
        fetch_records(config, tmp_path / "held", service=service)
    monkeypatch.delenv("GBIF_PWD")  # the key is known now
    fetched = fetch_records(config, tmp_path / "held", service=service)
    assert (
        fetched.path == (tmp_path / "held" / f"{KEY}.zip",)
        and fetched.path[0].read_bytes() == LARGE
    )
    assert server.asked[-1][1] == "bytes=210000-" and len(server.posted) == 1
    asked = len(server.asked)
    assert (
        fetch_records(config, tmp_path / "held", service=service) == fetched
        and len(server.asked) == asked
    )


def test_records_of_the_published_release_are_fetched_once_by_doi(server, tmp_path, service):
    config = load_config(config_of(server, tmp_path, s2bms={"files": ["data*.zip"]})).build.records
    config = config.model_copy(
        update={"path": tmp_path / "own.csv", "downloads": tmp_path / "kept"}
    )
    fetched = fetch_records(config, tmp_path / "unused", service=service)
    assert fetched.path == (tmp_path / "own.csv", tmp_path / "kept" / "data set.zip")
    assert read_provenance(fetched.path[1]).doi == s2bms.DOI
    asked = len(server.asked)
    assert (
        fetch_records(config, tmp_path, service=service) == fetched and len(server.asked) == asked
    )
    fetched.path[1].unlink()
    fetch_records(config, tmp_path, service=service)
    assert times_fetched(server) == 2


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({}, "there are no records: state path .*, gbif or s2bms"),
        ({"gbif": {}}, "state either the key of a download, or a query"),
        (
            {"gbif": {"key": KEY, "countries": ["GB"]}},
            "state either the key of a download, or a query",
        ),
        ({"s2bms": {}}, "build.records.s2bms.files is missing"),
    ],
)
def test_a_config_without_records_or_with_half_a_source_is_refused(records, message):
    with pytest.raises(ConfigError, match=message):
        load_config({"build": {"records": records}})
