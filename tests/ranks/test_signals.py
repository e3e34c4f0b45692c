"""The first signal is a request, a second one acts as without this program."""

import signal

import pytest

from astra_mpi.ranks.signals import SIGNALS, StopRequests


@pytest.fixture(autouse=True)
def default_handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_interrupt_acts_at_once():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopRequests() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_would_end_the_process():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with StopRequests() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigusr1_may_come_twice_and_is_told_rather_than_the_sigterm_after_it():
    with StopRequests() as stop:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signum == signal.SIGUSR1
    assert stop.signum == signal.SIGUSR1
