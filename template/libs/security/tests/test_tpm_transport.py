"""The way to a TPM: what is not there, not allowed, not a TPM, silent or busy is told as such."""

import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fake_tpm import FakeTpm, character_device, response
from service_security.errors import IntegrityError, KeyUnavailableError
from service_security.keys.tpm import errors
from service_security.keys.tpm.address import parse_address
from service_security.keys.tpm.errors import TpmError
from service_security.keys.tpm.framing import GET_TEST_RESULT
from service_security.keys.tpm.report import probe
from service_security.keys.tpm.transport import DEFAULT_TIMEOUT, execute, open_transport

NOBODY = 65534


# ------------------------------------------------------------------ no TPM, or none for this user


def test_tpm_errors_are_those_of_an_unavailable_key() -> None:
    """Callers that know keys alone need not know TPMs."""
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    told_apart = kinds - {TpmError, KeyUnavailableError, IntegrityError}
    assert len(told_apart) == 14
    assert told_apart - {errors.SealedKeyDamagedError} == set(TpmError.__subclasses__())
    assert issubclass(TpmError, KeyUnavailableError)
    assert errors.SealedKeyDamagedError.__base__ is IntegrityError


def test_no_device_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.TpmAbsentError, match=r"There is no TPM at .*No such file"):
        probe(str(tmp_path / "tpmrm0"))


@pytest.mark.parametrize(
    ("number", "kind", "told"),
    [
        (errno.ENXIO, errors.TpmAbsentError, "No such device or address"),
        (errno.ENODEV, errors.TpmAbsentError, "No such device"),  # a node with nothing behind it
        (errno.EBUSY, errors.TpmBusyError, "Use /dev/tpmrm0"),  # the bare device serves one program
        (errno.EPERM, errors.TpmForbiddenError, r"docker-compose\.tpm\.yml"),  # a container engine
    ],
)
def test_device_that_the_kernel_does_not_open_is_told(
    number: int, kind: type[TpmError], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(kind, match=told):
            probe("/dev/null")


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's rights where the tests run as root."""
    groups = os.getgroups()
    if root := os.geteuid() == 0:
        os.setgroups([])
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
            os.setgroups(groups)


@pytest.mark.parametrize(
    ("mode", "owner", "group", "advice"),
    [
        (0o060, 0, 4242, "add that user to group {group} and log in again"),
        (0o000, 0, 4242, "mode 0000 does not let its group {group} read and write"),
        (0o060, NOBODY, 0, "though in its group {group}"),
    ],
)
def test_refused_device_names_the_group(mode: int, owner: int, group: int, advice: str) -> None:
    """The number of the group is what a container's configuration needs."""
    with character_device(lambda command: command) as path:
        if os.geteuid() == 0:
            os.chown(path, owner, group)
        elif mode:  # its owner is this user, who can give it only a group of their own
            os.chown(path, -1, os.getegid())
            group, advice = os.getegid(), "though in its group {group}"
        else:
            group = Path(path).stat().st_gid
        Path(path).chmod(mode)
        with as_nobody(), pytest.raises(errors.TpmForbiddenError) as refused:
            probe(path)
    assert advice.format(group=group) in str(refused.value)


def test_device_in_a_closed_folder_is_told(tmp_path: Path) -> None:
    """The device's own group cannot be read then."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    with as_nobody(), pytest.raises(errors.TpmForbiddenError, match="a folder above it is closed"):
        probe(str(tmp_path / "closed" / "tpmrm0"))


def test_refused_socket_names_the_group(tmp_path: Path) -> None:
    """Sockets have modes and groups as devices have."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0)
        with as_nobody(), pytest.raises(errors.TpmForbiddenError, match="may not open"):
            probe(f"unix:{path}")


def test_nothing_listening_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"unix:{tmp_path / 'none'}", f"tcp:127.0.0.1:{port}", f"tcp:[::1]:{port}"):
        with pytest.raises(errors.TpmAbsentError, match="No TPM listens at"):
            probe(address)


def test_crowded_socket_is_busy(tmp_path: Path) -> None:
    """A software TPM serves one program at a time; its queue can be full."""
    path = str(tmp_path / "s")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(path)
        server.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        with pytest.raises(errors.TpmBusyError, match="other programs are waiting"):
            probe(f"unix:{path}", timeout=0.05)


# ------------------------------------------------------------------ what is not a TPM


def test_file_is_refused_unopened(tmp_path: Path) -> None:
    """Its content is not overwritten by a command."""
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(errors.NotATpmError, match="not a character device"):
        probe(str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/dev/null", errors.NotATpmError),  # ends
        ("/dev/zero", errors.NotATpmError),  # answers zeros
        ("/dev/full", errors.TpmFailedError),  # takes no command
    ],
)
def test_other_devices_are_not_a_tpm(path: str, kind: type[TpmError]) -> None:
    with pytest.raises(kind, match=r"TPM 2\.0|does not carry out commands"):
        probe(path)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not begin like one"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not begin like one"),
        (response(tag=0x8002), "answers with a session"),
        (response(code=0x1E, tag=0x00C4), "This is a TPM 1.2"),
        (b"\x80\x01" + b"\xff" * 8, "says that it has 4294967295 bytes"),
        (b"\x80\x01\x00\x00\x00\x09" + bytes(4), "says that it has 9 bytes"),
        (response(bytes(6)) + b"more", "a response of 20 bytes says that it has 16"),
        (response(b"x", code=0x101), "a refusal"),
        (response(bytes(5)), "ends early"),
        (response(bytes(7)), "goes on after its end"),
        (response(struct.pack(">HI", 500, 0)), "ends early"),
    ],
)
def test_answer_with_one_thing_wrong_is_told(answer: bytes, told: str) -> None:
    with character_device(lambda _: answer) as path, pytest.raises(errors.NotATpmError, match=told):
        probe(path)


