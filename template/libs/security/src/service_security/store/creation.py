"""Makes the file of a new store, whole or not at all."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .._files import publish_new
from ..errors import StoreUnavailableError
from ..keys.keyset import Keyset
from ..secret_bytes import SecretBytes
from .cipher import ExtendedNonceCipher
from .header import HeaderKeys
from .kind import refuse_lone_log
from .schema import TABLES, connect


def create(
    path: Path,
    master: SecretBytes,
    cipher: type[ExtendedNonceCipher],
    clock: Callable[[], float],
) -> None:
    """Create the file under a name of its own first, so that a crash leaves none.

    When another process was faster, its file stays and is the one to open.

    Args:
        path: Where the file belongs.
        master: The master key.
        cipher: The cipher of its first record key.
        clock: Gives Unix seconds, for the dates in the keyset.

    Raises:
        StoreUnavailableError: The folder or the device does not allow it.
        IntegrityError: There is a log without its database.
        apsw.Error: As for ``connect``.
    """
    refuse_lone_log(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        db_id = secrets.token_bytes(16)
        header_keys = HeaderKeys.of(master, db_id)
        connection = connect(draft)
        try:
            with Keyset.new(cipher.code, clock) as keyset, connection:
                for table in TABLES.values():
                    connection.execute(table)
                header_keys.seal(keyset).insert(connection)
                connection.execute("INSERT INTO lease (id, next) VALUES (1, 0)")
        finally:
            connection.close()
            header_keys.close()
        publish_new(draft, path)  # when another process was faster, its file is the one to open
    except OSError as error:
        raise StoreUnavailableError(
            f"{path} cannot be created: {error.strerror}. Check the disk, and the owner and mode "
            "of its folder."
        ) from error
    finally:
        for suffix in ("", "-journal"):  # the journal stays where the device failed for good
            with suppress(OSError):
                draft.with_name(draft.name + suffix).unlink(missing_ok=True)
