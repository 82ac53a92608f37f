"""Refusals: a wrong key, damage, another format, a full disk; each with an error of its own."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from conftest import MASTER, Opener
from service_security.errors import (
    ConfigurationError,
    IntegrityError,
    SecurityError,
    StoreUnavailableError,
    UnsupportedFormatError,
    WrongKeyError,
)
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb, schema, secure_db
from service_security.store.header import Header


def _sql(database: Path, statement: str, *arguments: Any) -> list[Any]:
    # By the same SQLite as the store: a second copy of the library in one process would release
    # the first one's file locks when it closes the file.
    with closing(apsw.Connection(str(database))) as connection:
        return connection.execute(statement, arguments).fetchall()


@pytest.fixture
def written(open_store: Opener, database: Path) -> Path:
    """A closed database with three records."""
    with open_store() as store:
        store.insert_many([(b"one", b"first"), (b"two", b"second"), (b"three", b"third")])
    return database


# Keys


def test_a_wrong_key_is_refused_at_open_and_changes_nothing(written: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(WrongKeyError, match=r"records\.db.*unchanged"):
        SecureDb.open(written, bytes(32))
    assert written.read_bytes() == before


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_key_of_another_length_is_refused_and_no_file_is_made(
    database: Path, length: int
) -> None:
    with pytest.raises(ConfigurationError, match=f"32 bytes; this one has {length}"):
        SecureDb.open(database, bytes(length))
    assert not database.exists()


def test_a_key_that_is_text_is_refused(database: Path) -> None:
    with pytest.raises(TypeError, match="not str"):
        SecureDb.open(database, "0" * 32)  # type: ignore[arg-type]


def test_an_unknown_cipher_is_refused_and_no_file_is_made(database: Path) -> None:
    with pytest.raises(ConfigurationError, match="no cipher 'des'"):
        SecureDb.open(database, MASTER, cipher="des")
    assert not database.exists()


def test_the_key_may_be_a_secret_and_stays_the_callers(database: Path) -> None:
    with SecretBytes.copy_of(MASTER) as master:
        SecureDb.open(database, master).close()
        with master.view as view:
            assert bytes(view) == MASTER


def test_a_file_keeps_its_cipher(database: Path) -> None:
    SecureDb.open(database, MASTER, cipher="aes256gcm").close()
    with SecureDb.open(database, MASTER, cipher="xchacha20poly1305") as store:
        assert store.cipher == "aes256gcm"


def test_closing_wipes_the_keys(store: SecureDb) -> None:
    store.insert(b"name", b"value")
    row: Any = store._file.connection.execute("SELECT token, key_id, sealed FROM record").fetchone()
    keys = store._keys.record
    store.close()
    for entry in keys._keyset.entries.values():
        with pytest.raises(ValueError, match="closed"):
            entry.key.check()
    with pytest.raises(IntegrityError):  # not even with what OpenSSL had made of the keys
        keys.open(*row)


# Files


def test_files_are_closed_to_others(store: SecureDb, database: Path) -> None:
    store.insert(b"name", b"value")
    files = list(database.parent.iterdir())
    assert {path.name for path in files} == {"records.db", "records.db-wal", "records.db-shm"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_flush_empties_the_log(store: SecureDb, database: Path) -> None:
    store.insert(b"name", b"value")
    log = database.with_name("records.db-wal")
    assert log.stat().st_size > 0
    store.flush()
    assert log.stat().st_size == 0


@pytest.mark.usefixtures("impatient")
def test_flush_says_when_a_reader_is_in_the_way(store: SecureDb, database: Path) -> None:
    store.insert(b"name", b"value")
    reader = apsw.Connection(str(database))
    reader.execute("BEGIN; SELECT * FROM record")
    store.insert(b"name", b"another")
    with pytest.raises(StoreUnavailableError, match="Nothing is lost"):
        store.flush()
    reader.close()
    store.flush()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be created"):
        SecureDb.open(tmp_path / "missing" / "records.db", MASTER)


def test_a_creation_that_fails_leaves_nothing(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(StoreUnavailableError, match="No space left"):
        SecureDb.open(database, MASTER)
    assert list(database.parent.iterdir()) == []


def test_when_another_process_created_the_file_first_that_one_is_opened(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SecureDb.open(database, MASTER) as faster:
        faster.insert(b"name", b"value")
    seen = iter([False])
    exists = Path.exists
    monkeypatch.setattr(
        Path, "exists", lambda self: next(seen, True) if self == database else exists(self)
    )
    with SecureDb.open(database, MASTER) as store:
        assert store.get(b"name") == b"value"
    assert [path.name for path in database.parent.iterdir()] == ["records.db"]


# Damage


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_single_bit_of_a_sealed_record_is_authenticated(store: SecureDb) -> None:
    store.insert(b"one", b"first")
    store.insert(b"two", b"second")
    update = "UPDATE record SET sealed = ? WHERE id = 1"
    found: Any = store._file.connection.execute("SELECT sealed FROM record WHERE id = 1").get
    sealed = bytes(found)
    for bit in range(8 * len(sealed)):
        store._file.connection.execute(update, (_flipped(sealed, bit),))
        with pytest.raises(IntegrityError, match=r"^A record failed its integrity check\.$"):
            store.get(b"one")
    assert store.get(b"two") == b"second"
    store._file.connection.execute(update, (sealed,))
    assert store.get(b"one") == b"first"


DAMAGE: dict[str, str] = {
    "values swapped": (
        "UPDATE record SET sealed = CASE id WHEN 1 THEN (SELECT sealed FROM record WHERE id = 2)"
        " WHEN 2 THEN (SELECT sealed FROM record WHERE id = 1) ELSE sealed END"
    ),
    "value moved to another name": (
        "UPDATE record SET sealed = (SELECT sealed FROM record WHERE id = 2) WHERE id = 1"
    ),
    "renamed": "UPDATE record SET token = zeroblob(16) WHERE id = 1",
    "truncated to nothing": "UPDATE record SET sealed = x'' WHERE id = 1",
    "truncated by one": "UPDATE record SET sealed = substr(sealed, 1, length(sealed) - 1)",
    "extended": "UPDATE record SET sealed = CAST(sealed || x'00' AS BLOB)",
    "another key": "UPDATE record SET key_id = 2",
    "a key that is not there": "UPDATE record SET key_id = 99",
    "a key that cannot be": "UPDATE record SET key_id = -1",
}


@pytest.mark.parametrize("statement", DAMAGE.values(), ids=list(DAMAGE))
def test_a_record_that_was_tampered_with_is_refused(written: Path, statement: str) -> None:
    _sql(written, statement)
    with SecureDb.open(written, MASTER) as store:
        with pytest.raises(IntegrityError):
            list(store.items())
        if "token" not in statement:
            with pytest.raises(IntegrityError):
                store.get(b"one")
        if "id = 1" in statement:
            assert store.get(b"three") == b"third"


def test_a_record_under_another_token_is_refused_although_it_was_sealed_for_it(
    store: SecureDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name inside is checked by itself, not only by the associated data."""
    other = store._keys.record.token(b"other")
    with monkeypatch.context() as patch:
        patch.setattr(store._keys.record, "token", lambda _: other)
        store.insert(b"name", b"value")
    with pytest.raises(IntegrityError):
        store.get(b"other")
    with pytest.raises(IntegrityError, match="Record 1 failed"):
        list(store.items())


