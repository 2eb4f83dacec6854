"""All checks, in the order in which one explains the next."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from django.conf import settings

from cair.doctor import api, key_ring, provider, public_address, surroundings
from cair.doctor.findings import Finding, NotLookedAt, failure, warning
from cair.doctor.network import SECONDS
from cair.doctor.visit import Visit

Check = Callable[[Visit], Iterable[Finding]]


def checks() -> Iterator[tuple[str, Check]]:
    """Name and function of each check; the name is used where the check itself comes to no finding."""
    yield "environment", surroundings.environment
    yield "database", surroundings.database
    yield "migrations", surroundings.migrations
    yield "redis", surroundings.redis
    yield "clock", surroundings.clock
    yield "PUBLIC_URL", public_address.reachable
    yield "https", public_address.https
    yield "metadata", public_address.documents
    yield "proxy", public_address.proxy
    yield "master keys", key_ring.master_keys
    yield "data keys", key_ring.data_keys
    yield "signing keys", key_ring.signing_keys
    yield "sign-in", provider.sign_in
    for name, configuration in settings.UPSTREAM_PROVIDERS.items():
        if configuration.get("discovery"):
            for what, check in provider.CHECKS:
                yield f"{name} {what}", partial(check, name=name)
    for name in settings.UPSTREAM_APIS:
        for what, check in api.CHECKS:
            yield f"{name} API {what}", partial(check, name=name)
    yield "mail", surroundings.mail


def examine(visit: Visit) -> Iterator[Finding]:
    """Every finding, as soon as it is made. Nothing that goes wrong in one check keeps another from being made."""
    with _quiet(), _impatient():
        for name, check in checks():
            yield from _findings_of(name, check, visit)


def _findings_of(name: str, check: Check, visit: Visit) -> Iterator[Finding]:
    try:
        yield from check(visit)
    except NotLookedAt as reason:
        yield warning(name, f"not looked at: {reason.why}", reason.repair)
    except Exception as error:  # noqa: BLE001 - whatever it was, whoever asks for help gets a sentence, and the rest
        yield failure(
            name, f"this check itself failed: {_place_of(error)}", "Please report this line: CONTRIBUTING.md."
        )


def _place_of(error: Exception) -> str:
    """Kind and place of an error; its text may hold anything."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return error.__class__.__name__
    place = Path(traceback.tb_frame.f_code.co_filename).name
    return f"{error.__class__.__name__} in {place}, line {traceback.tb_lineno}"


@contextmanager
def _quiet() -> Iterator[None]:
    """What the checked modules log is what the findings say, once more and without the repair."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _impatient() -> Iterator[None]:
    """The relay's own calls wait for a slow provider as long as a sign-in may take; here somebody sits and watches."""
    usual = settings.UPSTREAM_TIMEOUT
    settings.UPSTREAM_TIMEOUT = min(usual, int(SECONDS))
    try:
        yield
    finally:
        settings.UPSTREAM_TIMEOUT = usual
