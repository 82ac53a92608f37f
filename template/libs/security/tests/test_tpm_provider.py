"""Keys that a real software TPM holds: what opens them, and what is told when nothing does."""

import base64
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fake_tpm import character_device
from service_security.errors import ConfigurationError, IntegrityError, KeyUnavailableError
from service_security.keys import KeySource, initialise, open_keys
from service_security.keys.provider import WrappingKey
from service_security.keys.recovery import RecoveryKey
from service_security.keys.reseal import reseal
from service_security.keys.service_keys import open_with, read_envelope
from service_security.keys.tpm import client, errors, transport
from service_security.keys.tpm import provider as provider_module
from service_security.keys.tpm.address import parse_address
from service_security.keys.tpm.client import (
    CREATE,
    CREATE_PRIMARY,
    FLUSH_CONTEXT,
    LOAD,
    PCR_READ,
    READ_PUBLIC,
    START_AUTH_SESSION,
    UNSEAL,
    Client,
)
from service_security.keys.tpm.pcrs import POLICY_PCR
from service_security.keys.tpm.provider import TpmProvider
from service_security.keys.tpm.report import probe
from service_security.keys.tpm.transport import Transport, open_transport
from service_security.layout import DataFolder
from service_security.secret_bytes import SecretBytes
from service_security.store import SecureDb
from service_security.store.new_master import change_master
from software_tpm import (
    PCR,
    ROOT_KEY,
    SESSIONS,
    TRANSIENT,
    SoftwareTpm,
    bus,
    handles,
    software_tpms,
    unix_swtpm,
)

Maker = Callable[[], SoftwareTpm]


@pytest.fixture
def new_tpm(tmp_path: Path) -> Iterator[Maker]:
    """Make software TPMs fresh from their maker."""
    (tmp_path / "tpms").mkdir()
    with software_tpms(tmp_path / "tpms") as make:
        yield make


@pytest.fixture
def tpm(new_tpm: Maker) -> SoftwareTpm:
    """A software TPM fresh from its maker."""
    return new_tpm()


@pytest.fixture(scope="module")
def shared_tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    """A software TPM in which no test leaves anything."""
    with software_tpms(tmp_path_factory.mktemp("shared")) as make:
        yield make()


def protected(provider: TpmProvider) -> tuple[bytes, dict[str, str]]:
    """Return a new key, and what its slot says."""
    with provider.protect() as made:
        return bytes(made.key.view), dict(made.fields)


def unprotected(provider: TpmProvider, fields: Mapping[str, str]) -> bytes:
    """Return the key of a slot."""
    with provider.unprotect(fields) as opened:
        return bytes(opened.key.view)


# ------------------------------------------------------------------ the same TPM


def test_key_comes_back_as_it_was_made(shared_tpm: SoftwareTpm) -> None:
    provider = shared_tpm.provider()
    provider.probe()
    with provider.protect() as made, provider.unprotect(made.fields) as opened:
        assert len(made.key) == 32
        assert made.key == opened.key
        assert made.fields == opened.fields
        assert made.binding == opened.binding
        assert made.binding == bytes.fromhex(made.fields["srk_name"]) + bytes(4)
    assert protected(provider)[0] != protected(provider)[0]
    assert shared_tpm.left_behind() == []


def test_key_comes_over_every_kind_of_address(tmp_path: Path, shared_tpm: SoftwareTpm) -> None:
    """TCP, a UNIX socket, and a character device: a terminal that passes a TPM on."""
    key, fields = protected(shared_tpm.provider())

    with (
        open_transport(parse_address(shared_tpm.address)) as way,
        character_device(way.exchange) as path,
    ):
        through_device = TpmProvider(path)
        through_device.probe()
        assert unprotected(through_device, fields) == key
        assert protected(through_device)[1]["srk_name"] == fields["srk_name"]
    with unix_swtpm(tmp_path) as address:
        through_socket = TpmProvider(address)
        key, fields = protected(through_socket)
        assert unprotected(through_socket, fields) == key
        assert handles(address, TRANSIENT, SESSIONS) == []


