"""The server of a map answers many at once, this machine alone, and nothing but the map."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from butterfly_sdm.mapping.viewer import make_server, serve

CLIENTS, EACH = 50, 10


@pytest.fixture
def server(finished) -> Iterator[tuple[str, int]]:
    (finished.work / "beside.txt").write_text("not to be served")
    made = make_server(finished.work / "map.tif")
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made.server_address
    made.shutdown()
    made.server_close()


def _get(address: tuple[str, int], path: str = "/", method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=False)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_fifty_clients_at_once_get_the_whole_map(server, figures):
    begin = threading.Barrier(CLIENTS)

    def ask(_: int) -> set[tuple[int, bytes]]:
        begin.wait(60)
        return {_get(server) for _ in range(EACH)}

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = set().union(*pool.map(ask, range(CLIENTS)))
    assert len(answers) == 1
    status, page = answers.pop()
    assert status == 200 and page.endswith(b"</html>\n") and b"Maniola" in page
    figures.tried(f"pages asked of view by {CLIENTS} clients at once", "", CLIENTS * EACH)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/../beside.txt",
            "/beside.txt",
            "/..%2fbeside.txt",
            "/%2e%2e/beside.txt",
            "//etc/passwd",
            "/etc/passwd",
            "/map.tif",
        ),
        *(
            "file:///etc/passwd",
            "http://elsewhere.example/",
            "/?file=/etc/passwd",
            "/\\..\\beside.txt",
            "*",
            "/%00",
        ),
        "/" + "a" * 9000,
    ],
)
def test_nothing_but_the_map_is_served(server, path):
    status, body = _get(server, path)
    assert status in (403, 404)
    assert b"not to be served" not in body and b"root:" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE"])
def test_nothing_can_be_sent(server, method):
    assert _get(server, "/", method)[0] == 501


def test_it_listens_on_the_loopback_alone(server):
    assert server[0] == "127.0.0.1"
    for found in {
        address[4][0] for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    } - {"127.0.0.1"}:
        with pytest.raises(OSError), socket.create_connection((found, server[1]), timeout=5):
            pass


def test_silent_and_babbling_clients_do_not_keep_others_from_the_map(server):
    silent = [socket.create_connection(server, timeout=60) for _ in range(20)]
    babbling = socket.create_connection(server, timeout=60)
    babbling.sendall(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n")
    assert b"431" in babbling.recv(64)
    assert _get(server)[0] == 200
    for each in [*silent, babbling]:
        each.close()


def _slowly(address: tuple[str, int], stop: threading.Event, gone: list[int]) -> None:
    """Ask a byte at a time, for ever."""
    with socket.create_connection(address, timeout=60) as client:
        for byte in b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 10_000:
            if stop.wait(0.2):
                return
            try:
                client.sendall(bytes([byte]))
            except OSError:
                gone.append(1)
                return


def test_64_clients_that_ask_slowly_do_not_keep_others_from_the_map(server):
    stop, gone = threading.Event(), []
    threads = [
        threading.Thread(target=_slowly, args=(server, stop, gone)) for _ in range(serve.CLIENTS)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)  # they have taken all places
    waited = []
    for _ in range(3):
        began = time.monotonic()
        assert _get(server)[0] == 200
        waited.append(time.monotonic() - began)
    assert max(waited) < serve.PATIENCE_S + 3
    stop.set()
    for thread in threads:
        thread.join()


def test_64_clients_that_do_not_take_the_answer_do_not_keep_others_from_the_map(finished):
    made = make_server(finished.work / "map.tif")
    made.RequestHandlerClass._answer = _endless  # larger than what the system takes for a client
    threading.Thread(target=made.serve_forever, daemon=True).start()
    deaf = [socket.create_connection(made.server_address, timeout=60) for _ in range(serve.CLIENTS)]
    for client in deaf:
        client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    time.sleep(0.5)
    began = time.monotonic()
    assert _get(made.server_address, "/no-such-thing")[0] == 404
    assert time.monotonic() - began < serve.PATIENCE_S + 3
    for client in deaf:
        client.close()
    made.shutdown()
    made.server_close()


def _endless(handler, *_) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"0" * 2**20)


def test_no_more_threads_than_places(server):
    before = threading.active_count()
    clients = [socket.create_connection(server, timeout=60) for _ in range(2 * serve.CLIENTS)]
    time.sleep(0.5)
    assert threading.active_count() - before <= serve.CLIENTS
    for client in clients:
        client.close()
