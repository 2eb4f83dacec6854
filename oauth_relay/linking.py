"""One more way for a person to sign in: a second identity on their account, never by e-mail (T30).

The order is fixed: the person proves anew that the account is theirs, then signs in at the other provider, then sees whom
it named, and only then is that kept. A transaction without a client carries it, in one browser, like any sign-in.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import IntegrityError
from django.db.transaction import atomic
from django.http import HttpRequest
from django.utils import timezone

from oauth_relay import admission, audit, staged_tokens, vault
from oauth_relay.browsers import OWN, mark_browser
from oauth_relay.erasures import erase_credentials
from oauth_relay.identity_providers import TokenAnswer, provider
from oauth_relay.models import Identity, LoginTransaction, User
from oauth_relay.upstream_identities import kept_claims

CONFIRMED_FOR = timedelta(minutes=10)


class NotLinked(Exception):
    """The identity cannot become this person's, or cannot cease to be. The message is for them."""


@dataclass(frozen=True)
class ProposedIdentity:
    """Whom the other provider named, as the person is shown it before it is kept."""

    issuer: str
    subject: str
    claims: Mapping[str, Any]


def label_of(way: str) -> str:
    return "CAIR" if way == OWN else str(settings.UPSTREAM_PROVIDERS[way]["label"])


# -- what there is, and what could be ----------------------------------------------------------------------------------


def ways_of(user: User) -> list[str]:
    """How this person can sign in now: `own`, and the names of providers, in the order of the sign-in page."""
    known = set(user.identities.values_list("provider", flat=True))
    has_password = settings.OWN_ACCOUNTS and user.has_usable_password() and (settings.DEMO_USER or not user.is_demo)
    return [OWN] * has_password + [name for name in settings.UPSTREAM_PROVIDERS if name in known]


def ways_to_confirm(user: User) -> list[str]:
    """Those of them that can prove a fresh sign-in (T30)."""
    return [way for way in ways_of(user) if way == OWN or _says_when_it_asked(way)]


def _says_when_it_asked(provider_name: str) -> bool:
    """Not GitHub, which has no ID tokens, nor Google, whose have no `auth_time`."""
    is_google = settings.UPSTREAM_PROVIDERS[provider_name].get("discovery", "").startswith(f"{admission.GOOGLE}/")
    return provider(provider_name).has_id_tokens and not is_google


def ways_to_add(user: User) -> list[str]:
    """Providers at which this person has no identity; none if they could not prove that the account is theirs.

    The demo user is everybody's: whoever came by would leave their own identity on it.
    """
    if user.is_demo or not settings.ACCOUNT_LINKING or not ways_to_confirm(user):
        return []
    taken = ways_of(user)
    return [name for name in settings.UPSTREAM_PROVIDERS if name not in taken]


# -- step by step ------------------------------------------------------------------------------------------------------


def begin(request: HttpRequest, user: User, provider_name: str) -> LoginTransaction:
    """A transaction in which `user` first signs in again. Raises NotLinked."""
    if provider_name not in ways_to_add(user):
        raise NotLinked("That way to sign in cannot be added to this account.")
    return LoginTransaction.objects.create(
        expires_at=timezone.now() + timedelta(seconds=settings.TRANSACTION_LIFETIME),
        browser_digest=mark_browser(request),
        user=user,
        link_provider=provider_name,
        next_page="/connections",
        prompt="login",
    )


def confirm(transaction: LoginTransaction, user: User | None) -> User:
    """The person has just signed in again, as `user`, who is returned. Raises NotLinked if that is somebody else."""
    if user is None or user.pk != transaction.user_id or not user.is_active:
        raise NotLinked("You signed in as somebody else. The account you wanted to change is not theirs.")
    # From here on the journey is the other provider's, which may sign people in however it likes.
    open_rows = LoginTransaction.objects.filter(pk=transaction.pk, answered_at=None)
    open_rows.update(signed_in_at=timezone.now(), upstream_secrets=None, prompt="")
    transaction.refresh_from_db(fields=["signed_in_at", "upstream_secrets", "prompt"])
    return user


