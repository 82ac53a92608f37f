"""Write the SBOM of an image, in CycloneDX 1.6.

The same image and lock file give the same bytes: the serial number is derived from the image's id,
the time is that of the image, and everything is sorted. The structure:

- the service is the root; it needs its Python distributions, CPython and the base;
- a distribution that comes from the index, and whose files are as installed, has the name and
  SHA-256 that ``uv.lock`` has for the wheel of this version and platform;
- what is linked into a wheel stands inside its distribution, as far as the wheel tells;
- a Debian package names its source, because that is what security trackers know.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    Property,
    XsUri,
)
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.model.license import DisjunctiveLicense, License
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from . import SupplyChainError
from .contents import Bundled, Contents, DebianPackage, Distribution
from .image_archive import Image
from .lock_file import Lock

IMAGE_ID = "image:id"
_LICENCES = LicenseFactory()
_LOCKED = "uv.lock:wheel"
_SHOWN = 5


class Sbom:
    """The SBOM of one image."""

    def __init__(self, image: Image, contents: Contents, lock: Lock) -> None:
        self._image = image
        self._contents = contents
        self._lock = lock
        self.not_locked: list[str] = []
        """What is installed and not in ``uv.lock``: the image and the lock file differ."""
        self.without_hash: list[str] = []
        """What came from the index and cannot be told to be one of the locked wheels."""
        self.not_as_installed: list[str] = []
        """What has other files than it was installed with, with the first of them."""

    def warnings(self, lock: str) -> list[str]:
        """Say why the image is not what the lock file describes, once the text is there.

        Args:
            lock: The name of the lock file.
        """
        said = []
        if self.not_locked:
            said.append(f"{', '.join(self.not_locked)} of the image is not in {lock}")
        if self.not_as_installed:
            said.append(f"changed after it was installed: {', '.join(self.not_as_installed)}")
        if strangers := self._contents.strangers:
            said.append(f"of no distribution of the image: {_first(strangers)}")
        return said

    def text(self) -> str:
        """Return it as JSON."""
        return JsonV1Dot6(self._bom()).output_as_string(indent=2) + "\n"

    def _bom(self) -> Bom:
        distributions = {one.name: self._distribution(one) for one in self._contents.distributions}
        root = distributions.pop(self._lock.service, None)
        if root is None:
            raise SupplyChainError(
                f"{self._lock.service}, which uv.lock is of, is not installed in the image."
            )
        root.type = ComponentType.CONTAINER
        root.properties = [
            Property(name=IMAGE_ID, value=self._image.identity),
            Property(name="image:architecture", value=self._image.architecture),
        ]
        python, base = self._python(), self._base()
        packages = {one.name: self._package(one) for one in self._contents.packages}
        bom = Bom(
            serial_number=uuid.uuid5(uuid.NAMESPACE_OID, self._image.identity),
            components=[*distributions.values(), python, base, *packages.values()],
            dependencies=[
                *self._python_graph(root, distributions, extra=(python, base)),
                _needs(python, [base]),
                _needs(base, packages.values()),
                *self._debian_graph(packages),
            ],
        )
        bom.metadata.timestamp = datetime.fromisoformat(self._image.created)
        bom.metadata.component = root
        return bom

    def _distribution(self, one: Distribution) -> Component:
        reference = f"python:{one.name}@{one.version}"
        locked = self._lock.packages.get((one.name, one.version))
        component = Component(
            name=one.name,
            version=one.version,
            type=ComponentType.LIBRARY,
            bom_ref=reference,
            description=one.summary or None,
            licenses=_licences(one.licence),
            components=[
                _bundled(inner, f"{reference}/{number}") for number, inner in enumerate(one.bundled)
            ],
        )
        if one.faults:
            self.not_as_installed.append(f"{one.name} {one.version} ({_first(one.faults)})")
        if locked is None:
            self.not_locked.append(f"{one.name} {one.version}")
        if locked is None or locked.from_index:
            # A part of this project has no purl: on the index the name may be somebody else's.
            component.purl = PackageURL("pypi", None, one.name, one.version)
        if locked is None or not locked.from_index or one.faults:
            return component
        wheel = locked.wheel(one.tags)
        if wheel is None:
            self.without_hash.append(f"{one.name} {one.version}")
            return component
        name, digest = wheel
        component.hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
        component.properties = [Property(name=_LOCKED, value=name)]
        return component

    def _python(self) -> Component:
        version = self._contents.python
        return Component(
            name="python",
            version=version,
            type=ComponentType.PLATFORM,
            bom_ref=f"cpython@{version}",
            description="The CPython interpreter and its standard library",
            purl=PackageURL("generic", None, "python", version),
            cpe=f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*",
            licenses=_licences("PSF-2.0"),
        )

    def _base(self) -> Component:
        name, version = self._contents.release
        return Component(
            name=name,
            version=version,
            type=ComponentType.OPERATING_SYSTEM,
            bom_ref=f"os:{name}@{version}",
            description="The packages below it are in the image as far as it needs them",
        )

    def _package(self, one: DebianPackage) -> Component:
        system, release = self._contents.release
        same = one.source_version == one.version
        upstream = one.source if same else f"{one.source}@{one.source_version}"
        qualifiers = {"arch": one.architecture, "distro": f"{system}-{release}"}
        if upstream != one.name:
            qualifiers["upstream"] = upstream
        component = Component(
            name=one.name,
            version=one.version,
            type=ComponentType.LIBRARY,
            bom_ref=f"deb:{one.name}@{one.version}",
            purl=PackageURL("deb", system, one.name, one.version, qualifiers),
            licenses=[DisjunctiveLicense(name=name) for name in one.licences],
        )
        if one.homepage:
            component.external_references = [
                ExternalReference(type=ExternalReferenceType.WEBSITE, url=XsUri(one.homepage))
            ]
        return component

    def _python_graph(
        self, root: Component, components: dict[str, Component], extra: tuple[Component, ...]
    ) -> list[Dependency]:
        """Follow the requirements that hold in the image, with the extras that they ask for."""
        installed = {one.name: one for one in self._contents.distributions}
        asked: dict[str, set[str]] = {root.name: set()}
        edges: dict[str, set[str]] = {name: set() for name in installed}
        waiting = [root.name]
        while waiting:
            name = waiting.pop()
            for requirement in installed[name].requirements:
                target = canonicalize_name(requirement.name)
                if target not in installed or not self._holds(requirement, asked[name]):
                    continue
                edges[name].add(target)
                known = asked.get(target)
                if known is None or requirement.extras - known:
                    asked[target] = (known or set()) | requirement.extras
                    waiting.append(target)
        graph = [_needs(root, [*(components[name] for name in edges.pop(root.name)), *extra])]
        return graph + [
            _needs(components[name], [components[one] for one in targets])
            for name, targets in edges.items()
        ]

    def _holds(self, requirement: Requirement, extras: set[str]) -> bool:
        if requirement.marker is None:
            return True
        environment = dict(self._contents.environment)
        return any(
            requirement.marker.evaluate(environment | {"extra": extra}) for extra in extras | {""}
        )

    def _debian_graph(self, packages: dict[str, Component]) -> list[Dependency]:
        return [
            _needs(packages[one.name], [packages[name] for name in one.needs if name in packages])
            for one in self._contents.packages
        ]


def _first(names: Sequence[str]) -> str:
    return "; ".join(names[:_SHOWN]) + (f"; {len(names) - _SHOWN} more" * (len(names) > _SHOWN))


def _needs(component: Component, others: Iterable[Component]) -> Dependency:
    references = {other.bom_ref for other in others} - {component.bom_ref}
    return Dependency(component.bom_ref, [Dependency(reference) for reference in references])


def _licences(text: str) -> list[License]:
    return [_LICENCES.make_from_string(text)] if text else []


def _bundled(one: Bundled, reference: str) -> Component:
    return Component(
        name=one.name,
        version=one.version or None,
        type=ComponentType.LIBRARY,
        bom_ref=reference,
        purl=PackageURL.from_string(one.purl) if one.purl else None,
        cpe=one.cpe or None,
        licenses=_licences(one.licence),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=one.sha256)] if one.sha256 else [],
    )
