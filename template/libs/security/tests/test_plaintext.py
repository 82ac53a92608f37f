"""Neither names nor values on disk; and the same search finds them in a plain file."""

import sqlite3
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import MASTER, Opener
from service_security.store import SecureDb

# Long and varied enough not to stand in the file by chance, as a run of zeros does.
needles = st.binary(min_size=8, max_size=64).filter(lambda needle: len(set(needle)) > 5)


def _found(folder: Path, needles: "list[bytes]") -> set[bytes]:
    contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert contents
    return {needle for needle in needles if any(needle in content for content in contents)}


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(names=st.lists(needles, min_size=1, max_size=5), value=needles)
def test_no_file_shows_a_name_or_a_value(
    open_store: Opener, database: Path, names: list[bytes], value: bytes
) -> None:
    with open_store() as store:
        store.insert_many((name, value) for name in names)
        store.insert(names[0], value + b"replaced")
        store.remove(names[-1])
        assert not _found(database.parent, [*names, value])  # in the log
        store.flush()
        assert not _found(database.parent, [*names, value])  # in the file
    assert not _found(database.parent, [*names, value])


def test_the_same_search_finds_both_in_a_plain_file(tmp_path: Path) -> None:
    """The control: a search that never finds anything would pass the test above."""
    name, value = b"a plain name", b"a plain value"
    with sqlite3.connect(tmp_path / "plain.db") as connection:
        connection.execute("CREATE TABLE record (name BLOB, value BLOB)")
        connection.execute("INSERT INTO record VALUES (?, ?)", (name, value))
    connection.close()
    assert _found(tmp_path, [name, value]) == {name, value}


def test_equal_values_and_equal_names_in_two_stores_look_different(tmp_path: Path) -> None:
    sealed = []
    for number in (1, 2):
        path = tmp_path / f"{number}.db"
        with SecureDb.open(path, MASTER) as store:
            store.insert_many([(b"a", b"value"), (b"b", b"value")])
            sealed += store._file.connection.execute("SELECT token, sealed FROM record").fetchall()
    tokens, boxes = zip(*sealed, strict=True)
    assert len(set(tokens)) == len(set(boxes)) == 4
    assert len({bytes(box)[24:] for box in boxes}) == 4