def is_confirmed(transaction: LoginTransaction) -> bool:
    """Whether the person signed in again for this, and not long ago."""
    return transaction.signed_in_at is not None and timezone.now() - transaction.signed_in_at < CONFIRMED_FOR


def propose(transaction: LoginTransaction, claims: Mapping[str, Any], answer: TokenAnswer) -> None:
    """Keep whom the provider named, sealed, until the person has seen it. Raises NotLinked, NotAdmitted."""
    upstream = provider(transaction.link_provider)
    if found := Identity.objects.filter(issuer=claims["iss"], subject=claims["sub"]).first():
        is_own = found.user_id == transaction.user_id
        raise NotLinked(
            f"{upstream.label} named somebody who is known here already: "
            + ("it is you." if is_own else "another account has that identity, and accounts are not merged.")
        )
    sealed = vault.seal(
        json.dumps([claims["iss"], claims["sub"], kept_claims(claims)]).encode(), **identity_binding(transaction)
    )
    with atomic():
        admission.check_admitted(upstream, claims)
        staged_tokens.stage(transaction, answer, issuer=claims["iss"], subject=claims["sub"])
        LoginTransaction.objects.filter(pk=transaction.pk, answered_at=None).update(
            identity_to_link=sealed, upstream_secrets=None
        )


def proposed_identity(transaction: LoginTransaction) -> ProposedIdentity | None:
    """Whom the person has to decide about; None if the other provider has not answered yet."""
    if transaction.identity_to_link is None:
        return None
    opened = vault.open_sealed(transaction.identity_to_link, **identity_binding(transaction))
    return ProposedIdentity(*json.loads(opened))


def identity_binding(transaction: LoginTransaction) -> dict[str, Any]:
    """What a proposed identity is sealed to: this row, person, provider and browser."""
    return {
        "purpose": "identity-to-link",
        "row": transaction.pk,
        "field": "login_transaction.identity_to_link",
        "user": transaction.user_id,
        "provider": transaction.link_provider,
        "browser": transaction.browser_digest,
    }


def keep(transaction: LoginTransaction, user: User, proposed: ProposedIdentity) -> None:
    """The person has seen whom it is, and wants it. Within the transaction that closes. Raises NotLinked."""
    User.objects.select_for_update(no_key=True).get(pk=user.pk)  # of two tabs that add the same provider, one does
    if transaction.link_provider not in ways_to_add(user):
        raise NotLinked("That way to sign in is on your account already.")
    try:
        with atomic():
            Identity.objects.create(
                user=user,
                provider=transaction.link_provider,
                issuer=proposed.issuer,
                subject=proposed.subject,
                claims=dict(proposed.claims),
            )
    except IntegrityError:
        raise NotLinked("Another account has taken that identity meanwhile.") from None
    staged_tokens.keep_after_visit(transaction)
    audit.record_within(_event("identity.linked", user, transaction.link_provider))


def remove(user: User, identity_id: uuid.UUID) -> str:
    """Take a way in off the account, with its sessions and what its provider gave; its name. Raises NotLinked."""
    with atomic():
        User.objects.select_for_update(no_key=True).get(
            pk=user.pk
        )  # two tabs must not take one way each, and leave none
        identity = Identity.objects.filter(pk=identity_id, user=user).first()
        if identity is None:
            raise NotLinked("That way to sign in was already removed.")
        if not set(ways_of(user)) - {identity.provider}:
            raise NotLinked("It is your only way to sign in. Add another one first.")
        identity.delete()
        user.sessions.filter(provider=identity.provider).delete()
        erase_credentials(user, "identity_removed", identity.provider)
        audit.record_within(_event("identity.removed", user, identity.provider))
    return identity.provider


def _event(name: str, user: User, provider_name: str) -> audit.Event:
    return audit.Event(name, pseudonym=user.pseudonym, detail={"provider": provider_name})
