"""Who may come in, whom an entry means, and which groups a provider may give (T25)."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from django.contrib.auth.models import Group
from django.test import Client as Browser

from cair.env import Environment
from cair.providers import configured_providers
from oauth_relay import admission
from oauth_relay.models import AdmissionPin, AuditEvent, Client, Identity, LoginTransaction, UpstreamCredential, User
from tests import github_stand_in, identity_provider
from tests.cair.test_checks import start
from tests.github_stand_in import SCOPE, Account, StandIn, address, organisation
from tests.identity_provider import FakedProvider
from tests.oauth_relay.test_upstream_login import REDIRECT_URI, ask, come_back, fields, person_of

pytestmark = pytest.mark.django_db

NOBODY: dict[str, Any] = {
    "emails": frozenset(),
    "domains": frozenset(),
    "usernames": frozenset(),
    "organisations": frozenset(),
    "claims": (),
}
VERIFIED = {"email": "Ada@Example.com", "email_verified": True}


@pytest.fixture
def mcp_client() -> Client:
    return Client.objects.create(
        client_id="inspector",
        name="Inspector",
        client_type=Client.CLIENT_PUBLIC,
        authorization_grant_type=Client.GRANT_AUTHORIZATION_CODE,
        redirect_uris=REDIRECT_URI,
    )


@pytest.fixture
def peer(settings: Any) -> Iterator[FakedProvider]:
    with identity_provider.faked_provider() as running:
        identity_provider.configure(settings, running.origin)
        yield running


@pytest.fixture
def github(settings: Any) -> Iterator[StandIn]:
    with github_stand_in.running() as running:
        settings.UPSTREAM_PROVIDERS = {"github": running.configuration()}
        settings.OWN_ACCOUNTS = settings.DEMO_USER = False
        yield running


def allow(settings: Any, **lists: Any) -> None:
    settings.ADMISSION = {**NOBODY, **lists}


def arrive(at: FakedProvider, browser: Browser | None = None, **claims: Any) -> Any:
    """Sign in at the faked provider as somebody with these claims; CAIR's answer."""
    browser = browser or Browser()
    at.claims = {}
    location = browser.post("/login", {**fields(ask(browser)), "provider": "auth0"})["Location"]
    return come_back(browser, at.approve(location, **claims))


def arrive_from_github(at: StandIn, account: Account) -> Any:
    browser = Browser()
    location = browser.post("/login", {**fields(ask(browser)), "provider": "github"})["Location"]
    return come_back(browser, at.approve(location, account))


def is_in(response: Any) -> bool:
    assert response.status_code in (302, 303, 403), response.content.decode()
    return bool(response.status_code != 403)


# -- the lists ---------------------------------------------------------------------------------------------------------


def test_with_no_entry_at_all_everybody_may_come(mcp_client: Client, peer: FakedProvider, settings: Any) -> None:
    allow(settings)
    assert is_in(arrive(peer))
    assert not AdmissionPin.objects.exists()


