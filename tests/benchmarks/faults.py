"""What the service does when things go wrong, each on a real server of its own:

    python -m tests.benchmarks.faults {hangup,overload,kill,swap,drain,soak,determinism,large,all} [--json FILE] [...]

Options are the arguments of the functions of that name in the fault_*.py beside this file, as in `soak --requests 500`;
`--set threads=1` sets what the server is started with. `all` runs everything at full size.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable
from typing import Any

from tests.benchmarks.fault_crash import drain, kill
from tests.benchmarks.fault_image import determinism, large
from tests.benchmarks.fault_load import hangup, overload
from tests.benchmarks.fault_soak import soak
from tests.benchmarks.fault_swap import swap
from tests.benchmarks.harness import Table, add_common, finish

PROGRAMS: dict[str, Callable[..., Table]] = {
    program.__name__: program for program in (hangup, overload, kill, swap, drain, determinism, large, soak)
}


def setting(text: str) -> tuple[str, Any]:
    """`name=value`, the value as JSON or as plain text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What the service does when things go wrong.")
    commands = parser.add_subparsers(dest="program", required=True)
    every = commands.add_parser("all", help="everything at full size, about half an hour on two quiet cores")
    add_common(every)
    for name, program in PROGRAMS.items():
        command = commands.add_parser(name, help=inspect.getdoc(program))
        for parameter in inspect.signature(program).parameters.values():
            if parameter.kind is not parameter.VAR_KEYWORD:
                option = "--" + parameter.name.replace("_", "-")
                command.add_argument(option, type=type(parameter.default), default=parameter.default)
        command.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE")
        add_common(command)
    return parser


def main() -> None:
    options = vars(build_parser().parse_args())
    name, path, settings = options.pop("program"), options.pop("json"), dict(options.pop("set", []))
    chosen = PROGRAMS if name == "all" else {name: PROGRAMS[name]}
    finish((program(**options, **settings) for program in chosen.values()), path)


if __name__ == "__main__":
    main()