@pytest.mark.parametrize(
    ("address", "source"),
    [("/dev/tpmrm0", "tpm2"), ("/dev/tpm0", "tpm2:/dev/tpm0"), ("unix:/s", "tpm2:unix:/s")],
)
def test_provider_is_shown_as_its_key_source(address: str, source: str) -> None:
    assert str(TpmProvider(address)) == source
    assert TpmProvider(address).slot_type == "tpm2"


def test_address_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="not the address of a TPM"):
        TpmProvider("tpm")


def test_key_outlives_a_reboot(tpm: SoftwareTpm) -> None:
    key, fields = protected(tpm.provider())
    tpm.reboot()
    assert unprotected(tpm.provider(), fields) == key


def test_root_key_may_be_put_there_or_taken_away_later(tpm: SoftwareTpm) -> None:
    """The same root key is made again from the same template, so that it does not matter."""
    key, fields = protected(tpm.provider())
    tpm.shell(errors.PROVISION.replace("-P file:OWNER-PASSWORD", ""))
    assert unprotected(tpm.provider(), fields) == key
    again, kept_fields = protected(tpm.provider())
    assert kept_fields["srk_name"] == fields["srk_name"]
    tpm.tool("evictcontrol", "-C", "o", "-c", "0x81000001")
    assert unprotected(tpm.provider(), kept_fields) == again


SYSTEMD = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
NO_POINT = f"tpm2_createprimary -C o -G ecc -a '{SYSTEMD}' -c root.ctx"
KEEP = "tpm2_evictcontrol -C o -c root.ctx 0x81000001"


def test_root_key_of_systemd_is_used_and_may_be_taken_away(tpm: SoftwareTpm) -> None:
    """It is made with an empty point, and is another key than the TCG's."""
    other = protected(tpm.provider())[1]
    tpm.shell(f"{NO_POINT}\n{KEEP}")
    key, fields = protected(tpm.provider())
    assert fields["srk_name"] != other["srk_name"]
    assert unprotected(tpm.provider(), other)
    tpm.tool("evictcontrol", "-C", "o", "-c", "0x81000001")
    assert unprotected(tpm.provider(), fields) == key


@pytest.mark.parametrize(
    "foreign",
    [
        "tpm2_createprimary -C o -G rsa -c root.ctx",
        NO_POINT.replace("|noda", ""),
        NO_POINT.replace("-G ecc", "-G ecc256:aes256cfb"),
        NO_POINT.replace("-G ecc", "-G ecc384:aes128cfb"),
        f"{NO_POINT} -g sha384",
        # A key that may be moved to another machine, together with all that is sealed under it.
        "tpm2_createprimary -C o -G ecc -c p.ctx\n"
        "tpm2_startauthsession -S s.ctx\n"
        "tpm2_policycommandcode -S s.ctx -L p.dat TPM2_CC_Duplicate\n"
        "tpm2_flushcontext s.ctx\n"
        "tpm2_create -C p.ctx -L p.dat -G ecc -u d.pub -r d.priv "
        "-a 'sensitivedataorigin|userwithauth|noda|restricted|decrypt'\n"
        "tpm2_flushcontext -t\ntpm2_load -C p.ctx -u d.pub -r d.priv -c root.ctx",
    ],
)
def test_foreign_key_in_the_place_of_the_root_key_is_not_used(
    tpm: SoftwareTpm, foreign: str
) -> None:
    """The key is sealed under one that the TPM makes, as if nothing were there."""
    before = protected(tpm.provider())[1]["srk_name"]
    tpm.shell(f"{foreign}\ntpm2_flushcontext -t\n{KEEP}")
    assert ROOT_KEY in handles(tpm.address, 0x81)
    key, fields = protected(tpm.provider())
    assert fields["srk_name"] == before
    assert unprotected(tpm.provider(), fields) == key


