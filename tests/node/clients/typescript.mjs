// An official TypeScript client, told by its argument which one; what it does is told on stdout, one JSON line each.
//
// usage: node typescript.mjs 1|2 MCP_OR_SSE_URL REDIRECT_URI [legacy|auto]
// stdin: one JSON line per order: {"do": "connect" | "list" | "call" | "expire" | "close", …}, and {"answer": URL} after
// an {"open": URL}: the address to which the browser was sent back.
import { createInterface } from 'node:readline';

const [generation, url, redirectUrl, mode = 'legacy'] = process.argv.slice(2);
const sdk = generation === '2' ? await import('@modelcontextprotocol/client') : {
  ...(await import('@modelcontextprotocol/sdk/client/index.js')),
  ...(await import('@modelcontextprotocol/sdk/client/streamableHttp.js')),
  ...(await import('@modelcontextprotocol/sdk/client/sse.js')),
  ...(await import('@modelcontextprotocol/sdk/client/auth.js')),
};
const tell = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const next = async () => JSON.parse((await lines.next()).value);

const memory = {};
const provider = {
  redirectUrl,
  clientMetadata: {
    client_name: `TypeScript SDK ${generation}`,
    redirect_uris: [redirectUrl],
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    token_endpoint_auth_method: 'none',
  },
  state: () => (memory.state = crypto.randomUUID()),
  clientInformation: () => memory.client,
  saveClientInformation: (client) => { memory.client = client; tell({ registered: client.client_id }); },
  tokens: () => memory.tokens,
  saveTokens: (tokens) => { memory.tokens = tokens; tell({ tokens: tokens.scope }); },
  redirectToAuthorization: (address) => { memory.open = String(address); },
  saveCodeVerifier: (verifier) => { memory.verifier = verifier; },
  codeVerifier: () => memory.verifier,
  invalidateCredentials: (scope) => {
    tell({ forgot: scope });
    if (scope === 'all' || scope === 'client') delete memory.client;
    if (scope === 'all' || scope === 'tokens') delete memory.tokens;
  },
};

const open = () => {
  const Transport = url.endsWith('/sse') ? sdk.SSEClientTransport : sdk.StreamableHTTPClientTransport;
  const options = generation === '2' ? { versionNegotiation: { mode } } : {};
  return [new sdk.Client({ name: 'flows', version: '1' }, options), new Transport(new URL(url), { authProvider: provider })];
};
let [client, transport] = open();

// The client has asked for the browser: tell, wait for the address it came back to, redeem the code.
const signIn = async () => {
  tell({ open: memory.open });
  const { answer } = await next();
  const parameters = new URL(answer).searchParams;
  if (parameters.get('state') !== memory.state) throw new Error('another state came back');
  if (parameters.get('error')) throw new Error(`refused: ${parameters.get('error')}`);
  await (generation === '2' ? transport.finishAuth(parameters) : transport.finishAuth(parameters.get('code')));
};

const connect = async () => {
  try {
    await client.connect(transport);
  } catch (error) {
    if (!(error instanceof sdk.UnauthorizedError)) throw error;
    await signIn();
    [client, transport] = open();
    await client.connect(transport);
  }
  tell({ connected: client.getServerVersion()?.name ?? '', speaks: transport.protocolVersion ?? client.getNegotiatedProtocolVersion?.() });
};

const call = async ({ name, arguments: given }) => {
  try {
    return await client.callTool({ name, arguments: given });
  } catch (error) {
    if (!(error instanceof sdk.UnauthorizedError)) throw error;
    await signIn();
    return await client.callTool({ name, arguments: given });
  }
};

const orders = {
  connect,
  list: async () => tell({ tools: (await client.listTools()).tools.map((tool) => tool.name) }),
  call: async (order) => tell({ result: await call(order) }),
  expire: async () => { memory.tokens = { ...memory.tokens, access_token: 'lost' }; tell({ expired: true }); },
  close: async () => { await client.close(); tell({ closed: true }); process.exit(0); },
};

for (;;) {
  const order = await next();
  try {
    await orders[order.do](order);
  } catch (error) {
    tell({ error: error.name ?? 'Error', code: error.code, message: String(error.message) });
  }
}
