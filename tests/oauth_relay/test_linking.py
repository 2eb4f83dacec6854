"""A second identity on an account: fresh sign-in first, the other provider next, a look at whom it named, then the click."""

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from django.http import HttpResponse
from django.utils import timezone

from oauth_relay import admission, linking, upstream_login
from oauth_relay.models import AuditEvent, Identity, LoginTransaction, UpstreamCredential, User
from tests import identity_provider
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET, FakedProvider
from tests.oauth_relay.conftest import Browser, make_client

pytestmark = pytest.mark.django_db


@pytest.fixture
def peers(settings: Any) -> Iterator[dict[str, FakedProvider]]:
    """Two providers beside own accounts: `auth0`, which is first, and `work`."""
    with identity_provider.faked_provider() as first, identity_provider.faked_provider() as second:
        identity_provider.configure(settings, first.origin)
        settings.UPSTREAM_PROVIDERS["work"] = {
            "label": "Work",
            "discovery": f"{second.origin}/.well-known/openid-configuration",
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "audience": "",
            "scope": "openid profile email",
        }
        settings.OWN_ACCOUNTS = True
        yield {"auth0": first, "work": second}


class LinkingBrowser(Browser):
    """Somebody at /connections, and at two providers where they may be anybody."""

    def __init__(self, peers: dict[str, FakedProvider]) -> None:
        super().__init__()
        self.peers = peers
        self.sent: dict[str, str] = {}

    def leave(self, provider: str, **form: str) -> str:
        """Press the button that leads to `provider`, on the page that is open."""
        path = "/link" if form.get("action") == "forward" else "/login"
        response = self.post(path, {**self.page.hidden, "provider": provider, **form})
        assert response.status_code == 303, response.content.decode()
        self.sent = dict(parse_qsl(urlsplit(response["Location"]).query))
        return str(response["Location"])

    def arrive(self, provider: str, location: str, subject: str, **claims: Any) -> HttpResponse:
        fresh = {"auth_time": int(time.time()), **claims}
        back = urlsplit(self.peers[provider].approve(location, sub=subject, **fresh))
        return self.read(self.get(f"{back.path}?{back.query}"))

    def visit(self, provider: str, subject: str, **claims: Any) -> HttpResponse:
        self.read(self.get("/login"))
        return self.arrive(provider, self.leave(provider), subject, **claims)

    def begin(self, provider: str) -> HttpResponse:
        return self.read(self.post("/link", {"provider": provider}))

    def confirm(self, provider: str, subject: str, **claims: Any) -> HttpResponse:
        return self.arrive(provider, self.leave(provider), subject, **claims)

    def go_to(self, provider: str, subject: str, **claims: Any) -> HttpResponse:
        return self.arrive(provider, self.leave(provider, action="forward"), subject, **claims)

    def decide(self, action: str, **fields: str) -> HttpResponse:
        return self.read(self.post("/link", {**self.page.hidden, "action": action, **fields}))

    def link(self, first: tuple[str, str], second: tuple[str, str], **claims: Any) -> HttpResponse:
        """The whole way, by somebody who is signed in."""
        self.begin(second[0])
        self.confirm(*first)
        self.go_to(*second, **claims)
        return self.decide("keep")


@pytest.fixture
def person(peers: dict[str, FakedProvider]) -> LinkingBrowser:
    """Somebody whom auth0 signed in."""
    found = LinkingBrowser(peers)
    found.visit("auth0", "auth0|ada", name="Ada")
    return found


def user_of(subject: str) -> User:
    return User.objects.get(identities__subject=subject)


def text(response: HttpResponse) -> str:
    return response.content.decode()


# -- the way it should go ----------------------------------------------------------------------------------------------


@pytest.mark.threat("T30")
def test_a_second_identity_is_added_step_by_step_and_opens_the_same_account(person: LinkingBrowser) -> None:
    ada = user_of("auth0|ada")
    page = person.begin("work")
    assert "First show that this is your account" in text(page)
    assert "Continue with <bdi>Auth0" in text(page) and "Continue with <bdi>Work" not in text(page)
    page = person.confirm("auth0", "auth0|ada")
    assert (person.sent["max_age"], "login" in person.sent["prompt"]) == ("0", True)
    assert "Continue with <bdi>Work" in text(page)
    page = person.go_to("work", "work-7", name="Ada at work", email="ada@work.example")
    for shown in ("Is this you at <bdi>Work", "Ada at work", "ada@work.example", "work-7"):
        assert shown in text(page)
    assert ada.identities.count() == 1, "nothing is kept before the click"
    assert "You can sign in with Work from now on." in text(person.decide("keep"))
    assert set(ada.identities.values_list("provider", "subject")) == {("auth0", "auth0|ada"), ("work", "work-7")}
    assert AuditEvent.objects.filter(event="identity.linked", pseudonym=ada.pseudonym).count() == 1
    LinkingBrowser(person.peers).visit("work", "work-7")
    assert User.objects.count() == 1


