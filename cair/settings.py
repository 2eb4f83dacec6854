"""CAIR's settings, to be read from top to bottom: where we run → Django → OAuth → sign-in → gateway → the sample API.

Every variable read here has its paragraph in docs/configuration.md. A wrong value does not stop this file: it is
remembered in `ENVIRONMENT.problems` and named by `cair.checks`, all at once, before anything is served.
"""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cair.env import Environment, development_secrets
from cair.providers import api_token_provider, configured_providers
from oauth_relay.loopback import is_loopback

BASE_DIR = Path(__file__).resolve().parent.parent

# -- where we run ------------------------------------------------------------------------------------------------------

ENVIRONMENT = Environment.read(BASE_DIR)
CAIR_ENV = ENVIRONMENT.deployment()
DEVELOPMENT = CAIR_ENV == "development"
DEBUG = ENVIRONMENT.boolean("CAIR_DEBUG", False)

PORT = ENVIRONMENT.integer("PORT", 8788, least=1, most=65535)
PUBLIC_URL = ENVIRONMENT.origin("PUBLIC_URL", f"http://localhost:{PORT}")
PUBLIC_HOST = urlsplit(PUBLIC_URL).netloc.lower()
ON_LOOPBACK = is_loopback(urlsplit(PUBLIC_URL).hostname)
# The address to listen on: loopback, unless a container or a second machine must reach it.
BIND = ENVIRONMENT.text("BIND", "127.0.0.1")
HTTPS = PUBLIC_URL.startswith("https://")
# How much of a client's network address is kept for its person's page.
CLIENT_ADDRESSES = ENVIRONMENT.choice("CLIENT_ADDRESSES", "TRUNCATED", ("FULL", "TRUNCATED", "NONE"))
# Whose X-Forwarded-For is believed about who called; nothing else of what a proxy says is ever read.
TRUSTED_PROXIES = ENVIRONMENT.networks("TRUSTED_PROXIES")
# Our own listener, as a process on this machine reaches it: never through a proxy, a tunnel or a name server.
OWN_ADDRESS = f"http://127.0.0.1:{PORT}"

GENERATED_SECRETS = development_secrets(BASE_DIR / ".secrets") if DEVELOPMENT else {}
SECRET_KEY = ENVIRONMENT.text("COOKIE_ENCRYPTION_KEY") or GENERATED_SECRETS.get("COOKIE_ENCRYPTION_KEY", "") or "absent"
SECRET_KEY_FALLBACKS = ENVIRONMENT.words("COOKIE_ENCRYPTION_KEY_FALLBACKS")
MASTER_KEYS = ENVIRONMENT.master_keys()
if not MASTER_KEYS and DEVELOPMENT:
    MASTER_KEYS = Environment({}, GENERATED_SECRETS, {}).master_keys()

# -- Django ------------------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "cair.apps.CairConfig",
    "todos.apps.TodosConfig",
    "mcp_gateway.apps.McpGatewayConfig",
    "oauth_relay.apps.OAuthRelayConfig",
    "oauth2_provider",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "cair.urls"
ASGI_APPLICATION = "cair.asgi.application"
APPEND_SLASH = False
# The guard has compared Host exactly before Django sees a request; this is the second lock.
ALLOWED_HOSTS = [urlsplit(PUBLIC_URL).hostname or "localhost"]
DATA_UPLOAD_MAX_MEMORY_SIZE = 256 * 1024
DATA_UPLOAD_MAX_NUMBER_FIELDS = 100

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {"default": ENVIRONMENT.database(BASE_DIR / "cair.sqlite3")}
SQLITE = DATABASES["default"]["ENGINE"].endswith("sqlite3")
DATABASES["default"]["CONN_MAX_AGE"] = 0  # anything else leaks a connection per thread under ASGI
if SQLITE:
    # Several writers: DEFERRED transactions fail where IMMEDIATE ones wait their turn.
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;",
    }
else:
    DATABASES["default"]["OPTIONS"] = {
        "pool": {"min_size": 1, "max_size": ENVIRONMENT.integer("DATABASE_POOL", 10, least=2, most=200), "timeout": 10},
        "connect_timeout": 5,
    }

REDIS_URL = ENVIRONMENT.redis("REDIS_URL")
CHANNEL_LAYERS: dict[str, dict] = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
if REDIS_URL:
    # The pub/sub layer: the core layer drops group members after a day, and messages over its capacity.
    CHANNEL_LAYERS["default"] = {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [{"address": REDIS_URL, "socket_timeout": None}]},
    }

