"""The files of an image as they are read from an engine's export, and secrets as they are known."""

import base64
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security_probe.errors import ProbeError
from security_probe.files import CA_BUNDLE, KEPT_WHOLE, STATUS, USERS, Tree, read_tree
from security_probe.secret_texts import looks_like_a_secret, named_like_a_secret

PEM = (
    b"-----BEGIN PRIVATE KEY-----\n"
    + base64.encodebytes(bytes(range(120)))
    + b"-----END PRIVATE KEY-----\n"
)


def read(*members: tuple[tarfile.TarInfo, bytes]) -> Tree:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as made:
        for member, content in members:
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    stream.seek(0)
    return read_tree(stream)


def member(path: str, **attributes: object) -> tarfile.TarInfo:
    found = tarfile.TarInfo(path)
    for name, value in attributes.items():
        setattr(found, name, value)
    return found


def test_owner_mode_time_and_kind_are_read() -> None:
    tree = read(
        (member("./etc/x", mode=0o104755, uid=65532, gid=7, mtime=99), b"abc"),
        (member("run", type=tarfile.DIRTYPE, mode=0o1777), b""),
        (member("bin", type=tarfile.SYMTYPE, linkname="usr/bin"), b""),
        (member("dev/null", type=tarfile.CHRTYPE), b""),
        (member("dev/log", type=tarfile.FIFOTYPE), b""),
    )
    found = tree.entries["etc/x"]
    assert (found.mode, found.uid, found.gid, found.changed) == (0o4755, 65532, 7, 99)
    assert (found.md5, found.start) == ("900150983cd24fb0d6963f7d28e17f72", b"abc")
    assert {path: entry.kind for path, entry in tree.entries.items()} == {
        "etc/x": "file",
        "run": "folder",
        "bin": "link",
        "dev/null": "device",
        "dev/log": "device",
    }


@pytest.mark.parametrize("prefix", ["SCHILY.", "LIBARCHIVE."])
def test_capabilities_of_a_file_are_seen(prefix: str) -> None:
    headers = {f"{prefix}xattr.security.capability": "x"}
    assert read((member("ping", pax_headers=headers), b"")).entries["ping"].capabilities
    assert (
        not read((member("ping", pax_headers={"comment": "x"}), b"")).entries["ping"].capabilities
    )


def test_second_name_of_a_file_has_all_that_the_first_has() -> None:
    tree = read(
        (member("a/su", mode=0o4755), b"x"),
        (member("b/su", type=tarfile.LNKTYPE, linkname="a/su"), b""),
        (member("c/su", type=tarfile.LNKTYPE, linkname="nowhere"), b""),
    )
    assert tree.entries["b/su"] == tree.entries["a/su"]
    assert tree.entries["c/su"].kind == "other"


@pytest.mark.parametrize("path", ["../../etc/x", "/etc/x", "./etc//x", "etc/y/../x"])
def test_paths_are_written_in_one_way(path: str) -> None:
    assert set(read((member(path), b"")).entries) == {"etc/x"}


def test_few_files_are_kept_whole() -> None:
    contents = {USERS: b"root", CA_BUNDLE: b"pem", f"{STATUS}libc6": b"Package: libc6", "x": b"y"}
    tree = read(*((member(path), content) for path, content in contents.items()))
    assert set(tree.contents) == {USERS, CA_BUNDLE, f"{STATUS}libc6"}
    assert tree.contents[USERS] == b"root"
    large = read((member(CA_BUNDLE), bytes(KEPT_WHOLE + 1)))
    assert large.contents == {}
    assert large.entries[CA_BUNDLE].size == KEPT_WHOLE + 1


@pytest.mark.parametrize(
    ("content", "is_there"),
    [
        (PEM, True),
        (b"x" * ((1 << 20) - 40) + PEM, True),  # across two pieces of what is read
        (PEM.replace(b"\n", b"\r\n"), True),
        (PEM.replace(b"PRIVATE", b"OPENSSH PRIVATE"), True),
        (PEM.replace(b"-----\n", b"-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\n", 1), True),
        (b'_START = b"-----BEGIN PRIVATE KEY-----"\n_END = b"-----END PRIVATE KEY-----"', False),
        (PEM.replace(b"PRIVATE", b"PUBLIC"), False),
        (b"-----BEGIN PRIVATE KEY-----\nshort\n", False),
    ],
)
def test_private_key_is_known_by_itself_and_not_by_words_about_it(
    content: bytes, is_there: bool
) -> None:
    assert read((member("any/name"), content)).entries["any/name"].private_key is is_there


