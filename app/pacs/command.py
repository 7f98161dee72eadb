"""`medrestore pacs`: an engineer's view of a running service, over HTTP.

    medrestore pacs status                                      which PACS answer, jobs by state, feeds of changes
    medrestore pacs submit --study UID --series UID --operation denoise
    medrestore pacs watch ID                                    until the job has ended
    medrestore pacs route --dry-run                             what the rules would take, and why not the rest

Exit status: 0 done, 1 something failed (no answer, a refusal, a job that did not end well, a PACS that does not
answer), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from models.errors import OptionError

SUMMARY = "Asks and commands a running service that works with a PACS."
URL_VARIABLE, KEY_VARIABLE = "MEDRESTORE_URL", "MEDRESTORE_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_S, ANSWER_S, SILENCE_S = 5.0, 120.0, 60.0
RETRIES, PAUSE_S = 60, 2.0  # of `watch`, while the service restarts
ENDED_WELL = frozenset({"completed"})
ENDED = frozenset({"completed", "completed_with_gaps", "failed", "cancelled"})
PROBLEMS = ("jobs", "rules", "dimse")  # what the service tells of itself
OPTIONS = ("strength", "sigma", "strict", "min_consistency", "precision")
DONE, FAILED = 0, 1


class CallFailed(OSError):
    """The service did not answer, or refused; the text is for the person at the terminal."""


def main(argv: Sequence[str]) -> int:
    """Runs one command and returns the exit status. Raises OptionError, CallFailed."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (KeyError, TypeError, AttributeError) as error:
        raise CallFailed("the answer has another form than expected: is the service of another version?") from error


def build_parser() -> argparse.ArgumentParser:
    """The command line behind `medrestore pacs`."""
    parser = argparse.ArgumentParser(prog="medrestore pacs", description=SUMMARY)
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    status = verbs.add_parser("status", help="which PACS answer, jobs by state, feeds of changes")
    submit = verbs.add_parser("submit", help="have a series restored and stored back")
    submit.add_argument("--study", required=True, metavar="UID", help="StudyInstanceUID")
    submit.add_argument("--series", required=True, metavar="UID", help="SeriesInstanceUID")
    submit.add_argument("--operation", required=True, choices=("denoise", "superresolve"))
    submit.add_argument("--pacs", metavar="NAME", help="as in the service's settings; needed where it has several")
    submit.add_argument("--scale", type=int, choices=(2, 4), help="of superresolve")
    submit.add_argument("--model", help="name or name@version; default: the operation's")
    submit.add_argument("--strength", type=float, help="of denoise, 0 to 1.5")
    submit.add_argument("--sigma", type=float, help="of denoise: noise level in the image's own units")
    submit.add_argument("--strict", action="store_true", default=None, help="of superresolve: refuse the inconsistent")
    submit.add_argument("--min-consistency", type=float, metavar="DB", help="of superresolve: refuse below it")
    submit.add_argument("--precision", choices=("exact", "fast"))
    submit.add_argument("--watch", action="store_true", help="stay until the job has ended")
    watch = verbs.add_parser("watch", help="tell a job's progress until it has ended")
    watch.add_argument("id", metavar="ID")
    route = verbs.add_parser("route", help="show what the rules do")
    route.add_argument("--dry-run", action="store_true", required=True, help="nothing is restored; the only way so far")
    route.add_argument("--pacs", metavar="NAME", help="of this PACS alone")
    route.add_argument("--limit", type=int, default=20, help="newest series of each PACS; default 20")
    for verb, run in ((status, show_status), (submit, submit_job), (watch, watch_job), (route, show_routes)):
        verb.add_argument("--url", help=f"of the service; default: ${URL_VARIABLE} or {DEFAULT_URL}")
        verb.add_argument("--key", help=f"API key; better: --key-file, or ${KEY_VARIABLE}")
        verb.add_argument("--key-file", type=Path, metavar="FILE", help="file that holds the API key")
        verb.add_argument("--json", action="store_true", help="the service's answer as it came")
        verb.set_defaults(run=run)
    return parser