LANGUAGE_CODE = "en"
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "/static/"
STATICFILES_DIRS = [BASE_DIR / "templates" / "static"]
WHITENOISE_USE_FINDERS = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Cookies ignore ports (T26): off loopback the prefix makes a browser refuse ours to anyone but this very host.
COOKIE_PREFIX = "" if ON_LOOPBACK and not HTTPS else "__Host-"
SESSION_ENGINE = "oauth_relay.sessions"
SESSION_COOKIE_NAME = f"{COOKIE_PREFIX}cair_session"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = bool(COOKIE_PREFIX)
SESSION_COOKIE_AGE = 14 * 24 * 3600
CSRF_COOKIE_NAME = f"{COOKIE_PREFIX}cair_csrf"
CSRF_COOKIE_HTTPONLY = True
CSRF_FAILURE_VIEW = "oauth_relay.pages.form_expired"
BROWSER_COOKIE_NAME = f"{COOKIE_PREFIX}cair_browser"
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"  # its cookie would have no prefix
X_FRAME_OPTIONS = "DENY"
# `no-referrer` would make Chromium send `Origin: null` with our own forms.
SECURE_REFERRER_POLICY = "same-origin"
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = ENVIRONMENT.boolean("HSTS_SUBDOMAINS", False)
SECURE_HSTS_PRELOAD = False
SILENCED_SYSTEM_CHECKS = [
    "security.W005",  # HSTS for subdomains: they are not ours to decide; HSTS_SUBDOMAINS switches it on
    "security.W008",  # the redirect to https is the proxy's; the guard answers one Host and nothing else
    "security.W021",  # preload: likewise the domain's owner's decision
    "oauth2_provider.W008",  # http redirect URIs: loopback only, `oauth_relay.redirect_uris` sees to it
]

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'none'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
        "base-uri": ["'none'"],
    },
    "EXCLUDE_URL_PREFIXES": ["/admin/"],
}

AUTH_USER_MODEL = "oauth_relay.User"
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "oauth_relay.upstream_identities.UpstreamLoginBackend",
]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
    "oauth_relay.hashers.RandomSecretHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "/login"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"()": "cair.log_lines.TracedFormatter"},
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {
        "handlers": ["stderr"],
        "level": ENVIRONMENT.choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")),
    },
    "loggers": {
        # These print refresh tokens and verifiers below INFO.
        "oauthlib": {"level": "INFO"},
        "mozilla_django_oidc": {"level": "INFO"},
        "daphne": {"level": "WARNING"},
        "aiohttp.access": {"level": "WARNING"},
        # It prints whole addresses, with the codes in them. Ours is `cair.access`.
        "uvicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
        # Every 4xx again, as a warning: `cair.access` has it, and the reason stands beside it.
        "django.request": {"level": "ERROR"},
    },
}

# -- OAuth: the authorization server for MCP clients -------------------------------------------------------------------

OAUTH2_PROVIDER_APPLICATION_MODEL = "oauth_relay.Client"
OAUTH2_PROVIDER_GRANT_MODEL = "oauth_relay.AuthorizationCode"
OAUTH2_PROVIDER_ACCESS_TOKEN_MODEL = "oauth_relay.AccessToken"
OAUTH2_PROVIDER_REFRESH_TOKEN_MODEL = "oauth_relay.RefreshToken"
OAUTH2_PROVIDER_ID_TOKEN_MODEL = "oauth_relay.IDToken"
OAUTH2_PROVIDER_DEVICE_GRANT_MODEL = "oauth_relay.DeviceCode"