@given(st.binary(max_size=4096))
def test_bytes_that_are_no_archive_are_refused(junk: bytes) -> None:
    with pytest.raises(ProbeError):
        read_tree(io.BytesIO(junk + b"x"))


def test_image_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("security_probe.files.MOST_FILES", 3)
    read(*((member(str(number)), b"") for number in range(3)))
    with pytest.raises(ProbeError, match="more than 3 files"):
        read(*((member(str(number)), b"") for number in range(4)))


@pytest.mark.parametrize(
    "name",
    [
        *("API_TOKEN", "token", "DB_PASSWORD", "PGPASSWORD", "SECRET", "CLIENT_SECRET", "AWS_KEY"),
        *("SERVICE_KEY", "APIKEY", "API_KEY", "PRIVATE_KEY", "GPG_KEY", "USER_PASSPHRASE"),
        *("GOOGLE_CREDENTIALS", "SENTRY_DSN", "http_proxy", "HTTPS_PROXY", "no_proxy", "ALL_PROXY"),
        *("PIP_INDEX_URL", "PIP_NO_CACHE_DIR", "UV_INDEX", "UV_SYSTEM_CERTS"),
    ],
)
def test_name_of_a_secret_or_of_the_build_is_known(name: str) -> None:
    assert named_like_a_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "PATH",
            "LANG",
            "SERVICE_HOST",
            "SERVICE_KEY_SOURCE",
            "SSL_CERT_FILE",
            "MONKEY",
            "TURKEY",
        ),
        *("SERVICE_TOKEN_FILE", "SECRET_DIR", "KEYBOARD", "AUTHOR", "UVICORN_HOST", "PIPELINE"),
    ],
)
def test_name_of_something_else_is_none(name: str) -> None:
    assert named_like_a_secret(name) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (base64.b64encode(bytes(range(32))).decode(), "wrapping key"),
        (base64.urlsafe_b64encode(bytes(range(200, 232))).decode().rstrip("="), "wrapping key"),
        (f"key is {base64.b64encode(bytes(32)).decode()}.", "wrapping key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "private key"),
        ("AKIA" + "IOSFODNN7EXAMPLE", "AWS"),
        ("https://user:" + "password@index.example/simple", "URL with a password"),
        ("https://:password@index.example/simple", "URL with a password"),
        ("https://0123456789abcdef@index.example/", "URL with a user"),
        ("ghp_" + "a1B2" * 9, "GitHub"),
        ("github_pat_" + "a1B2_" * 9, "GitHub"),
        ("glpat-" + "a1B2" * 5, "GitLab"),
        ("xoxb-" + "1234567890-abc", "Slack"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl", "JSON web token"),
        ("login --password=hunter2", "password"),
        ("login --token: abc", "password"),
        ("curl -H 'Authorization: Bearer abcdefgh'", "Authorization"),
        ("d131dd02c5e6eec4693d9a0698aff95c", "random"),
        ("q8Zr2LwP0vXk7TnB4mYc9HsD", "random"),
    ],
)
def test_secret_is_known_by_its_form(text: str, kind: str) -> None:
    assert kind in (looks_like_a_secret(text) or "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/app/.venv/bin:/usr/local/bin:/usr/bin",
        "secret:/run/secrets/service_key",
        "/etc/ssl/certs/ca-certificates.crt",
        "https://index.example/simple",
        "COPY --from=builder /rt/ / # buildkit",
        "RUN |1 SOURCE_DATE_EPOCH=0 /bin/sh -c python -I /build/collect_runtime.py --venv /app",
        "FROM x@sha256:d131dd02c5e6eec4693d9a0698aff95cd131dd02c5e6eec4693d9a0698aff95c",
        "ENV PYTHON_SHA256=d131dd02c5e6eec4693d9a0698aff95cd131dd02c5e6eec4693d9a0698aff95c",
        'HEALTHCHECK &{["CMD" "/app/.venv/bin/python" "-I"] "10s" "3s" \'\\x03\'}',
        "service_security_library_of_encrypted_records",
        "2026-11-22T13:26:34.662683153Z",
    ],
)
def test_ordinary_text_is_no_secret(text: str) -> None:
    assert looks_like_a_secret(text) is None


@given(st.binary(min_size=32, max_size=32))
def test_every_wrapping_key_is_known(key: bytes) -> None:
    assert looks_like_a_secret(f"KEY_SOURCE={base64.b64encode(key).decode()}")


@given(st.text())
def test_any_text_can_be_looked_at(text: str) -> None:
    looks_like_a_secret(text)
    named_like_a_secret(text)
