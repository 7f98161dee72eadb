"""The console command: serving and restoring, and with `TRAINING` the making of models.

The only module that may import both `app` and `training`; each is imported when its sub-command runs, so that
serving needs no training packages and training no web server. Exit status: 0 done, 1 something failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import MedRestoreError, OptionError

if TYPE_CHECKING:
    from app.catalogue import Catalogue
    from app.settings import Settings
    from models.bundle import Bundle

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
TRAINING = {
    "train": "train a network on folders of images",
    "evaluate": "score a bundle beside classical methods",
    "export": "make a bundle of a trained run",
    "pipeline": "from noisy images alone to a trained denoiser, in stages",
    "publish": "add a pipeline's model to the repository of a service",
    "ablate": "train small denoisers that differ only in what taught them",
    "networks": "list all networks with their sizes beside the published ones",
}
ADVERSARIAL_WARNING = "adversarially trained: may show texture that was not in the source, not for measurement"
# Modules of `training` that are not called as their command is.
MODULES = {"ablate": "ablation", "evaluate": "evaluation.command", "pipeline": "pipeline.command"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command and returns the exit status; `--debug` anywhere lets tracebacks through."""
    words = list(sys.argv[1:] if argv is None else argv)
    if debug := "--debug" in words:
        words.remove("--debug")
    try:
        return run(words, debug)
    except KeyboardInterrupt:
        print("medrestore: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (MedRestoreError, ImportError, OSError, ValueError) as error:
        if debug:
            raise
        print(f"medrestore: {explain(error)}", file=sys.stderr)
        return USAGE if isinstance(error, OptionError) else FAILED


def run(words: list[str], debug: bool) -> int:
    """Dispatches; what follows `pacs` or a command of `TRAINING` is parsed where it is run."""
    if words and words[0] in TRAINING:
        return int(import_module(f"training.{MODULES.get(words[0], words[0])}").main(words[1:]) or DONE)
    if words and words[0] == "pacs":
        return int(import_module("app.pacs.command").main(words[1:]))
    arguments = build_parser().parse_args(words)
    arguments.debug = debug
    return int(arguments.run(arguments))


def explain(error: Exception) -> str:
    """One line for a person."""
    if isinstance(error, ImportError) and error.name:
        package = error.name.partition(".")[0]
        if package == "training":
            return "this installation has no training part; work from a clone of the repository"
        return f"package {package!r} is not installed: pip install 'medrestore[cpu]' to restore, '[train]' to train"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def build_parser() -> argparse.ArgumentParser:
    """The command line of everything but training."""
    parser = argparse.ArgumentParser(
        prog="medrestore", description="Denoises and super-resolves medical images. For research only."
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    serve = commands.add_parser("serve", help="answer over HTTP")
    serve.add_argument("--host", help="address to listen on")
    serve.add_argument("--port", type=int, help="TCP port")
    serve.set_defaults(run=run_serve)

    key = commands.add_parser("key", help="make, list or remove API keys")
    key.add_argument("action", choices=("new", "list", "remove"))
    key.add_argument("--name", help="whose key it is: letters, digits, `.`, `_`, `-`")
    key.add_argument("--scope", action="append", choices=("restore", "pacs", "admin"), help="what it is for; repeat it")
    key.add_argument("--expires", type=date.fromisoformat, metavar="YYYY-MM-DD", help="first day (UTC) it is not valid")
    key.add_argument("--keys", type=Path, help="TOML file of keys; default: the setting `keys`")
    key.set_defaults(run=run_key)

    denoise = commands.add_parser("denoise", help="denoise a file or a folder")
    denoise.add_argument("--strength", type=float, default=1.0, help="0 (identity) to 1.5; default 1")
    denoise.add_argument("--sigma", type=float, help="noise level in the image's own units; default: estimated")
    denoise.set_defaults(task="denoise", scale=1, strict=False, min_consistency=None)
    superresolve = commands.add_parser("superresolve", help="super-resolve a file or a folder")
    superresolve.add_argument("--scale", type=int, choices=(2, 4), required=True)
    superresolve.add_argument("--strict", action="store_true", help="refuse a result that, reduced again, differs")
    superresolve.add_argument(
        "--min-consistency", type=float, metavar="DB", help="what strict asks; default: the model's"
    )
    superresolve.set_defaults(task="superresolve", strength=1.0, sigma=None)
    for command in (denoise, superresolve):
        command.add_argument("input", type=Path, metavar="IN", help="PNG, TIFF, JPEG, NPY or DICOM, or a folder")
        command.add_argument("output", type=Path, metavar="OUT", help="file whose suffix names the format, or a folder")
        command.add_argument("--model", help="name or name@version")
        command.add_argument("--precision", choices=("exact", "fast"), help="default: exact for DICOM and above 8 bits")
        command.add_argument("--backend", choices=("onnx", "openvino", "torchscript"))
        command.set_defaults(run=run_restore)

    commands.add_parser("pacs", help="ask and command a running service that works with a PACS", add_help=False)
    bundles = commands.add_parser("bundles", help="list, verify or promote the model bundles")
    bundles.add_argument("action", choices=("list", "verify", "promote"))
    bundles.add_argument("reference", nargs="?", metavar="NAME@VERSION", help="which to promote, or to roll back to")
    bundles.set_defaults(run=run_bundles)
    autotune = commands.add_parser("autotune", help="measure this machine and write its fastest settings")
    autotune.add_argument("--model", action="append", help="name or name@version; default: every model that is served")
    autotune.add_argument("--seconds", type=float, default=180.0, help="about how long to measure; default 180")
    autotune.set_defaults(run=run_autotune)
    key.add_argument("--config", type=Path, help="TOML file of settings")
    for command in (serve, denoise, superresolve, bundles, autotune):
        command.add_argument("--config", type=Path, help="TOML file of settings")
        command.add_argument("--repository", type=Path, help="folder of model bundles; default: those shipped")
    for name, text in TRAINING.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def read_settings(arguments: argparse.Namespace, *names: str) -> Settings:
    """Settings from the file and the environment, with the options that were given on top. Raises OptionError."""
    from app.settings import CONFIG_VARIABLE, Settings

    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    try:
        with variable(CONFIG_VARIABLE, arguments.config):
            return Settings(**given)
    except (ValueError, FileNotFoundError) as error:
        causes = getattr(error, "errors", None)
        text = "; ".join(f"{'.'.join(map(str, c['loc']))}: {c['msg']}" for c in causes()) if causes else str(error)
        raise OptionError(f"settings: {text}") from error


@contextmanager
def variable(name: str, value: Path | None) -> Iterator[None]:
    """Sets an environment variable inside the `with` block; None leaves it as it is."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = str(value)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        elif value is not None:
            del os.environ[name]


def read_catalogue(settings: Settings) -> Catalogue:
    """The bundles that the service would serve under these settings."""
    from app.catalogue import Catalogue
    from app.main import default_models

    return Catalogue(settings.repository, default_models(settings))


def run_serve(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT, then finishes open requests and exits with 0."""
    # The web server raises a signal anew once it has shut down; so it must not kill this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(DONE))
    settings = read_settings(arguments, "host", "port", "repository")
    from app.main import serve

    try:
        serve(settings)
    except SystemExit as stop:  # SIGTERM's, or the web server's where it could not start
        return FAILED if stop.code else DONE
    return DONE


def run_key(arguments: argparse.Namespace) -> int:
    """Makes a key and prints it, this once; lists the keys by name; or removes one. A running service knows at once."""
    from app.key import Scope, make_key, read_keys, remove_key

    path = read_settings(arguments, "keys").keys
    if arguments.action == "list":
        for key in read_keys(path):
            until = f"until {key.expires:%Y-%m-%d %H:%M %Z}" if key.expires else ""
            print(f"{key.name:24} {' '.join(sorted(key.scopes)):20} {until}".rstrip())
        return DONE
    if not arguments.name or (arguments.action == "new") != bool(arguments.scope):
        raise OptionError("key new takes --name and --scope, key remove takes --name alone")
    if arguments.action == "remove":
        remove_key(path, arguments.name)
        print(f"removed {arguments.name} from {path}", file=sys.stderr)
        return DONE
    expires = datetime.combine(arguments.expires, time(), UTC) if arguments.expires else None
    print(make_key(path, arguments.name, map(Scope, arguments.scope), expires))
    print(f"the key of {arguments.name}, shown this once; its hash is in {path}", file=sys.stderr)
    return DONE


def run_bundles(arguments: argparse.Namespace) -> int:
    """Lists bundles, promotes one, or verifies checksums and runs the self-test on every runtime that is installed."""
    settings = read_settings(arguments, "repository")
    if not settings.repository.is_dir():
        raise OptionError(f"{settings.repository} is no folder")
    if (arguments.action == "promote") != (arguments.reference is not None):
        raise OptionError("promote takes NAME@VERSION, list and verify take nothing")
    if arguments.action == "promote":
        return promote(settings.repository, arguments.reference)
    catalogue = read_catalogue(settings)
    failures = catalogue.broken | catalogue.warnings
    for bundle in catalogue.bundles:
        manifest = bundle.manifest
        task = f"{manifest.task} x{manifest.scale}" if manifest.scale > 1 else manifest.task
        mark = "default" if catalogue.current(manifest.name) is bundle else ""
        line = f"{bundle.reference:24} {task:16} {mark:8} {manifest.network:12} {bundle.digest[:12]}"
        if arguments.action == "verify":
            try:
                print(f"{line}  {verify(bundle)}")
            except MedRestoreError as error:
                failures[bundle.reference] = str(error)
        else:
            print(f"{line}  {manifest.summary}")
    if arguments.action == "verify":
        report_absent_runtimes()
    for reference, reason in failures.items():
        print(f"failed: {reference}: {reason}", file=sys.stderr)
    print(f"{len(catalogue.bundles)} bundles in {settings.repository}, {len(failures)} failed", file=sys.stderr)
    return FAILED if failures else DONE


def promote(repository: Path, reference: str) -> int:
    """Makes a version the one that serves its name, once it verifies; a running service takes it up by itself."""
    from app.catalogue import parse_reference
    from models import bundle as contract

    name, version = parse_reference(reference)
    if version is None:
        raise OptionError(f"promote one version of {name}, as in {name}@1")
    before = contract.default_version(repository, name)
    bundle = contract.find_bundle(repository, reference)
    verdict = verify(bundle)
    contract.promote(repository, name, version)
    was = f"{name}@{before} was promoted before" if before else "none was promoted before"
    print(f"{bundle.reference} now serves {name}: {verdict}; {was}")
    return DONE


def verify(bundle: Bundle) -> str:
    """Runs the golden input through every runtime and precision that is to be had; raises BundleInvalid."""
    from app.backends.base import MODULES, load, self_test
    from app.errors import BackendUnavailable

    verdicts = []
    for name in MODULES:
        for precision in bundle.manifest.precisions:
            try:
                self_test(load(name, bundle, "cpu", precision), bundle)
            except BackendUnavailable:
                continue
            verdicts.append(f"{name} {precision} ok")
    if not verdicts:
        raise BackendUnavailable("no runtime is installed: pip install 'medrestore[cpu]'")
    return ", ".join(verdicts)


def report_absent_runtimes() -> None:
    """Says which runtimes `verify` could not try, and why."""
    from app.backends.base import reasons

    for name, reason in reasons().items():
        if reason:
            print(f"left out: {name}: {reason}", file=sys.stderr)


def run_autotune(arguments: argparse.Namespace) -> int:
    """Measures the models that are served, or those named, and writes settings into the TOML file."""
    from app.settings import CONFIG_FILE, config_path

    if arguments.config is not None and not arguments.config.exists():
        arguments.config.touch()
    settings = read_settings(arguments, "repository")
    with variable("MEDRESTORE_CONFIG", arguments.config):
        path = config_path() or Path(CONFIG_FILE)
    from app.tuning.command import autotune, served

    bundles = served(read_catalogue(settings), arguments.model or [])
    print(autotune(bundles, arguments.seconds, path))
    print(f"written to {path}", file=sys.stderr)
    return DONE


def run_restore(arguments: argparse.Namespace) -> int:
    """Restores a file, or every file of a folder into a mirrored folder, and says what failed."""
    from app.local import Restorer, plan_jobs, restore_all
    from app.options import Options, guarded

    settings = read_settings(arguments, "repository")
    options = Options(arguments.strength, arguments.sigma, arguments.min_consistency)
    jobs = plan_jobs(arguments.input, arguments.output)
    bundle = read_catalogue(settings).lookup(arguments.model, arguments.task, arguments.scale)
    options = guarded(options, arguments.strict, bundle, settings.consistency_db)
    if bundle.manifest.adversarial:
        print(f"warning: {bundle.reference} is {ADVERSARIAL_WARNING}", file=sys.stderr)
    restorer = Restorer(settings, bundle, options, arguments.precision, arguments.backend)
    failures = asyncio.run(restore_all(jobs, restorer, stop_at_failure=arguments.debug))
    return FAILED if failures else DONE


if __name__ == "__main__":
    sys.exit(main())
