"""Which server gets the next request: limits, ejection, return. Pure, with a clock of the test's own."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import servers
from pipeline.servers import Attempt, Fault, Server, Servers

LOW, HIGH = 0.5, 1.5  # jitter


def make(count: int = 2, most: int = 8) -> Servers:
    return Servers([f"http://s{n}" for n in range(count)], most, random.Random(1))


def begun(them: Servers, count: int, now: float = 0.0) -> list[Attempt]:
    """So many requests, each at the server that was chosen."""
    found = []
    for _ in range(count):
        server = them.choose(now)
        assert server is not None
        found.append(them.begin(server, now))
    return found


def fail(them: Servers, server: Server, now: float, fault: Fault, times: int = 1) -> None:
    for _ in range(times):
        them.failed(them.begin(server, now), now, fault, "it is ill")


def test_the_server_with_the_least_to_do_is_chosen() -> None:
    """In turns where both have the same, and by share of the limit where these differ."""
    them = make()
    one, two = them.all
    assert [attempt.server for attempt in begun(them, 4)] == [one, two, one, two]
    two.limit = 2
    assert [attempt.server for attempt in begun(them, 4)] == [one] * 4


def test_no_server_gets_more_than_its_limit() -> None:
    them = make(2, 3)
    attempts = begun(them, 6)
    assert them.choose(0.0) is None and not them.has_room(0.0)
    them.answered(attempts[1], 1.0)
    assert them.choose(1.0) is attempts[1].server


def test_a_request_goes_to_a_server_that_did_not_fail_it() -> None:
    """It even waits for a place there; but it comes back where there is no other."""
    them = make(2, 1)
    one, two = them.all
    assert them.choose(0.0, {one}) is two
    them.begin(two, 0.0)
    assert them.choose(0.0, {one}) is None
    assert them.choose(0.0, {one, two}) is one
    fail(them, two, 0.0, Fault.UNREACHABLE, servers.UNREACHABLE_FAILURES)
    assert them.choose(0.0, {one}) is one


def test_refusals_of_one_moment_halve_the_limit_once() -> None:
    """All that were sent before the first of them say the same."""
    them = make(1, 64)
    (server,) = them.all
    attempts = begun(them, 64)
    for attempt in attempts[:32]:
        them.refused(attempt, 1.0, 0.0)
    assert (server.limit, server.inflight, server.refusals) == (32, 32, 1)
    for attempt in attempts[32:]:
        them.answered(attempt, 2.0)
    them.refused(them.begin(server, 3.0), 3.0, 0.0)
    assert server.limit == 1  # one was too many


def test_answers_raise_the_limit_by_one_a_round() -> None:
    """Up to what the settings allow."""
    them = make(1, 10)
    (server,) = them.all
    for attempt in begun(them, 8):
        them.refused(attempt, 1.0, 0.0)
    assert server.limit == 4
    for _ in range(4):
        them.answered(them.begin(server, 2.0), 2.0)
    assert server.limit == pytest.approx(5, abs=0.1)
    for _ in range(200):
        them.answered(them.begin(server, 2.0), 2.0)
    assert server.limit == 10


def test_a_server_is_left_alone_for_as_long_as_it_says() -> None:
    them = make()
    one, two = them.all
    them.refused(them.begin(one, 0.0), 0.0, 20.0)
    assert [attempt.server for attempt in begun(them, 3, 19.9)] == [two] * 3
    assert them.changes_at(19.9) == 20.0
    assert them.choose(20.0) is one
    assert them.absence() is None and them.outages() == {}  # to have too much to do is no outage


def test_a_server_that_does_not_say_is_left_alone_for_longer_and_longer() -> None:
    """Until it answers again."""
    them = make(1)
    (server,) = them.all
    now, waits = 0.0, []
    for _ in range(9):
        them.refused(them.begin(server, now), now, None)
        waits.append(server.held_until - now)
        now = server.held_until
    least_s, most_s = servers.REFUSAL_S
    for times, wait_s in enumerate(waits):
        about_s = min(most_s, least_s * 2**times)
        assert LOW * about_s <= wait_s <= HIGH * about_s
    them.answered(them.begin(server, now), now)
    them.refused(them.begin(server, now), now, None)
    assert server.held_until - now <= HIGH * least_s


@pytest.mark.parametrize(
    ("fault", "failures"),
    [(Fault.UNREACHABLE, servers.UNREACHABLE_FAILURES), (Fault.USELESS, servers.USELESS_FAILURES)],
)
def test_failures_in_a_row_eject(fault: Fault, failures: int) -> None:
    """An answer in between makes them count anew; an ejected server gets nothing while another is there."""
    them = make()
    one, two = them.all
    fail(them, one, 0.0, fault, failures - 1)
    them.answered(them.begin(one, 0.0), 0.0)
    fail(them, one, 0.0, fault, failures - 1)
    assert them.outages() == {}
    fail(them, one, 0.0, fault)
    assert them.outages() == {"http://s0": "it is ill"}
    assert {attempt.server for attempt in begun(them, 5)} == {two}


def test_an_ejected_server_comes_back_with_one_request() -> None:
    """After a look that finds it well; from there the limit doubles each round up to half of what it was."""
    them = make(2, 16)
    one, _ = them.all
    fail(them, one, 0.0, Fault.UNREACHABLE, 3)
    assert them.to_look_at(0.4) == []
    assert them.to_look_at(HIGH * servers.EJECTION_S[0]) == [one]
    them.seen_well(one)
    assert (one.limit, one.outage) == (1, None)
    limits = []
    for _ in range(9):
        them.answered(them.begin(one, 2.0), 2.0)
        limits.append(one.limit)
    assert limits[:7] == [2, 3, 4, 5, 6, 7, 8]
    assert 8 < limits[7] < limits[8] < 8.3


def test_a_server_that_fails_when_it_is_back_is_ejected_at_once_and_for_longer() -> None:
    """The look takes no more than a list of models."""
    them = make(1)
    (server,) = them.all
    fail(them, server, 0.0, Fault.UNREACHABLE, 3)
    now = 0.0
    for times in range(8):
        about_s = min(servers.EJECTION_S[1], servers.EJECTION_S[0] * 2**times)
        assert LOW * about_s <= server.look_at - now <= HIGH * about_s
        now = server.look_at
        them.seen_well(server)
        fail(them, server, now, Fault.UNREACHABLE)
        assert server.outage is not None


def test_a_look_that_finds_nothing_puts_the_next_one_off() -> None:
    them = make(1)
    (server,) = them.all
    them.seen_ill(server, 0.0, "does not connect")
    first = server.look_at
    them.seen_ill(server, first, "still not")
    assert server.look_at - first >= LOW * 2 * servers.EJECTION_S[0]
    assert them.outages() == {"http://s0": "still not"}


def test_an_answer_of_an_ejected_server_brings_it_back() -> None:
    """Of a request that was on its way when others failed."""
    them = make(1)
    (server,) = them.all
    slow = them.begin(server, 0.0)
    fail(them, server, 1.0, Fault.UNREACHABLE, 3)
    assert them.absence() is None  # it may still answer that one
    them.answered(slow, 2.0)
    assert them.outages() == {} and them.choose(2.0) is server


def test_servers_are_away_when_none_can_be_reached() -> None:
    them = make(5)
    for server in them.all[1:]:
        fail(them, server, 0.0, Fault.UNREACHABLE, 3)
    assert them.absence() is None
    fail(them, them.all[0], 0.0, Fault.UNREACHABLE, 3)
    assert them.choose(0.0) is None
    assert them.absence() == ("http://s0: it is ill; http://s1: it is ill; http://s2: it is ill; and 2 more")
    them.seen_well(them.all[3])
    assert them.absence() is None and them.choose(0.0) is them.all[3]


def test_servers_that_answer_something_useless_are_not_away() -> None:
    """The requests may be at fault: each is to be tried, one at a time and slowly."""
    them = make(1)
    (server,) = them.all
    fail(them, server, 0.0, Fault.USELESS, servers.USELESS_FAILURES)
    assert them.absence() is None and them.outages() != {}
    (attempt,) = begun(them, 1)
    assert them.choose(0.0) is None
    them.failed(attempt, 0.0, Fault.USELESS, "still")
    assert them.choose(0.0) is None
    assert 0 < them.changes_at(0.0) <= HIGH * servers.USELESS_S[0]
    assert them.choose(them.changes_at(0.0)) is server
    fail(them, server, 0.0, Fault.UNREACHABLE)
    assert them.absence() is not None


def test_a_request_knows_whether_it_was_alone() -> None:
    """Of several that break together, none is, not even the last of them."""
    them = make(1)
    (server,) = them.all
    alone = them.begin(server, 0.0)
    assert alone.is_alone
    second = them.begin(server, 0.0)
    assert not alone.is_alone and not second.is_alone
    them.failed(alone, 0.0, Fault.UNREACHABLE, "")
    assert not second.is_alone


def test_a_silent_server_is_given_up_for_another() -> None:
    """When half of a request's time is over, and only where there is another."""
    them = make()
    one, two = them.all
    attempt = them.begin(one, 0.0)
    assert not them.is_stalled(attempt, 49.0, 100.0)
    assert them.is_stalled(attempt, 50.0, 100.0)
    fail(them, two, 0.0, Fault.UNREACHABLE, 3)
    assert not them.is_stalled(attempt, 50.0, 100.0)
    them.seen_well(two)
    them.answered(them.begin(one, 1.0), 1.0)
    assert not them.is_stalled(attempt, 99.0, 100.0)  # it computes: the request is slow


