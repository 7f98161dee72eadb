"""The Orthanc of Compose, as far as it goes without its image: its configuration and hook, run by Debian's Orthanc."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
from pydicom.data import get_testdata_file

from tests.e2e.server import ROOT, free_port

DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PASSWORD, TOKEN = "a-password", "a-token"


@pytest.fixture
def listener() -> Iterator[tuple[str, Queue[tuple[str, dict[str, str], bytes]]]]:
    """An address that takes calls, and what was called: path, headers, body."""
    calls: Queue[tuple[str, dict[str, str], bytes]] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            calls.put((self.path, dict(self.headers), body))
            self.send_response(202)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/pacs/events/orthanc", calls
        server.shutdown()


@pytest.fixture
def orthanc(shared: Path, tmp_path: Path, listener: tuple[str, Any]) -> Iterator[str]:
    """Its address. Ports, folders, plugins and the stable age are this test's; all else is as it is shipped."""
    binary = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if not binary or not DICOMWEB.exists():
        pytest.skip("needs the Debian packages orthanc and orthanc-dicomweb")
    port = free_port()
    config = json.loads((ROOT / "docker" / "orthanc.json").read_text()) | {
        "HttpPort": port,
        "DicomPort": free_port(),
        "StorageDirectory": str(tmp_path / "db"),
        "IndexDirectory": str(tmp_path / "db"),
        "StableAge": 1,
        "Plugins": [str(DICOMWEB)],
        "LuaScripts": [str(ROOT / "docker" / "stable-series.lua")],
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(config))
    environment = {**os.environ, "PACS_PASSWORD": PASSWORD, "WEBHOOK_TOKEN": TOKEN, "WEBHOOK_URL": listener[0]}
    environment["LD_PRELOAD"] = _loopback_shim(shared, tmp_path / "shim")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([binary, str(tmp_path / "orthanc.json")], env=environment, stdout=log, stderr=log)
    try:
        _wait(f"http://127.0.0.1:{port}", process, tmp_path / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _loopback_shim(shared: Path, folder: Path) -> str:
    """Debian's Orthanc knows no address to bind to; the one that the shared script builds keeps it on this machine."""
    script = str(shared / "pacs" / "start-orthanc")
    subprocess.run([script, "--dir", str(folder)], check=True, capture_output=True, timeout=300)
    subprocess.run([script, "stop", "--dir", str(folder)], check=True, capture_output=True, timeout=60)
    return str(folder / "loopback.so")


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    stop = time.monotonic() + 60
    while time.monotonic() < stop and process.poll() is None:
        try:
            call(f"{url}/system")
            return
        except (URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def call(url: str, body: bytes | None = None, password: str | None = PASSWORD) -> Any:
    """JSON that Orthanc answers."""
    token = b64encode(f"medrestore:{password}".encode()).decode()
    headers = {"Authorization": f"Basic {token}"} if password else {}
    with urlopen(Request(url, body, {"Accept": "application/json", **headers}), timeout=30) as answer:
        return json.loads(answer.read())


def test_a_stable_series_is_told_with_the_token_and_nothing_of_the_patient(
    orthanc: str, listener: tuple[str, Queue[tuple[str, dict[str, str], bytes]]]
) -> None:
    for password in (None, "wrong"):
        with pytest.raises(HTTPError) as refused:
            call(f"{orthanc}/system", password=password)
        with refused.value as answer:
            assert answer.code == 401
    path = get_testdata_file("CT_small.dcm", download=False)
    stored = call(f"{orthanc}/instances", Path(path).read_bytes())
    told_path, headers, body = listener[1].get(timeout=60)
    assert told_path == "/pacs/events/orthanc"
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"series": stored["ParentSeries"]}
    assert len(call(f"{orthanc}/dicom-web/series?limit=5")) == 1