UNIQUE = "head -c 64 /dev/urandom | tpm2_createprimary -C o -G ecc -u - -c root.ctx"
ENDORSEMENT = "head -c 64 /dev/zero | tpm2_createprimary -C e -G ecc -u - -c root.ctx"


@pytest.mark.parametrize("odd", [UNIQUE, ENDORSEMENT], ids=["another point", "not the owner's"])
def test_root_key_that_the_tpm_would_not_make_again_is_not_used(tpm: SoftwareTpm, odd: str) -> None:
    """What is sealed under it would be lost when somebody takes it away."""
    before = protected(tpm.provider())[1]["srk_name"]
    tpm.shell(f"{odd} -a '{SYSTEMD}'\n{KEEP}")
    assert ROOT_KEY in handles(tpm.address, 0x81)
    key, fields = protected(tpm.provider())
    assert fields["srk_name"] == before
    assert tpm.left_behind() == []
    tpm.tool("evictcontrol", "-C", "o", "-c", "0x81000001")
    assert unprotected(tpm.provider(), fields) == key


def test_with_an_owner_password_the_root_key_that_is_kept_counts(tpm: SoftwareTpm) -> None:
    """Whether it could be made again cannot be tried."""
    tpm.shell(f"{UNIQUE} -a '{SYSTEMD}'\n{KEEP}")
    tpm.tool("changeauth", "-c", "owner", "secret")
    key, fields = protected(tpm.provider())
    assert unprotected(tpm.provider(), fields) == key


# ------------------------------------------------------------------ another TPM, or none


def test_new_key_in_place_of_another_is_sealed_by_the_same_tpm_only(new_tpm: Maker) -> None:
    one, other = new_tpm(), new_tpm()
    fields = protected(one.provider())[1]
    with pytest.raises(errors.OtherTpmError):
        other.provider().protect(fields)
    assert other.left_behind() == []
    other.provider().protect().close()  # the control
    with one.provider().protect(fields) as again:
        assert again.fields["srk_name"] == fields["srk_name"]


def test_new_key_stays_under_the_root_key_that_is_known(tpm: SoftwareTpm) -> None:
    """Though another one, as good, is kept there meanwhile."""
    fields = protected(tpm.provider())[1]
    tpm.shell(f"{NO_POINT}\n{KEEP}")
    with tpm.provider().protect(fields) as again:
        assert again.fields["srk_name"] == fields["srk_name"]
    with tpm.provider().protect() as first:
        assert first.fields["srk_name"] != fields["srk_name"]


def test_what_is_known_and_damaged_is_refused(shared_tpm: SoftwareTpm) -> None:
    with pytest.raises(errors.SealedKeyDamagedError):
        shared_tpm.provider().protect({})


def test_envelope_moves_to_another_tpm_with_the_recovery_phrase_only(
    new_tpm: Maker, tmp_path: Path
) -> None:
    """Else whoever gets between program and TPM for one sealing would have the key from then on."""
    one, other = (f"tpm2:{new_tpm().address}" for _ in range(2))
    envelope = tmp_path / "data" / "envelope.json"
    with SecretBytes.generate() as phrase:
        recovery = SecretBytes.copy_of(phrase.view)
        initialise(envelope, one, recovery=lambda: recovery, holds_encrypted_data=lambda: False)
        before = envelope.read_bytes()
        with open_keys(envelope, one) as keys:
            with pytest.raises(errors.OtherTpmError, match="recovery phrase"):
                reseal(envelope, keys, KeySource.parse(other))
            assert envelope.read_bytes() == before
            reseal(envelope, keys, KeySource.parse(one))
        with open_with(read_envelope(envelope), RecoveryKey(phrase)) as keys:
            reseal(envelope, keys, KeySource.parse(other))
    open_keys(envelope, other).close()


