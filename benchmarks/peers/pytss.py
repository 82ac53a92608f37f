"""tpm2-pytss: unseals a key once for each line that it is sent, and tells time and key.

It needs the development files of tpm2-tss (Debian: libtss2-dev) and an environment of its own.
"""

import sys
import time
from pathlib import Path

from tpm2_pytss import (  # type: ignore[import-not-found]
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2_SE,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPMA_SESSION,
    TPMT_SYM_DEF,
)

ROOT_KEY = 0x81000001


def unseal(tcti: str, private: bytes, public: bytes) -> bytes:
    """Connect, load, and unseal in a salted session that encrypts the answer."""
    symmetric = TPMT_SYM_DEF.parse("aes128cfb")
    with ESAPI(tcti) as tpm:
        root_key = tpm.tr_from_tpmpublic(ROOT_KEY)
        session = tpm.start_auth_session(root_key, ESYS_TR.NONE, TPM2_SE.HMAC, symmetric, TPM2_ALG.SHA256)
        tpm.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.ENCRYPT)
        loaded = tpm.load(
            root_key,
            TPM2B_PRIVATE.unmarshal(private)[0],
            TPM2B_PUBLIC.unmarshal(public)[0],
            session1=ESYS_TR.PASSWORD,
        )
        key = bytes(tpm.unseal(loaded, session1=session))
        tpm.flush_context(loaded)
        tpm.flush_context(session)
    return key


def main() -> None:
    """Work until the lines end."""
    port, folder = sys.argv[1:]
    private, public = (Path(folder, name).read_bytes() for name in ("k.priv", "k.pub"))
    for _ in sys.stdin:
        begun = time.perf_counter()
        key = unseal(f"swtpm:host=127.0.0.1,port={port}", private, public)
        print((time.perf_counter() - begun) * 1e3, key.hex(), flush=True)


if __name__ == "__main__":
    main()
