"""Who is calling: never what a header says, unless a proxy of the operator's own wrote it."""

import ipaddress
from typing import Any

import pytest

from cair.client_address import client_of
from cair.env import Environment

PROXY = "10.0.0.2"


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "found"),
    [
        ("203.0.113.5", ["198.51.100.1"], "203.0.113.5"),  # a stranger may write what they like
        (PROXY, ["198.51.100.1"], "198.51.100.1"),
        (PROXY, ["192.0.2.9, 198.51.100.1"], "198.51.100.1"),  # the client's own claim stands before what ours saw
        (PROXY, ["192.0.2.9", "198.51.100.1"], "198.51.100.1"),
        (PROXY, ["198.51.100.1, 10.0.0.3"], "198.51.100.1"),  # two proxies of ours
        (PROXY, ["10.0.0.3"], "10.0.0.3"),
        (PROXY, [], PROXY),
        (PROXY, ["198.51.100.1, nonsense"], PROXY),
        (PROXY, ["198.51.100.1, nonsense, 10.0.0.3"], "10.0.0.3"),
        (PROXY, ["198.51.100.1:4711"], "198.51.100.1"),
        (PROXY, ["[2001:db8::1]:4711"], "2001:db8::1"),
        (PROXY, ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.2", ["198.51.100.1"], "198.51.100.1"),
        (PROXY, [","], PROXY),
    ],
)
def test_only_what_our_own_proxies_wrote_counts(settings: Any, peer: str, forwarded_for: list[str], found: str) -> None:
    settings.TRUSTED_PROXIES = (ipaddress.ip_network("10.0.0.0/29"),)
    client = client_of({"client": (peer, 4000)}, forwarded_for)
    assert client is not None and client[0] == found


def test_without_trusted_proxies_the_connection_says_it(settings: Any) -> None:
    settings.TRUSTED_PROXIES = ()
    assert client_of({"client": (PROXY, 4000)}, ["198.51.100.1"]) == (PROXY, 4000)
    assert client_of({"client": None}, ["198.51.100.1"]) is None


@pytest.mark.parametrize(
    ("value", "wrong"), [("10.0.0.0/8, 127.0.0.1", 0), ("::1", 0), ("10.0.0.1/8", 1), ("proxy", 1)]
)
def test_networks_are_read_from_the_environment(value: str, wrong: int) -> None:
    environment = Environment({"TRUSTED_PROXIES": value}, {}, {})
    environment.networks("TRUSTED_PROXIES")
    assert [problem.variable for problem in environment.problems] == ["TRUSTED_PROXIES"] * wrong