def test_an_own_account_confirms_with_its_password(peers: dict[str, FakedProvider], ada: User) -> None:
    person = LinkingBrowser(peers)
    person.read(person.get("/login"))
    person.sign_in(ada)
    person.begin("work")
    person.sign_in(ada)
    person.go_to("work", "work-7")
    person.decide("keep")
    assert list(ada.identities.values_list("subject", flat=True)) == ["work-7"]


def test_what_the_added_provider_gave_serves_the_clients_there_are(peers: dict[str, FakedProvider], ada: User) -> None:
    person = LinkingBrowser(peers)
    person.read(person.get("/login"))
    person.sign_in(ada)
    ada.grants.create(client=make_client())
    person.begin("auth0")
    person.sign_in(ada)
    person.go_to("auth0", "auth0|ada")
    assert not UpstreamCredential.objects.exists()
    person.decide("keep")
    assert UpstreamCredential.objects.get().user == ada


# -- nobody else's, and nothing without the person ---------------------------------------------------------------------


@pytest.mark.threat("T30")
@pytest.mark.parametrize("auth_time", [None, 1, "now", True])
def test_a_silent_sign_in_confirms_nothing(person: LinkingBrowser, auth_time: Any) -> None:
    person.begin("work")
    response = person.confirm("auth0", "auth0|ada", auth_time=auth_time)
    assert response.status_code == 503 and "Nothing was added" in text(response)
    assert not LoginTransaction.objects.filter(link_provider="work", signed_in_at__isnull=False).exists()


@pytest.mark.parametrize("subject", ["auth0|mallory", "auth0|nobody-yet"])
def test_somebody_else_confirms_nothing_and_is_not_signed_in(person: LinkingBrowser, subject: str) -> None:
    LinkingBrowser(person.peers).visit("auth0", "auth0|mallory")
    people = User.objects.count()
    person.begin("work")
    response = person.confirm("auth0", subject)
    assert response.status_code == 403 and "somebody else" in text(response)
    assert User.objects.count() == people, "a stranger's account was made on the way"
    assert person.session["_auth_user_id"] == str(user_of("auth0|ada").pk)


def test_another_accounts_password_confirms_nothing(person: LinkingBrowser, mallory: User) -> None:
    person.begin("work")
    response = person.sign_in(mallory)
    assert response.status_code == 403
    assert person.session["_auth_user_id"] == str(user_of("auth0|ada").pk)


def test_an_identity_that_is_somebody_elses_stays_theirs(person: LinkingBrowser) -> None:
    LinkingBrowser(person.peers).visit("work", "work-7")
    person.begin("work")
    person.confirm("auth0", "auth0|ada")
    response = person.go_to("work", "work-7")
    assert response.status_code == 403 and "accounts are not merged" in text(response)
    assert user_of("work-7") != user_of("auth0|ada")


@pytest.mark.threat("T4")
def test_the_same_address_links_nobody(peers: dict[str, FakedProvider]) -> None:
    """Never by e-mail: the same verified address at two providers is two people until one of them says otherwise."""
    shared = {"email": "ada@example.com", "email_verified": True}
    LinkingBrowser(peers).visit("auth0", "auth0|ada", **shared)
    LinkingBrowser(peers).visit("work", "work-7", **shared)
    assert user_of("work-7") != user_of("auth0|ada")


def test_declining_keeps_nothing(person: LinkingBrowser) -> None:
    person.begin("work")
    person.confirm("auth0", "auth0|ada")
    person.go_to("work", "work-7")
    page = dict(person.page.hidden)
    assert "Nothing was added" in text(person.decide("discard"))
    row = LoginTransaction.objects.get(link_provider="work")
    assert (row.identity_to_link, row.staged_tokens) == (None, None)
    assert not Identity.objects.filter(subject="work-7").exists()
    assert person.post("/link", {**page, "action": "keep"}).status_code == 409


@pytest.mark.threat("T27")
def test_an_answer_to_another_page_is_shown_the_page_again(person: LinkingBrowser) -> None:
    """The click is for the identity that was on the page, not for whichever came last."""
    person.begin("work")
    person.confirm("auth0", "auth0|ada")
    earlier = dict(person.page.hidden)
    person.go_to("work", "work-7")
    response = person.post("/link", {**earlier, "action": "keep"})
    assert "out of date" in text(response)
    assert not Identity.objects.filter(subject="work-7").exists()


def test_a_click_twice_adds_once(person: LinkingBrowser) -> None:
    person.link(("auth0", "auth0|ada"), ("work", "work-7"))
    row = LoginTransaction.objects.get(link_provider="work")
    again = person.post("/link", {"transaction": str(row.pk), "action": "keep", "form_token": "any"})
    assert again.status_code == 409
    assert Identity.objects.filter(subject="work-7").count() == 1