def test_a_record_of_another_name_is_refused_although_both_have_one_token(
    store: SecureDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store._keys.record, "token", lambda _: bytes(16))
    store.insert(b"name", b"value")
    with pytest.raises(IntegrityError):
        store.get(b"other")


def test_a_header_whose_generation_is_not_the_keysets_is_refused(store: SecureDb) -> None:
    keys = store._keys.header
    good = Header.read(store._file.connection)
    forged = replace(good, keyset_generation=2)
    forged = replace(forged, mac=keys._mac(forged))
    keys.open(good).close()
    with pytest.raises(IntegrityError):
        keys.open(forged)


def test_iteration_gives_what_lies_before_a_damaged_record_and_can_go_on_behind_it(
    store: SecureDb,
) -> None:
    store.insert_many((b"%d" % number, b"") for number in range(9))
    store._file.connection.execute("UPDATE record SET sealed = zeroblob(60) WHERE id = 5")
    assert list(_until_damage(store)) == [(b"%d" % number, b"") for number in range(4)]
    with pytest.raises(IntegrityError, match="Record 5 failed"):
        list(store.items())
    assert [name for _, name, _ in store.page(5, 100)] == [b"5", b"6", b"7", b"8"]


def _until_damage(store: SecureDb) -> Iterator[tuple[bytes, bytes]]:
    try:
        yield from store.items()
    except IntegrityError:
        return


