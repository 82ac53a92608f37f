"""Judges and readers on junk: they never raise, and nothing holds that was not shown."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe_recorded import ANSWER
from probe_sample import MODULES, PROFILE, good
from security_probe.answer import FORM, check
from security_probe.document import Document, NotShownError, parse
from security_probe.facts import Facts, NotFound, Rebuild, Restart
from security_probe.files import Entry, Tree
from security_probe.finding import Verdict
from security_probe.points import judge
from security_probe.report import report
from security_probe.summary import as_json, summary

TEXTS = st.text(max_size=20) | st.sampled_from(
    ["ALL", "65532:65532", "/data", "true", "healthy", "CMD", "ro", "private", "65532"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)
ENTRIES = st.builds(
    Entry,
    st.sampled_from(["file", "folder", "link", "device", "other"]),
    mode=st.integers(0, 0o7777),
    uid=st.sampled_from([0, 65532]),
    target=st.sampled_from(["", "/", "..", "a", "/a/b", "../../x"]),
    start=st.binary(max_size=16),
)
PATHS = st.lists(
    st.sampled_from(
        ["a", "bin", "python3", "site-packages", "pip", "data", "tmp", "x.so.1", "y.py"]
    ),
    min_size=1,
    max_size=4,
).map("/".join)
TREES = st.builds(
    Tree,
    st.dictionaries(PATHS, ENTRIES, max_size=8),
    st.dictionaries(PATHS, st.binary(max_size=40)),
)


def _places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    steps: Any = value.items() if isinstance(value, dict) else ()
    steps = enumerate(value) if isinstance(value, list) else steps
    for step, each in steps:
        found += _places(each, (*path, step))
    return found


def _with(facts: Facts, document: str, place: tuple[Any, ...], junk: object) -> Facts:
    value = copy.deepcopy(getattr(facts, document).value)
    parent = value
    for step in place[:-1]:
        parent = parent[step]
    parent[place[-1]] = junk
    changed: dict[str, Any] = {document: Document(document, value)}
    return replace(facts, **changed)


PLACES = [
    (document, place)
    for document in ("container", "image", "inside", "networks", "volumes")
    for place in _places(getattr(good(), document).value)
]


@given(st.sampled_from(PLACES), JSON)
@settings(max_examples=400)
def test_junk_in_one_place_never_stops_the_judges(
    where: tuple[str, tuple[Any, ...]], junk: object
) -> None:
    found = judge(_with(good(), *where, junk))
    assert len(found) == 36
    assert all(each.verdict in (Verdict.HOLDS, Verdict.FAILS) for _, each in found)


@given(JSON, JSON, JSON, JSON, TREES.filter(lambda tree: not tree.has_python), st.lists(TEXTS))
@settings(max_examples=200)
def test_nothing_holds_on_junk(
    container: object, image: object, inside: object, others: object, tree: Tree, steps: list[str]
) -> None:
    facts = Facts(
        image=Document("image", image),
        steps=steps,
        tree=tree,
        container=Document("container", container),
        volumes=Document("volumes", others),
        networks=Document("networks", others),
        inside=Document("inside", inside),
        rebuild=Rebuild(Document("image", image), Document("image", image), ((), ())),
        restart=Restart(1.0, Document("container", container), well_again=True),
    )
    judgement = judge(facts)
    assert [point.number for point, each in judgement if each.verdict is not Verdict.FAILS] == []
    assert report(judgement, {}, facts)
    assert json.loads(as_json(judgement, {}))
    assert list(summary(judgement))


@given(TREES)
@settings(max_examples=300)
def test_judges_take_any_files(tree: Tree) -> None:
    assert len(judge(replace(good(), tree=tree))) == 36
    assert all(tree.entries[real].executable for _, real in tree.programs())


@given(st.text() | st.binary())
def test_what_is_read_as_json_is_json_or_nothing(text: str | bytes) -> None:
    try:
        found = parse(text)
    except NotShownError:
        return
    assert json.loads(text) == found


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', "NaN", "[Infinity]", "[" * 100_000, b"\xff", "", "{", "1" * 10_000],
)
def test_json_that_could_be_read_in_two_ways_is_none(text: str | bytes) -> None:
    with pytest.raises(NotShownError):
        parse(text)


def test_json_of_many_megabytes_is_none() -> None:
    with pytest.raises(NotShownError, match="MiB"):
        parse('"' + "x" * (5 << 20) + '"')


@given(JSON)
def test_only_the_form_of_an_answer_is_an_answer(junk: object) -> None:
    with pytest.raises(NotShownError):
        check(junk, FORM, "answer")


def test_recorded_answer_has_the_form() -> None:
    check(ANSWER, FORM, "answer")


@pytest.mark.parametrize("place", _places(ANSWER), ids=lambda place: ".".join(map(str, place)))
def test_answer_with_one_value_of_another_kind_is_none(place: tuple[Any, ...]) -> None:
    value: Any = copy.deepcopy(ANSWER)
    parent = value
    for step in place[:-1]:
        parent = parent[step]
    parent[place[-1]] = True  # nowhere does an answer have a truth value
    with pytest.raises(NotShownError):
        check(value, FORM, "answer")


@pytest.mark.parametrize(
    "changes",
    [
        {"more": 1},
        {"more_groups": list(range(5000))},
        {"machine": "x" * 5000},
        {"attempts": {str(number): "EPERM" for number in range(5000)}},
    ],
)
def test_answer_with_more_than_it_should_have_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(NotShownError):
        check(ANSWER | changes, FORM, "answer")


def test_answer_with_something_left_out_is_none() -> None:
    for name in ANSWER:
        with pytest.raises(NotShownError):
            check({key: value for key, value in ANSWER.items() if key != name}, FORM, "answer")


@given(st.sampled_from(_places(PROFILE)), JSON)
def test_judge_of_profiles_takes_junk(place: tuple[Any, ...], junk: object) -> None:
    profile: Any = copy.deepcopy(PROFILE)
    parent = profile
    for step in place[:-1]:
        parent = parent[step]
    parent[place[-1]] = junk
    options = ["no-new-privileges", f"seccomp={json.dumps(profile)}"]
    where = ("container", ("HostConfig", "SecurityOpt"))
    assert len(judge(_with(good(), *where, options))) == 36


def test_links_in_a_circle_lead_nowhere() -> None:
    link = Entry("link", target="/b")
    assert Tree({"a": link, "b": Entry("link", target="a")}).resolve("a") is None
    assert Tree({"a": Entry("link", target="../../..")}).resolve("a") == ""
    assert good().files().resolve("/app/.venv/bin/python3") == "usr/local/bin/python3.13"
    assert good().files().resolve("bin/../local/../local/lib/python3.13") == MODULES


def test_reason_that_files_are_missing_is_told() -> None:
    with pytest.raises(NotShownError, match="no disk"):
        replace(good(), tree=NotFound("no disk")).files()
