"""The compose files of a hardened service: where the key is, and what nobody else gets to see."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from scaffold import HARDENED, HARDENED_TPM, Answers

SERVICES = {"service", "init"}


def services(project: Path, name: str = "docker-compose.yml") -> dict[str, dict[str, Any]]:
    """Return the services of a compose file."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((project / name).read_text("utf-8"))["services"]
    assert set(found) == SERVICES
    return found


def test_service_and_its_commands_have_the_key_from_the_mounted_secret(
    rendered: Callable[[Answers], Path],
) -> None:
    for service in services(rendered(HARDENED)).values():
        (secret,) = service["secrets"]
        assert service["environment"]["SERVICE_KEY_SOURCE"] == f"secret:/run/secrets/{secret}"
        assert service["environment"]["SERVICE_DATA_DIR"] in [
            each.split(":")[1] for each in service["volumes"]
        ]


def test_recovery_phrase_that_init_shows_is_in_no_log(rendered: Callable[[Answers], Path]) -> None:
    drivers = {name: service["logging"] for name, service in services(rendered(HARDENED)).items()}
    assert drivers["init"] == {"driver": "none"}
    assert drivers["service"]["driver"] == "json-file", "control: what the others print is kept"


def test_overlay_has_the_tpm_hold_the_key_of_both(rendered: Callable[[Answers], Path]) -> None:
    for service in services(rendered(HARDENED_TPM), "docker-compose.tpm.yml").values():
        assert service["environment"] == {"SERVICE_KEY_SOURCE": "tpm2"}
        assert service["devices"] == ["/dev/tpmrm0:/dev/tpmrm0"]