def test_new_master_key_is_sealed_by_the_tpm_of_the_old_one_only(
    new_tpm: Maker, tmp_path: Path
) -> None:
    one, other = (f"tpm2:{new_tpm().address}" for _ in range(2))
    folder = DataFolder(tmp_path / "data")
    initialise(folder.envelope, one, holds_encrypted_data=lambda: False)
    before = folder.envelope.read_bytes()
    with open_keys(folder.envelope, one) as old:
        SecureDb.open(folder.database, old.master).close()
        with pytest.raises(errors.OtherTpmError):
            change_master(folder, old, KeySource.parse(other), recovery=lambda: None)
        assert folder.envelope.read_bytes() == before
        change_master(folder, old, KeySource.parse(one), recovery=lambda: None)
    with open_keys(folder.envelope, one) as new:
        SecureDb.open(folder.database, new.master).close()
        assert new.envelope.slots.keys() == {"tpm2"}


def test_key_does_not_open_in_another_tpm(new_tpm: Maker) -> None:
    one, other = new_tpm(), new_tpm()
    key, fields = protected(one.provider())
    with pytest.raises(errors.OtherTpmError, match="another TPM, or this one was cleared"):
        other.provider().unprotect(fields)
    assert other.left_behind() == []
    assert unprotected(one.provider(), fields) == key


def test_key_that_names_another_root_key_does_not_open_under_it(new_tpm: Maker) -> None:
    """The name is for people; what holds is that the TPM does not know the sealed object."""
    one, other = new_tpm(), new_tpm()
    fields = protected(one.provider())[1]
    name = protected(other.provider())[1]["srk_name"]
    with pytest.raises(errors.SealedKeyDamagedError):
        other.provider().unprotect({**fields, "srk_name": name})


def test_key_is_gone_when_the_tpm_is_cleared(tpm: SoftwareTpm) -> None:
    fields = protected(tpm.provider())[1]
    tpm.tool("clear", "-c", "p")
    with pytest.raises(errors.OtherTpmError, match="keys recover --to tpm2"):
        tpm.provider().unprotect(fields)


def test_tpm_that_is_gone_is_told_and_nothing_is_made_instead(tpm: SoftwareTpm) -> None:
    key, fields = protected(tpm.provider())
    tpm.stop()
    provider = tpm.provider()
    uses: list[Callable[[], object]] = [
        provider.probe,
        provider.protect,
        lambda: provider.unprotect(fields),
    ]
    for use in uses:
        with pytest.raises(errors.TpmAbsentError):
            use()
    tpm.start()
    assert unprotected(tpm.provider(), fields) == key


# ------------------------------------------------------------------ the TPM's owner


def test_owner_password_takes_a_root_key_and_the_message_says_how(tpm: SoftwareTpm) -> None:
    """The commands of the message are run as they stand there."""
    key, fields = protected(tpm.provider())
    tpm.tool("changeauth", "-c", "owner", "secret")
    (tpm.folder / "OWNER-PASSWORD").write_text("secret")
    uses: list[Callable[[], object]] = [
        tpm.provider().probe,
        tpm.provider().protect,
        lambda: tpm.provider().unprotect(fields),
    ]
    for use in uses:
        with pytest.raises(errors.TpmOwnerError) as refused:
            use()
        assert errors.PROVISION in str(refused.value)
        assert tpm.left_behind() == []
    tpm.shell(errors.PROVISION)
    tpm.provider().probe()
    assert unprotected(tpm.provider(), fields) == key
    assert protected(tpm.provider())[1]["srk_name"] == fields["srk_name"]
    tpm.reboot()
    assert unprotected(tpm.provider(), fields) == key


def test_root_key_takes_the_place_of_another_key_as_the_message_says(tpm: SoftwareTpm) -> None:
    """Often an RSA key is there."""
    tpm.shell(f"tpm2_createprimary -C o -G rsa -c root.ctx\n{KEEP}")
    tpm.tool("changeauth", "-c", "owner", "secret")
    (tpm.folder / "OWNER-PASSWORD").write_text("secret")
    with pytest.raises(errors.TpmOwnerError, match="find out what uses it") as refused:
        tpm.provider().probe()
    assert errors.TAKE_AWAY in str(refused.value)
    with pytest.raises(AssertionError, match="ERROR"):  # the control
        tpm.shell(errors.PROVISION)
    tpm.shell("tpm2_flushcontext -t")
    tpm.shell(f"{errors.TAKE_AWAY}\n{errors.PROVISION}")
    tpm.provider().probe()
    protected(tpm.provider())


