"""tpm2-tools are a second implementation: what one seals, the other opens."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from service_security.keys.tpm import errors
from service_security.keys.tpm.provider import TpmProvider
from software_tpm import PCR, SoftwareTpm, names_in, need, software_tpms

ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
MAKE_ROOT_KEY = f"tpm2_createprimary -Q -C o -G ecc -a '{ATTRIBUTES}' -c root.ctx"
TCG_ROOT_KEY = f"head -c 64 /dev/zero | {MAKE_ROOT_KEY} -u -\ntpm2_flushcontext -t"
UNSEAL = """
tpm2_load -Q -C root.ctx -u k.pub -r k.priv -c k.ctx
tpm2_flushcontext -t
tpm2_unseal -c k.ctx "$@"
"""


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[SoftwareTpm]:
    """A software TPM into whose PCR something was measured."""
    need("tpm2_unseal")
    with software_tpms(tmp_path) as make:
        tpm = make()
        tpm.extend(PCR)
        yield tpm


def sealed_by_us(tpm: SoftwareTpm, provider: TpmProvider) -> tuple[bytes, str]:
    """Seal a key, and leave its areas as files for the tools; return it and its root key's name."""
    with provider.protect() as made:
        for name, file in (("public", "k.pub"), ("private", "k.priv")):
            (tpm.folder / file).write_bytes(base64.b64decode(made.fields[name]))
        return bytes(made.key.view), made.fields["srk_name"]


def test_root_key_is_the_one_that_tpm2_createprimary_makes(tpm: SoftwareTpm) -> None:
    """Its name is the same, so its public area is, to the byte."""
    name = sealed_by_us(tpm, tpm.provider())[1]
    assert names_in(tpm.shell(f"{TCG_ROOT_KEY}\ntpm2_readpublic -c root.ctx"))[0] == name
    without_zeros = f"{MAKE_ROOT_KEY}\ntpm2_flushcontext -t\ntpm2_readpublic -c root.ctx"
    assert names_in(tpm.shell(without_zeros))[0] != name


def test_key_that_we_sealed_is_unsealed_by_tpm2_unseal(tpm: SoftwareTpm) -> None:
    key, _ = sealed_by_us(tpm, tpm.provider())
    assert tpm.shell(TCG_ROOT_KEY + UNSEAL) == key


def test_key_that_we_bound_is_unsealed_by_tpm2_unseal(tpm: SoftwareTpm) -> None:
    """Their policy of the same PCRs is ours, and without it the key stays closed."""
    key, _ = sealed_by_us(tpm, tpm.provider(pcrs=[PCR]))
    assert tpm.shell(TCG_ROOT_KEY + UNSEAL, "-p", f"pcr:sha256:{PCR}") == key
    assert tpm.shell(TCG_ROOT_KEY + UNSEAL.replace("tpm2_unseal", "! tpm2_unseal")) == b""


def sealed_by_tools(tpm: SoftwareTpm, secret: bytes, script: str, *create: str) -> dict[str, str]:
    """Seal a secret with tpm2_create; return the members of its slot."""
    printed = tpm.shell(
        f"{script}\ntpm2_readpublic -c root.ctx\n"
        'printf %s "$1" | base64 -d > secret; shift\n'
        'tpm2_create -Q -C root.ctx -i secret -u k.pub -r k.priv "$@"',
        *(base64.b64encode(secret).decode(), *create),
    )
    areas = {
        name: base64.b64encode((tpm.folder / file).read_bytes()).decode()
        for name, file in (("public", "k.pub"), ("private", "k.priv"))
    }
    return {**areas, "srk_name": names_in(printed)[0], "pcrs": ""}


SECRET = bytes(range(200, 232))
SEALED = "fixedtpm|fixedparent|noda"


@pytest.mark.parametrize("script", [TCG_ROOT_KEY, f"{MAKE_ROOT_KEY}\ntpm2_flushcontext -t"])
def test_key_that_tpm2_create_sealed_is_unsealed_by_us(tpm: SoftwareTpm, script: str) -> None:
    """Under the root key as the TCG wants it made, and as systemd makes it."""
    fields = sealed_by_tools(tpm, SECRET, script, "-a", f"{SEALED}|userwithauth")
    with tpm.provider().unprotect(fields) as opened:
        assert bytes(opened.key.view) == SECRET


def test_key_that_tpm2_create_bound_is_unsealed_by_us(tpm: SoftwareTpm) -> None:
    policy = f"{TCG_ROOT_KEY}\ntpm2_createpolicy -Q --policy-pcr -l sha256:{PCR} -L policy"
    fields = sealed_by_tools(tpm, SECRET, policy, "-a", SEALED, "-L", "policy")
    with tpm.provider().unprotect({**fields, "pcrs": str(PCR)}) as opened:
        assert bytes(opened.key.view) == SECRET
    with pytest.raises(errors.SealedKeyDamagedError):
        tpm.provider().unprotect(fields)
    tpm.extend(PCR)
    with pytest.raises(errors.PcrChangedError):
        tpm.provider().unprotect({**fields, "pcrs": str(PCR)})


@pytest.mark.parametrize(
    "attributes",
    [
        "userwithauth",  # it could be moved to another machine
        "fixedtpm|fixedparent|userwithauth",  # it would be locked out with the TPM
        f"{SEALED}|userwithauth|adminwithpolicy",
    ],
)
def test_key_with_other_attributes_is_not_taken(tpm: SoftwareTpm, attributes: str) -> None:
    fields = sealed_by_tools(tpm, SECRET, TCG_ROOT_KEY, "-a", attributes)
    with pytest.raises(errors.SealedKeyDamagedError):
        tpm.provider().unprotect(fields)


def test_key_with_a_password_is_not_had(tpm: SoftwareTpm) -> None:
    fields = sealed_by_tools(tpm, SECRET, TCG_ROOT_KEY, "-a", f"{SEALED}|userwithauth", "-p", "x")
    with pytest.raises(errors.TamperedError, match="has a password"):
        tpm.provider().unprotect(fields)
    assert tpm.left_behind() == []
