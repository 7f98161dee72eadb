"""Which bundles are served: by reference, by task, by digest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.bundle import NAME, VERSION, Bundle, list_bundles, read_bundle
from models.errors import BundleError, BundleInvalid, BundleNotFound, OptionError


class Catalogue:
    """The verified bundles of one repository folder, read once.

    `defaults` maps a task ("denoise", "superresolve-x2", "superresolve-x4") to the model reference
    served when the caller names none; without an entry it is the newest version of the bundle that
    bears the task's name, or of the only name that does the task. Bundles that cannot be read are
    listed in `broken` with the reason and never served.
    """

    def __init__(self, repository: Path, defaults: Mapping[str, str] | None = None) -> None:
        self._defaults = dict(defaults or {})
        self._bundles: list[Bundle] = []  # by name, newest version first
        self.broken: dict[str, str] = {}  # name@version -> why it is not served
        for folder in list_bundles(repository):
            try:
                self._bundles.append(read_bundle(folder))
            except BundleError as exc:
                self.broken[f"{folder.parent.name}@{folder.name}"] = str(exc)
            except OSError as exc:
                self.broken[f"{folder.parent.name}@{folder.name}"] = f"cannot be read: {exc.strerror}"

    @property
    def bundles(self) -> list[Bundle]:
        """What is served, by name, newest version first."""
        return [bundle for bundle in self._bundles if bundle.reference not in self.broken]

    def refuse(self, digest: str, reason: str) -> None:
        """Takes a bundle out of service, as after a failed self-test; an older version steps in."""
        for bundle in self._bundles:
            if bundle.digest == digest:
                self.broken[bundle.reference] = reason

    def by_digest(self, digest: str) -> Bundle:
        """Raises BundleNotFound, or BundleInvalid where the bundle was refused."""
        for bundle in self._bundles:
            if bundle.digest == digest:
                return self._served(bundle)
        raise BundleNotFound(f"no model with digest {digest[:12]}")

    def lookup(self, reference: str | None, task: str, scale: int = 1) -> Bundle:
        """The bundle of `name` (newest served version) or `name@version`, or the task's default.

        Raises OptionError where the reference is malformed or names a model for another task,
        BundleNotFound, or BundleInvalid where that very version is broken.
        """
        wanted = reference if reference is not None else self._default(task, scale)
        bundle = self._find(wanted)
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

    def _default(self, task: str, scale: int) -> str:
        name = task_name(task, scale)
        if name in self._defaults:
            return self._defaults[name]
        names = {b.manifest.name for b in self.bundles if (b.manifest.task, b.manifest.scale) == (task, scale)}
        if name in names:
            return name
        if len(names) == 1:
            return names.pop()
        hint = f"name one of {', '.join(sorted(names))}" if names else "none is served"
        raise BundleNotFound(f"no default model for {name}: {hint}")

    def _find(self, reference: str) -> Bundle:
        name, version = parse_reference(reference)
        if version is not None and f"{name}@{version}" in self.broken:
            raise BundleInvalid(f"model {name}@{version} is not served: {self.broken[f'{name}@{version}']}")
        for bundle in self.bundles:
            if bundle.manifest.name == name and version in (None, bundle.manifest.version):
                return bundle
        available = ", ".join(bundle.reference for bundle in self.bundles) or "none"
        raise BundleNotFound(f"no model {reference!r}; available: {available}")

    def _served(self, bundle: Bundle) -> Bundle:
        if bundle.reference in self.broken:
            raise BundleInvalid(f"model {bundle.reference} is not served: {self.broken[bundle.reference]}")
        return bundle


def task_name(task: str, scale: int) -> str:
    """ "denoise", "superresolve-x2", "superresolve-x4"."""
    return task if scale == 1 else f"{task}-x{scale}"


def parse_reference(text: str) -> tuple[str, str | None]:
    """Splits `name` or `name@version`. Raises OptionError where it is neither."""
    name, separator, version = text.partition("@")
    if not NAME.fullmatch(name) or (separator and not VERSION.fullmatch(version)):
        raise OptionError(f"model {text!r}: write name or name@version, as in denoise@1")
    return name, version or None
