"""A key in memory is private, comparable, and gone when closed."""

import copy
import os
import pickle
import resource
import sys
import traceback
from pathlib import Path

import pytest

from service_security.errors import StoreUnavailableError
from service_security.secret_bytes import SecretBytes

KEY = bytes(range(32))

_MEMLOCK_LIMIT = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] or (0 if os.geteuid() else -1)


def test_holds_what_it_was_given() -> None:
    with SecretBytes.copy_of(KEY) as secret, secret.view as view:
        assert bytes(view) == KEY
        assert len(secret) == 32


def test_generated_secrets_differ() -> None:
    with SecretBytes.generate() as one, SecretBytes.generate() as other:
        assert one != other
        with one.view as view:
            assert bytes(view) != bytes(32)


def test_equal_secrets_compare_equal() -> None:
    with SecretBytes.copy_of(KEY) as one, SecretBytes.copy_of(KEY) as other:
        assert one == other
        assert one != KEY


@pytest.mark.parametrize("length", [0, -1, 1 << 30])
def test_impossible_lengths_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="bytes"):
        SecretBytes(length)


def test_closing_wipes_the_page() -> None:
    secret = SecretBytes.copy_of(KEY)
    page = secret._page
    assert page is not None
    view = memoryview(page)  # keeps the page mapped, so that its bytes can be looked at afterwards
    with pytest.raises(BufferError):
        secret.close()
    assert bytes(view) == bytes(len(view))
    view.release()


def test_a_closed_secret_cannot_be_read() -> None:
    secret = SecretBytes.copy_of(KEY)
    secret.close()
    secret.close()
    with pytest.raises(ValueError, match="closed"):
        secret.view  # noqa: B018 - reading it is the test


@pytest.mark.parametrize("show", [repr, str, "{}".format])
def test_no_text_form_shows_it(show: object) -> None:
    with SecretBytes.copy_of(b"sesame!!" * 4) as secret:
        assert callable(show)
        assert show(secret) == "<SecretBytes: 32 bytes>"


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_cannot_be_pickled_or_copied(duplicate: object) -> None:
    assert callable(duplicate)
    with SecretBytes.copy_of(KEY) as secret, pytest.raises(TypeError, match="pickled or copied"):
        duplicate(secret)


def test_cannot_be_hashed() -> None:
    with SecretBytes.copy_of(KEY) as secret, pytest.raises(TypeError, match="unhashable"):
        hash(secret)


def test_a_traceback_does_not_show_it() -> None:
    with SecretBytes.copy_of(b"sesame!!" * 4) as secret:
        try:
            secret.view[99]
        except IndexError as error:
            text = "".join(
                traceback.TracebackException.from_exception(error, capture_locals=True).format()
            )
        assert "sesame" not in text
        assert "SecretBytes" in text


def test_a_wiped_page_is_refused_whatever_the_process_id() -> None:
    with SecretBytes.copy_of(KEY) as secret:
        assert secret._page is not None
        secret._page[:] = bytes(len(secret._page))
        with pytest.raises(StoreUnavailableError):
            secret.check()


def test_another_process_id_is_refused_whatever_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems whose kernel does not wipe pages on a fork."""
    with SecretBytes.copy_of(KEY) as secret:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(StoreUnavailableError):
            secret.check()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is locked")
@pytest.mark.skipif(_MEMLOCK_LIMIT == 0, reason="this user may lock no memory (ulimit -l)")
def test_pages_are_locked_into_memory() -> None:
    def locked() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmLck:")[2].split()[0])

    before = locked()
    with SecretBytes(32) as secret:
        assert secret.locked
        assert locked() > before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_can_neither_read_it_nor_find_its_bytes() -> None:
    with SecretBytes.copy_of(KEY) as secret:
        page = secret._page
        assert page is not None
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                secret.view  # noqa: B018 - reading it is the test
                answer = b"read"
            except StoreUnavailableError:
                answer = b"refused " + (b"wiped" if page[:32] == bytes(32) else b"there")
            os.write(writer, answer)
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 100) == b"refused wiped"
        os.close(reader)
        os.close(writer)
        with secret.view as view:
            assert bytes(view) == KEY
