"""Records outlive the container, and the disk shows none of them."""

import json

from containers.engine import Deploy, Deployment

RECORDS = {"greeting": "hello", "Zauberwort-7421": "Rumpelstilzchen-9038"}


def bytes_of(deployment: Deployment, words: dict[str, str]) -> set[str]:
    """Return which of the names and values are to be read in the files of a volume."""
    code = f"""
from pathlib import Path
files = [path for path in Path("/data").rglob("*") if path.is_file()]
assert any(path.stat().st_size for path in files)
content = b"".join(path.read_bytes() for path in files)
import json
print(json.dumps([word for word in {[*words, *words.values()]!r} if word.encode() in content]))
"""
    return set(json.loads(deployment.in_volume(code)))


def test_record_survives_a_restart_and_a_recreated_container(deploy: Deploy) -> None:
    deployment = deploy()
    deployment.start().put(RECORDS)
    first = deployment.container.id
    deployment.compose("restart", "service")
    assert deployment.container.id == first
    assert deployment.start().all() == RECORDS
    deployment.compose("down")
    client = deployment.start()
    assert deployment.container.id != first, "control: it is another container"
    assert client.all() == RECORDS


def test_volume_shows_neither_names_nor_values(deploy: Deploy) -> None:
    for variant, shown in (("default", set()), ("aes", set()), ("plain", {*RECORDS, *RECORDS.values()})):
        deployment = deploy(variant)
        deployment.start().put(RECORDS)
        assert bytes_of(deployment, RECORDS) == shown, variant
        deployment.compose("stop")
        assert bytes_of(deployment, RECORDS) == shown, variant
