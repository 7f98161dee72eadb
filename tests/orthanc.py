"""A real Orthanc on loopback for a test, started by the script in the shared folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from app.pacs.peer import Peer


class TestOrthanc:
    """One server and its folder; `start` again after `kill` keeps data, ports and the numbers of changes."""

    __test__ = False

    def __init__(self, shared: Path, folder: Path, *options: str) -> None:
        self._script = shared / "pacs" / "start-orthanc"
        self._folder = folder
        self._options = options
        self._ports: tuple[str, ...] = ()
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        self.state: dict[str, Any] = json.loads(
            self._run("--format", "json", "--ttl", "3600", *self._ports, *self._options)
        )
        web = self.state["url"].rpartition(":")[2]
        self._ports = ("--http-port", web, "--dicom-port", str(self.state["dicom_port"]))
        self.http = httpx.Client(
            base_url=self.state["url"], auth=(self.state["user"], self.state["password"]), trust_env=False, timeout=60
        )

    def kill(self) -> None:
        """SIGKILL, as a crash or an out-of-memory kill would."""
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self.state["pid"], signal.SIGKILL)  # the group of its own that the script gave it
        while Path(f"/proc/{self.state['pid']}/stat").exists():
            if Path(f"/proc/{self.state['pid']}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                break
            time.sleep(0.01)
        self.http.close()

    def close(self) -> None:
        """Ends it, without its seconds of taking leave, and removes its data."""
        self.kill()
        self._run("stop", "--purge")

    def peer(self, **settings: Any) -> Peer:
        """The settings that reach it."""
        url, state = self.state["url"], self.state
        base = {"url": state["dicomweb"], "orthanc": url, "user": state["user"], "password": state["password"]}
        return Peer(**(base | settings))

    def upload(self, files: Sequence[Path | bytes]) -> list[str]:
        """Stores files by Orthanc's own API; Orthanc's identifiers of the instances."""
        data = [file if isinstance(file, bytes) else file.read_bytes() for file in files]
        return [self.http.post("/instances", content=one).raise_for_status().json()["ID"] for one in data]

    def find(self, uid: str) -> list[str]:
        """Orthanc's identifiers for a UID."""
        return [found["ID"] for found in self.http.post("/tools/lookup", content=uid).raise_for_status().json()]

    def delete_everything(self) -> None:
        """Removes all patients; the numbers of changes go on."""
        for patient in self.http.get("/patients").json():
            self.http.delete(f"/patients/{patient}")

    def _run(self, *arguments: str) -> str:
        command = [sys.executable, str(self._script), *arguments, "--dir", str(self._folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


def missing() -> str | None:
    """Why there can be no Orthanc here, None where there can."""
    if shutil.which("Orthanc") or (shutil.which("apt-get") and os.geteuid() == 0):
        return None
    return "install orthanc, orthanc-dicomweb and orthanc-gdcm to run this test"
