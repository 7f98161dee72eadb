"""C-STORE SCP (PS3.4 annex B): DIMSE into the door, by pynetdicom, which is the extra `dimse`.

An instance that was answered with success lies in the spool; the transfer ends with the association,
however that ends. pynetdicom serves each association in a thread of its own; what those threads and
the event loop share is the door's, and is asked for on the loop.

Application entity titles are names, not passwords: the port belongs on a network that is trusted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

from app.errors import BackendUnavailable
from app.log import event, places
from app.pacs.door import OTHER_STUDY, OUT_OF_RESOURCES, Door, Transfer, keep
from app.pacs.header import transfer_syntaxes
from app.settings import Settings
from models.errors import MedRestoreError

T = TypeVar("T")
SUCCESS = 0x0000
PDU_BYTES = 256 * 1024
ANSWER_S = 60.0  # the loop is asked for no longer


class Listener:
    """One server. `start` raises BackendUnavailable without pynetdicom, OSError where the port is taken."""

    def __init__(self, door: Door, settings: Settings) -> None:
        self._door = door
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._incoming: Path
        self._transfers: dict[Any, Transfer] = {}  # by association; each is used by its own thread alone
        self._received: dict[Any, int] = {}  # bytes of the message under way
        self._over: WeakSet[Any] = WeakSet()  # associations whose connection is closed
        self._lock = threading.Lock()
        self._server: Any = None

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begins to listen."""
        try:
            from pynetdicom import AE, _config, dimse_messages, evt
            from pynetdicom.presentation import AllStoragePresentationContexts
            from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
        except ImportError as exc:
            raise BackendUnavailable("C-STORE needs the extra `dimse`: pip install 'medrestore[dimse]'") from exc
        _config.LOG_HANDLER_LEVEL = "none"  # its messages quote what comes
        _config.STORE_RECV_CHUNKED_DATASET = True  # to files, not to memory
        self._incoming = self._door.incoming()
        dimse_messages.NamedTemporaryFile = partial(tempfile.NamedTemporaryFile, dir=self._incoming)  # type: ignore[attr-defined,assignment]
        ae = AE(ae_title=self._settings.dimse_aet)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(str(context.abstract_syntax), transfer_syntaxes())
        ae.add_supported_context(Verification)
        ae.require_called_aet = True
        ae.require_calling_aet = list(self._settings.dimse_calling)
        ae.maximum_associations = self._settings.dimse_associations
        ae.maximum_pdu_size = PDU_BYTES
        ae.network_timeout = self._settings.dimse_idle_s
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_PDU_RECV, self._count),
            (evt.EVT_CONN_CLOSE, self._end),
        ]
        address = (self._settings.dimse_host, self._settings.dimse_port)
        self._server = ae.start_server(address, block=False, evt_handlers=handlers)  # type: ignore[arg-type]
        event("listening for C-STORE", port=self.port)

    async def stop(self) -> None:
        """Ends all associations; what was accepted is in the spool."""
        if self._server is not None:
            await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        for association in self._server.active_associations:
            association.abort()
        self._server.shutdown()

    # -- in the threads of associations ---------------------------------------------------------

    def _store(self, received: Any) -> int:
        """Answers one C-STORE request with its status."""
        with self._lock:
            self._received.pop(received.assoc, None)
        try:
            return self._keep(received)
        except (MedRestoreError, TimeoutError) as error:
            event("C-STORE refused", logging.WARNING, reason=str(error))
        except OSError as error:
            event("C-STORE refused", logging.ERROR, **places(error))
        return OUT_OF_RESOURCES

    def _keep(self, received: Any) -> int:
        incoming = Path(received.dataset_path)
        transfer = self._transfer(received.assoc)
        if transfer is None or transfer.count == self._settings.door_instances:
            return OUT_OF_RESOURCES
        transfer.bytes += os.path.getsize(incoming)
        self._ask(transfer.cover(transfer.bytes))
        path = transfer.path()
        shutil.move(incoming, path)
        judged = self._door.judge(path)
        request = received.request
        if judged.head and judged.head.sop_instance != str(request.AffectedSOPInstanceUID):
            judged = judged._replace(failure=OTHER_STUDY, reason="other_instance")
        if judged.failure is not None:
            path.unlink()
            event("C-STORE refused", reason=judged.reason)
            return judged.failure
        keep(path)
        return SUCCESS

    def _transfer(self, association: Any) -> Transfer | None:
        """The association's own, begun where there is none; None where nobody waits for an answer any more."""
        if (found := self._transfers.get(association)) is not None:
            return found
        transfer = self._ask(self._door.begin("dimse"))
        with self._lock:
            if association not in self._over:
                self._transfers[association] = transfer
                return transfer
        self._ask(transfer.end())
        return None

    def _count(self, received: Any) -> None:
        """Cuts off a sender whose instance is larger than may be."""
        association = received.assoc
        with self._lock:
            total = self._received.get(association, 0) + len(received.pdu)
            self._received[association] = total
        if total > self._settings.job_bytes:
            event("association aborted: an instance is over the limit", logging.WARNING)
            association.abort()

    def _end(self, received: Any) -> None:
        """The association has ended."""
        with self._lock:
            self._over.add(received.assoc)
            self._received.pop(received.assoc, None)
            transfer = self._transfers.pop(received.assoc, None)
        if transfer is not None:
            asyncio.run_coroutine_threadsafe(transfer.end(), self._loop)
        self._tidy()

    def _tidy(self) -> None:
        """Deletes what associations that broke off left half received: no sender is silent for that long."""
        oldest = time.time() - self._settings.dimse_idle_s - ANSWER_S
        for path in self._incoming.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def _ask(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine of the event loop gives."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_S)