def test_another_tpm_is_told_as_such_though_it_has_an_owner_password(new_tpm: Maker) -> None:
    one, other = new_tpm(), new_tpm()
    fields = protected(one.provider())[1]
    other.shell(errors.PROVISION.replace("-P file:OWNER-PASSWORD", ""))
    other.tool("changeauth", "-c", "owner", "secret")
    with pytest.raises(errors.OtherTpmError):
        other.provider().unprotect(fields)


def test_root_key_with_a_password_is_told(tpm: SoftwareTpm) -> None:
    tpm.shell(f"{NO_POINT} -p secret\n{KEEP}")
    with pytest.raises(
        errors.TpmOwnerError, match=r"root key .* 0x81000001 has a password"
    ) as refused:
        tpm.provider().protect()
    assert f"{errors.TAKE_AWAY}; {errors.PROVISION}" in str(refused.value)
    assert tpm.left_behind() == []


def test_owner_hierarchy_that_is_off_is_told(tpm: SoftwareTpm) -> None:
    fields = protected(tpm.provider())[1]
    tpm.tool("hierarchycontrol", "-C", "p", "shEnable", "clear")
    uses: list[Callable[[], object]] = [
        tpm.provider().probe,
        tpm.provider().protect,
        lambda: tpm.provider().unprotect(fields),
    ]
    for use in uses:
        with pytest.raises(errors.TpmUnsuitableError, match="owner hierarchy is switched off"):
            use()


# ------------------------------------------------------------------ PCRs


def test_bound_key_opens_while_its_pcrs_stay(tpm: SoftwareTpm) -> None:
    tpm.extend(PCR)
    provider = tpm.provider(pcrs=[PCR])
    provider.probe()
    key, fields = protected(provider)
    assert fields["pcrs"] == str(PCR)
    with tpm.provider().unprotect(fields) as opened:  # the slot says what it is bound to
        assert bytes(opened.key.view) == key
        selection = bytes.fromhex("00000001000b03000001")
        assert opened.binding == bytes.fromhex(fields["srk_name"]) + selection
    tpm.extend(PCR)
    with pytest.raises(errors.PcrChangedError, match="firmware"):
        tpm.provider().unprotect(fields)
    assert tpm.left_behind() == []


def test_unbound_key_opens_whatever_the_pcrs_are(tpm: SoftwareTpm) -> None:
    """The control of the test above."""
    key, fields = protected(tpm.provider())
    tpm.extend(PCR)
    assert unprotected(tpm.provider(), fields) == key


def test_bound_key_does_not_open_with_another_pcr(tpm: SoftwareTpm) -> None:
    tpm.extend(PCR)
    tpm.extend(23)
    fields = protected(tpm.provider(pcrs=[PCR]))[1]
    with pytest.raises(errors.PcrChangedError):
        tpm.provider().unprotect({**fields, "pcrs": "23"})


def test_all_pcrs_can_be_bound(tpm: SoftwareTpm) -> None:
    """More than a TPM tells at once."""
    pcrs = [*range(17), 23]
    for pcr in pcrs:
        tpm.extend(pcr, bytes([pcr + 1]) * 32)
    key, fields = protected(tpm.provider(pcrs=pcrs))
    assert unprotected(tpm.provider(), fields) == key


@pytest.mark.parametrize("pcr", [PCR, 17])
def test_pcr_that_is_not_measured_is_refused_before_anything_is_sealed(
    shared_tpm: SoftwareTpm, pcr: int
) -> None:
    """PCR 16 starts with zeros, PCR 17 with ones."""
    provider = shared_tpm.provider(pcrs=[pcr])
    for use in (provider.probe, provider.protect):
        with pytest.raises(ConfigurationError, match=f"does not measure into PCR {pcr}:"):
            use()
    assert shared_tpm.left_behind() == []


