"""What ends a permission, and that every process knows within a second."""

import time
import uuid
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.utils import timezone

from oauth_relay import access_tokens, withdrawals
from oauth_relay.access_tokens import InvalidToken, PresentedToken, TokensUnavailable, verify_access_token
from oauth_relay.models import AccessToken, Client, Grant, UpstreamCredential, User, Withdrawal
from tests.oauth_relay.conftest import make_client

pytestmark = pytest.mark.django_db(transaction=True)
MCP, SSE = settings.RESOURCES


def presented(raw: str = "raw", resource: str = MCP, scheme: str = "Bearer") -> PresentedToken:
    return PresentedToken(scheme, raw, "POST", resource, resource)


def issue(user: User, client: Client, raw: str = "raw", /, **fields: Any) -> AccessToken:
    grant, _ = Grant.objects.get_or_create(user=user, client=client, withdrawn_at=None)
    values = {
        "user": user, "application": client, "grant": grant, "family": uuid.uuid4(), "scope": "read:todos",
        "resource": [MCP], "expires": timezone.now() + timedelta(minutes=10), **fields,
    }  # fmt: skip
    token = AccessToken(token="", **values)
    token._raw_token = raw
    token.save()
    return token


in_thread = sync_to_async(thread_sensitive=False)


# -- every way out writes the log --------------------------------------------------------------------------------------


@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    "switch_off",
    [
        lambda user: User.objects.filter(pk=user.pk).update(is_active=False),
        lambda user: User.objects.bulk_update([_inactive(user)], ["is_active"]),
        lambda user: _inactive(user).save(),
        lambda user: _inactive(user).save(update_fields=["is_active"]),
        lambda user: User.objects.update_or_create(pk=user.pk, defaults={"is_active": False}),
    ],
)
def test_switching_a_person_off_on_any_path_writes_the_withdrawal(ada: User, switch_off: Any) -> None:
    switch_off(ada)
    assert Withdrawal.objects.filter(kind="user", reference=str(ada.pk)).exists()


def _inactive(user: User) -> User:
    user.is_active = False
    return user


@pytest.mark.threat("T12")
@pytest.mark.pain("P30")
@pytest.mark.parametrize("remove", [lambda row: row.delete(), lambda row: type(row).objects.filter(pk=row.pk).delete()])
def test_deleting_a_person_or_a_client_writes_the_withdrawal(ada: User, inspector: Client, remove: Any) -> None:
    issue(ada, inspector)
    numbers = (inspector.pk, ada.pk)
    remove(inspector)
    remove(ada)
    for kind, number in zip(("client", "user"), numbers, strict=True):
        assert Withdrawal.objects.filter(kind=kind, reference=str(number)).exists()


def test_an_active_person_saved_is_no_withdrawal(ada: User) -> None:
    ada.save()
    User.objects.update(is_active=True)
    assert not Withdrawal.objects.exists()


@pytest.mark.threat("T11")
def test_withdrawing_is_one_update_and_happens_once(ada: User, inspector: Client) -> None:
    grant = issue(ada, inspector).grant
    assert withdrawals.withdraw_grant(grant.pk, "person") is True
    assert withdrawals.withdraw_grant(grant.pk, "person") is False
    grant.refresh_from_db()
    assert grant.withdrawn_by == "person"
    assert Withdrawal.objects.filter(kind="grant").count() == 1


def test_the_last_grant_takes_the_upstream_credential_with_it(ada: User, inspector: Client) -> None:
    first, second = issue(ada, inspector, "a").grant, issue(ada, make_client("Other"), "b").grant
    UpstreamCredential.objects.create(user=ada, provider="auth0", audience="x", issuer="i", subject="s", tokens=b"")
    withdrawals.withdraw_grant(first.pk, "person")
    assert UpstreamCredential.objects.count() == 1
    withdrawals.withdraw_grant(second.pk, "person")
    assert UpstreamCredential.objects.count() == 0


# -- door 1 ------------------------------------------------------------------------------------------------------------


async def test_a_good_token_proves_its_principal(ada: User, inspector: Client) -> None:
    token = await in_thread(issue)(ada, inspector)
    principal = await verify_access_token(presented())
    assert (principal.subject, principal.client_id, principal.grant_id) == (
        ada.subject,
        inspector.client_id,
        token.grant_id,
    )
    assert (principal.scopes, principal.resource) == ({"read:todos"}, MCP)
    assert "raw" not in repr(presented())


@pytest.mark.threat("T15")
@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, {"resource": SSE}),
        ({}, {"resource": MCP + "/"}),
        ({}, {"scheme": "DPoP"}),
        ({}, {"raw": "other"}),
        ({"resource": []}, {}),
        ({"resource": [SSE]}, {}),
        ({"expires": timezone.now() - timedelta(seconds=1)}, {}),
        ({"user": None}, {}),
        ({"grant": None}, {}),
    ],
)
async def test_a_token_is_good_for_exactly_what_it_was_issued_for(
    ada: User, inspector: Client, fields: dict[str, Any], shown: dict[str, str]
) -> None:
    await in_thread(issue)(ada, inspector, **fields)
    with pytest.raises(InvalidToken):
        await verify_access_token(presented(**shown))


