"""Which answers bring which file: a rendered file that no table names fails, and so does a missing one."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from scaffold import ANSWERS_FILE, COMBINATIONS, HARDENED_TPM, PLAIN, Answers, contents, label

ALWAYS = """
    .copier-answers.yml
    .dockerignore
    .env.example
    .gitignore
    .pre-commit-config.yaml
    Dockerfile
    LICENSE
    README.md
    docker-compose.yml
    justfile
    pyproject.toml
    scripts/merge_markers.py
    src/my_service/__init__.py
    src/my_service/__main__.py
    src/my_service/app.py
    src/my_service/body_limit.py
    src/my_service/data_folder.py
    src/my_service/errors.py
    src/my_service/health.py
    src/my_service/healthcheck.py
    src/my_service/log.py
    src/my_service/problems.py
    src/my_service/records/__init__.py
    src/my_service/records/cursor.py
    src/my_service/records/router.py
    src/my_service/records/store.py
    src/my_service/server.py
    src/my_service/settings.py
    src/my_service/start.py
    src/my_service/storage.py
    tests/conftest.py
    tests/test_body_limit.py
    tests/test_cursor.py
    tests/test_lifecycle.py
    tests/test_logs.py
    tests/test_merge_markers.py
    tests/test_openapi.py
    tests/test_problems.py
    tests/test_record_store.py
    tests/test_records_api.py
    tests/test_settings.py
    tests/test_start.py
"""
PLAIN_ONLY = """
    src/my_service/records/sqlite_store.py
    tests/test_sqlite_store.py