# RFC 8707: what a token can be for. A fixed table, never a prefix (T23).
RESOURCES = (f"{PUBLIC_URL}/mcp", f"{PUBLIC_URL}/sse")
DEFAULT_SCOPES = ("read:todos", "write:todos")
OFFLINE_ACCESS = "offline_access"
# Who may register a client by itself: anybody, who has a token of REGISTRATION_TOKENS, or nobody. Limits are by network.
REGISTRATION = ENVIRONMENT.choice("REGISTRATION", "OPEN", ("OPEN", "TOKEN", "CLOSED"))
REGISTRATION_TOKENS = tuple(ENVIRONMENT.words("REGISTRATION_TOKENS"))
REGISTRATION_LIMIT = ENVIRONMENT.integer("REGISTRATION_LIMIT", 400, least=0, most=100_000)
UNUSED_CLIENTS_PER_NETWORK = ENVIRONMENT.integer("UNUSED_CLIENTS_PER_NETWORK", 500, least=0, most=1_000_000)
CUSTOM_REDIRECT_SCHEMES = ENVIRONMENT.schemes("CUSTOM_REDIRECT_SCHEMES", "cursor,vscode,vscode-insiders")
# Clients whose id is the address of their own description: who may come, and from which hosts.
CLIENT_METADATA_DOCUMENTS = ENVIRONMENT.choice("CLIENT_METADATA_DOCUMENTS", "OPEN", ("OPEN", "APPROVED", "OFF")).lower()
CLIENT_HOSTS_ALLOWED = frozenset(word.lower() for word in ENVIRONMENT.words("CLIENT_HOSTS_ALLOWED"))
CLIENT_HOSTS_DENIED = frozenset(word.lower() for word in ENVIRONMENT.words("CLIENT_HOSTS_DENIED"))
# A developer's own client may publish its description on this very machine, by http.
CLIENT_METADATA_LOOPBACK = DEVELOPMENT
CONSENT_LIFETIME = 365 * 24 * 3600
TRANSACTION_LIFETIME = 30 * 60
UPSTREAM_STATE_LIFETIME = 10 * 60
# In days. A refresh token is good for so long without use, and all that came of one code for so long at most.
REFRESH_TOKEN_IDLE_LIFETIME = 24 * 3600 * ENVIRONMENT.integer("REFRESH_TOKEN_IDLE_LIFETIME", 30, least=1, most=3650)
REFRESH_TOKEN_ABSOLUTE_LIFETIME = (
    24 * 3600 * ENVIRONMENT.integer("REFRESH_TOKEN_ABSOLUTE_LIFETIME", 365, least=1, most=3650)
)

OAUTH2_PROVIDER = {
    "OAUTH2_VALIDATOR_CLASS": "oauth_relay.request_validator.RelayRequestValidator",
    "OAUTH2_SERVER_CLASS": "oauth_relay.token_grants.RelayServer",
    "SCOPES_BACKEND_CLASS": "cair.scopes.ToolScopes",
    "OIDC_ENABLED": False,
    "OIDC_ISS_ENDPOINT": PUBLIC_URL,
    "AUTHORIZATION_CODE_EXPIRE_SECONDS": 60,
    "ACCESS_TOKEN_EXPIRE_SECONDS": 600,
    "REFRESH_TOKEN_EXPIRE_SECONDS": REFRESH_TOKEN_IDLE_LIFETIME,
    "REFRESH_TOKEN_REUSE_PROTECTION": True,
    "ROTATE_REFRESH_TOKEN": True,
    "PKCE_REQUIRED": True,
    "ALLOWED_REDIRECT_URI_SCHEMES": ["https", "http", *CUSTOM_REDIRECT_SCHEMES],
    "ALLOW_LOCALHOST_LOOPBACK": True,
    "CLIENT_SECRET_HASHER": "random_secret",
    "COMPLIANT_BCP_RFC9700_IMPLICIT_GRANT": True,
    "COMPLIANT_BCP_RFC9700_PASSWORD_GRANT": True,
    "COMPLIANT_BCP_RFC9700_PKCE_METHOD": True,
    "COMPLIANT_BCP_RFC9700_ACCESS_TOKEN_TRANSPORT": True,
    "COMPLIANT_BCP_RFC9700_AUTHZ_RESPONSE_ISS": True,
    "COMPLIANT_BCP_RFC9700_TOKEN_STORAGE": True,
    "COMPLIANT_BCP_RFC9700_REFRESH_TOKEN": True,
    "COMPLIANT_BCP_RFC9700_REDIRECT_URI_MATCHING": True,
    "COMPLIANT_BCP_RFC9700_PKCE_REQUIRED": True,
    "APPLICATION_ADMIN_CLASS": "oauth_relay.admin.ClientAdmin",
    "GRANT_ADMIN_CLASS": "oauth_relay.admin.AuthorizationCodeAdmin",
    "ACCESS_TOKEN_ADMIN_CLASS": "oauth_relay.admin.AccessTokenAdmin",
    "REFRESH_TOKEN_ADMIN_CLASS": "oauth_relay.admin.RefreshTokenAdmin",
    "ID_TOKEN_ADMIN_CLASS": "oauth_relay.admin.IDTokenAdmin",
    "CIMD_ENABLED": False,  # the library would fetch at /token; `oauth_relay.client_metadata_documents` does it
    "OAUTH2_RESPONSE_TYPES_SUPPORTED": ["code"],
    "OAUTH2_GRANT_TYPES_SUPPORTED": ["authorization_code", "refresh_token"],
    "OAUTH2_TOKEN_ENDPOINT_AUTH_METHODS_SUPPORTED": ["none", "client_secret_post", "client_secret_basic"],
}

