set positional-arguments

# List the recipes
_default:
    @just --list

# Scaffold a hardened service outside the checkout, use it, and look at what the disk holds
demo DIR="":
    @uv run python -m scripts.demo {{ if DIR == "" { "" } else { quote(join(invocation_directory(), DIR)) } }}

# Run the library's own suite, then the template's; arguments go to the second
test *ARGS:
    uv run --directory template/libs/security pytest
    uv run --group vectors --group peers python -m pytest "$@"

# Lint, formatting and types, of the root and of the library
check:
    uv run ruff check
    uv run ruff format --check
    uv run mypy
    uv run --directory template/libs/security ruff check
    uv run --directory template/libs/security ruff format --check
    uv run --directory template/libs/security mypy

# Time `copier copy` of a hardened service against a template of one file; arguments: --rounds, --json
benchmark *ARGS:
    uv run python -m benchmarks.generation "$@"

# Time the encrypted store beside its plain twin and its peers; arguments: --quick, --rounds, --large, --dir, --json
security-benchmark *ARGS:
    uv run --group peers python -m benchmarks.store "$@"

# Time a key out of a software TPM beside tpm2-tools and tpm2-pytss; arguments: --rounds, --pytss PYTHON, --json
tpm-benchmark *ARGS:
    uv run python -m benchmarks.tpm "$@"

# Time and weigh the container beside the same service on a slim image; arguments: --rounds, --network, --json
container-benchmark *ARGS:
    uv run python -m benchmarks.container "$@"

# Check everything and tag vVERSION; --export DIR also writes the task-free channel
release VERSION *ARGS:
    uv run python -m scripts.release "$@"