def test_command_that_is_refused_is_told() -> None:
    with (
        character_device(lambda _: response(code=0x143)) as path,
        pytest.raises(errors.TpmRefusedError, match=r"refuses command 0x17c .* code 0x143"),
    ):
        probe(path)


def test_device_that_takes_half_a_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TPM takes a command in one write; the second half would be a command of its own."""
    monkeypatch.setattr(os, "write", lambda _, data: len(data) // 2)
    with pytest.raises(errors.NotATpmError, match="did not take a command"):
        probe("/dev/null")


@contextlib.contextmanager
def listener(folder: Path, serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a server on a UNIX socket that treats one connection by ``serve``."""
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def accept() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(ConnectionError):
                serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"unix:{path}"
        finally:
            thread.join()


@pytest.mark.parametrize("said", [b"", b"\x80\x01", response(bytes(6))[:-1]])
def test_connection_that_ends_early_is_told(said: bytes, tmp_path: Path) -> None:
    """Nothing, half a header, and all but one byte of a response."""

    def serve(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(said)

    with listener(tmp_path, serve) as address, pytest.raises(errors.NotATpmError, match="ended"):
        probe(address)


def test_connection_that_breaks_is_told(tmp_path: Path) -> None:
    """The other end is gone before the command."""
    closed = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.close()
        closed.set()

    with (
        listener(tmp_path, serve) as address,
        open_transport(parse_address(address)) as transport,
    ):
        assert closed.wait(60)
        with pytest.raises(errors.NotATpmError, match="broke the connection"):
            transport.exchange(bytes(10))


# ------------------------------------------------------------------ silent, busy or broken


@pytest.mark.parametrize("part", [b"", response(bytes(6))[:12]])
def test_tpm_that_does_not_answer_is_told_in_time(part: bytes, tmp_path: Path) -> None:
    """Silence at once, and in the middle of a response."""
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(part)
        over.wait(60)

    with listener(tmp_path, serve) as address:
        started = time.monotonic()
        with pytest.raises(errors.TpmSilentError, match="did not answer"):
            probe(address, timeout=0.05)
        assert time.monotonic() - started < DEFAULT_TIMEOUT
        over.set()


def test_tpm_that_answers_byte_by_byte_is_not_waited_for(tmp_path: Path) -> None:
    """The timeout is for the whole probe, not for each read."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"\x80\x01\x00\x00\x10\x00")
        for _ in range(4000):
            connection.sendall(b"\0")
            time.sleep(0.005)

    with listener(tmp_path, serve) as address, pytest.raises(errors.TpmSilentError):
        probe(address, timeout=0.1)


@pytest.mark.parametrize("code", [0x908, 0x90A, 0x922])
def test_busy_tpm_is_asked_again(code: int) -> None:
    """TPM_RC_YIELDED, TESTING and RETRY are answered with growing pauses."""
    pauses: list[float] = []
    answer = execute(FakeTpm(code, code, code), GET_TEST_RESULT, sleep=pauses.append)
    assert answer == bytes(6)
    assert pauses == [0.02, 0.04, 0.08]


def test_tpm_that_stays_busy_is_not_asked_for_ever() -> None:
    """Eight tries within about 2.5 s, then an error."""
    pauses: list[float] = []
    fake = FakeTpm(*[0x922] * 100)
    with pytest.raises(errors.TpmBusyError, match=r"0x922.* last of 8 tries"):
        execute(fake, GET_TEST_RESULT, sleep=pauses.append)
    assert len(fake.commands) == 8
    assert sum(pauses) == pytest.approx(2.54)


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        (0x921, errors.TpmLockedOutError, "locked out"),
        *((code, errors.TpmBusyError, "no room left") for code in range(0x901, 0x907)),
        (0x920, errors.TpmBusyError, "cannot write its own memory"),
        (0x923, errors.TpmBusyError, "cannot write its own memory"),
        (0x100, errors.TpmFailedError, "has not been started"),
        (0x101, errors.TpmFailedError, "failure mode"),
        (0x12D, errors.TpmFailedError, "upgrade of its firmware"),
    ],
)
def test_refusal_is_told_by_its_kind(code: int, kind: type[TpmError], told: str) -> None:
    """Response codes that say what is wrong with the TPM itself."""
    with pytest.raises(kind, match=told):
        execute(FakeTpm(code), GET_TEST_RESULT)


# ------------------------------------------------------------------ interrupted


@pytest.mark.parametrize("before", [0, 4, 12])
def test_interrupted_response_is_not_taken_for_the_next_one(before: int, tmp_path: Path) -> None:
    """An interrupt comes before a response, or when only some bytes of it were read."""
    interrupted = threading.Event()
    answers = [response(b"the first"), response(b"the second")]

    def serve(connection: socket.socket) -> None:
        assert connection.recv(100) == b"first"
        connection.sendall(answers[0][:before])
        interrupted.wait(60)
        connection.sendall(answers[0][before:])
        assert connection.recv(100) == b"second"
        connection.sendall(answers[1])

    with (
        listener(tmp_path, serve) as address,
        open_transport(parse_address(address)) as transport,
    ):
        real, waits = select.poll, iter(range(2 if before else 1))

        class Interrupted:
            """Polls that are interrupted when nothing more comes."""

            def register(self, descriptor: int, event: int) -> None:
                self.poller = real()
                self.poller.register(descriptor, event)

            def poll(self, timeout: float) -> list[tuple[int, int]]:
                if next(waits, None) is None:
                    raise KeyboardInterrupt
                return self.poller.poll(timeout)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(select, "poll", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                transport.exchange(b"first")
        interrupted.set()
        assert transport.exchange(b"second") == answers[1]
