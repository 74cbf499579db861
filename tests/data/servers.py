"""A web server on this machine that behaves like a file server with ranges, like S3 and like GCS, and fails to order."""
import contextlib
import hashlib
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape

_PAGE = 3  # names a listing gives at once, so that tests see more than one page


class Server(ThreadingHTTPServer):
    """Serves `folder`. `requests`: (method, path, range) of all so far. `faults`: what the next requests meet instead.

    A fault is a status to answer with, 'short' (half of the content, then the connection closes) or 'silent' (no answer for
    a second).
    """

    def __init__(self, folder: Path):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.folder, self.requests, self.faults = folder, [], []
        self.url = f'http://127.0.0.1:{self.server_port}'

    def handle_error(self, request, client_address):
        """A client that did not wait is no error of the server's."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True  # else each small answer waits 40 ms

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        path = self.server.folder / urllib.parse.unquote(url.path).lstrip('/')
        self.server.requests.append((self.command, url.path, self.headers.get('Range')))
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == 'silent':
            time.sleep(1.)
        if isinstance(fault, int):
            return self._send(fault, b'')
        if query.get('list-type') == '2':
            return self._send(200, _listing(path, query).encode(), {'Content-Type': 'application/xml'})
        if not path.is_file():
            return self._send(404, b'no such file')
        data = path.read_bytes()
        headers = {'ETag': f'"{hashlib.md5(data).hexdigest()}"', 'Last-Modified': 'Sat, 21 Nov 2026 10:00:00 GMT',
                   'Accept-Ranges': 'bytes'}
        status = 200
        if found := re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', '')):
            start, stop = int(found[1]), min(int(found[2] or len(data)), len(data) - 1) + 1
            if start >= len(data):
                return self._send(416, b'', {'Content-Range': f'bytes */{len(data)}'})
            headers['Content-Range'], status = f'bytes {start}-{stop - 1}/{len(data)}', 206
            data = data[start:stop]
        self._send(status, data, headers, len(data) // 2 if fault == 'short' else None)

    def _send(self, status: int, data: bytes, headers=None, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {'Content-Length': str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *arguments):
        """Nothing on the console."""


def _listing(bucket: Path, query: dict[str, str]) -> str:
    """What ListObjectsV2 of S3, which GCS also understands, says: keys under a prefix, page by page."""
    prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
    keys = sorted(str(f.relative_to(bucket)) for f in bucket.rglob('*') if f.is_file())
    keys = [k for k in keys if k.startswith(prefix) and k > query.get('continuation-token', '')]
    if delimiter:
        keys = [k for k in keys if delimiter not in k[len(prefix):]]
    page = keys[:_PAGE]
    more = f'<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>' if len(keys) > len(page) else ''
    contents = ''.join(f'<Contents><Key>{escape(k)}</Key><LastModified>2026-11-21T10:00:00.000Z</LastModified>'
                       f'<ETag>"{hashlib.md5((bucket / k).read_bytes()).hexdigest()}"</ETag>'
                       f'<Size>{(bucket / k).stat().st_size}</Size></Contents>' for k in page)
    return (f'<?xml version="1.0"?><ListBucketResult><Name>{bucket.name}</Name><KeyCount>{len(page)}</KeyCount>'
            f'<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{contents}</ListBucketResult>')


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server of `folder` while the block runs: `server.url`/FILE; buckets are the folders below."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.01), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def as_s3(server: Server, monkeypatch) -> None:
    """s3:// leads to `server`."""
    for key, value in dict(AWS_ENDPOINT_URL=server.url, AWS_ACCESS_KEY_ID='test', AWS_SECRET_ACCESS_KEY='test',
                           AWS_REGION='us-east-1').items():
        monkeypatch.setenv(key, value)


def as_gcs(server: Server, monkeypatch) -> None:
    """gs:// leads to `server`."""
    monkeypatch.setenv('GOOGLE_BASE_URL', server.url)
    monkeypatch.setenv('GOOGLE_SKIP_SIGNATURE', 'true')
