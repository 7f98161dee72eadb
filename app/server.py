"""The web server, told to stop in two steps: first it says so, then it closes.

On SIGTERM `/healthz/ready` turns 503 and answers ask for the connection to be closed, so that a load balancer sends
the next requests elsewhere; all is still served meanwhile. After `drain_delay_s` the listener closes, and open requests
have `drain_s` to finish. SIGINT, and a second SIGTERM, skip the first step.
"""

from __future__ import annotations

import asyncio
import signal
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.jobs.engine import JobEngine
from app.log import event


class Server(uvicorn.Server):
    """Serves an application that `app.main.create_app` made."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_delay_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_delay_s = drain_delay_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called in place of the signal's own action."""
        if sig != signal.SIGTERM or self._app.state.draining or not self.started:
            self._leave(sig, frame)
            return
        self._app.state.draining = True
        asyncio.get_running_loop().call_later(self._drain_delay_s, self._leave, sig, frame)
        event("draining", delay_s=self._drain_delay_s)

    def _leave(self, sig: int, frame: FrameType | None) -> None:
        """Closes the listener; who follows a job is told that this is the end, and asks another replica."""
        jobs = getattr(self._app.state, "jobs", None)
        if isinstance(jobs, JobEngine):
            jobs.close()
        super().handle_exit(sig, frame)