@pytest.mark.threat("T25")
@pytest.mark.parametrize(
    ("lists", "claims", "comes_in"),
    [
        ({"emails": {"ada@example.com"}}, VERIFIED, True),
        ({"emails": {"ada@example.com"}}, {**VERIFIED, "email_verified": False}, False),
        ({"emails": {"ada@example.com"}}, {**VERIFIED, "email_verified": "true"}, False),
        ({"emails": {"ada@example.com"}}, {"email": "ada@example.com"}, False),
        ({"emails": {"ada@example.com"}}, {**VERIFIED, "email": ["ada@example.com"]}, False),
        ({"emails": {"ada@example.com"}}, {}, False),
        ({"domains": {"example.com"}}, VERIFIED, True),
        ({"domains": {"example.com"}}, {**VERIFIED, "email_verified": False}, False),
        ({"domains": {"example.com"}}, {**VERIFIED, "email": "ada@sub.example.com"}, False),
        ({"domains": {"example.com"}}, {**VERIFIED, "email": "ada@evil.com@example.com"}, False),
        ({"domains": {"example.com"}}, {**VERIFIED, "email": "ada@notexample.com"}, False),
        ({"organisations": {"org_1"}}, {"org_id": "org_1"}, True),
        ({"organisations": {"org_1"}}, {"org_id": "org_2"}, False),
        ({"organisations": {"org_1"}}, {"org_id": ["org_1"]}, False),
        ({"organisations": {"org_1"}}, {"org_id": {"org_1": 1}, "hd": ["x"], "name": ["x"], "email": {}}, False),
        ({"organisations": {"example.com"}}, {"hd": "example.com"}, False),
        ({"claims": (("tid", "t-1"),)}, {"tid": "t-1"}, True),
        ({"claims": (("groups", "staff"),)}, {"groups": ["guests", "staff"]}, True),
        ({"claims": (("groups", "staff"),)}, {"groups": ["staffing"]}, False),
        ({"claims": (("groups", "staff"),)}, {"groups": "staffing"}, False),
        ({"claims": (("member", "true"),)}, {"member": True}, True),
        ({"claims": (("member", "true"),)}, {"member": {"true": 1}}, False),
        # A name that anybody may give themselves at another provider is no login at GitHub.
        ({"usernames": {"octocat"}}, {"preferred_username": "octocat", "nickname": "octocat"}, False),
        ({"emails": {"somebody@else.org"}, "domains": {"example.com"}}, VERIFIED, True),
    ],
)
def test_an_entry_lets_in_whom_it_names_and_nobody_else(
    mcp_client: Client, peer: FakedProvider, settings: Any, lists: Any, claims: dict[str, Any], comes_in: bool
) -> None:
    allow(settings, **lists)
    assert is_in(arrive(peer, **claims)) == comes_in


@pytest.mark.threat("T25")
@pytest.mark.parametrize(
    ("claims", "email"),
    [
        ({"email": "ada@gmail.com"}, "ada@gmail.com"),
        ({"email": "ada@example.com", "hd": "example.com"}, "ada@example.com"),
        ({"email": "ada@example.com"}, None),
        ({"email": "ada@example.com", "hd": "another.com"}, None),
    ],
)
def test_google_speaks_only_for_its_own_domains(claims: dict[str, Any], email: str | None) -> None:
    said = {"iss": "https://accounts.google.com", "email_verified": True, **claims}
    assert admission.verified_email(said) == email


def test_a_list_is_read_as_an_operator_writes_it() -> None:
    variables = {"GROUPS_MAP": "staff = Support team , a=b=c", "ALLOWED_CLAIMS": "tid"}
    environment = Environment(variables, {}, {})
    assert environment.pairs("GROUPS_MAP") == (("staff", "Support team"), ("a", "b=c"))
    assert environment.pairs("ALLOWED_CLAIMS") == ()
    assert [problem.variable for problem in environment.problems] == ["ALLOWED_CLAIMS"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ALLOWED_USERNAMES": "octocat"}, "ALLOWED_USERNAMES names logins of GitHub"),
        ({"GROUPS_MAP": "a=b"}, "GROUPS_CLAIM is missing"),
        ({"GROUPS_CLAIM": "roles"}, "GROUPS_MAP is missing"),
        ({"GROUPS_MAP": f"a={'g' * 151}", "GROUPS_CLAIM": "roles"}, "GROUPS_MAP names a group with more than 150"),
        ({"GROUPS_MAP": "a", "GROUPS_CLAIM": "roles"}, "GROUPS_MAP has an item that is not name=value"),
    ],
)
def test_a_list_that_cannot_work_is_named_before_anything_is_served(
    tmp_path: Path, variables: dict[str, str], said: str
) -> None:
    printed = start({"CAIR_ENV": "development", "CAIR_ENV_FILE": "/dev/null", **variables}, tmp_path)
    assert said in printed
    assert "started" not in printed


# -- whom a refused person and their client hear from ------------------------------------------------------------------


