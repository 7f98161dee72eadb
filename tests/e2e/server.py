"""A real `medrestore serve` process."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

ROOT = Path(__file__).parents[2]


class Server:
    """Starts on a free port of the loopback address and is ready after `wait_ready`."""

    def __init__(self, folder: Path, *options: str, access: str = "open") -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "serve.log"
        # CI=true would hide ONNX Runtime's telemetry, which delays the exit.
        environment = {k: v for k, v in os.environ.items() if k != "CI" and not k.startswith("MEDRESTORE_")}
        environment |= {"PYTHONPATH": str(ROOT), "MEDRESTORE_ACCESS": access}
        command = [sys.executable, "-m", "medrestore", "serve", "--port", str(self.port), *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    def wait_ready(self, limit_s: float = 120.0) -> None:
        """Returns when readiness answers 200; raises with the server's log when it ends or takes too long."""
        stop = time.monotonic() + limit_s
        while time.monotonic() < stop and self.process.poll() is None:
            try:
                with urlopen(f"{self.url}/healthz/ready", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise AssertionError(f"not ready, exit status {self.process.poll()}; log:\n{self.log.read_text()}")

    def stop(self, number: int = signal.SIGTERM, limit_s: float = 10.0) -> int:
        """Sends the signal and gives the exit status; kills and raises when that takes too long."""
        self.process.send_signal(number)
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(
                f"still running {limit_s} s after signal {number}; log:\n{self.log.read_text()}"
            ) from None

    def close(self) -> None:
        """Ends the process where a test did not."""
        if self.process.poll() is None:
            self.stop()


def switch_jobs_on(folder: Path) -> None:
    """Has a server that will be started in the folder take jobs."""
    (folder / "medrestore.toml").write_text('jobs = "jobs"\njob_free_bytes = 0\n')


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(pid: int) -> set[int]:
    """Process ids of all descendants (Linux)."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | children(child)
    return found


def still_there(pids: set[int], limit_s: float = 5.0) -> set[int]:
    """Which of these processes have not ended within the limit."""
    stop = time.monotonic() + limit_s
    while (left := {pid for pid in pids if running(pid)}) and time.monotonic() < stop:
        time.sleep(0.1)
    return left


def running(pid: int) -> bool:
    """Whether a process exists and is no zombie (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