# -- commands -------------------------------------------------------------------------------------


def show_status(arguments: argparse.Namespace) -> int:
    """Prints how PACS, jobs and feeds are; fails where a PACS does not answer, or something is out of order."""
    with connected(arguments) as client:
        answer = call(client, "GET", "/pacs/status")
    if arguments.json:
        print(json.dumps(answer, indent=2))
    else:
        print_status(answer)
    well = all(pacs["authorised"] for pacs in answer["pacs"].values())
    return DONE if well and not any(answer[f"{what}_problem"] for what in PROBLEMS) else FAILED


def submit_job(arguments: argparse.Namespace) -> int:
    """Submits a series, and prints the job."""
    options = {name: getattr(arguments, name) for name in OPTIONS}
    wanted = {name: getattr(arguments, name) for name in ("pacs", "study", "series", "operation", "scale", "model")}
    wanted["options"] = {name: value for name, value in options.items() if value is not None} or None
    with connected(arguments) as client:
        body = {name: value for name, value in wanted.items() if value is not None}
        job = call(client, "POST", "/pacs/jobs", json=body)
        if arguments.watch:
            return follow(client, job["id"], arguments.json)
    print(json.dumps(job, indent=2) if arguments.json else line_of(job))
    return DONE


def watch_job(arguments: argparse.Namespace) -> int:
    """Prints a job's changes until it has ended; fails where it did not end well."""
    with connected(arguments) as client:
        return follow(client, arguments.id, arguments.json)


def show_routes(arguments: argparse.Namespace) -> int:
    """Prints what the rules would take of the newest series."""
    params = {"limit": arguments.limit} | ({"pacs": arguments.pacs} if arguments.pacs else {})
    with connected(arguments) as client:
        answer = call(client, "GET", "/pacs/route", params=params)
    if arguments.json:
        print(json.dumps(answer, indent=2))
    else:
        print_routes(answer)
    return FAILED if answer["problem"] or any(feed["problem"] for feed in answer["pacs"]) else DONE


# -- the service ----------------------------------------------------------------------------------


@contextmanager
def connected(arguments: argparse.Namespace) -> Iterator[httpx.Client]:
    """A client of the service. Raises OptionError for a key that cannot be used, CallFailed where nothing answers."""
    url = arguments.url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    if not url.startswith(("http://", "https://")):
        raise OptionError(f"--url {url}: must begin with http:// or https://")
    key = key_of(arguments)
    timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout, trust_env=False) as client:
            yield client
    except httpx.InvalidURL as error:
        raise OptionError(f"--url {url}: {error}") from error
    except httpx.TransportError as error:
        raise CallFailed(f"nothing answers at {url} ({type(error).__name__}): is the service running?") from error


def key_of(arguments: argparse.Namespace) -> str | None:
    """The API key. Raises OptionError for two of them, and for one that no header can carry; OSError."""
    if arguments.key is not None and arguments.key_file is not None:
        raise OptionError("--key and --key-file exclude each other")
    key: str | None = arguments.key or os.environ.get(KEY_VARIABLE)
    if arguments.key_file is not None:
        key = arguments.key_file.read_text(encoding="utf-8").strip()
    if key is not None and not (key.isascii() and key.isprintable() and key):
        raise OptionError("the API key is empty, or has characters that no key has")
    return key


def call(client: httpx.Client, method: str, path: str, **more: Any) -> Any:
    """The JSON that the service answers. Raises CallFailed."""
    response = client.request(method, "/v1" + path, **more)
    refuse(response)
    try:
        return response.json()
    except ValueError as error:
        raise CallFailed(f"{client.base_url} is not this service: its answer is no JSON") from error


def refuse(response: httpx.Response) -> None:
    """Raises CallFailed for an answer that is a problem, in its own words."""
    if response.is_success:
        return
    try:
        problem = json.loads(response.read())
        text = f"{problem['title']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        text = "no reason told"
    hint = {401: " (give --key-file)", 404: " (is the PACS integration switched on?)"}.get(response.status_code, "")
    raise CallFailed(f"{response.status_code}: {text}{hint if 'job' not in text.lower() else ''}")


