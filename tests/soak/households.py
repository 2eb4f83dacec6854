"""Whom the soak is about: people with one client on two devices each, and what should be true of each device."""

import asyncio
import base64
import hashlib
import json
from collections import deque
from dataclasses import dataclass, field

from tests.servers import Server

VERIFIER = "v" * 64
REDIRECT_URI = "http://127.0.0.1:53682/callback"
AT_A_TIME = 200

_MAKE = """
import json, secrets
from datetime import timedelta
from uuid import uuid4
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.utils import timezone
from oauth_relay.digests import digest_of
from oauth_relay.models import AuthorizationCode, Client, Consent, Grant, User
from oauth_relay.sessions import SessionStore

until = timezone.now() + timedelta(days=1)
place, scope = [settings.RESOURCES[0]], "read:todos write:todos"
clients = [
    Client.objects.create(
        name=f"Client {{number}}", redirect_uris="{redirect_uri}", client_type="public", client_secret="",
        authorization_grant_type="authorization-code", registration_source="dcr",
        metadata={{"token_endpoint_auth_method": "none"}},
    )
    for number in range(4)
]
people = User.objects.bulk_create([User(username=secrets.token_hex(12), password="!") for _ in range({count})])
grants = Grant.objects.bulk_create([Grant(user=one, client=clients[n % 4]) for n, one in enumerate(people)])
Consent.objects.bulk_create([
    Consent(
        grant=grant, client_digest=grant.client.digest(), redirect_uri="{redirect_uri}", resource=place, scope=scope,
        expires_at=until,
    )
    for grant in grants
])
codes, made = [], []
for grant in grants:
    session = SessionStore()
    session.update({{
        SESSION_KEY: str(grant.user_id), BACKEND_SESSION_KEY: settings.AUTHENTICATION_BACKENDS[0],
        HASH_SESSION_KEY: grant.user.get_session_auth_hash(), "way": "own",
    }})
    session.create()
    raw_codes = [secrets.token_urlsafe(24) for _ in range(2)]
    codes += [
        AuthorizationCode(
            application=grant.client, user=grant.user, grant=grant, family=uuid4(), code=digest_of(raw), expires=until,
            redirect_uri="{redirect_uri}", scope=scope, code_challenge="{challenge}", code_challenge_method="S256",
            resource=place,
        )
        for raw in raw_codes
    ]
    made.append([str(grant.pk), grant.client.client_id, session.session_key, raw_codes])
AuthorizationCode.objects.bulk_create(codes)
print(json.dumps(made))
"""


@dataclass
class Device:
    """One family of tokens: the refresh tokens it was given, oldest first, and the answer to the last but one."""

    client_id: str
    code: str
    raw_tokens: list[str] = field(default_factory=list)
    answer: bytes = b""
    has_ended: bool = False

    @property
    def newest(self) -> str:
        return self.raw_tokens[-1]

    def is_given(self, answer: bytes) -> None:
        self.raw_tokens.append(json.loads(answer)["refresh_token"])
        self.answer = answer


@dataclass
class Household:
    """One person, their permission for one client, a browser in which they are signed in, and two devices."""

    grant_id: str
    session: str
    devices: list[Device]

    @property
    def living(self) -> list[Device]:
        return [device for device in self.devices if not device.has_ended]

    def ends(self) -> None:
        for device in self.devices:
            device.has_ended = True


class Neighbourhood:
    """Households that nobody has visited yet; more are built when they run out."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._empty: deque[Household] = deque()
        self._building = asyncio.Lock()

    async def next(self) -> Household:
        async with self._building:
            if not self._empty:
                self._empty += await asyncio.to_thread(self._build, AT_A_TIME)
        return self._empty.popleft()

    def _build(self, count: int) -> list[Household]:
        challenge = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
        made = self._server.shell(_MAKE.format(count=count, redirect_uri=REDIRECT_URI, challenge=challenge))
        return [
            Household(grant_id, session, [Device(client_id, raw_code) for raw_code in raw_codes])
            for grant_id, client_id, session, raw_codes in json.loads(made)
        ]
