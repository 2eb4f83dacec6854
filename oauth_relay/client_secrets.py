"""Another secret for a registered client (RFC 6749 §2.3.1), with an overlap in which the old one is still good."""

from datetime import datetime, timedelta

from django.contrib.auth.hashers import identify_hasher, make_password
from django.db.transaction import atomic
from django.utils import timezone
from oauth2_provider.generators import generate_client_secret
from oauth2_provider.settings import oauth2_settings

from oauth_relay import audit
from oauth_relay.models import Client, FormerSecret


class NothingToRotate(Exception):
    """This client cannot be given another secret. The message says why."""


class OverlapUnderWay(Exception):
    """This client's secret was changed a short while ago; the former one is good `until` then."""

    def __init__(self, until: datetime) -> None:
        super().__init__("an earlier change is still in its overlap")
        self.until = until


def client_to_rotate(client_id: str) -> Client:
    """The confidential client of that id. Raises NothingToRotate."""
    client = Client.objects.filter(client_id=client_id).first() if client_id.isprintable() else None
    if client is None:
        raise NothingToRotate(f"No client has the id {client_id!r}. See them in the admin, under Clients.")
    if client.client_type != Client.CLIENT_CONFIDENTIAL:
        raise NothingToRotate(f"{client.display_name} is a public client: it has no secret.")
    return client


def overlap_of(client: Client) -> datetime | None:
    """Until when a former secret of this client is good; None if none is."""
    last = client.former_secrets.good().order_by("-good_until").first()
    return last.good_until if last else None


def rotate(client: Client, *, overlap: timedelta, again: bool) -> str:
    """Give the client another secret and return it, raw: it is nowhere else. The old one is good for `overlap`.

    Raises OverlapUnderWay unless `again`: of two operators at once the second must not hand out a third secret
    unawares. Without any overlap every former secret ends with this call.
    """
    raw_secret = generate_client_secret()
    with atomic():
        client = Client.objects.select_for_update().get(pk=client.pk)
        until = overlap_of(client)
        if until is not None and not again:
            raise OverlapUnderWay(until)
        _forget_expired()
        if not overlap:
            client.former_secrets.all().delete()
        else:
            until = timezone.now() + overlap
            FormerSecret.objects.create(client=client, secret=_hashed(client.client_secret), good_until=until)
        client.client_secret, client.hash_client_secret = raw_secret, True
        client.save(update_fields=["client_secret", "hash_client_secret", "updated"])
        detail = {"overlap_seconds": int(overlap.total_seconds())}
        audit.record_within(audit.Event("client.secret_rotated", client_id=client.client_id, detail=detail))
    return raw_secret


def end_overlap(client: Client) -> None:
    """From now on only the newest secret of this client is good."""
    with atomic():
        client.former_secrets.all().delete()
        _forget_expired()
        audit.record_within(audit.Event("client.overlap_ended", client_id=client.client_id))


def _forget_expired() -> None:
    FormerSecret.objects.filter(good_until__lte=timezone.now()).delete()


def _hashed(secret: str) -> str:
    """As it is stored; a row made by hand may hold its secret as it is."""
    try:
        identify_hasher(secret)
    except ValueError:
        return make_password(secret, hasher=oauth2_settings.CLIENT_SECRET_HASHER)
    return secret
