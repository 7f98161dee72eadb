"""The rules file of a running service: read again when it changes, never given up for a broken one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from app.errors import RuleError
from app.log import event
from app.pacs.rule import Rules, read_rules
from models.errors import MedRestoreError

LARGEST_BYTES = 1024**2
NO_RULES = Rules()


class Rulebook:
    """`check` may raise for rules that are sound by themselves and wrong here: a PACS or model that is not there.

    Where a changed file is broken, the rules stay as they were and `problem` says why; before the first
    sound file there are none. Without a path there never are.
    """

    def __init__(self, path: Path | None, check: Callable[[Rules], None]) -> None:
        self.path = path
        self.problem: str | None = None
        self._check = check
        self._rules = NO_RULES
        self._next: Rules | None = None  # sound by themselves, not in force: what they name may come to be
        self._seen: tuple[int, ...] | None = None

    def rules(self) -> Rules:
        """The rules as they are now; looks at the file, and reads it only where it differs from the last time."""
        if self.path is None:
            return self._rules
        try:
            facts = self.path.stat()
            seen = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
            if seen != self._seen:
                self._seen, self._next = seen, None
                self._next = read_rules(_text(self.path))
            if self._next is not None:
                self._check(self._next)
                self._rules, self._next, self.problem = self._next, None, None
                event("rules read", routes=len(self._rules.route), door=self._rules.door is not None)
        except OSError as error:
            self._seen = None
            self._complain(f"rules: {error.strerror}")
        except MedRestoreError as error:
            self._complain(str(error))
        return self._rules

    def _complain(self, problem: str) -> None:
        if problem != self.problem:
            event("rules refused; those before stay in force", logging.ERROR, reason=problem)
        self.problem = problem


def _text(path: Path) -> str:
    """The file's text. Raises RuleError where it is no text, or far too long."""
    with path.open("rb") as file:
        data = file.read(LARGEST_BYTES + 1)
    if len(data) > LARGEST_BYTES:
        raise RuleError(f"rules: larger than {LARGEST_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise RuleError("rules: not UTF-8 text") from exc
