"""The command ``keys rotate``: a new key for the records, or a new master key."""

import argparse
from typing import Final, Self

from .command_options import say_setting, service_source, slot_source, unbacked_pcrs
from .errors import ConfigurationError
from .keys.provider import TPM2
from .keys.service_keys import (
    ServiceKeys,
    next_envelope,
    open_envelope,
    open_master_key,
)
from .keys.source import KeySource
from .layout import DataFolder
from .progress import ProgressLine
from .store.kind import Kind, kind_of
from .store.new_master import change_master
from .store.rotation_report import Rotated, RotationStep
from .store.secure_db import SecureDb
from .terminal import NewPhrase

_FOR_MASTER: Final = ("to", "also", "phrase_file", "no_recovery", "pcrs", "passphrase_profile")

_STEPS: Final = {
    "generated": "Key {key} was made.",
    "rotating": "Key {key} seals new records; the others are moved to it.",
    "validating": "{records} records were moved to key {key}. All are read now.",
    "active": "{records} records were read; key {key} is active.",
    "retiring": "Key {key} retires.",
    "rolling back": "Key {key} is given up; its records are moved back to the old key.",
    "destroyed": "Key {key} was destroyed.",
    "log emptied": "The log was emptied.",
    "forgotten": "Key {key} is not listed any more.",
}
_VERBS: Final = {"validating": "read", "rolling back": "moved back"}
_MASTER_STEPS: Final = {
    "sealed": "{} has a new master key.",
    "resumed": "Going on with the change that was interrupted; {} has the new master key.",
    "changed": "{} is under it.",
    "kept": "{} keeps the old one.",
    "published": "{} is the new one now.",
}


def rotate(options: argparse.Namespace) -> int:
    """Run the command; the status is 1 when there are damaged records."""
    given = [name for name in _FOR_MASTER if getattr(options, name)]
    if given and not options.master:
        raise ConfigurationError(
            f"--{given[0].replace('_', '-')} is for a new master key. Add --master, or leave it "
            "out."
        )
    if options.cipher and (options.master or options.roll_back):
        raise ConfigurationError(
            "--cipher is for a new key of the records, and no such key is made here. Leave it out."
        )
    return _rotate_master(options) if options.master else _rotate_records(options)


# A new key for the records


def _rotate_records(options: argparse.Namespace) -> int:
    folder = DataFolder(options.data_dir)
    kind = kind_of(folder.database)
    if kind is not Kind.ENCRYPTED:
        raise ConfigurationError(
            f"{folder.database} is {kind.value}, and there are keys in an encrypted store only. "
            "Name its folder with --data-dir or SERVICE_DATA_DIR."
        )
    with (
        open_master_key(folder.envelope, service_source(options)) as master,
        SecureDb.open(folder.database, master) as store,
        _Teller(quiet=options.quiet) as teller,
    ):
        rotation, rotated = store.rotation(), None
        if options.roll_back:
            rotated = rotation.roll_back(progress=teller.progress, on_step=teller.step)
        elif not options.if_due:
            rotated = rotation.run(
                cipher=options.cipher, progress=teller.progress, on_step=teller.step
            )
        tended = rotation.tend(
            interval=options.interval if options.if_due else None,
            cipher=options.cipher,
            progress=teller.progress,
            on_step=teller.step,
        )
        teller.end_line()
        rotated = rotated or tended.rotated
        done = rotated or tended.destroyed or tended.forgotten or tended.log_emptied is not None
        if tended.elsewhere:
            print("The keys are being changed by somebody else right now; nothing was done here.")
        elif not (done or tended.kept or options.quiet):
            print("Nothing is due.")
        if rotated:
            print(_outcome(rotated))
        for sentence in dict.fromkeys((rotated.sentences if rotated else ()) + tended.sentences):
            print(sentence)
        if done:
            print(*rotation.status(interval=None).assurance, sep="\n")
    return 1 if tended.kept or (rotated and rotated.damaged) else 0


def _outcome(rotated: Rotated) -> str:
    again = " again" if rotated.rolled_back else ""
    return (
        f"Key {rotated.key_id} ({rotated.cipher}) seals the records{again}; {rotated.records} were "
        f"moved to it. Key {rotated.old_key_id} is destroyed when its 24 hours of grace are over: "
        "by the service, or by keys rotate --if-due."
    )


class _Teller:
    """Prints steps, each on a line of its own beside the line that shows the progress."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._line = ProgressLine("moved", shown=not quiet)

    def progress(self, done: int, total: int) -> None:
        """Show how far a pass over the records is."""
        self._line(done, total)

    def step(self, step: RotationStep) -> None:
        """Print a step, and begin a new line for what follows on it."""
        if self._quiet:
            return
        self.end_line()
        print(_STEPS[step.step].format(key=step.key_id, records=step.records), flush=True)
        self._line = ProgressLine(_VERBS.get(step.step, "moved"))

    def end_line(self) -> None:
        """End the line that shows the progress."""
        self._line.__exit__()
        self._line = ProgressLine("moved", shown=not self._quiet)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_line()


# A new master key


def _rotate_master(options: argparse.Namespace) -> int:
    folder = DataFolder(options.data_dir)
    envelopes = folder.envelope, next_envelope(folder.envelope)
    with (
        open_envelope(folder.envelope, service_source(options)) as old,
        NewPhrase(options.phrase_file, *envelopes, wanted=not options.no_recovery) as phrase,
    ):
        done = change_master(
            folder,
            old,
            _source_of_new_slot(options, old),
            recovery=phrase,
            also=options.also,
            on_step=lambda step, file: print(_MASTER_STEPS[step].format(file), flush=True),
        )
    for path, reason in done.left:
        print(f"{path} was left as it is: {reason}.")
    print(f"The new master key opens with {done.provider}", end="")
    print(" or the new recovery phrase." if done.has_recovery else "; there is no recovery phrase.")
    say_setting(done.provider, options)
    if str(done.provider) == str(old.provider) and done.provider.slot_type != TPM2:
        print(
            "It is sealed under the wrapping key of before. Where that may have leaked, nothing is"
        )
        print("won yet: run this again with --to SOURCE, a new one.")
    print(f"{done.previous} still opens, with the key or the phrase of before: copies of the")
    print("databases from before, and single fields that were sealed for other databases. Seal")
    print("those anew, then delete it and such copies. Backups of before open with the phrase of")
    print("before, too; make a new one.")
    return 0


def _source_of_new_slot(options: argparse.Namespace, old: ServiceKeys) -> KeySource:
    """Return the source of the new master key's slot: as before, unless options say otherwise."""
    if not options.to:
        fields = old.envelope.slots[old.provider.slot_type].fields
        options.passphrase_profile = options.passphrase_profile or fields.get("profile")
        if fields.get("pcrs") and not options.pcrs:
            options.pcrs = tuple(int(number) for number in fields["pcrs"].split(","))
    if options.pcrs and options.no_recovery:
        raise unbacked_pcrs("Leave --no-recovery out.")
    return slot_source(options.to or str(old.provider), options)