def test_damaged_records_are_left_out_where_somebody_is_told(store: SecureDb) -> None:
    store.insert_many((b"%d" % number, b"") for number in range(900))
    for position in (1, 5, 256, 257, 900):
        store._file.connection.execute(
            "UPDATE record SET sealed = zeroblob(60) WHERE id = ?", (position,)
        )
    told: list[int] = []
    whole = [b"%d" % number for number in range(900) if number + 1 not in (1, 5, 256, 257, 900)]
    assert [name for name, _ in store.items(on_damage=told.append)] == whole
    assert told == [1, 5, 256, 257, 900]


def test_a_page_goes_on_behind_damaged_records_until_it_is_full(store: SecureDb) -> None:
    store.insert_many((b"%d" % number, b"") for number in range(9))
    store._file.connection.execute("UPDATE record SET sealed = zeroblob(60) WHERE id IN (2, 3, 4)")
    told: list[int] = []
    positions, page = [], store.page(0, 3, on_damage=told.append)
    while page:
        positions.append([position for position, _, _ in page])
        page = store.page(page[-1][0], 3, on_damage=told.append)
    assert positions == [[1, 5, 6], [7, 8, 9]]
    assert told == [2, 3, 4]


def test_who_is_told_of_damage_may_write(store: SecureDb) -> None:
    store.insert_many((b"%d" % number, b"") for number in range(9))
    store._file.connection.execute("UPDATE record SET sealed = zeroblob(60) WHERE id IN (2, 3)")

    def note(position: int) -> None:
        store.insert(b"damaged %d" % position, b"")

    assert len(list(store.items(on_damage=note))) >= 7
    assert len(store.page(0, 100, on_damage=note)) == 9


def test_a_format_that_changes_under_an_open_store_is_named(
    store: SecureDb, database: Path
) -> None:
    _sql(database, "UPDATE header SET format = 2")
    with pytest.raises(UnsupportedFormatError, match="format 2"):
        store.check()


def test_a_record_of_another_database_is_refused(
    written: Path, open_store: Opener, tmp_path: Path
) -> None:
    other = tmp_path / "other.db"
    with open_store(other) as store:
        store.insert(b"one", b"first")
    token, sealed = _sql(other, "SELECT token, sealed FROM record")[0]
    _sql(written, "INSERT INTO record (token, key_id, sealed) VALUES (?, 1, ?)", token, sealed)
    with SecureDb.open(written, MASTER) as store:
        assert store.get(b"one") == b"first"
        with pytest.raises(IntegrityError):
            list(store.items())


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE header SET db_id = zeroblob(16)",
        "UPDATE header SET db_id = x'00'",
        "UPDATE header SET keyset_generation = 2",
        "UPDATE header SET keyset_generation = -1",
        "UPDATE header SET mac = zeroblob(32)",
        "UPDATE header SET keyset = zeroblob(200)",
        "UPDATE header SET keyset = x''",
        "DELETE FROM header",
    ],
)
def test_an_edited_header_is_refused(written: Path, statement: str) -> None:
    _sql(written, statement)
    with pytest.raises(IntegrityError, match="header is damaged"):
        SecureDb.open(written, MASTER)


def test_a_header_of_another_database_is_refused(
    written: Path, open_store: Opener, tmp_path: Path
) -> None:
    """The whole header is consistent, but the records were sealed for another one."""
    other = tmp_path / "other.db"
    open_store(other).close()
    columns = "db_id, keyset, mac"
    row = _sql(other, f"SELECT {columns} FROM header")[0]  # noqa: S608 - constant
    _sql(written, f"UPDATE header SET ({columns}) = (?, ?, ?)", *row)  # noqa: S608 - constant
    with SecureDb.open(written, MASTER) as store:
        assert store.get(b"one") is None
        with pytest.raises(IntegrityError):
            list(store.items())