def test_a_refused_person_reads_who_they_are_and_the_client_gets_access_denied(
    mcp_client: Client, peer: FakedProvider, settings: Any
) -> None:
    allow(settings, emails={"grace@example.com"})
    browser = Browser()
    response = arrive(peer, browser, **VERIFIED, name="Ada <b>Lovelace</b>")
    page = response.content.decode()
    assert response.status_code == 403
    assert "signed in at Auth0 as Ada &lt;b&gt;Lovelace&lt;/b&gt;, Ada@Example.com" in page
    assert "ask the operator" in page
    link = re.search(r'href="(http://127\.0\.0\.1[^"]*)"', page)
    assert link
    assert "error=access_denied" in html.unescape(link[1])
    assert "state=the-client" in html.unescape(link[1])
    assert "Ada" not in link[1]
    assert person_of(browser) is None


def test_a_refused_person_leaves_nothing_behind(mcp_client: Client, peer: FakedProvider, settings: Any) -> None:
    allow(settings, emails={"grace@example.com"})
    arrive(peer, **VERIFIED)
    kinds = (User, Identity, UpstreamCredential, AdmissionPin)
    assert [kind.__name__ for kind in kinds if kind.objects.exists()] == []
    transaction = LoginTransaction.objects.get()
    assert (transaction.staged_tokens, transaction.upstream_secrets, transaction.outcome) == (None, None, "denied")
    assert AuditEvent.objects.filter(event="authorization.refused", outcome="access_denied").count() == 1


@pytest.mark.pain("P35")
def test_a_refused_person_can_choose_another_account(mcp_client: Client, peer: FakedProvider, settings: Any) -> None:
    """P35: the provider would else sign in the same one in silence, for ever."""
    peer.metadata = {"prompt_values_supported": ["none", "login", "select_account"]}
    allow(settings, emails={"grace@example.com"})
    browser = Browser()
    assert not is_in(arrive(peer, browser, **VERIFIED))
    location = browser.post("/login", {**fields(ask(browser)), "provider": "auth0"})["Location"]
    assert dict(parse_qsl(urlsplit(location).query))["prompt"] == "select_account"
    grace = {"sub": "auth0|grace", "email": "grace@example.com", "email_verified": True}
    assert is_in(come_back(browser, peer.approve(location, **grace)))


def test_a_person_who_came_by_themselves_reads_the_same(peer: FakedProvider, settings: Any) -> None:
    allow(settings, emails={"grace@example.com"})
    browser = Browser()
    location = browser.post("/login", {**fields(browser.get("/login")), "provider": "auth0"})["Location"]
    response = come_back(browser, peer.approve(location, **VERIFIED))
    assert response.status_code == 403
    assert "You are not on the list" in response.content.decode()


def test_who_is_taken_off_the_list_comes_in_no_more(mcp_client: Client, peer: FakedProvider, settings: Any) -> None:
    allow(settings, emails={"ada@example.com"})
    assert is_in(arrive(peer, **VERIFIED))
    allow(settings, emails={"grace@example.com"})
    assert not is_in(arrive(peer, **VERIFIED))


# -- pins --------------------------------------------------------------------------------------------------------------


@pytest.mark.threat("T25")
def test_a_login_means_the_number_that_first_came_in_by_it(mcp_client: Client, github: StandIn, settings: Any) -> None:
    allow(settings, usernames={"octocat"})
    assert is_in(arrive_from_github(github, Account(583231, "Octocat")))
    # Renamed, the person stays welcome; who takes the login over is somebody else.
    assert is_in(arrive_from_github(github, Account(583231, "octocat-retired")))
    assert not is_in(arrive_from_github(github, Account(9_999_999, "octocat")))
    assert AdmissionPin.objects.get().subject == "583231"


@pytest.mark.threat("T25")
def test_an_address_means_the_account_that_first_came_in_by_it(
    mcp_client: Client, peer: FakedProvider, settings: Any
) -> None:
    allow(settings, emails={"ada@example.com"})
    assert is_in(arrive(peer, **VERIFIED, sub="auth0|ada"))
    assert not is_in(arrive(peer, **VERIFIED, sub="auth0|successor"))
    AdmissionPin.objects.get().delete()
    assert is_in(arrive(peer, **VERIFIED, sub="auth0|successor"))