@pytest.mark.threat("T3")
def test_nobody_goes_on_with_it_in_another_browser_or_as_another_person(person: LinkingBrowser, mallory: User) -> None:
    person.begin("work")
    person.confirm("auth0", "auth0|ada")
    address = f"/link?transaction={LoginTransaction.objects.get(link_provider='work').pk}"
    assert LinkingBrowser(person.peers).get(address).status_code == 409
    other = LinkingBrowser(person.peers)
    other.read(other.get("/login"))
    other.sign_in(mallory)
    assert other.get(address).status_code == 409
    # In the same browser, but somebody else has signed in meanwhile.
    page = dict(person.page.hidden)
    location = person.leave("work", action="forward")
    person.read(person.get("/login?next=/"))
    person.post("/logout")
    person.read(person.get("/login"))
    person.sign_in(mallory)
    person.arrive("work", location, "work-7")
    assert LoginTransaction.objects.get(link_provider="work").identity_to_link is None
    assert person.post("/link", {**page, "action": "keep"}).status_code == 409
    assert not Identity.objects.filter(subject="work-7").exists()


@pytest.mark.threat("T29")
def test_the_second_step_is_answered_by_the_provider_that_was_asked_for(person: LinkingBrowser) -> None:
    """The first provider once more, with another account of the same person, is not the one to be added."""
    person.begin("work")
    sign_in_page = dict(person.page.hidden)
    person.confirm("auth0", "auth0|ada")
    response = person.post("/login", {**sign_in_page, "provider": "auth0"})
    assert response.status_code == 303 and response["Location"].startswith("/link?"), "the first step is over"


@pytest.mark.parametrize("provider", ["auth0", "nowhere", "", "own"])
def test_only_a_provider_that_the_account_lacks_can_be_added(person: LinkingBrowser, provider: str) -> None:
    assert "cannot be added" in text(person.begin(provider))
    assert not LoginTransaction.objects.filter(link_provider=provider).exclude(link_provider="").exists()


def test_two_tabs_add_one_identity_of_a_provider(person: LinkingBrowser) -> None:
    pages = []
    for subject in ("work-7", "work-8"):
        person.begin("work")
        person.confirm("auth0", "auth0|ada")
        person.go_to("work", subject)
        pages.append(dict(person.page.hidden))
    for page in pages:
        person.post("/link", {**page, "action": "keep"})
    assert [row.subject for row in Identity.objects.filter(provider="work")] == ["work-7"]


def test_an_allow_list_holds_for_the_added_identity_too(person: LinkingBrowser, settings: Any) -> None:
    """It will sign in by itself one day."""
    settings.ADMISSION = {**settings.ADMISSION, "emails": frozenset({"ada@example.com"})}
    person.begin("work")
    person.confirm("auth0", "auth0|ada", email="ada@example.com", email_verified=True)
    response = person.go_to("work", "work-7", email="else@example.com", email_verified=True)
    assert response.status_code == 403 and "You are not on the list" in text(response)
    assert not Identity.objects.filter(subject="work-7").exists()


def test_who_is_no_longer_on_the_allow_list_confirms_nothing(person: LinkingBrowser, settings: Any) -> None:
    """A fresh sign-in is a sign-in: it would renew the session of somebody whom the list keeps out."""
    settings.ADMISSION = {**settings.ADMISSION, "emails": frozenset({"else@example.com"})}
    person.begin("work")
    response = person.confirm("auth0", "auth0|ada", email="ada@example.com", email_verified=True)
    assert response.status_code == 403 and "You are not on the list" in text(response)
    assert not LoginTransaction.objects.filter(link_provider="work", signed_in_at__isnull=False).exists()


@pytest.mark.threat("T30")
def test_a_sign_out_ends_an_addition_that_was_confirmed(person: LinkingBrowser) -> None:
    """Whoever comes to this browser next, and is let in silently, must not go on with it."""
    person.begin("work")
    person.confirm("auth0", "auth0|ada")
    page = dict(person.page.hidden)
    person.post("/logout")
    person.visit("auth0", "auth0|ada", auth_time=1)
    assert person.get(f"/link?transaction={page['transaction']}").status_code == 409
    assert person.post("/link", {**page, "action": "forward"}).status_code == 409


def test_a_confirmation_is_good_for_some_minutes(person: LinkingBrowser) -> None:
    person.begin("work")
    person.confirm("auth0", "auth0|ada")
    long_ago = timezone.now() - linking.CONFIRMED_FOR
    LoginTransaction.objects.filter(link_provider="work").update(signed_in_at=long_ago)
    assert person.post("/link", {**person.page.hidden, "action": "forward"}).status_code == 409