@pytest.mark.parametrize(("found", "age"), [(2, "newer"), (0, "older")])
def test_another_format_is_named_and_the_file_unchanged(
    written: Path, found: int, age: str
) -> None:
    _sql(written, "UPDATE header SET format = ?", found)
    _sql(written, "ALTER TABLE record ADD COLUMN something_new TEXT")
    before = written.read_bytes()
    with pytest.raises(UnsupportedFormatError, match=f"the {age} format {found}.*reads format 1"):
        SecureDb.open(written, MASTER)
    assert written.read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE extra (id)",
        "CREATE TRIGGER copy AFTER INSERT ON record BEGIN SELECT 1; END",
        "CREATE VIEW shown AS SELECT * FROM record",
        "DROP TABLE lease",
        "ALTER TABLE record ADD COLUMN plain TEXT",
    ],
)
def test_other_tables_are_refused(written: Path, statement: str) -> None:
    _sql(written, statement)
    with pytest.raises(IntegrityError, match="tables"):
        SecureDb.open(written, MASTER)


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
@pytest.mark.parametrize("table", ["other", "header", "records"])
def test_a_database_of_another_program_is_refused_and_left_alone(
    database: Path, journal_mode: str, table: str
) -> None:
    _sql(database, f"PRAGMA journal_mode = {journal_mode}")
    _sql(database, f"CREATE TABLE {table} (format INTEGER)")
    before = database.read_bytes()
    with pytest.raises(IntegrityError, match="tables"):
        SecureDb.open(database, MASTER)
    assert database.read_bytes() == before


def test_the_log_of_another_program_is_not_moved_into_its_database(database: Path) -> None:
    with closing(apsw.Connection(str(database))) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE other (id)")
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    log = database.with_name(database.name + "-wal")
    before = database.read_bytes(), log.read_bytes()
    assert before[1]
    with pytest.raises(IntegrityError, match="tables"):
        SecureDb.open(database, MASTER)
    assert (database.read_bytes(), log.read_bytes()) == before


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _overwrite(path: Path) -> None:
    path.write_bytes(b"this was a database once" * 1000)


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.write_bytes(b""), _truncate, _overwrite],
    ids=["empty", "cut", "overwritten"],
)
def test_a_damaged_file_is_refused_and_left_alone(
    written: Path, damage: Callable[[Path], object]
) -> None:
    damage(written)
    before = written.read_bytes()
    with (
        pytest.raises(IntegrityError, match="estore it from a backup"),
        SecureDb.open(written, MASTER) as store,
    ):
        list(store.items())
    if before:
        assert written.read_bytes() == before


def test_no_random_damage_gives_garbage_or_a_crash(written: Path, tmp_path: Path) -> None:
    """Every byte of the file in turn: a record is whole, absent or refused, and never another."""
    original = written.read_bytes()
    expected = {b"one": b"first", b"two": b"second", b"three": b"third"}
    copy = tmp_path / "damaged.db"
    refused = 0
    for position in range(0, len(original), 37):
        copy.write_bytes(
            original[:position] + bytes([original[position] ^ 0xFF]) + original[position + 1 :]
        )
        try:
            with SecureDb.open(copy, MASTER) as store:
                for name, value in expected.items():
                    try:
                        assert store.get(name) in (value, None)
                    except SecurityError:
                        refused += 1
        except SecurityError:
            refused += 1
        for suffix in ("-wal", "-shm"):
            copy.with_name(copy.name + suffix).unlink(missing_ok=True)
    assert refused > 10


# Disk


def test_a_full_disk_refuses_the_write_and_loses_nothing(store: SecureDb) -> None:
    store.insert(b"kept", b"value")
    pages = store._file.connection.pragma("page_count")
    store._file.connection.pragma("max_page_count", pages)
    with pytest.raises(StoreUnavailableError, match="full"):
        store.insert(b"large", bytes(1_000_000))
    assert store.get(b"kept") == b"value"
    assert store.get(b"large") is None
    store._file.connection.pragma("max_page_count", 1_000_000)
    store.insert(b"large", bytes(1_000_000))


def test_after_a_device_error_writes_are_refused_until_reopened(
    store: SecureDb, monkeypatch: pytest.MonkeyPatch, open_store: Opener
) -> None:
    store.insert(b"kept", b"value")

    def fail(*_: object) -> bool:
        raise apsw.IOError("fsync failed")

    with monkeypatch.context() as patch:
        patch.setattr(store._writer, "_execute", fail)
        with pytest.raises(StoreUnavailableError):
            store.insert(b"lost", b"value")
    for write in (
        lambda: store.insert(b"lost", b"value"),
        lambda: store.remove(b"kept"),
        store.flush,
        store.check,
    ):
        with pytest.raises(StoreUnavailableError, match="failed on the device"):
            write()
    assert store.get(b"kept") == b"value"
    store.close()
    assert open_store().insert(b"new", b"value")


