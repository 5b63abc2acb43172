""".ci/wheel_part.py: takes a folder out of a wheel, reading no more than it needs, and checks every byte."""

import base64
import hashlib
import http.server
import io
import pathlib
import sys
import threading
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".ci"))
import wheel_part  # noqa: E402

HEADER = b"#pragma once\n" * 1000


def make_wheel(header=HEADER):
    """A wheel with a small header before a large library, and the hash of its RECORD."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(HEADER).digest()).decode().rstrip("=")
    record = f"pkg/include/a/x.h,sha256={digest},{len(HEADER)}\npkg/lib/big.so,sha256=unchecked,0\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("pkg/include/a/x.h", header)
        wheel.writestr(zipfile.ZipInfo("pkg/lib/big.so"), bytes(8 << 20), zipfile.ZIP_STORED)
        wheel.writestr("pkg-1.dist-info/RECORD", record)
    return file.getvalue(), hashlib.sha256(record.encode()).hexdigest()


@pytest.fixture(name="serve")
def fixture_serve():
    servers = []

    def serve(data, ranges=True):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
                body = data[first:last + 1] if ranges else data
                sent.append(len(body))
                self.send_response(206 if ranges else 200)
                if ranges:
                    self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(data)}")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        sent = []
        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/pkg.whl", sent

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def take(source, record, target):
    with zipfile.ZipFile(io.BufferedReader(source, wheel_part.CHUNK)) as wheel:
        return wheel_part.take(wheel, record, "pkg/include/", target)


def test_reads_only_what_it_needs(serve, tmp_path):
    data, record = make_wheel()
    url, sent = serve(data)
    assert take(wheel_part.RemoteFile(url), record, tmp_path) == 1
    assert (tmp_path / "a/x.h").read_bytes() == HEADER
    assert sum(sent) < len(data) / 4


def test_a_server_without_ranges_is_an_error(serve):
    url, _ = serve(b"x" * 100, ranges=False)
    with pytest.raises(OSError):
        wheel_part.RemoteFile(url)


def test_another_record_or_another_member_is_refused(tmp_path):
    data, record = make_wheel()
    with pytest.raises(ValueError, match="pinned"):
        take(io.BytesIO(data), "0" * 64, tmp_path)
    changed, _ = make_wheel(header=b"something else")
    with pytest.raises(ValueError, match="RECORD says"):
        take(io.BytesIO(changed), record, tmp_path)
    assert not list(tmp_path.iterdir())
