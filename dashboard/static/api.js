// Asks the server, which decides what a view may see; what has not changed is not sent again.

import { here } from "./address.js";

const known = new Map();
const MOST_KNOWN = 300;

export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const seen = (path) => (here().attacker ? `${path}${path.includes("?") ? "&" : "?"}view=attacker` : path);
export const runApi = (id, ...rest) => ["/api/runs", encodeURIComponent(id), ...rest.map(encodeURIComponent)].join("/");
export const sheetPath = (id, kind, ...rest) => `/pictures/${encodeURIComponent(id)}/${kind}/${rest.map(encodeURIComponent).join("/")}.png`;

export async function get(path) {
  const address = seen(path);
  const before = known.get(address);
  const answer = await ask(address, { headers: before ? { "If-None-Match": before.tag } : {}, cache: "no-store" });
  if (answer.status === 304) return before.data;
  const data = await answer.json();
  known.set(address, { tag: answer.headers.get("ETag"), data });
  if (known.size > MOST_KNOWN) known.delete(known.keys().next().value);
  return data;
}

export async function post(path, body) {
  const answer = await ask(seen(path), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body ?? {}),
  });
  return answer.json();
}

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    dispatchEvent(new CustomEvent("reached", { detail: false }));
    throw new Refusal("The server does not answer. Was it ended? `fl-sim dashboard` starts it again.", 0);
  }
  dispatchEvent(new CustomEvent("reached", { detail: true }));
  if (answer.ok || answer.status === 304) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Refusal(said.error ?? `The server refused this (${answer.status}).`, answer.status);
}