def test_a_busy_file_is_named(store: SecureDb, database: Path) -> None:
    writer = apsw.Connection(str(database))
    writer.execute("BEGIN IMMEDIATE")
    store._file.connection.set_busy_timeout(10)
    with pytest.raises(StoreUnavailableError, match="in use by another process"):
        store.insert(b"name", b"value")
    writer.close()
    store.insert(b"name", b"value")


def test_a_write_that_fails_in_the_middle_leaves_no_transaction_open(
    store: SecureDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store._writer, "_execute", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.insert_many([(b"name", b"value"), (b"other", b"value")])
    assert not store._file.connection.in_transaction
    assert store.insert(b"name", b"value")


def test_an_interrupt_while_waiting_for_the_lock_leaves_no_transaction_open(
    store: SecureDb, database: Path
) -> None:
    store.insert(b"name", b"value")
    writer = apsw.Connection(str(database))
    writer.execute("BEGIN IMMEDIATE")

    def interrupt(_: int) -> bool:
        writer.execute("COMMIT")  # so that BEGIN succeeds, with the exception on its way
        raise KeyboardInterrupt

    store._file.connection.set_busy_handler(interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.insert(b"name", b"another")
    writer.close()
    assert not store._file.connection.in_transaction
    store._file.connection.set_busy_handler(None)
    assert not store.insert(b"name", b"third")


def test_every_connection_is_set_up_to_survive(store: SecureDb) -> None:
    settings = {
        name: store._file.connection.pragma(name)
        for name in ("journal_mode", "synchronous", "secure_delete", "mmap_size")
    }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "mmap_size": 0}
    assert store._file.connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, -1) == 1
    assert store._file.connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, -1) == 0