async def test_a_hit_needs_no_database(ada: User, inspector: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await in_thread(issue)(ada, inspector)
    first = await verify_access_token(presented())

    async def no_database(*args: Any) -> None:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(access_tokens, "in_database", no_database)
    assert await verify_access_token(presented()) is first


@pytest.mark.threat("T12")
@pytest.mark.parametrize("kind", ["grant", "family", "client", "user"])
async def test_a_withdrawal_reaches_the_cache_within_a_second(ada: User, inspector: Client, kind: str) -> None:
    token = await in_thread(issue)(ada, inspector)
    await verify_access_token(presented())

    def end() -> None:
        match kind:
            case "grant":
                withdrawals.withdraw_grant(token.grant_id, "test")
            case "client":
                withdrawals.block_client(inspector)
            case "user":
                User.objects.filter(pk=ada.pk).update(is_active=False)
            case "family":
                withdrawals.withdraw_family(token.family, token.grant, "test")

    ended = await in_thread(end)()
    assert ended is None
    started = time.monotonic()
    reader = withdrawals.reader()
    seen = reader.count
    while reader.count == seen:
        await reader.read()
        assert time.monotonic() - started < 5
    with pytest.raises(InvalidToken):
        await verify_access_token(presented())


@pytest.mark.threat("T12")
async def test_what_came_during_the_look_up_is_not_cached(
    ada: User, inspector: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await in_thread(issue)(ada, inspector)
    await withdrawals.reader().ready()
    look_up = access_tokens._look_up

    async def withdrawn_meanwhile(*args: Any) -> Any:
        found = await in_thread(look_up)(*args)
        await in_thread(withdrawals.withdraw_grant)(token.grant_id, "test")
        await withdrawals.reader().read()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(access_tokens, "in_database", lambda function, *args: withdrawn_meanwhile(*args))
        await verify_access_token(presented())  # it was good when it was read …
    with pytest.raises(InvalidToken):
        await verify_access_token(presented())  # … and must not be remembered


@pytest.mark.threat("T12")
async def test_a_late_reader_is_not_trusted_and_a_dead_one_answers_503(
    ada: User, inspector: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await in_thread(issue)(ada, inspector)
    await verify_access_token(presented())
    reader = withdrawals.reader()
    assert reader._task is not None
    reader._task.cancel()
    await in_thread(Grant.objects.filter(pk=token.grant_id).update)(withdrawn_at=timezone.now())

    async def stand_still() -> None:
        return None

    monkeypatch.setattr(reader, "ready", stand_still)
    reader._read_at = time.monotonic() - withdrawals.LATE_AFTER - 0.1
    with pytest.raises(InvalidToken):  # the cache is passed by
        await verify_access_token(presented())
    await in_thread(Grant.objects.filter(pk=token.grant_id).update)(withdrawn_at=None)
    reader._read_at = time.monotonic() - withdrawals.DEAD_AFTER - 0.1
    with pytest.raises(TokensUnavailable):
        await verify_access_token(presented())


@pytest.mark.threat("T12")
async def test_the_reader_finds_what_committed_out_of_order(db: None) -> None:
    create = in_thread(lambda number: Withdrawal.objects.create(id=number, kind="grant", reference=str(number)))
    reader, heard = withdrawals.WithdrawalReader(), []
    reader.listeners.add(lambda kind, reference: heard.append(reference))
    await create(1)
    await reader.read()
    await create(3)
    await reader.read()
    await create(2)  # took its number first, committed last
    await reader.read()
    await reader.read()
    assert heard == ["3", "2"]


@pytest.mark.threat("T12")
async def test_what_commits_after_the_very_first_read_is_heard_whatever_its_number(db: None) -> None:
    create = in_thread(lambda number: Withdrawal.objects.create(id=number, kind="grant", reference=str(number)))
    await create(3)
    reader, heard = withdrawals.WithdrawalReader(), []
    reader.listeners.add(lambda kind, reference: heard.append(reference))
    await reader.read()
    await create(2)
    await reader.read()
    assert heard == ["2"]


async def test_a_watch_is_called_once_and_can_be_taken_off(ada: User, inspector: Client) -> None:
    await in_thread(issue)(ada, inspector)
    principal = await verify_access_token(presented())
    calls: list[str] = []
    access_tokens.when_withdrawn(principal, lambda: calls.append("ended"))
    take_off = access_tokens.when_withdrawn(principal, lambda: calls.append("never"))
    take_off()
    await in_thread(withdrawals.withdraw_grant)(principal.grant_id, "test")
    await withdrawals.reader().read()
    assert calls == ["ended"]
