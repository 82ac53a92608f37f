"""A second reader of the formats, written from their description alone.

It shares no code with the library: HKDF is written out, XChaCha20-Poly1305 is libsodium's, and
XAES-256-GCM is built on CMAC. If it reads what the library writes, the documents are right.
"""

import base64
import hashlib
import hmac
import json
import sqlite3
import struct
import unicodedata
from pathlib import Path

import nacl.bindings
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

PREFIX = b"service-security/v1/"


def hkdf(key: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """RFC 5869 with SHA-256."""
    pseudorandom = hmac.digest(salt or bytes(32), key, "sha256")
    block, output = b"", b""
    while len(output) < length:
        number = bytes([len(output) // 32 + 1])
        block = hmac.digest(pseudorandom, block + info + number, "sha256")
        output += block
    return output[:length]


def open_box(key: bytes, box: bytes, purpose: bytes, context: bytes, fields: int) -> bytes:
    """Open a sealed box with ``fields`` bytes of clear fields."""
    head = 5 + fields + 64
    salt, commit = box[head - 64 : head - 32], box[head - 32 : head]
    keys = hkdf(key, salt, PREFIX + purpose + hashlib.sha256(context).digest(), 64)
    assert hmac.compare_digest(keys[32:], commit)
    return AESGCM(keys[:32]).decrypt(bytes(12), box[head:], box[:head] + context)


def read_slots(envelope: Path) -> dict[str, dict[str, str]]:
    """Return the members of each slot by its type."""
    slots = json.loads(json.loads(envelope.read_text())["body"])["slots"]
    return {slot["type"]: slot for slot in slots}


def read_envelope(envelope: Path, wrapping_key: bytes, slot_type: str | None = None) -> bytes:
    """Return the master key out of one slot, or out of the first."""
    outer = json.loads(envelope.read_text())
    body = json.loads(outer["body"])
    assert (body["format"], body["version"]) == ("service-security-envelope", 1)
    envelope_id, master_id = bytes.fromhex(body["envelope_id"]), bytes.fromhex(body["master_id"])
    slots = read_slots(envelope)
    slot = slots[slot_type or next(iter(slots))]
    context = envelope_id + master_id + slot["type"].encode()
    binding = slot["profile"].encode() if slot["type"] == "passphrase" else b""
    box = base64.b64decode(slot["box"])
    assert box[:5] == b"SSSL\x01"
    master = open_box(wrapping_key, box, b"slot", context + binding, fields=0)
    assert hkdf(master, b"", PREFIX + b"master-id") == master_id
    mac = hmac.digest(
        hkdf(master, envelope_id, PREFIX + b"envelope/mac"), outer["body"].encode(), "sha256"
    )
    assert mac.hex() == outer["mac"]
    if slot["type"] == "recovery":
        kept = base64.b64decode(slot["kept"])
        assert kept[:5] == b"SSSL\x01"
        assert open_box(master, kept, b"slot/kept", context, fields=0) == wrapping_key
    return master


def passphrase_key(passphrase: str, slot: dict[str, str]) -> bytes:
    """Return the wrapping key that a passphrase makes for a slot (RFC 9106)."""
    assert slot["profile"] == "rfc9106-low-memory"
    text = unicodedata.normalize("NFC", passphrase).encode()
    salt = bytes.fromhex(slot["salt"])
    return Argon2id(salt=salt, length=32, iterations=3, lanes=4, memory_cost=64 * 1024).derive(text)


def recovery_key(phrase: str, words: Path) -> bytes:
    """Return the key of 24 words (BIP 39): 256 bits, then the first 8 of their SHA-256."""
    numbers = words.read_text().split()
    bits = "".join(f"{numbers.index(word):011b}" for word in phrase.split())
    assert len(bits) == 264
    key = int(bits[:256], 2).to_bytes(32, "big")
    assert f"{hashlib.sha256(key).digest()[0]:08b}" == bits[256:]
    return key


def read_database(database: Path, master: bytes) -> dict[bytes, bytes]:
    """Return every record of a database."""
    connection = sqlite3.connect(database)
    (header,) = connection.execute(
        "SELECT format, db_id, master_id, keyset_generation, keyset, mac FROM header"
    )
    format_, db_id, master_id, generation, keyset, mac = header
    assert format_ == 1
    assert master_id == hkdf(master, b"", PREFIX + b"master-id")
    message = b""
    for field in (
        struct.pack(">I", format_),
        db_id,
        master_id,
        struct.pack(">Q", generation),
        keyset,
    ):
        message += struct.pack(">I", len(field)) + field
    assert mac == hmac.digest(hkdf(master, db_id, PREFIX + b"store/header"), message, "sha256")

    assert keyset[:5] == b"SSKS\x01"
    assert keyset[5:13] == struct.pack(">Q", generation)
    plain = open_box(
        hkdf(master, db_id, PREFIX + b"store/keyset"), keyset, b"keyset", db_id + master_id, 8
    )
    _, _, count = struct.unpack_from(">IQH", plain)
    keys: dict[int, tuple[int, bytes]] = {}
    name_key = b""
    for number in range(count):
        key_id, _, purpose, cipher, key, _, _ = struct.unpack_from(
            ">IBBB32sQQ", plain, 14 + 55 * number
        )
        if purpose == 1:
            cipher_name = {1: b"xchacha20poly1305", 2: b"aes256gcm"}[cipher]
            keys[key_id] = (cipher, hkdf(key, db_id, PREFIX + b"store/record/" + cipher_name))
        else:
            name_key = hkdf(key, db_id, PREFIX + b"store/name")

    records = {}
    for token, key_id, sealed in connection.execute("SELECT token, key_id, sealed FROM record"):
        cipher, key = keys[key_id]
        counter, uuid, ciphertext = sealed[:8], sealed[8:24], sealed[24:]
        aad = b"SSDB\x01" + bytes([cipher]) + struct.pack(">I", key_id) + token
        decrypt = _open_xchacha if cipher == 1 else _open_xaes
        plain = decrypt(key, uuid + counter, ciphertext, aad)
        length = int.from_bytes(plain[1:3])
        assert plain[0] == 1
        name, value = plain[3 : 3 + length], plain[3 + length :]
        assert hmac.digest(name_key, name, "sha256")[:16] == token
        records[name] = value
    connection.close()
    return records


def _open_xchacha(key: bytes, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
    return nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(ciphertext, aad, nonce, key)


def _open_xaes(key: bytes, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
    subkey = b""
    for number in (1, 2):
        mac = CMAC(AES(key))
        mac.update(bytes([0, number]) + b"X\0" + nonce[:12])
        subkey += mac.finalize()
    return AESGCM(subkey).decrypt(nonce[12:], ciphertext, aad)