"""
HARDENED_ONLY = """
    deploy/as-service
    deploy/my-service.service
    docker/collect_runtime.py
    docker/seccomp.json
    docs/security/ADVISORIES.md
    docs/security/BACKUP.md
    docs/security/DEPLOYMENT.md
    docs/security/ENCRYPTION.md
    docs/security/KEY-ROTATION.md
    docs/security/KEYS.md
    docs/security/PERFORMANCE.md
    docs/security/SUPPLY-CHAIN.md
    libs/security/benchmarks/__init__.py
    libs/security/benchmarks/own_stores.py
    libs/security/benchmarks/plain_twin.py
    libs/security/benchmarks/rotation.py
    libs/security/benchmarks/rotation_worker.py
    libs/security/benchmarks/security_benchmark.py
    libs/security/benchmarks/slow_disk.py
    libs/security/benchmarks/start.py
    libs/security/benchmarks/store_driver.py
    libs/security/benchmarks/store_measures.py
    libs/security/benchmarks/store_report.py
    libs/security/benchmarks/store_worker.py
    libs/security/pyproject.toml
    libs/security/security_probe/__init__.py
    libs/security/security_probe/__main__.py
    libs/security/security_probe/answer.py
    libs/security/security_probe/collect.py
    libs/security/security_probe/container.py
    libs/security/security_probe/container_points.py
    libs/security/security_probe/document.py
    libs/security/security_probe/engine.py
    libs/security/security_probe/errors.py
    libs/security/security_probe/facts.py
    libs/security/security_probe/files.py
    libs/security/security_probe/finding.py
    libs/security/security_probe/image.py
    libs/security/security_probe/image_points.py
    libs/security/security_probe/inside.py
    libs/security/security_probe/inside_points.py
    libs/security/security_probe/libraries.py
    libs/security/security_probe/origin.py
    libs/security/security_probe/plain_text.py
    libs/security/security_probe/points.py
    libs/security/security_probe/rebuild.py
    libs/security/security_probe/report.py
    libs/security/security_probe/restart.py
    libs/security/security_probe/seccomp.py
    libs/security/security_probe/secret_texts.py
    libs/security/security_probe/summary.py
    libs/security/src/service_security/__init__.py
    libs/security/src/service_security/__main__.py
    libs/security/src/service_security/_files.py
    libs/security/src/service_security/cli.py
    libs/security/src/service_security/command_line.py
    libs/security/src/service_security/command_options.py
    libs/security/src/service_security/doctor.py
    libs/security/src/service_security/drill_command.py
    libs/security/src/service_security/errors.py
    libs/security/src/service_security/file_systems.py
    libs/security/src/service_security/findings.py
    libs/security/src/service_security/key_command.py
    libs/security/src/service_security/key_report.py
    libs/security/src/service_security/keys/__init__.py
    libs/security/src/service_security/keys/bip39_english.txt
    libs/security/src/service_security/keys/derivation.py
    libs/security/src/service_security/keys/envelope.py
    libs/security/src/service_security/keys/environment.py
    libs/security/src/service_security/keys/initialise.py
    libs/security/src/service_security/keys/key_file.py
    libs/security/src/service_security/keys/keyset.py
    libs/security/src/service_security/keys/passphrase.py
    libs/security/src/service_security/keys/provider.py
    libs/security/src/service_security/keys/recovery.py
    libs/security/src/service_security/keys/reseal.py
    libs/security/src/service_security/keys/rotation.py
    libs/security/src/service_security/keys/sealed_box.py
    libs/security/src/service_security/keys/service_keys.py
    libs/security/src/service_security/keys/source.py
    libs/security/src/service_security/layout.py
    libs/security/src/service_security/process.py
    libs/security/src/service_security/progress.py
    libs/security/src/service_security/py.typed
    libs/security/src/service_security/rotate_command.py
    libs/security/src/service_security/secret_bytes.py
    libs/security/src/service_security/store/__init__.py
    libs/security/src/service_security/store/backup.py
    libs/security/src/service_security/store/backup_file.py
    libs/security/src/service_security/store/backup_header.py
    libs/security/src/service_security/store/backup_stream.py
    libs/security/src/service_security/store/batches.py
    libs/security/src/service_security/store/cipher.py
    libs/security/src/service_security/store/command.py
    libs/security/src/service_security/store/copying.py
    libs/security/src/service_security/store/creation.py
    libs/security/src/service_security/store/current_keys.py
    libs/security/src/service_security/store/field.py
    libs/security/src/service_security/store/group_commit.py
    libs/security/src/service_security/store/header.py
    libs/security/src/service_security/store/info.py
    libs/security/src/service_security/store/key_retirement.py
    libs/security/src/service_security/store/key_rotation.py
    libs/security/src/service_security/store/key_status.py
    libs/security/src/service_security/store/key_validation.py
    libs/security/src/service_security/store/keys_lock.py
    libs/security/src/service_security/store/kind.py
    libs/security/src/service_security/store/live_keyset.py
    libs/security/src/service_security/store/log.py
    libs/security/src/service_security/store/new_master.py
    libs/security/src/service_security/store/nonce.py
    libs/security/src/service_security/store/other_kind.py
    libs/security/src/service_security/store/reader.py
    libs/security/src/service_security/store/record.py
    libs/security/src/service_security/store/recovery_drill.py
    libs/security/src/service_security/store/reencryption.py
    libs/security/src/service_security/store/replacement.py
    libs/security/src/service_security/store/report.py
    libs/security/src/service_security/store/rewrapping.py
    libs/security/src/service_security/store/rotation_report.py
    libs/security/src/service_security/store/rotation_steps.py
    libs/security/src/service_security/store/row_pages.py
    libs/security/src/service_security/store/salvage.py
    libs/security/src/service_security/store/schema.py
    libs/security/src/service_security/store/secure_db.py
    libs/security/src/service_security/store/self_test.py
    libs/security/src/service_security/store/sqlite_errors.py
    libs/security/src/service_security/store/store_file.py
    libs/security/src/service_security/store/transfer.py
    libs/security/src/service_security/store/verification.py
    libs/security/src/service_security/store/writer.py
    libs/security/src/service_security/terminal.py
    libs/security/supply_chain/__init__.py
    libs/security/supply_chain/__main__.py
    libs/security/supply_chain/contents.py
    libs/security/supply_chain/image_archive.py
    libs/security/supply_chain/installed_files.py
    libs/security/supply_chain/lock_file.py
    libs/security/supply_chain/release.py
    libs/security/supply_chain/sbom.py
    libs/security/supply_chain/tools.py
    libs/security/tests/conftest.py
    libs/security/tests/failing_vfs.py
    libs/security/tests/guide.py
    libs/security/tests/image_maker.py
    libs/security/tests/independent_backup_reader.py
    libs/security/tests/independent_reader.py
    libs/security/tests/master_killer.py
    libs/security/tests/probe_fake_docker.py
    libs/security/tests/probe_recorded.py
    libs/security/tests/probe_sample.py
    libs/security/tests/rotation_cases.py
    libs/security/tests/rotation_killer.py
    libs/security/tests/samples/0.1.0/aes256gcm.db
    libs/security/tests/samples/0.1.0/container-secret.backup
    libs/security/tests/samples/0.1.0/envelope-container-secret.json
    libs/security/tests/samples/0.1.0/envelope-environment.json
    libs/security/tests/samples/0.1.0/envelope-key-file.json
    libs/security/tests/samples/0.1.0/envelope-passphrase.json
    libs/security/tests/samples/0.1.0/envelope-recovery.json
    libs/security/tests/samples/0.1.0/environment.backup
    libs/security/tests/samples/0.1.0/for_testing_only.key
    libs/security/tests/samples/0.1.0/key-file.backup
    libs/security/tests/samples/0.1.0/recovery.backup
    libs/security/tests/samples/0.1.0/xchacha20poly1305.db
    libs/security/tests/service_folders.py
    libs/security/tests/test_backup.py
    libs/security/tests/test_backup_format.py
    libs/security/tests/test_backup_guide.py
    libs/security/tests/test_backup_restore.py
    libs/security/tests/test_backup_stream.py
    libs/security/tests/test_batches.py
    libs/security/tests/test_benchmark.py
    libs/security/tests/test_cipher.py
    libs/security/tests/test_cli.py
    libs/security/tests/test_db_command.py
    libs/security/tests/test_device_failures.py
    libs/security/tests/test_doctor.py
    libs/security/tests/test_encryption_page.py
    libs/security/tests/test_envelope.py
    libs/security/tests/test_environment_key.py
    libs/security/tests/test_field.py
    libs/security/tests/test_fork.py
    libs/security/tests/test_format.py
    libs/security/tests/test_group_commit.py
    libs/security/tests/test_initialise.py
    libs/security/tests/test_key_command.py
    libs/security/tests/test_key_source.py
    libs/security/tests/test_keys_guide.py
    libs/security/tests/test_keyset.py
    libs/security/tests/test_leaks.py
    libs/security/tests/test_memory.py
    libs/security/tests/test_never_create.py
    libs/security/tests/test_new_master.py
    libs/security/tests/test_nonce.py
    libs/security/tests/test_page_damage.py
    libs/security/tests/test_passphrase.py
    libs/security/tests/test_plaintext.py
    libs/security/tests/test_probe_command.py
    libs/security/tests/test_probe_engine.py
    libs/security/tests/test_probe_files.py
    libs/security/tests/test_probe_inside.py
    libs/security/tests/test_probe_junk.py
    libs/security/tests/test_probe_points.py
    libs/security/tests/test_probe_report.py
    libs/security/tests/test_process.py
    libs/security/tests/test_recovery.py
    libs/security/tests/test_recovery_drill.py
    libs/security/tests/test_reseal.py
    libs/security/tests/test_rotation.py
    libs/security/tests/test_rotation_benchmark.py
    libs/security/tests/test_rotation_crash.py
    libs/security/tests/test_rotation_damage.py
    libs/security/tests/test_rotation_destruction.py
    libs/security/tests/test_rotation_guide.py
    libs/security/tests/test_rotation_load.py
    libs/security/tests/test_rotation_states.py
    libs/security/tests/test_sbom.py
    libs/security/tests/test_sealed_box.py
    libs/security/tests/test_secret_bytes.py
    libs/security/tests/test_secure_db.py
    libs/security/tests/test_self_test.py
    libs/security/tests/test_snapshot.py
    libs/security/tests/test_store_contract.py
    libs/security/tests/test_supply_archive.py
    libs/security/tests/test_supply_release.py
    libs/security/tests/test_terminal.py
    libs/security/tests/test_transaction.py
    libs/security/tests/test_transfer.py
    libs/security/tests/test_verification.py
    renovate.json
    scripts/container_key.py
    src/my_service/key_keeper.py
    src/my_service/records/secure_store.py
    src/my_service/smoke.py
    tests/test_container_key.py
    tests/test_encryption.py
    tests/test_import_and_export.py
    tests/test_key_keeper.py
    tests/test_key_sources.py
    tests/test_smoke.py
