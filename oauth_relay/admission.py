"""Who of those whom a provider signs in may come in, and which groups they belong to here (T25).

The lists are settings.ADMISSION. One entry that fits is enough; with no entry at all, everybody may come.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from django.conf import settings
from django.contrib.auth.models import Group
from django.db import IntegrityError
from django.db.transaction import atomic

from oauth_relay.identity_providers import Provider
from oauth_relay.models import AdmissionPin, User

logger = logging.getLogger(__name__)

GOOGLE = "https://accounts.google.com"
_LONGEST_ENTRY = 320


class NotAdmitted(Exception):
    """The provider knows this person, and no list names them. `who` is what the person may be shown: their own names."""

    def __init__(self, who: str) -> None:
        super().__init__("no entry of the allow-lists fits")
        self.who = who


def check_admitted(upstream: Provider, claims: Mapping[str, Any]) -> None:
    """Let a proved person pass, or raise NotAdmitted. Pins the entry that names them, at its first use.

    Within the database transaction that makes the person: a sign-in that comes to nothing pins nothing.
    """
    if not any(settings.ADMISSION.values()):
        return
    # Every entry that names them is pinned, not only the first: another one would be left for whoever takes the name.
    issuer, subject = claims["iss"], claims["sub"]
    pinned = [_pin(entry, issuer, subject) for entry in _personal_entries(upstream, claims)]
    fits_at_github = not upstream.has_id_tokens and _fits_at_github(issuer, claims.get("organisations") or ())
    if any(pinned) or fits_at_github or _is_pinned(issuer, [subject], _configured_entries()) or _fits_a_crowd(claims):
        return
    logger.warning("%s: %r of %r is on no allow-list", upstream.name, claims["sub"], claims["iss"])
    raise NotAdmitted(_names_of(claims))


def _names_of(claims: Mapping[str, Any]) -> str:
    """By what a person recognises the account they came with."""
    names = [claims.get("preferred_username") or claims.get("name"), claims.get("email")]
    plain = ["".join(c for c in name[:255] if c.isprintable()) for name in names if isinstance(name, str) and name]
    return ", ".join(dict.fromkeys(plain)) or "an account without a name"


# -- entries that name one person --------------------------------------------------------------------------------------


def _personal_entries(upstream: Provider, claims: Mapping[str, Any]) -> Iterator[str]:
    """The configured entries that name this person now. A login is GitHub's: elsewhere anybody may call themselves so."""
    login, email = claims.get("preferred_username"), verified_email(claims)
    if not upstream.has_id_tokens and isinstance(login, str) and login.lower() in settings.ADMISSION["usernames"]:
        yield f"username:{login.lower()}"
    if email and email in settings.ADMISSION["emails"]:
        yield f"email:{email}"


def _configured_entries() -> list[str]:
    """Every personal entry: a pin counts only while its entry is on the list."""
    lists = settings.ADMISSION
    return [f"username:{name}" for name in lists["usernames"]] + [f"email:{name}" for name in lists["emails"]]


def _is_pinned(issuer: str, subjects: Collection[str], entries: Collection[str]) -> bool:
    return AdmissionPin.objects.filter(issuer=issuer, subject__in=subjects, entry__in=entries).exists()


def _pin(entry: str, issuer: str, subject: str) -> bool:
    """Whether `entry` means this person, or organisation. Of two who come at once under one name, the constraint lets one in."""
    if len(entry) > _LONGEST_ENTRY:
        return False
    try:
        with atomic():
            pin, made = AdmissionPin.objects.get_or_create(entry=entry, defaults={"issuer": issuer, "subject": subject})
    except IntegrityError:
        return False
    is_theirs = (pin.issuer, pin.subject) == (issuer, subject)
    if made:
        logger.info("allow-list: %s means %s at %s from now on", entry, pin.subject, pin.issuer)
    elif not is_theirs:
        logger.warning("allow-list: %s is somebody else's: %s at %s came first", entry, pin.subject, pin.issuer)
    return is_theirs


# -- organisations at GitHub -------------------------------------------------------------------------------------------


def _fits_at_github(issuer: str, organisations: Iterable[Mapping[str, Any]]) -> bool:
    """By the number of an organisation; or by its login, which means the number that it first stood for (T25).

    An entry of digits is a number and never a login: anybody may found an organisation and call it 583231.
    """
    listed = settings.ADMISSION["organisations"]
    entries = {f"organisation:{entry.lower()}" for entry in listed if not entry.isdigit()}
    theirs = {f"org:{found['id']}": f"organisation:{found['login'].lower()}" for found in organisations}
    pinned = [_pin(entry, issuer, subject) for subject, entry in theirs.items() if entry in entries]
    by_number = any(subject.removeprefix("org:") in listed for subject in theirs)
    return any(pinned) or by_number or _is_pinned(issuer, list(theirs), entries)


# -- entries that name many --------------------------------------------------------------------------------------------


def _fits_a_crowd(claims: Mapping[str, Any]) -> bool:
    """Domain, organisation by an id that never changes hands, or claim: there is nobody to pin."""
    email, lists = verified_email(claims), settings.ADMISSION
    return (
        (email is not None and email.rpartition("@")[2] in lists["domains"])
        or bool(lists["organisations"] & _organisations(claims))
        or any(value in values_of(claims, name) for name, value in lists["claims"])
    )


def verified_email(claims: Mapping[str, Any]) -> str | None:
    """The address in small letters, if its issuer has verified it and can speak for its domain.

    Google says so itself: for addresses that are neither gmail.com nor of the `hd` domain it only knows that somebody
    once read mail there.
    """
    email = claims.get("email")
    if claims.get("email_verified") is not True or not isinstance(email, str) or email.count("@") != 1:
        return None
    email = email.lower()
    domain = email.rpartition("@")[2]
    if claims["iss"] == GOOGLE and domain != "gmail.com" and domain != str(claims.get("hd", "")).lower():
        return None
    return email


def _organisations(claims: Mapping[str, Any]) -> set[str]:
    """`org_id` of whoever has organisations (Auth0, AuthKit …); `hd`, the Workspace domain, from Google alone."""
    named = [claims.get("org_id"), claims.get("hd") if claims["iss"] == GOOGLE else None]
    return {name for name in named if isinstance(name, str)}


def values_of(claims: Mapping[str, Any], name: str) -> frozenset[str]:
    """What a claim says, as text: one value, or each of a list."""
    value = claims.get(name)
    values = value if isinstance(value, list) else [value]
    return frozenset(
        str(item).lower() if isinstance(item, bool) else str(item)
        for item in values
        if isinstance(item, str | int | bool)
    )


# -- groups ------------------------------------------------------------------------------------------------------------


def set_groups(user: User, claims: Mapping[str, Any]) -> None:
    """Put `user` into exactly those groups of the table that the claim gives, and leave the operator's own alone.

    Only names in the table count, and nothing here ever touches staff or superuser (T25): what a group may do, an
    operator says in /admin/.
    """
    if not settings.GROUPS_CLAIM or not settings.GROUPS_MAP:
        return
    said = values_of(claims, settings.GROUPS_CLAIM)
    given = {group for value, group in settings.GROUPS_MAP if value in said}
    managed = {group for _, group in settings.GROUPS_MAP}
    user.groups.remove(*Group.objects.filter(name__in=managed - given))
    user.groups.add(*[Group.objects.get_or_create(name=name)[0] for name in sorted(given)])