def follow(client: httpx.Client, id: str, raw: bool) -> int:
    """Prints each change of a job; survives restarts of the service."""
    last: dict[str, Any] = {}
    tries = 0
    while last.get("state") not in ENDED:
        try:
            for last in changes(client, id):
                tries = 0
                print(json.dumps(last) if raw else line_of(last), flush=True)
        except httpx.TransportError:
            tries += 1
            if tries > RETRIES:
                raise
        if last.get("state") not in ENDED:
            time.sleep(PAUSE_S if tries else 0.2)
    if (problem := last.get("problem")) and not raw:
        print(f"medrestore: {problem['title']}: {problem['detail']}", file=sys.stderr)
    return DONE if last["state"] in ENDED_WELL else FAILED


def changes(client: httpx.Client, id: str) -> Iterator[dict[str, Any]]:
    """The documents of a job's server-sent events, until the stream ends. Raises CallFailed."""
    timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
    with client.stream("GET", f"/v1/pacs/jobs/{id}/events", timeout=timeout) as response:
        refuse(response)
        for line in response.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


# -- what is printed ------------------------------------------------------------------------------


def line_of(job: dict[str, Any]) -> str:
    """A job in one line."""
    counts = {name: count for name, count in (job.get("instances") or {}).items() if count}
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{job['id']}  {job['state']:20} {told}".rstrip()


def print_status(answer: dict[str, Any]) -> None:
    """Two tables: the PACS, and their jobs by state."""
    peers = answer["pacs"]
    rows = [[name, _answers(peer), *feed_cells(peer["feed"])] for name, peer in peers.items()]
    print_table(["PACS", "answers", "feed read", "behind", "trouble"], rows)
    jobs = [[name, state, str(count)] for name, peer in peers.items() for state, count in peer["jobs"].items()]
    if jobs:
        print()
        print_table(["PACS", "jobs", "number"], jobs)
    for name, peer in peers.items():
        if peer["oldest_waiting_s"]:
            print(f"\n{name}: a job waits for {peer['oldest_waiting_s']:.0f} s")
    for what in PROBLEMS:
        if problem := answer[f"{what}_problem"]:
            print(f"\n{what} out of order: {problem}")


def _answers(peer: dict[str, Any]) -> str:
    return "yes" if peer["authorised"] else f"NO: {peer['reason']}"


def feed_cells(feed: dict[str, Any] | None) -> list[str]:
    """How the feed of one PACS is."""
    if feed is None:
        return ["not followed", "", ""]
    age = "never" if feed["read_s_ago"] is None else f"{feed['read_s_ago']:.0f} s ago"
    return [age, str(feed["lag"]), feed["problem"] or ""]


def print_routes(answer: dict[str, Any]) -> None:
    """One line a series: what it is, what is done, and why not."""
    if answer["problem"]:
        print(f"rules refused, those before are in force: {answer['problem']}\n")
    rows = []
    for feed in answer["pacs"]:
        if feed["problem"]:
            print(f"{feed['pacs']}: {feed['problem']}\n")
        for series in feed["series"]:
            tags = series["tags"]
            facts = [tags.get(tag, "") for tag in ("Modality", "BodyPartExamined", "StationName", "SeriesDescription")]
            verdict = series["route"] or f"({series['decision']})"
            why = "; ".join(f"{route}: {unmet}" for route, unmet in series["unmet"].items()) or series["reason"]
            rows.append([feed["pacs"], verdict, str(series["instances"]), *facts, series["series"], why])
    header = ["PACS", "route", "instances", "Modality", "BodyPart", "Station", "Description", "series", "why"]
    print_table(header, rows)
    taken = sum(series["route"] is not None for feed in answer["pacs"] for series in feed["series"])
    print(f"{taken} of {len(rows)} series would be taken", file=sys.stderr)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; what a terminal could take for a command is shown as `?`."""
    cells = [[plain(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def plain(text: str) -> str:
    """The text without control characters: some of it comes out of headers of images."""
    return "".join(c if c.isprintable() else "?" for c in text)
