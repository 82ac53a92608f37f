"""The peers of the store's benchmark do what they are compared for. Nothing is timed.

What the peers need is installed by `just test`; without it these tests are skipped, and with
BARTIZAN_REQUIRE=all they fail.
"""

import json
import os
from pathlib import Path

import apsw
import pytest

from benchmarks import store
from benchmarks.peers.sql import SqlPeer
from benchmarks.store import (
    DISKCACHE,
    FERNET,
    PEER_BARS,
    PEERS,
    SQLCIPHER,
    SQLCIPHER_8K,
    SQLITE3MC,
    Peer,
    main,
)
from template.libs.security.benchmarks.store_driver import Contest
from template.libs.security.benchmarks.store_measures import BARS

READABLE = {
    SQLCIPHER: [],
    SQLCIPHER_8K: [],
    SQLITE3MC: [],
    FERNET: ["names"],
    DISKCACHE: ["names", "values"],
}


@pytest.mark.parametrize("peer", PEERS, ids=[peer.label for peer in PEERS])
def test_a_peer_keeps_its_records_and_shows_what_is_said(peer: Peer, tmp_path: Path) -> None:
    if not peer.is_installed:
        if os.environ.get("BARTIZAN_REQUIRE") == "all":
            pytest.fail(f"{peer.label} is missing, and BARTIZAN_REQUIRE=all asks for it: {peer.needs}")
        pytest.skip(f"{peer.label} is not installed: {peer.needs}")
    with Contest([peer.side]) as contest:
        contest.start(tmp_path, order="random", size=1024)
        for by in ("batch", "single"):
            contest.each("fill", count=50, by=by)
        for do in ("insert", "get"):
            contest.each(do, count=20)
        contest.each("batch", count=1, size=30)
        contest.each("open", count=3)
        contest.each("flush")
        assert contest.each("readable") == {peer.label: READABLE[peer.label]}
        contest.finish()


def test_a_peer_that_would_not_write_durably_is_refused(tmp_path: Path) -> None:
    """One whose file is in memory cannot have a log."""
    with pytest.raises(RuntimeError, match="journal_mode is not WAL"):
        SqlPeer(tmp_path, lambda _: apsw.Connection(":memory:"))
    SqlPeer(tmp_path, apsw.Connection).close()


def test_what_is_missing_is_said_and_the_rest_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (fernet,) = (peer for peer in PEERS if peer.label == FERNET)
    missing = fernet._replace(label=SQLCIPHER, probe="raise SystemExit(1)", needs="somewhere else")
    monkeypatch.setattr(store, "PEERS", (missing, fernet))
    monkeypatch.delenv("BARTIZAN_REQUIRE", raising=False)
    found = tmp_path / "found.json"
    assert main(["--quick", "--rounds=1", "--large=150", f"--dir={tmp_path}", f"--json={found}"]) == 0
    printed = capsys.readouterr().out
    assert "SQLCipher was not measured: somewhere else." in printed
    results = json.loads(found.read_text())["results"]
    against = {entry["against"] for entry in results if entry["bar"] is not None}
    assert against == {"plain twin", FERNET}
    monkeypatch.setenv("BARTIZAN_REQUIRE", "all")
    assert main(["--quick"]) == 1
    assert "SQLCipher was not measured" in capsys.readouterr().err


def test_every_bar_is_of_a_peer_or_the_twin() -> None:
    assert {key[1] for key in PEER_BARS} == {SQLCIPHER, SQLCIPHER_8K, SQLITE3MC, FERNET}
    assert {key[1] for key in BARS} == {"plain twin"}
    assert {peer.label for peer in PEERS} == set(READABLE)
