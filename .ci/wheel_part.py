"""Takes one folder out of a wheel: wheel_part.py WHEEL RECORD_SHA256 PREFIX TARGET

WHEEL is a file or an address. Of an address only the parts that are needed are read, if the server
answers range requests; it fails if not. The wheel's RECORD has to have the given hash, and every
member taken has to have the hash that RECORD gives it: no less is checked than with the hash of the
whole wheel.
"""

import base64
import csv
import hashlib
import io
import pathlib
import re
import sys
import urllib.request
import zipfile

CHUNK = 1 << 18
TIMEOUT_S = 60


class RemoteFile(io.RawIOBase):
    """A file behind a server that answers range requests."""

    def __init__(self, url):
        self.url, self.at = url, 0
        _, self.size = self._get("bytes=0-0")

    def _get(self, what):
        headers = {"Range": what, "Accept-Encoding": "identity"}
        with urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=TIMEOUT_S) as answer:
            span = re.fullmatch(r"bytes \d+-\d+/(\d+)", answer.headers.get("Content-Range") or "")
            if answer.status != 206 or not span:
                raise OSError("the server does not answer range requests")
            return answer.read(), int(span[1])

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def readinto(self, buffer):
        end = min(self.at + len(buffer), self.size)
        if end <= self.at:
            return 0
        data, _ = self._get(f"bytes={self.at}-{end - 1}")
        buffer[:len(data)] = data
        self.at += len(data)
        return len(data)


def take(wheel, record_sha256, prefix, target):
    """Writes the members below `prefix` into the folder `target`; returns how many."""
    record_name = next(n for n in wheel.namelist() if n.endswith(".dist-info/RECORD"))
    record = wheel.read(record_name)
    if hashlib.sha256(record).hexdigest() != record_sha256:
        raise ValueError(f"{record_name} is not the pinned one")
    hashes = {row[0]: row[1] for row in csv.reader(record.decode().splitlines())}
    names = [n for n in wheel.namelist() if n.startswith(prefix) and not n.endswith("/")]
    for name in names:
        data = wheel.read(name)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        if hashes.get(name) != f"sha256={digest}":
            raise ValueError(f"{name} is not what RECORD says")
        path = target / name[len(prefix):]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if not names:
        raise ValueError(f"nothing begins with {prefix}")
    return len(names)


def main():
    source, record_sha256, prefix, target = sys.argv[1:]
    raw = RemoteFile(source) if "://" in source else open(source, "rb", buffering=0)
    with zipfile.ZipFile(io.BufferedReader(raw, CHUNK)) as wheel:
        take(wheel, record_sha256, prefix, pathlib.Path(target))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile) as error:
        sys.exit(f"wheel_part: {error}")