"""
TPM_ONLY = """
    deploy/tpm.conf
    docker-compose.tpm.yml
    docs/security/TPM.md
    libs/security/src/service_security/keys/tpm/__init__.py
    libs/security/src/service_security/keys/tpm/address.py
    libs/security/src/service_security/keys/tpm/areas.py
    libs/security/src/service_security/keys/tpm/client.py
    libs/security/src/service_security/keys/tpm/command.py
    libs/security/src/service_security/keys/tpm/errors.py
    libs/security/src/service_security/keys/tpm/framing.py
    libs/security/src/service_security/keys/tpm/marshalling.py
    libs/security/src/service_security/keys/tpm/pcrs.py
    libs/security/src/service_security/keys/tpm/provider.py
    libs/security/src/service_security/keys/tpm/report.py
    libs/security/src/service_security/keys/tpm/root_key.py
    libs/security/src/service_security/keys/tpm/session.py
    libs/security/src/service_security/keys/tpm/slot.py
    libs/security/src/service_security/keys/tpm/transport.py
    libs/security/tests/fake_tpm.py
    libs/security/tests/software_tpm.py
    libs/security/tests/test_tpm_address.py
    libs/security/tests/test_tpm_areas.py
    libs/security/tests/test_tpm_bus.py
    libs/security/tests/test_tpm_command.py
    libs/security/tests/test_tpm_framing.py
    libs/security/tests/test_tpm_guide.py
    libs/security/tests/test_tpm_memory.py
    libs/security/tests/test_tpm_provider.py
    libs/security/tests/test_tpm_report.py
    libs/security/tests/test_tpm_session.py
    libs/security/tests/test_tpm_simulator.py
    libs/security/tests/test_tpm_source.py
    libs/security/tests/test_tpm_tools.py
    libs/security/tests/test_tpm_transport.py
