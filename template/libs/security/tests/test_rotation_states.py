"""The life of keys, without a database: what follows on what, and what is due when."""

from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rotation_cases import NOW, RE, RO, A, D, G, V
from service_security.errors import ConfigurationError
from service_security.keys import rotation
from service_security.keys.keyset import Keyset, KeyState
from service_security.keys.rotation import Unfinished, unfinished
from service_security.secret_bytes import SecretBytes

HOUR = 3_600
DAY = 86_400


def _states(keyset: Keyset) -> dict[int, KeyState]:
    return {key.key_id: key.state for key in keyset.record_keys}


def _key(keyset: Keyset, key_id: int) -> bytes:
    with keyset.entries[key_id].key.view as view:
        return bytes(view)


@pytest.fixture
def keyset() -> Keyset:
    return Keyset.new(cipher=1, clock=lambda: NOW)


def test_a_rotation_goes_from_state_to_state(keyset: Keyset) -> None:
    generated = rotation.with_new_key(keyset, 2, NOW + 1)
    assert _states(generated) == {1: A, 3: G}
    assert (generated.primary_id, generated.entries[3].cipher) == (1, 2)
    rotating = rotation.rotating(generated, NOW + 2)
    assert (_states(rotating), rotating.primary_id) == ({1: A, 3: RO}, 3)
    validating = rotation.validating(rotating, NOW + 3)
    assert (_states(validating), validating.primary_id) == ({1: A, 3: V}, 3)
    finished = rotation.finished(validating, NOW + 4)
    assert (_states(finished), finished.primary_id) == ({1: RE, 3: A}, 3)
    assert finished.entries[3].created == NOW + 1
    assert [key.state_since for key in finished.record_keys] == [NOW + 4, NOW + 4]
    later = NOW + 4 + 24 * HOUR
    destroyed = rotation.destroyed(finished, [1], later)
    assert _states(destroyed) == {1: D, 3: A}
    forgotten = rotation.forgotten(destroyed, later + 30 * DAY)
    assert _states(forgotten) == {3: A}
    assert forgotten.generation == keyset.generation + 6


def test_a_keyset_tells_the_direction_of_what_is_unfinished(keyset: Keyset) -> None:
    generated = rotation.with_new_key(keyset, 1, NOW)
    rotating = rotation.rotating(generated, NOW)
    validating = rotation.validating(rotating, NOW)
    back = rotation.rolling_back(rotating, NOW)
    for forward in (generated, rotating, validating):
        assert unfinished(forward) is Unfinished.ROTATION
    for backward in (back, rotation.rolling_back(validating, NOW)):
        assert unfinished(backward) is Unfinished.ROLL_BACK
        assert (_states(backward), backward.primary_id) == ({1: A, 3: RO}, 1)
    for idle in (
        keyset,
        rotation.finished(validating, NOW),
        rotation.rolled_back(back, NOW),
        rotation.rolling_back(generated, NOW),
    ):
        assert unfinished(idle) is None


def test_the_keys_of_a_following_keyset_are_its_own(keyset: Keyset) -> None:
    before = _key(keyset, 1), _key(keyset, 2)
    following = rotation.with_new_key(keyset, 1, NOW)
    keyset.close()
    assert (_key(following, 1), _key(following, 2)) == before
    assert _key(following, 3) not in before


def test_a_destroyed_key_is_zeros_and_no_other_is(keyset: Keyset) -> None:
    validating = rotation.validating(
        rotation.rotating(rotation.with_new_key(keyset, 1, NOW), NOW), NOW
    )
    finished = rotation.finished(validating, NOW)
    assert _key(finished, 1) == _key(keyset, 1) != bytes(32)
    destroyed = rotation.destroyed(finished, [1], NOW + 24 * HOUR)
    assert _key(destroyed, 1) == bytes(32)
    assert _key(destroyed, 2) == _key(keyset, 2)
    assert _key(destroyed, 3) == _key(finished, 3) != bytes(32)


def test_what_was_rolled_back_before_it_began_is_destroyed_at_once(keyset: Keyset) -> None:
    following = rotation.rolling_back(rotation.with_new_key(keyset, 1, NOW), NOW)
    assert (_states(following), following.primary_id) == ({1: A, 3: D}, 1)
    assert _key(following, 3) == bytes(32)


