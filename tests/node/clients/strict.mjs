// A client that lets a strict library judge every answer; its argument says which. What came is told on stdout, one JSON
// line each: `{"done": …}`, or `{"error": …}` as the library understood it; both with what was on the wire.
//
// usage: node strict.mjs oauth4webapi|openid-client MCP_URL REDIRECT_URI
// stdin: one JSON line per order: {"do": "challenge" | "discover" | "register" | "adopt" | "authorize" | "redeem" |
// "refresh" | "revoke" | "list", …}. "redeem" takes the address to which the browser was sent back.
import { createInterface } from 'node:readline';
import * as oauth from 'oauth4webapi';
import * as openid from 'openid-client';

const [library, url, redirectUri] = process.argv.slice(2);
const resource = new URL(url);
const memory = {};
const tell = (what) => process.stdout.write(`${JSON.stringify({ ...what, wire: memory.wire })}\n`);

const watched = async (...request) => {
  const response = await fetch(...request);
  const { headers, status } = response;
  memory.wire = {
    status,
    type: headers.get('content-type'),
    cache: headers.get('cache-control'),
    challenge: headers.get('www-authenticate'),
    body: await response.clone().text(),
  };
  return response;
};
const message = (method) => JSON.stringify({
  jsonrpc: '2.0',
  id: 1,
  method,
  params: {
    _meta: {
      'io.modelcontextprotocol/protocolVersion': '2026-07-28',
      'io.modelcontextprotocol/clientCapabilities': {},
      'io.modelcontextprotocol/clientInfo': { name: 'strict', version: '1' },
    },
  },
});
const mcpHeaders = (method) => new Headers({
  'content-type': 'application/json',
  accept: 'application/json, text/event-stream',
  'mcp-protocol-version': '2026-07-28',
  'mcp-method': method,
});

// -- the two judges: the same steps, each in its own words -------------------------------------------------------------

const low = () => {
  const options = { [oauth.allowInsecureRequests]: true, [oauth.customFetch]: watched };
  const methods = {
    none: () => oauth.None(),
    client_secret_basic: (secret) => oauth.ClientSecretBasic(secret),
    client_secret_post: (secret) => oauth.ClientSecretPost(secret),
  };
  const authentication = ({ client_secret: secret, token_endpoint_auth_method: method }) => methods[method](secret);
  let server;
  let client;
  return {
    discover: async () => {
      const described = await oauth.processResourceDiscoveryResponse(
        resource, await oauth.resourceDiscoveryRequest(resource, options));
      const issuer = new URL(described.authorization_servers[0]);
      server = await oauth.processDiscoveryResponse(
        issuer, await oauth.discoveryRequest(issuer, { ...options, algorithm: 'oauth2' }));
      return { described, server };
    },
    register: async (metadata) => {
      const response = await oauth.dynamicClientRegistrationRequest(server, metadata, options);
      client = await oauth.processDynamicClientRegistrationResponse(response);
      return client;
    },
    adopt: async (known) => { client = known; },
    address: (parameters) => {
      const address = new URL(server.authorization_endpoint);
      address.search = new URLSearchParams({ response_type: 'code', client_id: client.client_id, ...parameters });
      return address;
    },
    redeem: async (back, { verifier, state, uri }) => {
      const parameters = oauth.validateAuthResponse(server, client, back, state);
      const response = await oauth.authorizationCodeGrantRequest(
        server, client, authentication(client), parameters, uri, verifier,
        { ...options, additionalParameters: { resource: resource.href } });
      return oauth.processAuthorizationCodeResponse(server, client, response);
    },
    refresh: async (token, more) => oauth.processRefreshTokenResponse(server, client,
      await oauth.refreshTokenGrantRequest(server, client, authentication(client), token,
        { ...options, additionalParameters: more })),
    revoke: async (token) => oauth.processRevocationResponse(
      await oauth.revocationRequest(server, client, authentication(client), token, options)),
    request: (token, method) => oauth.protectedResourceRequest(
      token, 'POST', resource, mcpHeaders(method), message(method), options),
  };
};

const high = () => {
  const issuer = new URL(resource.origin);
  const options = { algorithm: 'oauth2', execute: [openid.allowInsecureRequests], [openid.customFetch]: watched };
  const methods = {
    none: openid.None, client_secret_basic: openid.ClientSecretBasic, client_secret_post: openid.ClientSecretPost,
  };
  const authentication = (metadata) => methods[metadata.token_endpoint_auth_method](metadata.client_secret);
  let configuration;
  return {
    discover: async () => {
      configuration = await openid.discovery(issuer, 'nobody-yet', {}, openid.None(), options);
      return { server: configuration.serverMetadata() };
    },
    register: async (metadata) => {
      configuration = await openid.dynamicClientRegistration(issuer, metadata, authentication(metadata), options);
      return configuration.clientMetadata();
    },
    adopt: async (known) => {
      configuration = await openid.discovery(issuer, known.client_id, known, authentication(known), options);
    },
    address: (parameters) => openid.buildAuthorizationUrl(configuration, parameters),
    redeem: (back, { verifier, state }) => openid.authorizationCodeGrant(
      configuration, back, { pkceCodeVerifier: verifier, expectedState: state }, { resource: resource.href }),
    refresh: (token, more) => openid.refreshTokenGrant(configuration, token, more),
    revoke: (token) => openid.tokenRevocation(configuration, token),
    request: (token, method) => openid.fetchProtectedResource(
      configuration, token, resource, 'POST', message(method), mcpHeaders(method)),
  };
};

const judge = { oauth4webapi: low, 'openid-client': high }[library]();

// -- what it is told to do ---------------------------------------------------------------------------------------------

const authorize = async ({ scope = 'read:todos write:todos', ...changes }) => {
  const verifier = oauth.generateRandomCodeVerifier();
  const state = oauth.generateRandomState();
  memory.flow = { verifier, state, uri: changes.redirect_uri ?? redirectUri };
  return judge.address({
    redirect_uri: redirectUri,
    scope,
    state,
    code_challenge: await oauth.calculatePKCECodeChallenge(verifier),
    code_challenge_method: 'S256',
    resource: resource.href,
    ...changes,
  }).href;
};

const answerOf = async (response) => {
  const text = await response.text();
  const isStream = response.headers.get('content-type').startsWith('text/event-stream');
  return JSON.parse(isStream ? text.split('\n').filter((line) => line.startsWith('data:')).at(-1).slice(5) : text);
};

const orders = {
  challenge: async ({ token = 'nobody-issued-this' }) => judge.request(token, 'tools/list'),
  discover: () => judge.discover(),
  register: ({ metadata }) => judge.register({ redirect_uris: [redirectUri], ...metadata }),
  adopt: ({ client }) => judge.adopt(client),
  authorize,
  redeem: ({ back, ...changes }) => judge.redeem(new URL(back), { ...memory.flow, ...changes }),
  refresh: ({ token, more = {} }) => judge.refresh(token, more),
  revoke: ({ token }) => judge.revoke(token),
  list: async ({ token }) => (await answerOf(await judge.request(token, 'tools/list'))).result.tools.map((tool) => tool.name),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { do: what, ...order } = JSON.parse(line);
  memory.wire = undefined;
  try {
    tell({ done: (await orders[what](order)) ?? true });
  } catch (error) {
    const challenges = error.code === 'OAUTH_WWW_AUTHENTICATE_CHALLENGE' ? error.cause : undefined;
    tell({ error: error.name, code: error.code, oauth: error.error, status: error.status, challenges, message: String(error.message) });
  }
}