@pytest.mark.threat("T25")
def test_every_entry_that_names_a_person_is_pinned_at_once(mcp_client: Client, github: StandIn, settings: Any) -> None:
    allow(settings, usernames={"octocat"}, emails={"octocat@example.com"})
    arrive_from_github(github, Account(583231, "octocat", emails=[address("octocat@example.com")]))
    assert set(AdmissionPin.objects.values_list("entry", "subject")) == {
        ("username:octocat", "583231"),
        ("email:octocat@example.com", "583231"),
    }
    assert not is_in(arrive_from_github(github, Account(2, "mallory", emails=[address("octocat@example.com")])))


def test_a_pin_counts_only_while_its_entry_is_on_the_list(mcp_client: Client, github: StandIn, settings: Any) -> None:
    allow(settings, usernames={"octocat"})
    assert is_in(arrive_from_github(github, Account(583231, "octocat")))
    allow(settings, usernames={"hubot"})
    assert not is_in(arrive_from_github(github, Account(583231, "octocat")))


# -- organisations at GitHub -------------------------------------------------------------------------------------------

ACME = organisation(4242, "Acme")


@pytest.fixture
def github_with_organisations(settings: Any) -> Iterator[StandIn]:
    with github_stand_in.running() as running:
        settings.UPSTREAM_PROVIDERS = {"github": running.configuration(f"{SCOPE} read:org")}
        settings.OWN_ACCOUNTS = settings.DEMO_USER = False
        yield running


def member(number: int, *organisations: dict[str, Any]) -> Account:
    return Account(number, f"person-{number}", organisations=list(organisations))


@pytest.mark.threat("T25")
@pytest.mark.parametrize(
    ("entry", "organisations", "comes_in"),
    [
        ("4242", [ACME], True),
        ("acme", [ACME], True),
        ("ACME", [ACME], True),
        ("4242", [organisation(42, "acme")], False),
        ("acme", [organisation(42, "acme-fans")], False),
        ("acme", [], False),
        # Somebody founded an organisation and called it as the number of another.
        ("4242", [organisation(666, "4242")], False),
    ],
)
def test_who_is_of_an_organisation_comes_in_by_its_number_or_login(
    mcp_client: Client,
    github_with_organisations: StandIn,
    settings: Any,
    entry: str,
    organisations: Any,
    comes_in: bool,
) -> None:
    allow(settings, organisations={entry})
    assert is_in(arrive_from_github(github_with_organisations, member(1, *organisations))) == comes_in
    pins = [("organisation:acme", "org:4242")] if comes_in and not entry.isdigit() else []
    assert list(AdmissionPin.objects.values_list("entry", "subject")) == pins


@pytest.mark.threat("T25")
def test_a_renamed_organisation_stays_and_who_takes_its_login_stays_out(
    mcp_client: Client, github_with_organisations: StandIn, settings: Any
) -> None:
    allow(settings, organisations={"acme"})
    at = github_with_organisations
    assert is_in(arrive_from_github(at, member(1, ACME)))
    assert is_in(arrive_from_github(at, member(2, organisation(4242, "acme-holding"))))
    assert not is_in(arrive_from_github(at, member(3, organisation(666, "acme"))))
    allow(settings, organisations={"another"})
    assert not is_in(arrive_from_github(at, member(1, ACME))), "a pin outlived its entry"


def test_a_membership_on_a_later_page_counts(
    mcp_client: Client, github_with_organisations: StandIn, settings: Any
) -> None:
    allow(settings, organisations={"4242"})
    others = [organisation(n, f"org-{n}") for n in range(1, 251)]
    assert is_in(arrive_from_github(github_with_organisations, member(1, *others, ACME)))
    assert github_with_organisations.calls("GET", "/user/orgs") == 3


def test_a_list_without_end_is_not_read_to_its_end(
    mcp_client: Client, github_with_organisations: StandIn, settings: Any
) -> None:
    allow(settings, organisations={"4242"})
    others = [organisation(n, f"org-{n}") for n in range(10_001, 11_001)]
    assert not is_in(arrive_from_github(github_with_organisations, member(1, *others, ACME)))
    assert github_with_organisations.calls("GET", "/user/orgs") == 10