def test_ids_are_not_used_again_when_the_newest_key_is_long_gone(keyset: Keyset) -> None:
    gone = rotation.rolling_back(rotation.with_new_key(keyset, 1, NOW), NOW)
    assert rotation.due_to_forget(gone, NOW + 400 * DAY) == []
    again = rotation.with_new_key(gone, 1, NOW + 400 * DAY)
    assert _states(again) == {1: A, 3: D, 4: G}
    assert rotation.due_to_forget(again, NOW + 400 * DAY) == [3]
    assert rotation.due_to_forget(again, NOW + 30 * DAY - 1) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda keyset: rotation.rotating(keyset, NOW),
        lambda keyset: rotation.validating(keyset, NOW),
        lambda keyset: rotation.finished(keyset, NOW),
        lambda keyset: rotation.rolling_back(keyset, NOW),
        lambda keyset: rotation.rolled_back(keyset, NOW),
        lambda keyset: rotation.destroyed(keyset, [1], NOW + 99 * DAY),
        lambda keyset: rotation.finished(rotation.with_new_key(keyset, 1, NOW), NOW),
        lambda keyset: rotation.validating(rotation.with_new_key(keyset, 1, NOW), NOW),
        lambda keyset: rotation.rolled_back(rotation.with_new_key(keyset, 1, NOW), NOW),
        lambda keyset: rotation.with_new_key(rotation.with_new_key(keyset, 1, NOW), 1, NOW),
        lambda keyset: rotation.finished(_back(keyset), NOW),
        lambda keyset: rotation.validating(_back(keyset), NOW),
        lambda keyset: rotation.rotating(_back(keyset), NOW),
        lambda keyset: rotation.rolling_back(_back(keyset), NOW),
        lambda keyset: rotation.destroyed(_retiring(keyset), [1], NOW + 24 * HOUR - 1),
        lambda keyset: rotation.destroyed(_retiring(keyset), [3], NOW + 24 * HOUR),
        lambda keyset: rotation.destroyed(_retiring(keyset), [2], NOW + 24 * HOUR),
    ],
)
def test_a_change_that_does_not_follow_is_refused(keyset: Keyset, change: object) -> None:
    assert callable(change)
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own words
        change(keyset)
    rotation.destroyed(_retiring(keyset), [1], NOW + 24 * HOUR)  # one that does follow


def _back(keyset: Keyset) -> Keyset:
    return rotation.rolling_back(rotation.rotating(rotation.with_new_key(keyset, 1, NOW), NOW), NOW)


def _retiring(keyset: Keyset) -> Keyset:
    rotating = rotation.rotating(rotation.with_new_key(keyset, 1, NOW), NOW)
    return rotation.finished(rotation.validating(rotating, NOW), NOW)


def test_grace_ends_to_the_second_and_a_clock_set_back_ends_nothing(keyset: Keyset) -> None:
    retiring = _retiring(keyset)
    old, new = retiring.entries[1], retiring.entries[3]
    for later, readable in [(-1, True), (24 * HOUR - 1, True), (24 * HOUR, False)]:
        assert rotation.is_readable(old, NOW + later) is readable
        assert rotation.due_to_destroy(retiring, NOW + later) == ([] if readable else [1])
    for now in (0.0, NOW - 999 * DAY, NOW + 999 * DAY):
        assert rotation.is_readable(new, now)
    assert rotation.is_readable(old, 0)
    assert rotation.due_to_destroy(retiring, 0) == []


def test_a_clock_before_1970_makes_a_keyset_that_can_be_sealed(keyset: Keyset) -> None:
    assert rotation.with_new_key(keyset, 1, -5.0).entries[3].created == 0


def test_a_primary_is_due_by_the_day_it_was_made(keyset: Keyset) -> None:
    assert rotation.rotation_due(keyset, timedelta(days=90)) == NOW + 90 * DAY


@pytest.mark.parametrize("days", [30, 90, 365])
def test_allowed_intervals_are_taken(days: int) -> None:
    assert rotation.checked_interval(timedelta(days=days)) == timedelta(days=days)
    assert rotation.checked_interval(None) is None


@pytest.mark.parametrize(
    "interval", [timedelta(days=30, seconds=-1), timedelta(days=365, seconds=1), timedelta(0)]
)
def test_other_intervals_are_refused(interval: timedelta) -> None:
    with pytest.raises(ConfigurationError, match="every 30 to 365 days"):
        rotation.checked_interval(interval)


def test_a_keyset_that_is_full_is_refused_until_keys_are_forgotten(
    keyset: Keyset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "MAX_KEYS", 4)
    for _ in range(2):
        keyset = rotation.rolling_back(rotation.with_new_key(keyset, 1, NOW), NOW)
    with pytest.raises(ConfigurationError, match="30 days after"):
        rotation.with_new_key(keyset, 1, NOW + 30 * DAY)
    keyset = rotation.forgotten(keyset, NOW + 30 * DAY)
    assert rotation.with_new_key(keyset, 1, NOW).entries.keys() == {1, 2, 4, 5}