def test_a_failed_open_closes_what_it_opened(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[apsw.Connection] = []

    def note(path: Path) -> apsw.Connection:
        opened.append(schema.connect(path))
        return opened[-1]

    monkeypatch.setattr(secure_db, "connect", note)
    with pytest.raises(WrongKeyError):
        SecureDb.open(written, bytes(32))
    (connection,) = opened
    with pytest.raises(apsw.ConnectionClosedError):
        connection.execute("SELECT 1")


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_a_log_without_its_database_is_not_taken_over(database: Path, suffix: str) -> None:
    log = database.with_name(database.name + suffix)
    log.write_bytes(b"records that are nowhere else")
    with pytest.raises(IntegrityError, match="is there without"):
        SecureDb.open(database, MASTER)
    assert not database.exists()
    assert log.read_bytes() == b"records that are nowhere else"


def test_a_path_that_is_not_utf8_is_refused_with_a_sentence(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        SecureDb.open(folder / "records.db", MASTER)


@pytest.mark.parametrize("name", ["a b?c#d%.db", ":memory:", "file:x"])
def test_odd_names_are_ordinary_files(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with SecureDb.open(name, MASTER) as store:
        store.insert(b"name", b"value")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with SecureDb.open(name, MASTER) as store:
        assert store.get(b"name") == b"value"


@pytest.mark.parametrize("path", ["file/records.db", "n" * 300])
def test_paths_that_cannot_be_are_refused_with_a_sentence(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailableError):
        SecureDb.open(tmp_path / path, MASTER)


# Keysets that change


def _next_generation(store: SecureDb) -> None:
    """Write the same keys as the next generation, as a rotation in another process would."""
    keyset = store._keys.record._keyset
    keyset.generation += 1
    header = store._keys.header.seal(keyset)
    store._file.connection.execute(
        "UPDATE header SET keyset_generation = ?, keyset = ?, mac = ?",
        (header.keyset_generation, header.keyset, header.mac),
    )
    keyset.generation -= 1


def test_a_writer_that_holds_an_older_keyset_seals_again(open_store: Opener) -> None:
    stale, other = open_store(), open_store()
    stale.insert(b"one", b"1")
    _next_generation(other)
    assert stale.insert(b"two", b"2")
    assert stale._keys.record.generation == 2
    assert other.get(b"two") == b"2"


def test_a_keyset_that_went_back_is_refused(open_store: Opener, database: Path) -> None:
    store = open_store()
    columns = "keyset_generation, keyset, mac"
    old = _sql(database, f"SELECT {columns} FROM header")[0]  # noqa: S608 - constant
    _next_generation(open_store())
    store.insert(b"name", b"value")
    _sql(database, f"UPDATE header SET ({columns}) = (?, ?, ?)", *old)  # noqa: S608 - constant
    with pytest.raises(IntegrityError, match="older generation"):
        store.insert(b"name", b"another")


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("planted", ["trigger", "view"])
def test_what_hides_behind_the_name_of_a_table_is_refused(
    written: Path, planted: str, read_only: bool
) -> None:
    """A trigger may have the name of a table, and would undo writes that were acknowledged."""
    connection = apsw.Connection(str(written))
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    connection.pragma("writable_schema", True)
    sql = {
        "trigger": "CREATE TRIGGER header AFTER UPDATE ON record BEGIN SELECT 1; END",
        "view": "CREATE VIEW header AS SELECT 1",
    }[planted]
    row = (planted, "header", "record" if planted == "trigger" else "header", 0, sql)
    with connection:
        rows = list(connection.execute("SELECT * FROM sqlite_schema"))
        connection.execute("DELETE FROM sqlite_schema")
        for each in [row, *rows]:
            connection.execute("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", each)
    connection.close()
    with pytest.raises(IntegrityError):
        SecureDb.open(written, MASTER, read_only=read_only)


def test_positions_and_limits_beyond_all_records_are_no_error(store: SecureDb) -> None:
    store.insert(b"a", b"")
    assert store.page(2**70, 10) == []
    assert len(store.page(0, 2**70)) == 1


def test_an_error_that_somebody_keeps_does_not_keep_the_moment_it_saw(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its traceback holds on to the statement, and an unfinished one reads an old moment."""
    store, other = open_store(), open_store()
    store.insert_many((b"%d" % number, b"old") for number in range(9))

    def stop_in_the_middle(_file: object, _after: int, _size: object, rows: Any) -> list[Any]:
        next(rows)
        raise IntegrityError("damaged")

    monkeypatch.setattr("service_security.store.row_pages._limited", stop_in_the_middle)
    with pytest.raises(IntegrityError) as kept:
        store.page(0, 100)
    assert kept.traceback
    other.insert(b"1", b"new")
    assert store.get(b"1") == b"new"
    store.insert(b"1", b"newer")


def test_files_that_the_last_other_user_removes_just_now_are_no_error(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were there when it was asked whether they are."""
    open_store().close()
    monkeypatch.setattr("service_security.store.schema.exists", lambda _: True)
    assert open_store().insert(b"name", b"value")


def test_check_notices_a_file_that_was_removed_or_replaced(
    store: SecureDb, database: Path, tmp_path: Path
) -> None:
    store.insert(b"name", b"value")
    store.check()
    database.rename(tmp_path / "moved.db")
    with pytest.raises(StoreUnavailableError, match="removed or replaced"):
        store.check()
    shutil.copy(tmp_path / "moved.db", database)
    with pytest.raises(StoreUnavailableError, match="removed or replaced"):
        store.check()
    (tmp_path / "moved.db").replace(database)
    store.check()


def test_check_notices_a_header_that_was_damaged_meanwhile(store: SecureDb, database: Path) -> None:
    store.check()
    _sql(database, "UPDATE header SET mac = zeroblob(32)")
    with pytest.raises(IntegrityError):
        store.check()


def test_check_notices_an_older_header_that_was_put_back(store: SecureDb, database: Path) -> None:
    """Its MAC is right: it was the header once."""
    (before,) = _sql(database, "SELECT keyset_generation, keyset, mac FROM header")
    store.rotation().run()
    store.check()
    _sql(database, "UPDATE header SET keyset_generation = ?, keyset = ?, mac = ?", *before)
    with pytest.raises(IntegrityError, match="older generation"):
        store.check()


# What is shown


def test_neither_repr_nor_errors_show_names_values_or_keys(written: Path) -> None:
    _sql(written, "UPDATE record SET sealed = CAST(sealed || x'00' AS BLOB)")
    with SecureDb.open(written, MASTER) as store:
        with pytest.raises(IntegrityError) as error:
            store.get(b"one")
        shown = repr(store) + str(error.value) + repr(error.value)
    for secret in ("one", "first", MASTER.hex()):
        assert secret not in shown.replace(str(written), "")


def test_a_copy_opens_by_itself(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    shutil.copy(written, copy)
    with SecureDb.open(copy, MASTER) as store:
        assert store.get(b"one") == b"first"
