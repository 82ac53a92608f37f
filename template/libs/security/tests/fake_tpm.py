"""TPMs in memory and devices that misbehave, for the tests of the probe."""

import contextlib
import os
import pty
import select
import struct
import threading
import tty
from collections.abc import Callable, Iterator

from hypothesis import settings

from service_security.keys.tpm.address import Address
from service_security.keys.tpm.client import READ_PUBLIC
from service_security.keys.tpm.framing import ALGORITHMS, CURVES, GET_TEST_RESULT, PROPERTIES
from service_security.keys.tpm.report import TpmReport, ask

ADDRESS = Address("device", "/dev/tpmrm0")
fuzz = settings(derandomize=True, database=None, max_examples=150)


def response(parameters: bytes = b"", code: int = 0, tag: int = 0x8001) -> bytes:
    """Return a response of a TPM."""
    return struct.pack(">HII", tag, 10 + len(parameters), code) + parameters


class FakeTpm:
    """A TPM in memory, whose lists, page size and first response codes a test chooses.

    Attributes:
        root_key: Its response to the question for the root key that it keeps; there is none.
    """

    def __init__(self, *codes: int, page: int = 1000, test_result: int = 0) -> None:
        self.codes = list(codes)
        self.page = page
        self.test_result = test_result
        self.root_key = b""
        self.commands: list[int] = []
        self.lists: dict[int, dict[int, int]] = {
            PROPERTIES: {
                0x100: 0x322E3000,
                0x105: int.from_bytes(b"ACME"),
                0x106: int.from_bytes(b"Part"),
                0x107: int.from_bytes(b" 7\0\0"),
                0x10B: 7,
                0x10C: 0xFE,
                0x200: 0,
                0x201: 0b10,
                0x20E: 1,
                0x20F: 32,
                0x210: 600,
                0x211: 86400,
            },
            ALGORITHMS: {0x06: 2, 0x0B: 4, 0x23: 9, 0x43: 2},
            CURVES: {3: 0, 4: 0},
        }

    def exchange(self, command: bytes) -> bytes:
        """Answer a command."""
        tag, size, code = struct.unpack_from(">HII", command)
        assert (tag, size) == (0x8001, len(command)), "no session is opened, no password is given"
        self.commands.append(code)
        if self.codes:
            return response(code=self.codes.pop(0))
        if code == GET_TEST_RESULT:
            return response(struct.pack(">HI", 0, self.test_result))
        if code == READ_PUBLIC:
            return self.root_key or response(code=0x18B)
        capability, first, count = struct.unpack_from(">III", command, 10)
        form = {PROPERTIES: ">II", ALGORITHMS: ">HI", CURVES: ">H"}[capability]
        items = [item for item in self.lists[capability].items() if item[0] >= first]
        page = items[: min(count, self.page)]
        width = 1 if capability == CURVES else 2
        body = b"".join(struct.pack(form, *item[:width]) for item in page)
        more = len(page) < len(items)
        return response(struct.pack(">BII", more, capability, len(page)) + body)

    def ask(self) -> TpmReport:
        """Return the report on it, without waiting."""
        return ask(self, ADDRESS, sleep=lambda _: None)


@contextlib.contextmanager
def character_device(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """Make a character device, a pseudo-terminal, that answers each command by ``answer``."""
    controller, device = pty.openpty()
    tty.setraw(device)
    stop, stopped = os.pipe()

    def serve() -> None:
        while stop not in (ready := select.select([controller, stop], [], [])[0]):
            assert ready
            os.write(controller, answer(os.read(controller, 4096)))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield os.ttyname(device)
    finally:
        os.write(stopped, b"x")
        thread.join()
        for descriptor in (controller, device, stop, stopped):
            os.close(descriptor)