def test_bank_that_is_not_kept_is_told(tpm: SoftwareTpm) -> None:
    tpm.tool("pcrallocate", "sha1:all+sha256:none")
    tpm.reboot()
    with pytest.raises(ConfigurationError, match="no SHA-256 values of PCR 7"):
        tpm.provider(pcrs=[7]).protect()


def test_pcr_that_changes_between_reading_and_sealing_is_told(
    tpm: SoftwareTpm, tmp_path: Path
) -> None:
    """So is one that somebody on the bus told wrongly."""
    tpm.extend(PCR)

    def wrong(code: int, answer: bytes) -> bytes:
        return answer[:-32] + b"w" * 32 if code == PCR_READ else answer

    with (
        bus(tmp_path, tpm.address, response=wrong) as listened,
        pytest.raises(errors.PcrChangedError),
    ):
        TpmProvider(listened.address, pcrs=[PCR]).protect()
    assert tpm.left_behind() == []


# ------------------------------------------------------------------ lock-out, damage, trouble


def test_lock_out_by_others_does_not_keep_the_key(tpm: SoftwareTpm) -> None:
    """Whoever tries wrong passwords on a TPM cannot stop the service that way."""
    key, fields = protected(tpm.provider())
    tpm.tool("dictionarylockout", "-s", "-n", 1, "-t", 1000, "-l", 1000)
    tpm.shell(
        "tpm2_createprimary -C o -c p.ctx\n"
        "echo data | tpm2_create -C p.ctx -p right -i - -u k.pub -r k.priv\n"
        "tpm2_flushcontext -t\n"
        "tpm2_load -C p.ctx -u k.pub -r k.priv -c k.ctx\ntpm2_flushcontext -t\n"
        "! tpm2_unseal -c k.ctx -p wrong"
    )
    assert probe(tpm.address).locked_out
    tpm.provider().probe()
    assert unprotected(tpm.provider(), fields) == key
    assert protected(tpm.provider())


def test_lock_out_that_a_tpm_tells_of_is_told(shared_tpm: SoftwareTpm, tmp_path: Path) -> None:
    fields = protected(shared_tpm.provider())[1]
    refusal = struct.pack(">HII", 0x8001, 10, 0x921)

    def locked(code: int, answer: bytes) -> bytes:
        return refusal if code == UNSEAL else answer

    with (
        bus(tmp_path, shared_tpm.address, response=locked) as listened,
        pytest.raises(errors.TpmLockedOutError, match="tpm2_dictionarylockout"),
    ):
        TpmProvider(listened.address).unprotect(fields)
    assert shared_tpm.left_behind() == []


@pytest.mark.parametrize("member", ["private", "public"])
def test_changed_bit_is_noticed_everywhere_in_a_sealed_key(
    shared_tpm: SoftwareTpm, member: str
) -> None:
    """One bit of each byte, another one each time; nothing is left in the TPM."""
    provider = shared_tpm.provider()
    key, fields = protected(provider)
    whole = base64.b64decode(fields[member])
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        with pytest.raises(IntegrityError, match="damaged"):
            provider.unprotect({**fields, member: base64.b64encode(changed).decode()})
    assert shared_tpm.left_behind() == []
    assert unprotected(provider, fields) == key


def test_private_area_of_another_key_is_damage(shared_tpm: SoftwareTpm) -> None:
    fields, others = (protected(shared_tpm.provider())[1] for _ in range(2))
    with pytest.raises(errors.SealedKeyDamagedError):
        shared_tpm.provider().unprotect({**fields, "private": others["private"]})


def test_secret_of_another_length_is_no_key(tpm: SoftwareTpm) -> None:
    """It was sealed by someone else, and loads: only its length tells."""
    tpm.shell(errors.PROVISION.replace("-P file:OWNER-PASSWORD", ""))
    name = protected(tpm.provider())[1]["srk_name"]
    for length in (31, 32, 33):
        fields = {"srk_name": name, **sealed_by_tools(tpm, b"s" * length)}
        if length == 32:
            assert unprotected(tpm.provider(), fields) == b"s" * 32
            continue
        with pytest.raises(errors.SealedKeyDamagedError):
            tpm.provider().unprotect(fields)