@pytest.mark.threat("T23")
def test_the_persons_token_follows_no_link_to_elsewhere(
    mcp_client: Client, github_with_organisations: StandIn, settings: Any
) -> None:
    allow(settings, organisations={"4242"})
    others = [organisation(n, f"org-{n}") for n in range(1, 101)]
    with github_stand_in.running() as elsewhere:
        github_with_organisations.next_page_at = elsewhere.origin
        assert not is_in(arrive_from_github(github_with_organisations, member(1, *others, ACME)))
        assert elsewhere.requests == []


def test_organisations_that_were_not_granted_let_nobody_in_and_the_log_says_why(
    mcp_client: Client, github_with_organisations: StandIn, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    allow(settings, organisations={"acme"}, usernames={"person-2"})
    github_with_organisations.grants_only = SCOPE
    assert not is_in(arrive_from_github(github_with_organisations, member(1, ACME)))
    assert "organisations of 'person-1' cannot be read, read:org was not granted" in caplog.text
    assert is_in(arrive_from_github(github_with_organisations, member(2, ACME)))


def test_organisations_are_asked_for_only_where_an_entry_needs_them(
    mcp_client: Client, github: StandIn, settings: Any
) -> None:
    allow(settings, usernames={"person-1"})
    assert is_in(arrive_from_github(github, member(1, ACME)))
    assert github.calls("GET", "/user/orgs") == 0
    variables = {"GITHUB_CLIENT_ID": "a", "GITHUB_CLIENT_SECRET": "b"}
    scopes = [
        configured_providers(Environment({**variables, **lists}, {}, {}), development=False)["github"]["scope"]
        for lists in ({}, {"ALLOWED_ORGANISATIONS": "acme"})
    ]
    assert scopes == [SCOPE, f"{SCOPE} read:org"]


@pytest.mark.threat("T25")
def test_another_provider_does_not_speak_for_github(mcp_client: Client, peer: FakedProvider, settings: Any) -> None:
    allow(settings, organisations={"acme", "4242"})
    assert not is_in(arrive(peer, organisations=[{"id": 4242, "login": "acme"}]))


def test_an_entry_that_anybody_could_found_at_github_is_named() -> None:
    from cair.checks import _could_be_anybodys

    assert _could_be_anybodys({"staff", "org_1", "example.com", "4242", "a-b"}) == ["a-b", "staff"]


# -- groups ------------------------------------------------------------------------------------------------------------


def groups_of_ada() -> set[str]:
    return set(Identity.objects.get(subject="auth0|ada").user.groups.values_list("name", flat=True))


@pytest.mark.threat("T25")
def test_groups_follow_the_claim_by_the_table_only(mcp_client: Client, peer: FakedProvider, settings: Any) -> None:
    settings.GROUPS_CLAIM, settings.GROUPS_MAP = "roles", (("crew", "Support team"), ("boss", "Managers"))
    arrive(peer, roles=["crew", "Managers", "operators", "staff", "superuser", "admin"])
    assert groups_of_ada() == {"Support team"}
    person = Identity.objects.get().user
    assert (person.is_staff, person.is_superuser) == (False, False)
    assert not Group.objects.exclude(name="Support team").exists()


def test_groups_are_set_at_each_sign_in_and_an_operators_own_stay(
    mcp_client: Client, peer: FakedProvider, settings: Any
) -> None:
    settings.GROUPS_CLAIM, settings.GROUPS_MAP = "roles", (("crew", "Support team"), ("boss", "Managers"))
    arrive(peer, roles=["crew"])
    Identity.objects.get().user.groups.add(Group.objects.create(name="By hand"))
    arrive(peer, roles="boss")
    assert groups_of_ada() == {"Managers", "By hand"}
    arrive(peer)
    assert groups_of_ada() == {"By hand"}


def test_without_a_table_a_claim_gives_nothing(mcp_client: Client, peer: FakedProvider, settings: Any) -> None:
    settings.GROUPS_CLAIM, settings.GROUPS_MAP = "roles", ()
    Group.objects.create(name="operators")
    arrive(peer, roles=["operators"])
    assert groups_of_ada() == set()
