// Bob's answers: the code goes to the service, probabilities come back.

import { CONTENT_TYPE } from "./codec.js";

const STORED = "cpgan-key";

export class KeyError extends Error {}

// The key: from the address's fragment, which is then removed, or from an earlier visit of this tab.
export function takeKey() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given) {
    keepKey(given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem(STORED);
}

export function keepKey(key) {
  sessionStorage.setItem(STORED, key);
}

export function forgetKey() {
  sessionStorage.removeItem(STORED);
}

// message: Uint8Array. Returns the answers of its first code.
export async function ask(message, key) {
  let reply;
  try {
    reply = await fetch("/v1/answers", {
      method: "POST",
      headers: { Authorization: `Bearer ${key}`, "Content-Type": CONTENT_TYPE },
      body: message,
      credentials: "omit",
    });
  } catch (error) {
    if (/ISO-8859-1|header|ByteString/i.test(String(error))) throw new KeyError("The key has characters that no key has. Give another one.");
    throw new Error("Bob does not answer. Is the service still running?");
  }
  if (reply.status === 401) throw new KeyError("The service does not know this key. Give another one.");
  if (reply.status === 422) throw new Error("The service has other bundles now. Reload the page.");
  if (reply.status === 429) throw new Error("Too many questions at once. Wait a moment and choose again.");
  if (!reply.ok) throw new Error(`Bob does not answer (status ${reply.status}).`);
  return (await reply.json()).answers[0];
}
