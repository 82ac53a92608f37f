"""No name, value or key in what an error, a log line, a warning or a ``repr`` shows.

Every method is driven into the errors that can be provoked. What is shown is searched for every
secret as it is, in hexadecimal digits, in base64 and as Python would print it.

Out of scope are the *variables* that some tools print beside a traceback (``capture_locals``, and
what is built on it). They show the arguments of the calls, and so names and values, in the frames
of the caller as well as in those of the library. They never show a key that was given as
``SecretBytes``.
"""

import base64
import contextlib
import io
import itertools
import logging
import os
import random
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import MASTER
from failing_vfs import Call, failing_device
from service_security.errors import (
    ConfigurationError,
    IntegrityError,
    SecurityError,
    StoreUnavailableError,
    UnsupportedFormatError,
    WrongKeyError,
)
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb, log, secure_db
from service_security.store.backup import check_backup, restore_backup, write_backup
from service_security.store.field import FieldSealer

# Long and varied enough not to be shown by chance, as a run of zeros or a word of a sentence is.
secrets = st.binary(min_size=10, max_size=40).filter(lambda secret: len(set(secret)) > 7)


# The search


def _forms(secret: bytes) -> dict[str, bytes]:
    """Return what a secret may look like in a text, by the name of the form."""
    forms = {
        "raw": secret,
        "latin-1": secret.decode("latin-1").encode(),
        "repr": repr(secret)[2:-1].encode(),
        "hex": secret.hex().encode(),
        "HEX": secret.hex().upper().encode(),
    }
    for shift, skipped in ((0, 0), (1, 2), (2, 3)):  # wherever in longer data it begins
        encoded = base64.b64encode(bytes(shift) + secret)[: (shift + len(secret)) * 8 // 6]
        forms[f"base64 + {shift}"] = encoded[skipped:]
        forms[f"base64 + {shift}, for URLs"] = encoded[skipped:].translate(
            bytes.maketrans(b"+/", b"-_")
        )
    return forms


class Shown:
    """All that was shown, as text."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.errors: list[BaseException] = []

    def error(self, error: BaseException) -> None:
        """Add all that an error and those behind it show, hidden ones included."""
        queue: list[BaseException | None] = [error]
        while queue:
            one = queue.pop()
            if one is None or any(one is seen for seen in self.errors):
                continue
            self.errors.append(one)
            self.texts += [repr(one), str(one), repr(one.args), repr(vars(one))]
            self.texts += traceback.format_exception(one)
            queue += [one.__cause__, one.__context__]

    def reveals(self, secrets: Iterable[bytes]) -> set[str]:
        """Return the forms in which a secret is shown."""
        shown = "\n".join(self.texts).encode(errors="surrogateescape")
        return {
            form for secret in secrets for form, text in _forms(secret).items() if text in shown
        }


class _Lines(logging.Handler):
    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self._texts = texts
        self.setFormatter(logging.Formatter("%(name)s %(message)s %(args)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(self.format(record))


@contextlib.contextmanager
def listening() -> Iterator[Shown]:
    """Gather what the block logs, warns of, prints, and raises where nobody catches it."""
    shown, printed, root = Shown(), io.StringIO(), logging.getLogger()
    handler, level = _Lines(shown.texts), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            warnings.catch_warnings(record=True) as caught,
            patch("sys.unraisablehook", lambda args: shown.error(args.exc_value)),
            patch("threading.excepthook", lambda args: shown.error(args.exc_value)),
        ):
            warnings.simplefilter("always")
            yield shown
        shown.texts += [str(warning.message) for warning in caught] + [printed.getvalue()]
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


# The errors


class Case:
    """A store with records, and a way to note what is refused. Shows nothing of itself."""

    def __init__(self, folder: Path, names: list[bytes], values: list[bytes], shown: Shown) -> None:
        self.folder = folder
        self.path = folder / "records.db"
        self.names = names
        self.values = values
        self.shown = shown
        self.refusals = 0
        self.master = SecretBytes.copy_of(MASTER)
        self.secrets = {MASTER, *names, *values}
        folder.mkdir()
        with self.open() as store:
            store.insert_many(zip(names, values, strict=True))
            self.secrets |= _keys_of(store)

    def open(self, **options: Any) -> SecureDb:
        """Open the store."""
        return SecureDb.open(self.path, self.master, **options)

    def sql(self, statement: str, *values: Any) -> None:
        """Change the file behind the store's back."""
        with contextlib.closing(apsw.Connection(str(self.path))) as connection:
            connection.execute(statement, values)

    def refused(self, call: Callable[..., object], *arguments: Any, **options: Any) -> None:
        """Call what has to be refused."""
        try:
            call(*arguments, **options)
        except (SecurityError, TypeError, ValueError, RuntimeError) as error:
            self.shown.error(error)
            self.refusals += 1

    def every_call(self, store: SecureDb) -> None:
        """Call every method; note those that are refused."""
        name, value = self.names[0], self.values[0]
        self.refused(store.get, name)
        self.refused(store.get, value)  # which is no name
        self.refused(lambda: list(store.items()))
        self.refused(lambda: list(store.items(on_damage=lambda _: None)))
        self.refused(store.page, 0, 100)
        self.refused(store.count)
        self.refused(store.check)
        self.refused(lambda: self.shown.texts.append(repr(store.verify())))
        self.refused(lambda: store.snapshot().close())
        self.every_write(store, name, value)
        self.shown.texts += [repr(store), str(store)]

    def every_write(self, store: SecureDb, name: bytes, value: bytes) -> None:
        """Call every method that writes; note those that are refused."""
        self.refused(store.insert, name, value)
        self.refused(store.insert_many, [(name, value), (value, name)])
        self.refused(store.remove, name)
        self.refused(_in_transaction, store, lambda: store.insert(name, value))
        self.refused(store.flush)


def _keys_of(store: SecureDb) -> set[bytes]:
    keys = [entry.key for entry in store._keys.record._keyset.entries.values()]
    return {bytes(key.view) for key in [*keys, store._keys.header.canary]}


def _in_transaction(store: SecureDb, *calls: Callable[[], object]) -> None:
    with store.transaction():
        for call in calls:
            call()


def _damaged_records(case: Case) -> None:
    for damage in (
        "sealed = CAST(sealed || x'00' AS BLOB)",
        "sealed = x''",
        "sealed = (SELECT sealed FROM record WHERE id = 2)",
        "key_id = 99",
        "token = zeroblob(16)",
    ):
        with case.open() as store:
            store.insert(case.names[0], case.values[0])
            token = store._keys.record.token(case.names[0])
            case.sql(f"UPDATE record SET {damage} WHERE token = ?", token)  # noqa: S608 - constant
            case.every_call(store)
            case.sql("DELETE FROM record WHERE token = zeroblob(16)")


def _wrong_types(case: Case) -> None:
    name, value = case.names[0], case.values[0]
    with case.open() as store:
        for bad_name, bad_value in (
            (name.decode("latin-1"), value),
            (name, value.decode("latin-1")),
            (bytearray(name), value),
            (name, memoryview(value)),
            ([name], {name: value}),
        ):
            case.refused(store.insert, bad_name, bad_value)
            case.refused(store.insert_many, [(bad_name, bad_value)])
            case.refused(_in_transaction, store, lambda: store.insert(bad_name, bad_value))  # type: ignore[arg-type]  # noqa: B023 - called at once
        for bad in (name.decode("latin-1"), [name], None):
            case.refused(store.get, bad)
            case.refused(store.remove, bad)
        for pairs in ([name], [(name,)], [(name, value, value)], name, [name.decode("latin-1")]):
            case.refused(store.insert_many, pairs)


def _too_long(case: Case) -> None:
    name, value = case.names[0], case.values[0]
    with case.open() as store, patch.object(secure_db, "MAX_VALUE_BYTES", 4):
        case.refused(store.insert, name * 70_000, b"")
        case.refused(store.insert, name, value)
        case.refused(store.insert_many, [(name, b""), (name, value)])


def _closed(case: Case) -> None:
    store = case.open()
    store.close()
    case.every_call(store)


def _forked(case: Case) -> None:
    with case.open() as store:
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                case.every_call(store)
                os.write(writer, "\n".join(case.shown.texts).encode(errors="surrogateescape"))
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:  # noqa: PTH123 - a descriptor
            case.shown.texts.append(pipe.read().decode(errors="surrogateescape"))
        os.waitpid(child, 0)
    case.refusals += case.shown.texts[-1].count("before a fork")


def _failing_device(case: Case) -> None:
    calls: list[Call] = ["sync", "write"]
    for call, number, for_good in itertools.product(calls, (1, 3), (False, True)):
        with failing_device() as device:
            store = case.open()
            device.fail(call, number, for_good=for_good)
            case.every_call(store)
            case.refused(store.close)


def _full_disk(case: Case) -> None:
    with case.open() as store:
        connection = store._file.connection
        connection.pragma("max_page_count", connection.pragma("page_count"))
        large = case.values[0] * 10_000
        case.refused(store.insert, case.names[0], large)
        case.refused(store.insert_many, [(case.names[0], large), (case.names[1], large)])
        case.refused(_in_transaction, store, lambda: store.insert(case.names[0], large))


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    defaults = {"patience_ms": 1}
    with (
        patch.object(log, "BUSY_TIMEOUT_MS", 1),
        patch.object(log.empty_log, "__kwdefaults__", defaults),
    ):
        yield


@_impatient()
def _busy(case: Case) -> None:
    with case.open() as store, contextlib.closing(apsw.Connection(str(case.path))) as other:
        store._file.connection.set_busy_timeout(1)
        other.execute("BEGIN IMMEDIATE")
        case.every_call(store)
        case.refused(store.hold)


def _wrong_keys(case: Case) -> None:
    other = bytes(reversed(MASTER))
    for key in (other, SecretBytes.copy_of(other), MASTER[:31], MASTER + b"\0", b""):
        case.refused(SecureDb.open, case.path, key)
    for bad in (MASTER.hex(), bytearray(MASTER), list(MASTER), None):
        case.refused(SecureDb.open, case.path, bad)
    case.refused(SecureDb.open, case.path, MASTER, cipher="no such cipher")


HEADERS = (
    "UPDATE header SET mac = zeroblob(32)",
    "UPDATE header SET keyset = CAST(keyset || x'00' AS BLOB)",
    "UPDATE header SET keyset = x''",
    "UPDATE header SET master_id = zeroblob(32)",
    "UPDATE header SET db_id = x'00'",
    "UPDATE header SET keyset_generation = 7",
    "UPDATE header SET format = 2",
    "DELETE FROM header",
)


def _damaged_headers(case: Case) -> None:
    good = case.path.read_bytes()
    for statement in HEADERS:
        for suffix in ("", "-wal", "-shm"):
            case.path.with_name(case.path.name + suffix).unlink(missing_ok=True)
        case.path.write_bytes(good)
        with case.open() as store:
            case.sql("UPDATE record SET key_id = 9 WHERE id = 2")
            case.sql(statement)
            case.every_call(store)
        case.refused(case.open)


def _damaged_pages(case: Case) -> None:
    good = case.path.read_bytes()
    chance = random.Random(1)  # noqa: S311 - a test that is the same each time
    for start in range(0, len(good), 4096):
        page = chance.randbytes(4096)
        case.path.write_bytes(good[:start] + page + good[start + 4096 :])
        case.refused(lambda: case.every_call(case.open()))
        for suffix in ("-wal", "-shm"):
            case.path.with_name(case.path.name + suffix).unlink(missing_ok=True)
    case.path.write_bytes(good[:5000])
    case.refused(case.open)
    case.path.write_bytes(case.names[0] * 500)
    case.refused(case.open)


def _give_up() -> None:
    raise RuntimeError("the caller's own error")


def _transactions(case: Case) -> None:
    name, value = case.names[0], case.values[0]
    with case.open() as store:
        case.refused(_in_transaction, store, lambda: _in_transaction(store))
        case.refused(_in_transaction, store, lambda: store.insert(name, value), _give_up)
        case.refused(_in_transaction, store, lambda: store.insert(name, value), store.flush)
        with failing_device() as device, contextlib.closing(case.open()) as failing:
            device.fail("write", 1, for_good=True)
            case.refused(
                _in_transaction, failing, lambda: case.refused(failing.insert, name, value)
            )
            device.mend()
        end = store._file.connection.execute
        case.refused(
            _in_transaction, store, lambda: store.insert(name, value), lambda: end("ROLLBACK")
        )


def _writers_together(case: Case) -> None:
    with failing_device() as device, contextlib.closing(case.open()) as store:
        device.fail("sync", 4)

        def write(number: int) -> None:
            for turn in range(10):
                name = case.names[(number + turn) % len(case.names)]
                case.refused(store.insert, name, case.values[0])
            store.insert(case.names[0], case.values[0])  # to the hook of the thread

        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        device.mend()


@_impatient()
def _readers(case: Case) -> None:
    with case.open(read_only=True) as store:
        case.every_call(store)
        with case.open() as writer, writer.snapshot() as snapshot:
            case.every_call(snapshot)
            writer.insert(case.names[0], b"")
            case.refused(writer.flush)
    case.refused(SecureDb.open, case.folder / "missing" / "records.db", case.master)
    case.refused(SecureDb.open, case.folder / "none.db", case.master, read_only=True)


def _no_counters_left(case: Case) -> None:
    for statement in ("UPDATE lease SET next = 9223372036854775807", "DELETE FROM lease"):
        case.sql(statement)
        with case.open() as store:
            case.every_write(store, case.names[0], case.values[0])


def _fields(case: Case) -> None:
    name, value = case.names[0], case.values[0]
    with FieldSealer(case.master, bytes(16)) as sealer:
        sealed = sealer.seal(value, context=name)
        case.shown.texts.append(repr(sealer))
        for bad in (sealed[:-1], sealed[:3], b"\x09" + sealed[1:], sealed[:4] + b"zz" + sealed[6:]):
            case.refused(sealer.open, bad, context=name)
        case.refused(sealer.open, sealed, context=value)
        case.refused(sealer.open, value.decode("latin-1"), context=name)
        case.refused(sealer.seal, value.decode("latin-1"), context=name)
        case.refused(sealer.seal, value, context=name.decode("latin-1"))
        case.refused(sealer.seal, value, context=name * 70_000)
    case.refused(sealer.open, sealed, context=name)
    case.refused(sealer.seal, value, context=name)


def _backups(case: Case) -> None:
    def quiet(*_: int) -> None:
        return

    keys = {"key-file": case.master}
    other = {"key-file": SecretBytes.copy_of(bytes(reversed(MASTER)))}
    backup, target = case.folder / "backup", case.folder / "restored.db"
    with case.open() as store:
        case.refused(write_backup, store, backup, {"master": case.master}, progress=quiet)
        write_backup(store, backup, keys, progress=quiet)
        case.refused(write_backup, store, backup, keys, progress=quiet)
        case.sql("UPDATE record SET sealed = CAST(sealed || x'00' AS BLOB) WHERE id = 1")
        case.refused(write_backup, store, case.folder / "second", keys, progress=quiet)
    case.refused(check_backup, backup, other, progress=quiet)
    whole = backup.read_bytes()
    for damaged in (whole[:-1], whole[:-100], whole[:50], b"", whole[:100] + whole[101:]):
        backup.write_bytes(damaged)
        case.refused(check_backup, backup, keys, progress=quiet)
        case.refused(
            restore_backup,
            backup,
            keys,
            target,
            case.master,
            cipher="aes256gcm",
            progress=quiet,
        )


PROVOKED: dict[Callable[[Case], None], type[Exception]] = {
    _damaged_records: IntegrityError,
    _wrong_types: TypeError,
    _too_long: ValueError,
    _closed: StoreUnavailableError,
    _failing_device: StoreUnavailableError,
    _full_disk: StoreUnavailableError,
    _busy: StoreUnavailableError,
    _wrong_keys: WrongKeyError,
    _damaged_headers: UnsupportedFormatError,
    _damaged_pages: IntegrityError,
    _transactions: RuntimeError,
    _writers_together: StoreUnavailableError,
    _readers: StoreUnavailableError,
    _no_counters_left: StoreUnavailableError,
    _fields: IntegrityError,
    _backups: ConfigurationError,
}
"""How errors are provoked, and a kind that has to be among them."""
if hasattr(os, "fork"):
    PROVOKED[_forked] = StoreUnavailableError

_numbers = itertools.count()


def _provoke(
    provoke: Callable[[Case], None], folder: Path, names: list[bytes], values: list[bytes]
) -> Case:
    with listening() as shown:
        case = Case(folder / f"{next(_numbers)}", names, values, shown)
        provoke(case)
    assert case.refusals > 2, "hardly anything was refused"
    kind = PROVOKED[provoke].__name__
    assert any(kind in text for text in shown.texts), f"no {kind} was provoked"
    return case


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("provoke", PROVOKED, ids=lambda provoke: provoke.__name__[1:])
@settings(
    max_examples=4,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.lists(secrets, min_size=6, max_size=6, unique=True))
def test_no_error_shows_a_name_a_value_or_a_key(
    tmp_path: Path, provoke: Callable[[Case], None], data: list[bytes]
) -> None:
    case = _provoke(provoke, tmp_path, data[:3], data[3:])
    assert not case.shown.reveals(case.secrets)


LISTENER = """
import logging, sys
from pathlib import Path
import apsw.ext
from test_leaks import PROVOKED, Case, Shown

logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
apsw.ext.log_sqlite(level=logging.DEBUG)
data = [bytes.fromhex(line) for line in sys.stdin.read().split()]
for number, provoke in enumerate(PROVOKED):
    provoke(Case(Path(sys.argv[1]) / str(number), data[:3], data[3:], Shown()))
"""


def test_the_log_of_sqlite_itself_shows_nothing_either(tmp_path: Path) -> None:
    """SQLite logs statements and names of files. Values are bound, never part of a statement."""
    data = [os.urandom(20) for _ in range(6)]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-X", "dev", "-c", LISTENER, tmp_path],
        input="\n".join(secret.hex() for secret in data).encode(),
        capture_output=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    shown = Shown()
    shown.texts = [result.stdout.decode("latin-1"), result.stderr.decode("latin-1")]
    assert result.returncode == 0, shown.texts
    assert "database disk image is malformed" in shown.texts[0], "SQLite has logged nothing"
    assert not shown.reveals({MASTER, *data})


# What the search finds


@pytest.mark.parametrize("form", list(_forms(bytes(10))))
@pytest.mark.parametrize(
    "place", ["message", "cause", "context", "note", "log", "warning", "print", "thread", "lost"]
)
def test_the_same_search_finds_a_secret_in_any_form_and_place(form: str, place: str) -> None:
    """The control: an error that carries the name is found."""
    secret = bytes(range(120, 160))
    text = _forms(secret)[form].decode("latin-1" if form == "raw" else "utf-8", "surrogateescape")
    if form == "raw":
        text = secret.decode(errors="surrogateescape")
    with listening() as shown:
        assert not shown.reveals([secret])
        _show(text, place, shown)
    assert form in shown.reveals([secret])


def _show(text: str, place: str, shown: Shown) -> None:
    def fail() -> None:
        raise ValueError(text)

    class Lost:
        def __del__(self) -> None:
            fail()

    def behind(cause: bool) -> None:
        try:
            fail()
        except ValueError as error:
            raise IndexError("another") from (error if cause else None)

    noted = ValueError("another")
    noted.add_note(text)
    if place == "log":
        logging.getLogger("elsewhere").debug("a line with %s", text)
    elif place == "warning":
        warnings.warn(text, stacklevel=1)
    elif place == "print":
        sys.stderr.write(text)
    elif place == "thread":
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    elif place == "lost":
        Lost()
    elif place == "note":
        shown.error(noted)
    else:
        try:
            fail() if place == "message" else behind(place == "cause")
        except (ValueError, IndexError) as error:
            shown.error(error)


# Variables


@pytest.mark.parametrize("provoke", [_damaged_records, _failing_device, _damaged_headers, _closed])
def test_the_variables_of_a_traceback_show_names_and_values_and_never_a_key(
    tmp_path: Path, provoke: Callable[[Case], None]
) -> None:
    """What this library cannot keep from a tool that prints every variable, and what it does."""
    names, values = [b"name of %d" % n for n in range(3)], [b"value of %d" % n for n in range(3)]
    case = _provoke(provoke, tmp_path, names, values)
    variables = Shown()
    for error in case.shown.errors:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        variables.texts += told.format()
    assert variables.reveals(names)
    assert not variables.reveals(case.secrets - {*names, *values})
