"""A short run of `make soak`: refresh, retry, theft, withdrawal and crash at two processes (DESIGN §5)."""

import pytest

from tests.servers import Server, database
from tests.soak.fleet import Fleet
from tests.soak.interleavings import KINDS
from tests.soak.run import CRASHED, Soak
from tests.walk import OAuthClient, Person

COUNT = 150
SEED = 1
"""Always the same here: a failure means that something changed. Chance is for `make soak`."""


@pytest.mark.postgres
@pytest.mark.threat("T11")
@pytest.mark.threat("T13")
async def test_no_interleaving_loses_an_honest_client_or_keeps_another() -> None:
    with database("postgres") as url:
        async with Fleet(url, 2) as fleet:
            report = await Soak(fleet, SEED, COUNT).run()
    assert report.violations == [], f"again with: make soak SEED={SEED} COUNT={COUNT} PROCESSES=2"
    assert report.total == COUNT
    assert report.kills and report.broken[CRASHED], "no request was cut short"
    assert set(report.done) >= {kind.__name__ for kind, weight in KINDS.items() if weight >= 10}


@pytest.mark.threat("T13")
@pytest.mark.pain("P15")
def test_two_devices_of_one_person_never_sign_each_other_out(sqlite_server: Server) -> None:
    """A pain of other servers: to authorize on the phone ended the laptop (P15)."""
    laptop = OAuthClient(sqlite_server.url, name="On both").connect(Person(sqlite_server.url))
    phone = OAuthClient(sqlite_server.url, name="On both", client_id=laptop.client_id)
    phone.connect(Person(sqlite_server.url))
    for _ in range(2):
        for device in (laptop, phone):
            device.tokens = device.refresh(device.tokens["refresh_token"]).json()
        assert laptop.call("whoami").status_code == phone.call("whoami").status_code == 200
    phone.revoke(phone.tokens["refresh_token"])
    assert phone.refresh(phone.tokens["refresh_token"]).status_code == 400
    laptop.tokens = laptop.refresh(laptop.tokens["refresh_token"]).json()
    assert laptop.call("whoami").status_code == 200
