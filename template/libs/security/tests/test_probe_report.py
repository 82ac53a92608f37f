"""What the security probe shows: whole, ready to be signed, and safe against what is probed."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from probe_sample import failures, files, good, no_answer, put, variable
from security_probe.document import Document
from security_probe.errors import ProbeError
from security_probe.facts import NotTried
from security_probe.files import Entry
from security_probe.plain_text import markdown, plain, some
from security_probe.points import POINTS, judge
from security_probe.report import KNOWN, report, write
from security_probe.summary import as_json, conclusion, summary

HOSTILE = (
    "x | holds |\n| 99 | forged | **holds** `code` <script>alert(1)</script> "
    "[link](https://evil.example) www.evil.example \x1b[2J\x1b[31m \r\u202e\u2066 &amp; ![i](x) "
    "~~s~~"
)
ORIGIN = {"Container": "service", "Date": "2026-01-01"}


def _rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r"\| \d+ \|", line)]


def test_report_has_every_point_and_room_for_a_signature() -> None:
    text = report(judge(good()), ORIGIN, good())
    assert [int(row.split("|")[1]) for row in _rows(text)] == list(range(1, 37))
    assert all("| holds |" in row for row in _rows(text))
    assert "36 of 36 points tried: all hold." in text
    for heading in ("## Points", "## Known and accepted", "## Sign-off"):
        assert heading in text
    for line in ("Name", "Date", "Signature"):
        assert f"| {line} | &nbsp;" in text
    assert "## Failures" not in text
    assert "Here they can." in text


def test_report_tells_failures_in_full_with_their_reason() -> None:
    changed = put("inside", "files", "writable", to=["/data", "/tmp", "/opt", "/srv"])(good())
    text = report(judge(changed), ORIGIN, changed)
    assert "36 points tried: 35 hold, 1 fail." in text
    assert "### 31. Only /tmp and /data can be written to" in text
    assert next(point.reason for point in POINTS if point.number == 31) in text
    assert "- Can be written to: /opt, /srv." in text


def test_known_risks_say_what_was_tried() -> None:
    refused = put("inside", "attempts", "run a file in /data", to="EACCES")(good())
    assert "Here they cannot (EACCES)." in report(judge(refused), ORIGIN, refused).replace(
        "&#40;", "("
    ).replace("&#41;", ")")
    unknown = no_answer(good())
    assert "It was not tried here." in report(judge(unknown), ORIGIN, unknown)
    assert len(KNOWN) == 5


def test_points_left_out_are_counted_as_such() -> None:
    left_out = replace(good(), rebuild=NotTried("left out by --no-rebuild"))
    assert conclusion(judge(left_out)) == "35 of 36 points tried: all hold."
    (row,) = [row for row in _rows(report(judge(left_out), ORIGIN, left_out)) if "| 15 |" in row]
    assert "| not tried | left out by --no-rebuild |" in row
    assert "left out by --no-rebuild" in "\n".join(summary(judge(left_out)))


def test_container_cannot_add_a_row_or_markup_to_the_report() -> None:
    changed = put("inside", "files", "shells", to=[HOSTILE])(good())
    changed = put("container", "State", "Health", "Status", to=HOSTILE)(changed)
    changed = variable("container", f"{HOSTILE}_TOKEN=x")(changed)
    changed = files({HOSTILE: Entry("file", 0o4777)})(changed)
    assert set(failures(changed)) == {3, 5, 7, 26, 33}
    text = report(judge(changed), {"Container": HOSTILE}, changed)
    assert [int(row.split("|")[1]) for row in _rows(text)] == list(range(1, 37))
    assert all(row.count("|") == 5 for row in _rows(text))
    for markup in ("<script", "](", "`", "https://evil", "www.evil", "~~", "![", "&amp;"):
        assert markup not in text
    assert all(char.isprintable() or char == "\n" for char in text)


def test_container_cannot_steer_the_terminal() -> None:
    changed = put("inside", "files", "shells", to=[HOSTILE])(good())
    changed = put("container", "State", "Health", "Status", to=HOSTILE)(changed)
    lines = list(summary(judge(changed)))
    assert all(line.isprintable() for line in lines)
    assert len([line for line in lines if re.match(r" *\d+ (holds|fails)", line)]) == 36
    assert as_json(judge(changed), {"Container": HOSTILE}).isascii()


def test_long_strings_are_cut() -> None:
    changed = put("container", "State", "Health", "Status", to="x" * 100_000)(good())
    assert len(report(judge(changed), ORIGIN, changed)) < 20_000
    assert plain("x" * 1000, 10) == "x" * 9 + "…"
    assert some([f"{number:03}" for number in range(100)]) == "000, 001, 002, 003, 004 and 95 more"


@given(st.text())
@example("\ud800")
@example("\x85\u2028")
def test_any_string_is_shown_on_one_line_and_means_nothing(text: str) -> None:
    assert plain(text).isprintable()
    shown = markdown(text)
    assert shown.isprintable()
    assert not set(shown) & set("|`<>[]()*_{}\\!+~$@")
    assert "://" not in shown
    assert len(shown.encode()) >= len(text[:100])


def test_json_has_verdict_evidence_and_details_of_every_point() -> None:
    changed = put("container", "HostConfig", "Privileged", to=True)(good())
    found = json.loads(as_json(judge(changed), ORIGIN))
    assert found["origin"] == ORIGIN
    assert [each["number"] for each in found["points"]] == list(range(1, 37))
    (failed,) = [each for each in found["points"] if each["verdict"] == "fails"]
    assert failed["number"] == 20
    assert failed["details"] == ["The container is privileged."]


def test_report_takes_the_place_of_the_old_one_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "probe.md"
    write(path, "first")
    write(path, "second")
    assert path.read_text() == "second"
    assert [each.name for each in path.parent.iterdir()] == ["probe.md"]
    with pytest.raises(UnicodeEncodeError):  # half of it would have been written by now
        write(path, "x" * 100_000 + "\ud800")
    assert path.read_text() == "second"


def test_report_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file")
    with pytest.raises(ProbeError, match="--report"):
        write(tmp_path / "reports" / "probe.md", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ProbeError, match="cannot be written"):
        write(tmp_path / "folder", "text")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "reports"]


def test_names_of_documents_from_elsewhere_are_shown_safely() -> None:
    named = Document("container", {HOSTILE: 1})
    assert plain(next(iter(named.table().values())).name).isprintable()
