// The address is the state: run, round, client, attack and view stand in it, so that every link can be shared.

export function here() {
  const url = new URL(location.href);
  const [page = "", id = ""] = url.pathname.split("/").filter(Boolean).map(decodeURIComponent);
  return { page, id, query: url.searchParams, attacker: url.searchParams.get("view") === "attacker" };
}

// A link inside of the page; the view that is on stays on.
export function link(path, values = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const one of [value].flat()) if (one !== null && one !== undefined && one !== "") query.append(name, one);
  }
  if (here().attacker) query.set("view", "attacker");
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

// This very address with some values changed; null takes one out.
export function changed(values) {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(values)) {
    if (value === null || value === undefined || value === "") url.searchParams.delete(name);
    else url.searchParams.set(name, value);
  }
  return url.pathname + url.search;
}

export function go(address, { replace = false } = {}) {
  if (address === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", address);
  dispatchEvent(new Event("moved"));
}

export const runPath = (id) => `/run/${encodeURIComponent(id)}`;