"""
GITHUB_ONLY = """
    .github/dependabot.yml
    .github/workflows/ci.yml
    .github/workflows/template-update.yml
"""

HARDENED_GITHUB_ONLY = """
    .github/workflows/security-scan.yml
"""
TABLES = (ALWAYS, PLAIN_ONLY, HARDENED_ONLY, TPM_ONLY, GITHUB_ONLY, HARDENED_GITHUB_ONLY)

# What a plain service must not even mention. "security" and "encrypt" also stand for every longer word.
HARDENING_WORDS = re.compile(
    r"""
    secur | encrypt | decrypt | cipher | harden | tpm | envelope | master.?key | key.?file | distroless
    | seccomp | sbom | cosign | renovate | vault | nonce | aead | aes.?256 | chacha | poly1305 | apsw
    | cryptograph | cap_drop | no-new-privileges | threat | advisor
    """,
    re.VERBOSE | re.IGNORECASE,
)


def expected(answers: Answers) -> set[str]:
    """Add up the tables for one combination."""
    hardened = answers["enable_security_hardening"]
    tables = [ALWAYS, HARDENED_ONLY if hardened else PLAIN_ONLY]
    tables += [TPM_ONLY] if hardened and answers["tpm_enabled"] else []
    if answers["ci_provider"] == "github":
        tables += [GITHUB_ONLY, HARDENED_GITHUB_ONLY] if hardened else [GITHUB_ONLY]
    return {name for table in tables for name in table.split()}


@pytest.mark.parametrize("answers", COMBINATIONS, ids=label)
def test_each_combination_has_exactly_the_files_of_its_tables(
    rendered: Callable[[Answers], Path], answers: Answers
) -> None:
    assert sorted(contents(rendered(answers))) == sorted(expected(answers))


def test_no_file_stands_in_two_tables() -> None:
    named = [name for table in TABLES for name in table.split()]
    assert len(named) == len(set(named))


def mentions(project: Path) -> dict[str, list[str]]:
    """Find the words of the hardening in every name and every line of a project."""
    found = {}
    for name, data in contents(project).items():
        words = HARDENING_WORDS.findall(name)
        if name != ANSWERS_FILE:  # holds the answer itself
            words += HARDENING_WORDS.findall(data.decode(errors="replace"))
        if words:
            found[name] = words
    return found


@pytest.mark.parametrize("license_", ["MIT", "Apache-2.0", "proprietary"])
@pytest.mark.parametrize("ci", ["github", "none"])
def test_plain_service_does_not_mention_the_hardening(
    rendered: Callable[[Answers], Path], ci: str, license_: str
) -> None:
    assert mentions(rendered({"ci_provider": ci, "license": license_})) == {}


def test_the_search_for_mentions_finds_them_in_a_hardened_service(
    rendered: Callable[[Answers], Path],
) -> None:
    found = mentions(rendered(HARDENED_TPM))
    words = {word.lower() for words in found.values() for word in words}
    assert {
        "secur",
        "encrypt",
        "cipher",
        "harden",
        "tpm",
        "envelope",
        "distroless",
        "seccomp",
        "nonce",
    } <= words
    assert {"README.md", "pyproject.toml", "Dockerfile", "docs/security/TPM.md"} <= set(found)


@pytest.mark.parametrize("cipher", ["xchacha20poly1305", "aes256gcm"])
@pytest.mark.parametrize("tpm", [False, True])
def test_answers_behind_the_flag_change_nothing_without_it(
    rendered: Callable[[Answers], Path], cipher: str, tpm: bool
) -> None:
    # `--data` can answer a question that is not asked.
    answers = {"enable_security_hardening": False, "encryption_backend": cipher, "tpm_enabled": tpm}
    assert contents(rendered(answers)) == contents(rendered(PLAIN))
