"""Takes up what changes in the repository folder while the service runs: versions come and go, pointers move.

A look at the folder is cheap: names, sizes and times. What looks different is read and verified,
self-tested in a process of its own, loaded by the workers, and only then offered, to all requests
from that moment on. A version that fails in any of this leaves everything as it was; the log and
`Catalogue.broken` say why. One that does not verify may be on its way in: it is spoken of once it
has stayed the same between two looks.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from app.batching import Engine
from app.log import event, places
from models.bundle import DEFAULT, list_bundles, read_bundle
from models.errors import MedRestoreError

Mark = tuple[tuple[str, int, int], ...]  # of each file its name, bytes, and time of change in ns


class Watch:
    """Follows the repository of an engine's catalogue; `seen` is what `look` gave before the catalogue read it."""

    def __init__(self, engine: Engine, seen: dict[Path, Mark]) -> None:
        self._engine = engine
        self._catalogue = engine.catalogue
        self._before = dict(seen)  # what the last look gave
        self._handled = dict(seen)  # what was dealt with
        self._trouble = ""

    async def run(self, every_s: float) -> None:
        """Polls until it is cancelled; no error ends it."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.poll()
                self._trouble = ""
            except OSError as exc:
                self._complain(exc.strerror or type(exc).__name__)
            except Exception as exc:  # noqa: BLE001 (the next look may do better, and requests go on)
                event("unexpected error", logging.ERROR, **places(exc))

    async def poll(self) -> None:
        """Takes up what has changed since the last call. Raises OSError where the folder cannot be looked at;
        what is served stays as it is then."""
        now = await asyncio.to_thread(look, self._catalogue.repository)
        if now == self._before == self._handled:
            await self._engine.retire()  # a version withdrawn before may be needed by no request any more
            return
        served = self._served()
        for path in self._handled.keys() - now.keys():
            if path.name != DEFAULT:
                self._catalogue.withdraw(_reference(path))
            del self._handled[path]
        for path, mark in now.items():
            settled = self._before.get(path) == mark
            if self._handled.get(path) != mark and (path.name == DEFAULT or await self._examine(path, settled)):
                self._handled[path] = mark
        self._before = now
        for name in {path.parent.name for path in now} | set(self._catalogue.warnings):
            self._catalogue.follow_pointer(name)
        self._tell(served, self._served())
        await self._engine.retire()

    async def _examine(self, folder: Path, settled: bool) -> bool:
        """Offers a version that holds what it promises. False where it may still be on its way in."""
        try:
            bundle = await asyncio.to_thread(read_bundle, folder)
        except (MedRestoreError, OSError) as exc:
            if settled:
                self._reject(
                    folder, str(exc) if isinstance(exc, MedRestoreError) else f"cannot be read: {exc.strerror}"
                )
            return settled
        if any(bundle.digest == offered.digest for offered in self._catalogue.bundles):
            self._catalogue.broken.pop(bundle.reference, None)  # the files are again what is served
            return True
        try:
            await self._engine.take_up(bundle)
        except MedRestoreError as exc:
            self._reject(folder, str(exc))
        else:
            self._catalogue.offer(bundle)
        return True

    def _reject(self, folder: Path, reason: str) -> None:
        """Says why a version is not taken up; another of its name and version goes on being served."""
        self._catalogue.broken[_reference(folder)] = reason
        event("model refused", logging.ERROR, model=_reference(folder), reason=reason)
        self._engine.observer.models_changed("refused")

    def _served(self) -> tuple[dict[str, str], dict[str, str]]:
        """Reference -> digest of what is served, and name -> reference of what a name alone means."""
        bundles = self._catalogue.bundles
        current = {name: self._catalogue.current(name) for name in {bundle.manifest.name for bundle in bundles}}
        return {b.reference: b.digest for b in bundles}, {n: b.reference for n, b in current.items() if b}

    def _tell(self, before: tuple[dict[str, str], dict[str, str]], now: tuple[dict[str, str], dict[str, str]]) -> None:
        """Logs and counts the difference."""
        for reference, digest in sorted(now[0].items() - before[0].items()):
            event("model offered", model=reference, digest=digest)
            self._engine.observer.models_changed("offered")
        for reference in sorted(before[0].keys() - now[0].keys()):
            event("model withdrawn", model=reference)
            self._engine.observer.models_changed("withdrawn")
        for name, reference in sorted(now[1].items() - before[1].items()):
            event("default version", model=name, version=reference)
            self._engine.observer.models_changed("default")

    def _complain(self, reason: str) -> None:
        if reason != self._trouble:
            self._trouble = reason
            event("repository cannot be looked at", logging.WARNING, reason=reason)


def look(repository: Path) -> dict[Path, Mark]:
    """The folder of each version and each pointer file -> its mark. Raises OSError where the repository is gone."""
    next(repository.iterdir(), None)  # globbing an absent folder would find it empty
    folders = list_bundles(repository)
    pointers = repository.glob(f"[!.]*/{DEFAULT}")
    return {path: _mark(path) for path in [*folders, *pointers]}


def _mark(path: Path) -> Mark:
    """Of a folder's files, or of one file; empty where they cannot be told: reading will say more."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return tuple((file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
    except OSError:
        return ()


def _reference(folder: Path) -> str:
    return f"{folder.parent.name}@{folder.name}"