def sealed_by_tools(tpm: SoftwareTpm, secret: bytes, *more: object) -> dict[str, str]:
    """Seal a secret under the root key that is kept, with the attributes of our keys."""
    attributes = "fixedtpm|fixedparent|noda" + ("" if more else "|userwithauth")
    tpm.shell(
        'tpm2_create -C 0x81000001 -i - -u k.pub -r k.priv -a "$@"',
        *(attributes, *more),
        stdin=secret,
    )
    encoded = {
        name: base64.b64encode((tpm.folder / file).read_bytes()).decode()
        for name, file in (("public", "k.pub"), ("private", "k.priv"))
    }
    return {**encoded, "pcrs": ""}


# ------------------------------------------------------------------ nothing is left in the TPM

HARMLESS = struct.pack(">HIIIII", 0x8001, 22, 0x17A, 6, 0x100, 1)  # asks for a property


@pytest.fixture(scope="module")
def bound_tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    """A software TPM into whose PCR something was measured."""
    with software_tpms(tmp_path_factory.mktemp("bound")) as make:
        tpm = make()
        tpm.extend(PCR)
        yield tpm


def use_of(provider: TpmProvider, code: int, fields: Mapping[str, str]) -> WrappingKey:
    """Use a provider in the way that sends a command."""
    return provider.protect() if code in (CREATE, PCR_READ) else provider.unprotect(fields)