# -- sign-in: own accounts, or identity providers ----------------------------------------------------------------------

# Auth0, the OpenID issuers of PROVIDERS, GitHub: in this order on the sign-in page, the first with /callback.
AUTH0_DOMAIN = ENVIRONMENT.text("AUTH0_DOMAIN").rstrip("/")
UPSTREAM_PROVIDERS = configured_providers(ENVIRONMENT, development=DEVELOPMENT)
UPSTREAM_TIMEOUT = ENVIRONMENT.integer("UPSTREAM_TIMEOUT", 10, least=1, most=60)
# For how long a provider's word about a person holds, in seconds; 0 where it is never asked again (T37).
UPSTREAM_RECHECK = ENVIRONMENT.integer("UPSTREAM_RECHECK", 3600, least=0, most=86400)
# As soon as a provider is configured, people sign in there; an operator may allow both.
OWN_ACCOUNTS = ENVIRONMENT.boolean("OWN_ACCOUNTS", not UPSTREAM_PROVIDERS)
# Whether people may add a second way to sign in. Who is disabled at one provider may then still come by the other.
ACCOUNT_LINKING = ENVIRONMENT.boolean("ACCOUNT_LINKING", True)
DEMO_USER = DEVELOPMENT and ON_LOOPBACK and not UPSTREAM_PROVIDERS and ENVIRONMENT.boolean("DEMO_USER", True)

# Who of those whom a provider signs in may come in. One entry that fits is enough; with no entry at all, everybody.
ADMISSION: dict[str, Any] = {
    "emails": frozenset(word.lower() for word in ENVIRONMENT.words("ALLOWED_EMAILS")),
    "domains": frozenset(word.lower().lstrip("@") for word in ENVIRONMENT.words("ALLOWED_DOMAINS")),
    "usernames": frozenset(word.lower() for word in ENVIRONMENT.words("ALLOWED_USERNAMES")),
    "organisations": frozenset(ENVIRONMENT.words("ALLOWED_ORGANISATIONS")),
    "claims": ENVIRONMENT.pairs("ALLOWED_CLAIMS"),
}
# A provider's groups become Django's by this table and in no other way (T25).
GROUPS_CLAIM = ENVIRONMENT.text("GROUPS_CLAIM")
GROUPS_MAP = ENVIRONMENT.pairs("GROUPS_MAP")

# -- the gateway -------------------------------------------------------------------------------------------------------

# In development every loopback origin may call /mcp from a browser (MCP Inspector's direct mode); others never.
ALLOWED_ORIGINS = tuple(origin.rstrip("/").lower() for origin in ENVIRONMENT.words("ALLOWED_ORIGINS"))
MCP_BODY_LIMIT = ENVIRONMENT.integer("MCP_BODY_LIMIT", 1024 * 1024, least=1024, most=64 * 1024 * 1024)

API_LABEL = ENVIRONMENT.text("API_LABEL", "Todos")
API_BASE_URL = ENVIRONMENT.base_url("API_BASE_URL", OWN_ADDRESS)
# The APIs that tools call. Each has one source of tokens: a provider's name, or `cair` itself; never a fallback (T22).
API_TOKEN_PROVIDER = api_token_provider(ENVIRONMENT, UPSTREAM_PROVIDERS)
API_TOKEN_ISSUER = UPSTREAM_PROVIDERS.get(API_TOKEN_PROVIDER)
API_AUDIENCE = API_TOKEN_ISSUER["audience"] if API_TOKEN_ISSUER else ENVIRONMENT.text("AUTH0_AUDIENCE", "urn:todos-api")
UPSTREAM_APIS = {
    "todos": {
        "base_url": API_BASE_URL,
        "host": PUBLIC_HOST if API_BASE_URL == OWN_ADDRESS else "",
        "audience": API_AUDIENCE,
        "token_source": API_TOKEN_PROVIDER,
    },
}

# -- the sample API ----------------------------------------------------------------------------------------------------

# It trusts one issuer: the provider, or CAIR. It reads the issuer's own documents, as it would in a process of its own.
TODOS = {
    "AUDIENCE": API_AUDIENCE,
    "ISSUER": "" if API_TOKEN_ISSUER else PUBLIC_URL,
    "DISCOVERY": API_TOKEN_ISSUER["discovery"] if API_TOKEN_ISSUER else "",
    "JWKS_URL": "" if API_TOKEN_ISSUER else f"{OWN_ADDRESS}/.well-known/jwks.json",
    "JWKS_HOST": "" if API_TOKEN_ISSUER else PUBLIC_HOST,
    "SAMPLE_ROWS": DEVELOPMENT,
}
