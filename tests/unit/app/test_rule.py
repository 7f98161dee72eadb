"""Rules: what matches, what is refused and how it is said, and how a changed file is taken up."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RuleError
from app.pacs.candidate import TAGS, Candidate
from app.pacs.rule import Rules, When, matches, read_rules
from app.pacs.rulebook import Rulebook

CHEST = {"Modality": "CT", "BodyPartExamined": "CHEST", "StationName": "CT2 east", "SeriesDescription": "Lung 1.0"}
WORDS = st.text("aAbB[]!*?.\\^-{}", min_size=1, max_size=12)


def route(name: str = "a", when: str = "{}", more: str = 'operation = "denoise"') -> str:
    return f'[[route]]\nname = "{name}"\nwhen = {when}\n{more}\n'


def taken(text: str, candidate: Candidate, pacs: str = "main") -> str | None:
    found = read_rules(text).first(pacs, candidate)
    return found and found.name


def candidate(instances: int = 30, **tags: str) -> Candidate:
    return Candidate("1.2", "1.2.3", instances, CHEST | tags)


@pytest.mark.parametrize(
    ("when", "takes"),
    [
        ("{}", True),
        ('{Modality = "CT"}', True),
        ('{Modality = "ct "}', True),
        ('{Modality = "C"}', False),
        ('{Modality = ["MR", "CT"]}', True),
        ('{Modality = ["MR", "PT"]}', False),
        ('{StationName = "CT2*"}', True),
        ('{StationName = "*EAST"}', True),
        ('{StationName = "CT? east"}', True),
        ('{StationName = "CT2"}', False),
        ('{SeriesDescription = "lung*", BodyPartExamined = ["CHEST", "THORAX"], min_instances = 30}', True),
        ('{SeriesDescription = "lung*", BodyPartExamined = ["HEAD", "THORAX"]}', False),
        ("{min_instances = 31}", False),
    ],
)
def test_equality_lists_and_globs(when: str, takes: bool) -> None:
    assert (taken(route(when=when), candidate()) == "a") is takes


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("value", [None, "", "  "])
def test_what_is_missing_matches_nothing(tag: str, value: str | None) -> None:
    tags = {name: text for name, text in {**CHEST, tag: value}.items() if text is not None}
    bare = Candidate("1", "2", 5, tags)
    assert taken(route(when=f'{{{tag} = "*"}}'), bare) is None
    assert When.model_validate({tag: ["*", "x"]}).unmet(bare) == f"{tag} is missing"


def test_first_match_wins_and_a_route_may_belong_to_one_pacs() -> None:
    only = 'operation = "denoise"\npacs = "other"'
    text = route("other", more=only) + route("chest", '{BodyPartExamined = "CHEST"}') + route("rest")
    assert taken(text, candidate()) == "chest"
    assert taken(text, candidate(BodyPartExamined="HEAD")) == "rest"
    assert taken(text, candidate(), "other") == "other"
    why = {found.name: unmet for found, unmet in read_rules(text).explain("main", candidate(BodyPartExamined="HEAD"))}
    assert why == {"other": "only for other", "chest": "BodyPartExamined is not CHEST", "rest": None}


@given(WORDS, WORDS)
def test_only_star_and_question_mark_are_special(text: str, value: str) -> None:
    oracle = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in text.lower())
    assert matches(text, value) == bool(re.fullmatch(oracle, value.lower(), re.DOTALL))


@given(st.lists(WORDS, min_size=1, max_size=4), WORDS)
def test_a_list_matches_where_one_of_it_does(texts: list[str], value: str) -> None:
    found = When.model_validate({"StationName": texts}).unmet(Candidate("1", "2", header={"StationName": value}))
    assert (found is None) == any(matches(text, value) for text in texts)


@given(WORDS)
def test_every_text_matches_itself_and_its_stars(text: str) -> None:
    assert matches(text, text)
    assert matches("*", text)
    assert matches(text + "*", text + "more")


def test_many_stars_take_no_time() -> None:
    assert not matches("*a" * 60 + "b", "a" * 64)


@given(st.dictionaries(st.sampled_from(TAGS), st.lists(WORDS, min_size=1, max_size=3)), st.data())
def test_a_route_that_is_said_to_cover_another_takes_all_that_it_does(tags: dict[str, list[str]], data) -> None:
    wide = When.model_validate({tag: data.draw(st.sampled_from([texts, ["*"]])) for tag, texts in tags.items()})
    narrow = When.model_validate({tag: texts[:1] for tag, texts in tags.items()} | {"min_instances": 3})
    assert wide.covers(narrow)
    values = {tag: texts[0] for tag, texts in tags.items()}
    assert narrow.unmet(Candidate("1", "2", 3, values)) is None
    assert wide.unmet(Candidate("1", "2", 3, values)) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[route]\n", "line 1"),
        ("speed = 3", "speed: unknown key"),
        (route() + route("b", '{Modaliy = "CT"}'), "line 5, route 2 'b': when.Modaliy: unknown key"),
        (route(more='operation = "denoise"\nspeed = 1'), "line 1, route 1 'a': speed: unknown key"),
        (route(when='{Modality = ""}'), "when.Modality.0: an empty text matches nothing"),
        (route(when="{Modality = []}"), "when.Modality"),
        (route(when="{min_instances = 0}"), "when.min_instances"),
        (route() + "options = {sigma = inf}\n", "options.sigma"),
        ("a = " + "[" * 9999, "nested too deeply"),
        (route(more=""), "operation"),
        (route(more='operation = "sharpen"'), "operation"),
        (route(more='operation = "denoise"\nscale = 2'), "scale belongs to superresolve"),
        (route(more='operation = "superresolve"'), "needs scale = 2 or scale = 4"),
        (route(more='operation = "superresolve"\nscale = 3'), "scale"),
        (
            route(more='operation = "superresolve"\nscale = 2\noptions = {strength = 1}'),
            "strength and sigma belong to denoise",
        ),
        (
            route(more='operation = "denoise"\noptions = {strict = true}'),
            "strict and min_consistency belong to superresolve",
        ),
        (route(more='operation = "superresolve"\nscale = 2\noptions = {min_consistency = -3}'), "min_consistency"),
        (route(more='operation = "denoise"\noptions = {strength = 2}'), "options.strength"),
        (route(more='operation = "denoise"\noptions = {speed = 2}'), "options.speed: unknown key"),
        ('[[route]]\nname = "a"\noperation = "denoise"', "when"),
        (route(when='{Modality = "CT"}') + route(when='{Modality = "MR"}'), "line 5, route 2 'a': another route"),
        (route() + route("b", '{Modality = "CT"}'), "never reached, because route 'a' takes all that it would"),
        ('route = "all"', "route"),
        ('[door]\npacs = "main"', "door: the door does nothing"),
        (
            '[door]\npacs = "main"\n[[door.route]]\nname = "x"\nwhen = {}\noperation = "denoise"\nspeed = 1',
            "line 3, door.route 1 'x': speed: unknown key",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(RuleError) as caught:
        read_rules(text)
    assert said in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(RuleError):
        assert isinstance(read_rules(text), Rules)


def test_routes_of_different_pacs_and_overlapping_globs_do_not_contradict() -> None:
    read_rules(route("a", '{StationName = "CT*"}') + route("b", '{StationName = "*"}'))
    read_rules(route("a", more='operation = "denoise"\npacs = "x"') + route("b"))
    read_rules(route("a", "{min_instances = 20}") + route("b", "{min_instances = 5}"))


def test_the_door_tries_its_routes_then_its_default() -> None:
    text = '[door]\npacs = "main"\n[door.default]\noperation = "denoise"\n'
    rules = read_rules(
        text + '[[door.route]]\nname = "mr"\nwhen = {Modality = "MR"}\noperation="superresolve"\nscale=2'
    )
    assert rules.door is not None
    for modality, operation in {"MR": "superresolve", "CT": "denoise"}.items():
        work = rules.door.work(candidate(Modality=modality))
        assert work is not None
        assert work.operation == operation


def write(path: Path, text: str) -> None:
    """Replaces the file as an editor does, with a new time."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_a_changed_file_is_taken_up_and_a_broken_one_keeps_the_rules(tmp_path: Path, caplog) -> None:
    path = tmp_path / "rules.toml"
    book = Rulebook(path, lambda rules: None)
    assert book.rules().route == ()
    assert "No such file" in (book.problem or "")
    write(path, route("first"))
    assert [r.name for r in book.rules().route] == ["first"]
    assert book.problem is None
    write(path, route("second", "{Modality = 3}"))
    for _ in range(3):
        assert [r.name for r in book.rules().route] == ["first"]
        assert "route 1 'second'" in (book.problem or "")
    assert [r.message for r in caplog.records].count("rules refused; those before stay in force") == 2
    path.unlink()
    assert [r.name for r in book.rules().route] == ["first"]
    write(path, route("third"))
    assert [r.name for r in book.rules().route] == ["third"]
    assert book.problem is None
    write(path, "\0" * 2**20 + "x")
    assert [r.name for r in book.rules().route] == ["third"]


def test_rules_that_do_not_fit_the_service_are_refused_until_they_do(tmp_path: Path) -> None:
    there = ["right"]

    def check(rules: Rules) -> None:
        if rules.route[0].name not in there:
            raise RuleError("rules: no such PACS")

    path = tmp_path / "rules.toml"
    book = Rulebook(path, check)
    write(path, route("right"))
    assert book.rules().route
    write(path, route("wrong"))
    assert [r.name for r in book.rules().route] == ["right"]
    assert book.problem == "rules: no such PACS"
    there.append("wrong")  # a model that was installed after the rules that name it
    assert [r.name for r in book.rules().route] == ["wrong"]
    assert book.problem is None


def test_the_rules_that_are_shipped_and_shown_are_rules() -> None:
    root = Path(__file__).parents[3]
    shown = re.findall(r"```toml\n(\[\[route\]\].*?)```", (root / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(shown) == 1
    for text in (*shown, (root / "docker" / "routes.toml").read_text("utf-8")):
        assert read_rules(text).route