def test_the_largest_keyset_can_be_sealed(keyset: Keyset) -> None:
    key = keyset.name_index
    entries = [keyset.primary, key]
    template = keyset.primary
    with SecretBytes(32) as zeros:
        entries += [
            template.copy(key_id=number, state=D, key=zeros)
            for number in range(3, rotation.MAX_KEYS + 1)
        ]
        full = Keyset(1, 1, entries)
        box = full.seal(key.key, b"context")
        assert Keyset.open(key.key, box, b"context").entries.keys() == full.entries.keys()


class Life(RuleBasedStateMachine):
    """Walks through lives of keysets in any order that is allowed, with any clock."""

    keyset: Keyset
    before: Keyset
    used: set[int]
    index_key: bytes
    now: float

    @initialize()
    def begin(self) -> None:
        self.now = NOW
        self.keyset = self.before = Keyset.new(cipher=1, clock=lambda: NOW)
        self.used = {1, 2}
        self.index_key = _key(self.keyset, 2)

    def _follow(self, following: Keyset) -> None:
        self.before, self.keyset = self.keyset, following

    @rule(seconds=st.integers(-3 * DAY, 40 * DAY))
    def time_passes_or_is_set_back(self, seconds: int) -> None:
        self.now += seconds

    @precondition(lambda self: unfinished(self.keyset) is None)
    @rule(cipher=st.sampled_from([1, 2]))
    def generate(self, cipher: int) -> None:
        self._follow(rotation.with_new_key(self.keyset, cipher, self.now))
        new = self.keyset.entries.keys() - self.before.entries.keys()
        assert len(new) == 1
        assert self.used.isdisjoint(new), "an id was used again"
        self.used |= new

    @precondition(lambda self: unfinished(self.keyset) is Unfinished.ROTATION)
    @rule()
    def go_forward(self) -> None:
        key = rotation.key_in_progress(self.keyset)
        assert key is not None
        step = {G: rotation.rotating, RO: rotation.validating, V: rotation.finished}[key.state]
        self._follow(step(self.keyset, self.now))

    @precondition(lambda self: unfinished(self.keyset) is Unfinished.ROTATION)
    @rule()
    def turn_around(self) -> None:
        self._follow(rotation.rolling_back(self.keyset, self.now))

    @precondition(lambda self: unfinished(self.keyset) is Unfinished.ROLL_BACK)
    @rule()
    def end_the_way_back(self) -> None:
        self._follow(rotation.rolled_back(self.keyset, self.now))

    @rule()
    def destroy_what_is_due(self) -> None:
        for key_id in rotation.due_to_destroy(self.keyset, self.now):
            self._follow(rotation.destroyed(self.keyset, [key_id], self.now))

    @rule()
    def forget_what_is_due(self) -> None:
        due = set(rotation.due_to_forget(self.keyset, self.now))
        self._follow(rotation.forgotten(self.keyset, self.now))
        assert self.before.entries.keys() - self.keyset.entries.keys() == due
        assert all(self.before.entries[key_id].state is D for key_id in due)

    @rule()
    def be_opened_again(self) -> None:
        box = self.keyset.seal(self.keyset.name_index.key, b"context")
        again = Keyset.open(self.keyset.name_index.key, box, b"context")
        assert again.entries == self.keyset.entries
        self.before = self.keyset = again

    @invariant()
    def one_key_is_active_and_the_primary_can_seal(self) -> None:
        states = list(_states(self.keyset).values())
        assert states.count(A) == 1
        assert sum(state in (G, RO, V) for state in states) <= 1
        assert self.keyset.primary.state in (RO, V, A)
        assert rotation.is_readable(self.keyset.primary, self.now)

    @invariant()
    def changes_are_along_the_figure_and_counted(self) -> None:
        for key_id, key in self.before.entries.items():
            following = self.keyset.entries.get(key_id)
            if following is None:
                assert key.state is D
            elif following.state is not key.state:
                assert following.state in rotation.NEXT_STATES[key.state]
        changed = self.before is not self.keyset
        assert self.keyset.generation == self.before.generation + changed

    @invariant()
    def keys_stay_until_they_are_destroyed(self) -> None:
        assert _key(self.keyset, 2) == self.index_key
        for key_id, key in self.keyset.entries.items():
            if key.state is D:
                assert _key(self.keyset, key_id) == bytes(32)
            elif key_id in self.before.entries:
                assert _key(self.keyset, key_id) == _key(self.before, key_id) != bytes(32)


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestLife = Life.TestCase