def test_a_request_that_ran_out_of_time_says_what_the_server_did_meanwhile() -> None:
    """One that answers others has too much to do; one that is silent fails."""
    them = make(1, 64)
    (server,) = them.all
    attempts = begun(them, 64)
    them.answered(attempts[0], 50.0)
    for attempt in attempts[1:]:
        them.ran_out(attempt, 100.0, "late")
    assert (server.limit, server.failures, server.inflight) == (31.5, 0, 0)
    for attempt in begun(them, 5, 101.0):
        them.ran_out(attempt, 200.0, "late")
    assert them.outages() == {"http://s0": "late"}


def test_a_withdrawn_request_says_nothing() -> None:
    them = make(1)
    (server,) = them.all
    them.left(them.begin(server, 0.0))
    assert (server.inflight, server.failures, server.limit) == (0, 0, 8)


EVENTS = ("answered", "refused", "told to wait", "useless", "unreachable", "ran out", "left")


@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from(EVENTS), st.floats(0, 30), st.booleans()), max_size=80
    ),
)
def test_whatever_happens_the_books_balance(
    count: int, most: int, course: list[tuple[int, str, float, bool]]
) -> None:
    """Limits hold, and whoever waits gets a place in the end or is told that none can be reached."""
    them = make(count, most)
    now, inside = 0.0, list[Attempt]()
    for which, event, pause_s, is_well in course:
        now += pause_s
        for server in them.to_look_at(now):
            if is_well:
                them.seen_well(server)
            else:
                them.seen_ill(server, now, "no")
        while chosen := them.choose(now):
            assert chosen.has_room(now) and them.has_room(now)
            inside.append(them.begin(chosen, now))
        if inside:
            end(them, inside.pop(which % len(inside)), event, now)
        assert sum(server.inflight for server in them.all) == len(inside)
        assert all(1 <= server.limit <= most for server in them.all)
        if not inside and them.absence() is None:
            later = max(now, them.changes_at(now)) if them.choose(now) is None else now
            assert later < now + 60 and them.choose(later) is not None


def end(them: Servers, attempt: Attempt, event: str, now: float) -> None:
    """Tell what became of a request."""
    match event:
        case "answered":
            them.answered(attempt, now)
        case "refused":
            them.refused(attempt, now, None)
        case "told to wait":
            them.refused(attempt, now, 5.0)
        case "useless":
            them.failed(attempt, now, Fault.USELESS, "useless")
        case "unreachable":
            them.failed(attempt, now, Fault.UNREACHABLE, "away")
        case "ran out":
            them.ran_out(attempt, now, "late")
        case _:
            them.left(attempt)
