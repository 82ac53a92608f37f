"""Records outlive the container, and the disk shows none of them."""

from containers.engine import Deploy

RECORDS = {"greeting": "hello", "Zauberwort-7421": "Rumpelstilzchen-9038"}


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
