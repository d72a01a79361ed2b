/** What the page asks of the gateway that it came from. */

import { eventData } from "./events.js";

const CHAT = "v1/chat/completions";
const LONGEST_ARGUMENT = 60_000; // characters that any shell takes; an image has more
const UNREACHABLE = "The gateway cannot be reached.";

/** `message`: a sentence to show. */
export class Failure extends Error {}

/** The names of the models. Throws Failure. */
export async function models(key) {
  const response = await ask("v1/models", { headers: authorization(key) });
  const { data } = await response.json();
  return data.map((model) => model.id);
}

/** The chunks of a streamed chat completion. Throws Failure; after `signal` an AbortError. */
export async function* chat(body, key, signal) {
  const headers = { "Content-Type": "application/json", ...authorization(key) };
  const response = await ask(CHAT, { method: "POST", headers, body: JSON.stringify(body), signal });
  for await (const data of received(response.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (chunk.error) throw new Failure(chunk.error.message);
    yield chunk;
  }
  throw new Failure("The connection ended before the answer was complete.");
}

/** The request as a command for a shell. The key is not in it: the command takes it from the environment. */
export function curlCommand(body, hasKey) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const lines = [`curl -N ${quoted(address(CHAT))}`, "-H 'Content-Type: application/json'"];
  if (hasKey) lines.push('-H "Authorization: Bearer $AUTOGLM_API_KEY"');
  const json = JSON.stringify(body, null, 2);
  const isLong = json.length > LONGEST_ARGUMENT;
  lines.push(isLong ? `-d @- <<'END'\n${json}\nEND` : `-d ${quoted(json)}`);
  return lines.join(" \\\n  ");
}

function address(path) {
  return new URL(path, document.baseURI).href;
}

function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(path, init) {
  let response;
  try {
    response = await fetch(address(path), { cache: "no-store", ...init });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Failure(UNREACHABLE);
  }
  if (!response.ok) throw new Failure(await sentence(response));
  return response;
}

async function* received(stream, signal) {
  try {
    yield* eventData(stream);
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Failure("The connection broke before the answer was complete.");
  }
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new Failure("The gateway sent an event that is no JSON.");
  }
}

/** The server's own words, and when another try is worth it. */
async function sentence(response) {
  const answer = await response.json().catch(() => null);
  const said = answer?.error?.message ?? `The gateway answered ${response.status} ${response.statusText}`.trim();
  const wait = Number(response.headers.get("Retry-After"));
  return wait > 0 ? `${said}; worth another try in ${wait} s` : said;
}
