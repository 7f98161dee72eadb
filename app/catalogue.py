"""Which bundles are served: by reference, by task, by digest."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from weakref import WeakValueDictionary

from models.bundle import NAME, VERSION, Bundle, list_bundles, read_bundle, read_pointer, version_key
from models.errors import BundleError, BundleInvalid, BundleNotFound, OptionError

logger = logging.getLogger("medrestore.catalogue")


class Catalogue:
    """The verified bundles of one repository folder: read once, then changed by `app.watch` as the folder changes.

    `defaults` maps a task ("denoise", "superresolve-x2", "superresolve-x4") to the model reference
    served when the caller names none; without an entry it is the bundle that bears the task's name,
    or the only name that does the task. A name alone means its promoted version, else its newest.
    Bundles that were trained adversarially are nobody's default: they are asked for by name.
    What cannot be served is listed in `broken` with the reason, a promoted version that is not
    served in `warnings`; neither takes away what is served already.

    A bundle is staged, then offered, then withdrawn. Callers are given offered ones only; one that
    was withdrawn is known by its digest for as long as a request holds it. All methods belong to one
    thread, so that every change happens between two requests.
    """

    def __init__(self, repository: Path, defaults: Mapping[str, str] | None = None) -> None:
        self.repository = repository
        self._defaults = dict(defaults or {})
        self._offered: list[Bundle] = []  # by name, newest version first
        self._staged: dict[str, Bundle] = {}  # by digest: for the workers to load, offered to nobody yet
        self._withdrawn: WeakValueDictionary[str, Bundle] = WeakValueDictionary()  # by digest
        self._refused: dict[str, str] = {}  # digest -> why
        self._promoted: dict[str, str] = {}  # name -> version
        self.broken: dict[str, str] = {}  # name@version -> why it is not served, or not as it now is on disk
        self.warnings: dict[str, str] = {}  # name -> why its pointer is not followed
        for folder in list_bundles(repository):
            reference = f"{folder.parent.name}@{folder.name}"
            try:
                self._offered.append(read_bundle(folder))
            except BundleError as exc:
                self.broken[reference] = str(exc)
            except OSError as exc:
                self.broken[reference] = f"cannot be read: {exc.strerror}"
        for name in sorted({bundle.manifest.name for bundle in self._offered}):
            self.follow_pointer(name)

    # -- what is served -----------------------------------------------------------------------

    @property
    def bundles(self) -> list[Bundle]:
        """What is served, by name, newest version first."""
        return list(self._offered)

    @property
    def loadable(self) -> list[Bundle]:
        """What the workers hold ready: all that is offered or staged."""
        return [*self._offered, *self._staged.values()]

    def knows(self, digest: str) -> bool:
        """Whether some request may still need the bundle."""
        return digest in self._withdrawn or any(bundle.digest == digest for bundle in self.loadable)

    def by_digest(self, digest: str) -> Bundle:
        """Raises BundleNotFound, or BundleInvalid where the bundle was refused."""
        for bundle in self.loadable:
            if bundle.digest == digest:
                return bundle
        if digest in self._refused:
            raise BundleInvalid(self._refused[digest])
        if (withdrawn := self._withdrawn.get(digest)) is not None:
            return withdrawn
        raise BundleNotFound(f"no model with digest {digest[:12]}")

    def lookup(self, reference: str | None, task: str, scale: int = 1) -> Bundle:
        """The bundle of `name` or `name@version`, or the task's default.

        Raises OptionError where the reference is malformed or names a model for another task,
        BundleNotFound, or BundleInvalid where that very version is broken.
        """
        wanted = reference if reference is not None else self._default(task, scale)
        bundle = self.find(wanted)
        if (bundle.manifest.task, bundle.manifest.scale) != (task, scale):
            does = task_name(bundle.manifest.task, bundle.manifest.scale)
            raise OptionError(f"model {bundle.reference} does {does}, not {task_name(task, scale)}")
        return bundle

    def default(self, task: str, scale: int = 1) -> Bundle | None:
        """What `lookup(None, task, scale)` gives, None where nothing serves the task."""
        try:
            return self.lookup(None, task, scale)
        except (BundleError, OptionError):
            return None

    def current(self, name: str) -> Bundle | None:
        """The version that a name alone means: the promoted one, else the newest; None where none is served."""
        versions = {b.manifest.version: b for b in self._offered if b.manifest.name == name}
        return versions.get(self._promoted.get(name, ""), next(iter(versions.values()), None))

    # -- changes ------------------------------------------------------------------------------

    def stage(self, bundle: Bundle) -> None:
        """Makes a bundle known to the workers; nobody else sees it. What was refused is forgiven."""
        self._refused.pop(bundle.digest, None)
        self._staged[bundle.digest] = bundle

    def offer(self, bundle: Bundle) -> None:
        """Serves a bundle from now on, in place of another of its reference."""
        self._staged.pop(bundle.digest, None)
        self.withdraw(bundle.reference)
        self._offered.append(bundle)
        self._offered.sort(key=lambda b: version_key(b.manifest.version), reverse=True)
        self._offered.sort(key=lambda b: b.manifest.name)

    def withdraw(self, reference: str) -> None:
        """Offers `name@version` no longer; requests that hold it go on. Forgets what was wrong with it, too."""
        self.broken.pop(reference, None)
        for bundle in self._offered:
            if bundle.reference == reference:
                self._withdrawn[bundle.digest] = bundle
        self._offered = [bundle for bundle in self._offered if bundle.reference != reference]

    def refuse(self, digest: str, reason: str) -> None:
        """Takes a bundle out of service for what it is, as after a failed self-test; an older version steps in."""
        for bundle in self.loadable:
            if bundle.digest == digest:
                self.broken[bundle.reference] = reason
                self._refused[digest] = f"model {bundle.reference} is not served: {reason}"
        self._staged.pop(digest, None)
        self._offered = [bundle for bundle in self._offered if bundle.digest != digest]

    def follow_pointer(self, name: str) -> None:
        """Reads which version of a name is promoted. One that is not served, or a pointer that cannot be
        read, is warned of and changes nothing: what served the name before still does, at the start the newest."""
        try:
            version = read_pointer(self.repository, name)
        except BundleInvalid as exc:
            self._warn(name, str(exc))
            return
        if version is None:
            self._promoted.pop(name, None)
        elif any(bundle.reference == f"{name}@{version}" for bundle in self._offered):
            self._promoted[name] = version
        else:
            self._warn(name, f"{name}@{version} is promoted but not served")
            return
        self.warnings.pop(name, None)

    def _warn(self, name: str, reason: str) -> None:
        if self.warnings.get(name) != reason:
            self.warnings[name] = reason
            serving = self.current(name)
            logger.warning("%s; %s serves", reason, serving.reference if serving else "nothing")

    # -- look-ups -----------------------------------------------------------------------------

    def _default(self, task: str, scale: int) -> str:
        name = task_name(task, scale)
        if name in self._defaults:
            return self._defaults[name]
        served = [b.manifest for b in self._offered if (b.manifest.task, b.manifest.scale) == (task, scale)]
        names = {manifest.name for manifest in served if not manifest.adversarial}
        if name in names:
            return name
        if len(names) == 1:
            return names.pop()
        known = sorted({manifest.name for manifest in served})
        hint = f"name one of {', '.join(known)}" if known else "none is served"
        raise BundleNotFound(f"no default model for {name}: {hint}")

    def find(self, reference: str) -> Bundle:
        """The bundle of `name` or `name@version`, whatever its task. Raises as `lookup` does."""
        name, version = parse_reference(reference)
        for bundle in self._offered if version else filter(None, [self.current(name)]):
            if bundle.manifest.name == name and version in (None, bundle.manifest.version):
                return bundle
        if version is not None and reference in self.broken:
            raise BundleInvalid(f"model {reference} is not served: {self.broken[reference]}")
        available = ", ".join(bundle.reference for bundle in self._offered) or "none"
        raise BundleNotFound(f"no model {reference!r}; available: {available}")


def task_name(task: str, scale: int) -> str:
    """ "denoise", "superresolve-x2", "superresolve-x4"."""
    return task if scale == 1 else f"{task}-x{scale}"


def parse_reference(text: str) -> tuple[str, str | None]:
    """Splits `name` or `name@version`. Raises OptionError where it is neither."""
    name, separator, version = text.partition("@")
    if not NAME.fullmatch(name) or (separator and not VERSION.fullmatch(version)):
        raise OptionError(f"model {text!r}: write name or name@version, as in denoise@1")
    return name, version or None
