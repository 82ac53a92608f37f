"""Write the SBOM of an image, sign both for other machines, verify them there."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from . import SupplyChainError, release, tools
from .image_archive import Image


def _write_sbom(archive: Path, lock: Path, output: Path, *, strict: bool = False) -> Image:
    """Write the SBOM of an archive, and return the image.

    Args:
        archive: What ``docker image save`` has written.
        lock: The service's ``uv.lock``.
        output: The file to write.
        strict: Refuse an image that is not as it was built from this lock file, instead of saying
            so.
    """
    # Not at the top: whoever only verifies needs nothing but the standard library and cosign.
    from .contents import Contents, wanted
    from .lock_file import Lock
    from .sbom import Sbom

    image = Image.read(archive, wanted)
    sbom = Sbom(image, Contents.of(image), Lock.read(lock))
    text = sbom.text()
    said = sbom.warnings(str(lock))
    if said and strict:
        raise SupplyChainError(f"{'; '.join(said)}. Build the image again before you sign it.")
    for warning in said:
        print(f"warning: {warning}", file=sys.stderr)
    for name in sbom.without_hash:
        print(f"warning: no wheel in {lock} is the installed {name}: no hash", file=sys.stderr)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, "utf-8")
    return image


def _sbom(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="sbom-") as scratch:
        archive = Path(scratch) / release.ARCHIVE
        tools.save(options.image, archive)
        image = _write_sbom(archive, options.lock, options.output)
    print(f"{options.output}: SBOM of {options.image}, {image.identity}")


def _sign(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    if folder.exists() and any(folder.iterdir()):
        raise SupplyChainError(f"{folder} is not empty; a release is made in a folder of its own.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".release-", dir=folder.parent) as scratch:
        made = Path(scratch) / "release"  # whole, or not there
        made.mkdir()
        tools.save(options.image, made / release.ARCHIVE)
        image = _write_sbom(made / release.ARCHIVE, options.lock, made / release.SBOM, strict=True)
        if not image.names:
            raise SupplyChainError(
                f"{options.image} is no name: sign the image by the name it has to be loaded under."
            )
        for report in options.add:
            if not report.is_file() or (made / report.name).exists():
                raise SupplyChainError(f"{report} is not there, or its name is taken.")
            shutil.copyfile(report, made / report.name)
        release.sign(made, options.key)
        made.replace(folder)
    print(f"{folder}: {options.image}, {image.identity}, signed with {options.key}")


def _verify(options: argparse.Namespace) -> None:
    image = release.verify(options.folder, options.key)
    names = ", ".join(image.names)
    print(f"{options.folder}: {names}, {image.identity}: as signed")
    if not options.load:
        return
    tools.load(options.folder / release.ARCHIVE)
    # The engine is asked what it has now: not the archive, which somebody may write to.
    for name in image.names:
        with tempfile.TemporaryDirectory(prefix="loaded-") as scratch:
            tools.save(name, archive := Path(scratch) / release.ARCHIVE)
            if (loaded := Image.read(archive).identity) != image.identity:
                raise SupplyChainError(f"The engine has {loaded} as {name}, which is not signed.")
    print(f"The engine has it as {names}.")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="supply_chain", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    of_image = argparse.ArgumentParser(add_help=False)
    of_image.add_argument(
        "--image", required=True, help="name of the image (for an SBOM its id, too)"
    )
    of_image.add_argument(
        "--lock", type=Path, default=Path("uv.lock"), help="what it was built from (%(default)s)"
    )

    sbom = commands.add_parser("sbom", parents=[of_image], help="write the SBOM of an image")
    sbom.add_argument(
        "--output", type=Path, default=Path("reports", release.SBOM), help="(%(default)s)"
    )
    sbom.set_defaults(command=_sbom)

    sign = commands.add_parser(
        "sign", parents=[of_image], help="save an image with its SBOM, and sign both"
    )
    sign.set_defaults(command=_sign)
    verify = commands.add_parser("verify", help="verify what was signed, before it is loaded")
    verify.add_argument("--load", action="store_true", help="and have the engine take it over")
    verify.set_defaults(command=_verify)
    for command, key in ((sign, "cosign.key"), (verify, "cosign.pub")):
        command.add_argument("--key", default=key, help="(%(default)s)")
        command.add_argument("folder", type=Path, nargs="?", default=Path("release"))
    sign.add_argument(
        "--add",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a report that is signed too, like the one of the probes",
    )
    return parser


def main() -> None:
    """Run the command line."""
    options = _options().parse_args()
    try:
        options.command(options)
    except (SupplyChainError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
