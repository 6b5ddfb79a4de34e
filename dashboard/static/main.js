// The frame: which page stands at an address, what is asked for again, keys, colours, the attacker's view.

import { changed, go, here } from "./address.js";
import { compared } from "./card.js";
import { comparePage } from "./compare_page.js";
import { empty, h } from "./dom.js";
import { runPage } from "./run_page.js";
import { runsPage } from "./runs_page.js";
import { tradeoffPage } from "./tradeoff_page.js";

const PAGES = { "": runsPage, run: runPage, compare: comparePage, tradeoff: tradeoffPage };
const MILLISECONDS_BETWEEN_LOOKS = 2000;

const main = document.getElementById("main");
const attackerView = document.getElementById("attacker-view");
const byId = (id) => document.getElementById(id);
let current = { name: null, page: null };

function show() {
  const place = here();
  // Another view is another page: nothing of the one before stays on the screen, not even for a moment.
  const name = `${place.attacker}/${place.page}/${place.page === "run" ? place.id : ""}`;
  attackerView.checked = place.attacker;
  document.documentElement.classList.toggle("as-attacker", place.attacker);
  byId("attacker-banner").hidden = !place.attacker;
  for (const anchor of document.querySelectorAll("[data-link]")) {
    const path = anchor.dataset.link;
    anchor.href = place.attacker ? `${path}?view=attacker` : path;
    const isHere = path === "/" ? place.page === "" || place.page === "run" : `/${place.page}` === path;
    if (isHere && !anchor.classList.contains("mark")) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  if (name !== current.name) {
    const open = PAGES[place.page];
    main.replaceChildren(h("p", { class: "muted loading" }, "…"));
    current = { name, page: open ? open(main) : null };
    if (!open) main.replaceChildren(empty("There is no such page.", "The bar above leads to those that there are."));
    scrollTo(0, 0);
  }
  current.page?.show();
}

// One look at a time: a slow answer is waited for and not overtaken.
let isLooking = false;
async function poll() {
  if (isLooking || document.visibilityState !== "visible" || !current.page) return;
  isLooking = true;
  try {
    await current.page.poll();
  } finally {
    isLooking = false;
  }
}

addEventListener("moved", show);
addEventListener("popstate", show);
addEventListener("poll", poll);
document.addEventListener("visibilitychange", poll);
setInterval(poll, MILLISECONDS_BETWEEN_LOOKS);

addEventListener("click", (event) => {
  const anchor = event.target.closest?.("a[href]");
  if (!anchor || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const address = anchor.getAttribute("href");
  if (!address.startsWith("/") || address.startsWith("/static/")) return;
  event.preventDefault();
  const before = here().query.get("client");
  go(address);
  if (here().query.get("client") !== before) scrollTo({ top: 0 });
});

const setView = (isAttacker) => go(changed({ view: isAttacker ? "attacker" : null }), { replace: true });
attackerView.addEventListener("change", () => setView(attackerView.checked));

addEventListener("keydown", (event) => {
  const writes = event.target.closest?.("input:not([type=checkbox]), select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (writes && !(writes.type === "range" && !event.key.startsWith("Arrow"))) return;
  if (event.key === "?") byId("keys").showModal();
  else if (event.key === "a") setView(!here().attacker);
  else if (!current.page?.keys(event)) return;
  event.preventDefault();
});

byId("help").addEventListener("click", () => byId("keys").showModal());

const THEMES = ["system", "light", "dark"];
const SIGNS = { system: "◐", light: "☀", dark: "☾" };
const theme = byId("theme");
function drawTheme() {
  const chosen = document.documentElement.dataset.theme ?? "system";
  theme.textContent = SIGNS[chosen];
  theme.setAttribute("aria-label", `Colours: ${chosen}`);
}
theme.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % THEMES.length];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  localStorage.setItem("theme", next);
  drawTheme();
});

function drawCount() {
  const badge = byId("num-compared");
  badge.textContent = compared().length;
  badge.hidden = !compared().length;
}
addEventListener("compared", drawCount);
addEventListener("storage", drawCount);

addEventListener("reached", (event) => {
  const banner = byId("offline");
  banner.hidden = event.detail;
  banner.textContent = event.detail ? "" : "The server does not answer. This page shows what it knew last, and asks again.";
});

drawTheme();
drawCount();
show();
