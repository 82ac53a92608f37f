"""Fixtures: the engine, the images of this run, services on it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from scaffold import Shared, Template

from containers.engine import Deploy, Deployment, Variants, require_engine


@pytest.fixture(scope="session")
def engine(_environment: None) -> Iterator[docker.DockerClient]:
    """Return the engine; without one the tests that ask for it are skipped, or fail where all is required."""
    with contextlib.closing(require_engine()) as client:
        yield client


@pytest.fixture(scope="session")
def variants(engine: docker.DockerClient, shared: Shared, template: Template) -> Variants:
    """Return the projects and images that services are started from, each made when it is asked for."""
    del engine  # required first
    return Variants(shared, template)


@pytest.fixture
def deploy(tmp_path: Path, variants: Variants) -> Iterator[Deploy]:
    """Make services of a variant with the key and the envelope, not started, for one test."""
    with contextlib.ExitStack() as stack:

        def make(variant: str = "default", override: str = "", *, initialised: bool = True) -> Deployment:
            deployment = stack.enter_context(variants.deployment(variant, tmp_path, override))
            if initialised and variant != "plain":
                deployment.initialise()
            return deployment

        yield make


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, variants: Variants) -> Iterator[Deploy]:
    """Give a running service of a variant to all tests of a module, which leave it as it is."""
    with contextlib.ExitStack() as stack:
        started: dict[str, Deployment] = {}

        def start(variant: str = "default") -> Deployment:
            if variant not in started:
                place = tmp_path_factory.mktemp("running")
                deployment = stack.enter_context(variants.deployment(variant, place))
                if variant != "plain":
                    deployment.initialise()
                deployment.start()
                started[variant] = deployment
            return started[variant]

        yield start