@pytest.mark.parametrize(
    "code",
    [READ_PUBLIC, CREATE_PRIMARY, START_AUTH_SESSION, CREATE, LOAD, PCR_READ, POLICY_PCR, UNSEAL],
)
@pytest.mark.parametrize("refusal", [0x902, 0x101, 0x1C4, 0x9A2, 0x922])
def test_refused_command_leaves_nothing_in_the_tpm(
    bound_tpm: SoftwareTpm,
    tmp_path: Path,
    code: int,
    refusal: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Full, failed, a bad parameter, a bad proof and busy, at each command in turn."""
    monkeypatch.setattr(Client.__init__, "__kwdefaults__", {"sleep": lambda _: None})
    fields = protected(bound_tpm.provider(pcrs=[PCR]))[1]

    def not_carried_out(sent: int, message: bytes) -> bytes:
        return HARMLESS if sent == code else message

    def refused(sent: int, answer: bytes) -> bytes:
        return struct.pack(">HII", 0x8001, 10, refusal) if sent == code else answer

    with (
        bus(tmp_path, bound_tpm.address, command=not_carried_out, response=refused) as listened,
        pytest.raises((KeyUnavailableError, IntegrityError)),
    ):
        use_of(TpmProvider(listened.address, pcrs=[PCR]), code, fields)
    assert bound_tpm.left_behind() == []


@pytest.mark.parametrize(
    ("code", "refusal", "kind"),
    [
        (CREATE_PRIMARY, 0x98E, errors.TpmOwnerError),
        (CREATE_PRIMARY, 0x9A2, errors.TpmOwnerError),
        (CREATE_PRIMARY, 0x185, errors.TpmUnsuitableError),
        (LOAD, 0x1DF, errors.SealedKeyDamagedError),
        (LOAD, 0x2D5, errors.SealedKeyDamagedError),
        (LOAD, 0x18B, errors.TpmRefusedError),
        (LOAD, 0x9A2, errors.TpmOwnerError),
        (UNSEAL, 0x99D, errors.PcrChangedError),
        (UNSEAL, 0x128, errors.PcrChangedError),
        (UNSEAL, 0x98E, errors.TamperedError),
        (UNSEAL, 0x9A2, errors.TamperedError),
        (UNSEAL, 0x12F, errors.TpmRefusedError),
        (READ_PUBLIC, 0x1C4, errors.TpmRefusedError),
    ],
)
def test_refusals_are_told_apart(
    shared_tpm: SoftwareTpm, tmp_path: Path, code: int, refusal: int, kind: type[Exception]
) -> None:
    """By the response code and the command that it answers."""
    fields = protected(shared_tpm.provider())[1]

    def not_carried_out(sent: int, message: bytes) -> bytes:
        return HARMLESS if sent == code else message

    def refused(sent: int, answer: bytes) -> bytes:
        return struct.pack(">HII", 0x8001, 10, refusal) if sent == code else answer

    with (
        bus(tmp_path, shared_tpm.address, command=not_carried_out, response=refused) as listened,
        pytest.raises(kind) as told,
    ):
        TpmProvider(listened.address).unprotect(fields)
    assert type(told.value) is kind


@pytest.mark.parametrize("code", [START_AUTH_SESSION, CREATE, LOAD, POLICY_PCR, UNSEAL])
def test_interrupt_leaves_nothing_in_the_tpm(
    bound_tpm: SoftwareTpm, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes before each command in turn."""
    fields = protected(bound_tpm.provider(pcrs=[PCR]))[1]

    def execute(way: Transport, sent: int, *parameters: bytes, **named: Any) -> bytes:
        if sent == code:
            raise KeyboardInterrupt
        return real(way, sent, *parameters, **named)

    real = transport.execute
    monkeypatch.setattr(client, "execute", execute)
    with pytest.raises(KeyboardInterrupt):
        use_of(bound_tpm.provider(pcrs=[PCR]), code, fields)
    assert bound_tpm.left_behind() == []


def test_what_is_left_in_a_tpm_would_be_seen(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """The control: without the commands that flush, something stays."""

    def not_carried_out(sent: int, message: bytes) -> bytes:
        return HARMLESS if sent == FLUSH_CONTEXT else message

    with bus(tmp_path, tpm.address, command=not_carried_out) as listened:
        TpmProvider(listened.address).protect().close()
    kinds = {handle >> 24 for handle in tpm.left_behind()}
    assert kinds == {TRANSIENT, SESSIONS}


def test_full_tpm_is_told(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """What other programs left in it is not ours to throw out."""
    test_what_is_left_in_a_tpm_would_be_seen(tpm, tmp_path)
    left = tpm.left_behind()
    with pytest.raises(errors.TpmBusyError, match=r"no room left.* tpm2_flushcontext"):
        tpm.provider().protect()
    assert tpm.left_behind() == left


def test_busy_tpm_is_waited_for(
    shared_tpm: SoftwareTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command is answered "try again" twice, and then carried out."""
    pauses: list[float] = []
    monkeypatch.setattr(Client.__init__, "__kwdefaults__", {"sleep": pauses.append})
    key, fields = protected(shared_tpm.provider())
    tries: Counter[bytes] = Counter()

    def command(_: int, message: bytes) -> bytes:
        tries[message] += 1
        return HARMLESS if tries[message] < 3 else message

    def response(_: int, answer: bytes) -> bytes:
        busy = tries[listened.recorded[-2]] < 3
        return struct.pack(">HII", 0x8001, 10, 0x922) if busy else answer

    with bus(tmp_path, shared_tpm.address, command=command, response=response) as listened:
        assert unprotected(TpmProvider(listened.address), fields) == key
    assert pauses == [0.02, 0.04] * len(tries)
    assert set(tries.values()) == {3}


def test_tpm_that_serves_another_program_is_waited_for_in_vain(
    tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A software TPM without a resource manager serves one connection at a time."""
    fields = protected(tpm.provider())[1]
    with open_transport(parse_address(tpm.address)) as held, monkeypatch.context() as patch:
        assert held.exchange(HARMLESS)
        patch.setattr(provider_module, "TIMEOUT", 0.1)
        with pytest.raises(errors.TpmSilentError, match="no other program holds it"):
            tpm.provider().unprotect(fields)
    assert unprotected(tpm.provider(), fields)