def test_an_operator_may_leave_it_out(person: LinkingBrowser, settings: Any) -> None:
    settings.ACCOUNT_LINKING = False
    assert "Add <bdi>" not in text(person.get("/connections"))
    assert "cannot be added" in text(person.begin("work"))


def test_a_way_in_that_is_removed_in_mid_sign_in_opens_nothing(
    person: LinkingBrowser, monkeypatch: pytest.MonkeyPatch
) -> None:
    person.link(("auth0", "auth0|ada"), ("work", "work-7"))
    known = upstream_login.UpstreamLoginBackend.person_of

    def and_removed(backend: Any, proof: Any) -> User:
        user = known(backend, proof)
        Identity.objects.filter(subject="work-7").delete()
        return user

    monkeypatch.setattr(upstream_login.UpstreamLoginBackend, "person_of", and_removed)
    late = LinkingBrowser(person.peers)
    assert late.visit("work", "work-7").status_code == 400
    assert late.get("/connections").status_code == 303


def test_nobody_who_is_not_signed_in_begins(peers: dict[str, FakedProvider]) -> None:
    response = LinkingBrowser(peers).post("/link", {"provider": "work"})
    assert (response.status_code, response["Location"]) == (303, "/login?next=/connections")


@pytest.mark.threat("T1")
def test_the_demo_user_is_everybodys_and_gets_no_identity(ada: User, peers: dict[str, FakedProvider]) -> None:
    User.objects.filter(pk=ada.pk).update(is_demo=True)
    ada.refresh_from_db()
    assert linking.ways_to_add(ada) == []


def test_a_provider_that_cannot_prove_a_fresh_sign_in_confirms_nothing(
    peers: dict[str, FakedProvider], settings: Any
) -> None:
    settings.UPSTREAM_PROVIDERS["github"] = {
        "kind": "github", "label": "GitHub", "origin": "https://github.com", "api": "https://api.github.com",
        "client_id": "a", "client_secret": "b", "audience": "", "scope": "read:user",
    }  # fmt: skip
    google = {
        **settings.UPSTREAM_PROVIDERS["work"],
        "discovery": f"{admission.GOOGLE}/.well-known/openid-configuration",
    }
    settings.UPSTREAM_PROVIDERS["google"] = google
    settings.OWN_ACCOUNTS = False
    octocat = User.objects.create_user("octocat", password=None)
    Identity.objects.create(user=octocat, provider="github", issuer="https://github.com", subject="583231")
    Identity.objects.create(user=octocat, provider="google", issuer=admission.GOOGLE, subject="1")
    assert linking.ways_of(octocat) == ["github", "google"]
    assert linking.ways_to_add(octocat) == []


# -- and away again ----------------------------------------------------------------------------------------------------


def test_a_way_in_is_removed_with_its_sessions_and_tokens(person: LinkingBrowser) -> None:
    person.link(("auth0", "auth0|ada"), ("work", "work-7"))
    ada = user_of("auth0|ada")
    ada.grants.create(client=make_client())
    elsewhere = LinkingBrowser(person.peers)
    elsewhere.visit("auth0", "auth0|ada")
    assert UpstreamCredential.objects.filter(provider="auth0").exists()
    at_work = LinkingBrowser(person.peers)
    at_work.visit("work", "work-7")
    identity = Identity.objects.get(subject="auth0|ada")
    assert "no longer a way to sign in" in text(at_work.decide("remove", identity=str(identity.pk)))
    assert not UpstreamCredential.objects.filter(provider="auth0").exists()
    assert elsewhere.get("/connections").status_code == 303, "its session goes on"
    assert list(ada.identities.values_list("subject", flat=True)) == ["work-7"]


def test_the_only_way_in_stays(person: LinkingBrowser) -> None:
    identity = Identity.objects.get(subject="auth0|ada")
    assert "your only way" in text(person.decide("remove", identity=str(identity.pk)))
    assert Identity.objects.filter(pk=identity.pk).exists()


@pytest.mark.parametrize("identity", ["1b9492f8-5236-4f00-873b-8cc1b08a0f38", "no-uuid", ""])
def test_an_identity_that_is_not_there_is_not_removed(person: LinkingBrowser, identity: str) -> None:
    assert "already removed" in text(person.decide("remove", identity=identity))


def test_somebody_elses_identity_is_not_removed(person: LinkingBrowser) -> None:
    person.link(("auth0", "auth0|ada"), ("work", "work-7"))
    theirs = Identity.objects.get(subject="work-7")
    other = LinkingBrowser(person.peers)
    other.visit("auth0", "auth0|mallory")
    assert "already removed" in text(other.decide("remove", identity=str(theirs.pk)))
    assert Identity.objects.filter(pk=theirs.pk).exists()
