"""
Serve the files of a folder, or parts of them, as a cloud storage does: python -m
tests.data_prep.serving FOLDER
"""

import functools
import http.server
import re
import sys
from pathlib import Path


class Storage(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        file = Path(self.translate_path(self.path))
        if part is None or not file.is_file():
            super().do_GET()
            return
        content = file.read_bytes()
        first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(content[first : last + 1])


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Storage, directory=sys.argv[1])
    )
    sys.stdout.write(f"http://127.0.0.1:{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
