// A real OpenID provider for the tests: panva's oidc-provider, shaped like Auth0. The `audience` parameter of the
// authorization request makes the access token an RS256 JWT for that audience; refresh tokens rotate.
//
// From the environment: PORT, CLIENT_ID, CLIENT_SECRET, REDIRECT_URI, AUDIENCES and SCOPES (separated by spaces),
// ACCOUNTS (JSON: subject → claims), ACCESS_TOKEN_LIFETIME (seconds), POST_LOGOUT_REDIRECT_URI (where people land after
// a sign-out, RP-Initiated Logout) and BACKCHANNEL_LOGOUT_URI (who is told of one, Back-Channel Logout). Prints one line,
// READY and the issuer, when it can be asked, and ends when its standard input closes: a test run that dies takes it along.
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';

import Provider, { errors } from 'oidc-provider';

const words = (name) => (process.env[name] ?? '').split(/\s+/).filter(Boolean);
const accounts = JSON.parse(process.env.ACCOUNTS ?? '{}');
const audiences = new Set(words('AUDIENCES'));
const lifetime = Number(process.env.ACCESS_TOKEN_LIFETIME ?? 300);
const [backchannel] = words('BACKCHANNEL_LOGOUT_URI');

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const signingKey = { ...privateKey.export({ format: 'jwk' }), kid: randomBytes(8).toString('hex'), use: 'sig', alg: 'RS256' };

const configuration = {
  clients: [{
    client_id: process.env.CLIENT_ID,
    client_secret: process.env.CLIENT_SECRET,
    redirect_uris: words('REDIRECT_URI'),
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    token_endpoint_auth_method: 'client_secret_post',
    post_logout_redirect_uris: words('POST_LOGOUT_REDIRECT_URI'),
    // Like Auth0: ID tokens and logout tokens name the session.
    ...(backchannel && { backchannel_logout_uri: backchannel, backchannel_logout_session_required: true }),
  }],
  jwks: { keys: [signingKey] },
  cookies: { keys: [randomBytes(16).toString('hex')] },
  pkce: { required: () => true },
  rotateRefreshToken: true,
  // Auth0 gives one to whoever asks for offline_access; the library would first want prompt=consent (OIDC Core §11).
  issueRefreshToken: async () => true,
  // Like Auth0, too: what offline_access gave outlives the session at the provider.
  expiresWithSession: async () => false,
  conformIdTokenClaims: false,
  claims: { openid: ['sub', 'auth_time'], profile: ['name', 'nickname'], email: ['email', 'email_verified'] },
  extraParams: ['audience'],
  features: {
    devInteractions: { enabled: false },
    revocation: { enabled: true },
    introspection: { enabled: true },
    rpInitiatedLogout: { enabled: true, logoutSource: async (ctx, form) => { ctx.body = signOutPage(form); } },
    backchannelLogout: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: async (ctx) => ctx.oidc.params?.audience || undefined,
      useGrantedResource: async () => true,
      getResourceServerInfo: async (ctx, resource) => {
        if (!audiences.has(resource)) throw new errors.InvalidTarget();
        return { scope: words('SCOPES').join(' '), audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: lifetime,
          jwt: { sign: { alg: 'RS256' } } };
      },
    },
  },
  // The library's dispatcher refuses loopback addresses, and these tests have no others.
  fetch: (url, { dispatcher, ...options }) => fetch(url, options),
  ttl: { AccessToken: lifetime, Interaction: 600, Session: 3600, Grant: 86400, RefreshToken: 86400, IdToken: 300 },
  interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  findAccount: async (ctx, id) => accounts[id] && { accountId: id, claims: async () => ({ sub: id, ...accounts[id] }) },
};

// -- the pages: one form with a name, and a link that says no; one that asks whether to sign out -----------------------

const escapeHtml = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

const page = (uid, hint) => `<!doctype html><html lang="en"><title>Sign in to the test provider</title>
<h1>Sign in to the test provider</h1>
<form method="post" action="/interaction/${uid}">
<label>Login <input name="login" value="${escapeHtml(hint)}" autofocus></label>
<label>Password <input name="password" type="password"></label>
<button type="submit">Continue</button></form>
<a href="/interaction/${uid}/abort">Cancel</a></html>`;

const signOutPage = (form) => `<!doctype html><html lang="en"><title>Sign out of the test provider</title>
<h1>Sign out of the test provider?</h1>
${form}
<button type="submit" form="op.logoutForm" name="logout" value="yes">Sign out</button></html>`;

const formOf = async (req) => {
  let body = '';
  for await (const chunk of req) body += chunk;
  return new URLSearchParams(body);
};

// Like Auth0 with a first-party application: whoever signs in has granted what was asked.
const grantAll = async (provider, params, accountId) => {
  const grant = new provider.Grant({ accountId, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  const resource = params.resource ?? params.audience;
  if (resource) grant.addResourceScope(resource, params.scope);
  return grant.save();
};

const interact = async (provider, req, res) => {
  const { uid, params, prompt, session } = await provider.interactionDetails(req, res);
  const finish = (result) => provider.interactionFinished(req, res, result, { mergeWithLastSubmission: true });
  if (req.url.endsWith('/abort')) {
    return finish({ error: 'access_denied', error_description: 'the person said no' });
  }
  if (prompt.name === 'consent') return finish({ consent: { grantId: await grantAll(provider, params, session.accountId) } });
  if (req.method === 'POST') {
    const accountId = (await formOf(req)).get('login');
    if (accounts[accountId]) {
      return finish({ login: { accountId }, consent: { grantId: await grantAll(provider, params, accountId) } });
    }
  }
  res.setHeader('content-type', 'text/html; charset=utf-8');
  return res.end(page(uid, params.login_hint ?? ''));
};

const server = createServer();
server.listen(Number(process.env.PORT ?? 0), '127.0.0.1', () => {
  const issuer = `http://localhost:${server.address().port}`;
  const provider = new Provider(issuer, configuration);
  const answer = provider.callback();
  server.on('request', (req, res) => {
    if (!req.url.startsWith('/interaction/')) return answer(req, res);
    return interact(provider, req, res).catch((error) => { res.statusCode = error.status ?? 500; res.end(error.message); });
  });
  console.log(`READY ${issuer}`);
});

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
