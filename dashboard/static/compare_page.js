// Attacked updates side by side: on the same private images row by row, else each by itself.

import { go, here, link, runPath } from "./address.js";
import { get, runApi } from "./api.js";
import { compared, pairList, setCompared, sourcesOf } from "./card.js";
import { empty, h, part } from "./dom.js";
import { picture } from "./sheets.js";
import { decibel, whose } from "./words.js";
import { openZoom } from "./zoom.js";

const ROWS_AT_ONCE = 60;

export function comparePage(root) {
  const body = h("div", {});
  root.replaceChildren(h("div", { class: "page-head row spread" }, h("h1", {}, "Side by side"), h("button", { type: "button", class: "quiet", onclick: () => { setCompared([]); go(link("/compare"), { replace: true }); } }, "Empty the list")), body);
  document.title = "Compare – fl-sim";

  async function show() {
    const asked = here().query.getAll("item");
    if (!asked.length && compared().length) {
      go(link("/compare", { item: compared() }), { replace: true });
      return;
    }
    if (asked.join() !== compared().join()) setCompared(asked);
    const columns = await Promise.all(asked.slice(0, 12).map(read));
    part(body, [here().attacker, columns], () => draw(asked, columns));
  }
  return { show, poll: show, keys: () => false };
}

async function read(item) {
  const [run, attack, key] = item.split("|");
  try {
    return { item, ...(await get(runApi(run ?? "", "cards", attack ?? "", key ?? ""))) };
  } catch (error) {
    return { item, problem: error.message };
  }
}

function draw(asked, columns) {
  if (!asked.length) return empty("Nothing to compare yet.", "Press “+ compare” on clients of any run, or open a client and choose from “The same private images”.", "The address of this page then holds the list, and can be shared.");
  const good = columns.filter((one) => !one.problem);
  const ids = new Set(good.map((one) => one.card.private_id));
  const aligned = good.length > 0 && ids.size === 1 && !ids.has("") && good.every((one) => one.card.private_sheet && one.card.pairs.some((pair) => pair.private !== null));
  return [
    aligned ? h("p", { class: "muted" }, "All on the same private images: each row is one of them.") : good.length > 1 ? h("p", { class: "muted" }, here().attacker ? "Reconstructions in each attack’s own order." : "Not all on the same private images, or not all scored: each column stands by itself.") : null,
    aligned ? rows(columns, good, asked) : h("div", { class: "columns" }, columns.map((one) => h("section", { class: "column" }, head(one, asked), one.problem ? null : pairList(one.run_id, one.card, { side: 56 })))),
  ];
}

function head(one, asked) {
  const remove = h("button", { type: "button", class: "quiet", "aria-label": "take out", title: "take out", onclick: () => {
    const rest = asked.filter((item) => item !== one.item);
    setCompared(rest);
    go(link("/compare", { item: rest }), { replace: true });
  } }, "×");
  if (one.problem) return h("div", { class: "column-head" }, h("p", { class: "wrong" }, one.problem), remove);
  const { card } = one;
  return h("div", { class: "column-head" },
    h("div", { class: "row spread" }, h("a", { href: link(runPath(one.run_id), { round: card.server_round, client: card.clients.join("+"), attack: card.attack }) }, h("strong", {}, one.name)), remove),
    h("p", { class: "small" }, `round ${card.server_round}, ${whose(card.clients)}${card.seed ? `, seed ${card.seed}` : ""}`),
    h("p", { class: "small" }, one.defenses ? `defended: ${one.defenses}` : "no defense"),
    h("p", { class: "muted small run-name" }, one.run_name),
    card.score ? h("p", {}, h("strong", {}, decibel(card.score.mean_psnr_db)), h("span", { class: "muted small" }, ` · ${card.score.recovered} of ${card.score.num_images}`)) : null);
}

function rows(columns, good, asked) {
  const first = good[0];
  const order = first.card.pairs.map((pair) => pair.private);
  const by = new Map(good.map((one) => [one.item, new Map(one.card.pairs.map((pair, index) => [pair.private, index]))]));
  const truth = sourcesOf(first.run_id, first.card).truth;
  const table = h("tbody", {});
  let shown = 0;
  const more = () => {
    for (const index of order.slice(shown, shown + ROWS_AT_ONCE)) table.append(row(index));
    shown += ROWS_AT_ONCE;
  };
  const row = (index) => h("tr", {},
    h("th", { scope: "row" }, picture(truth, index, 84, "private image")),
    columns.map((one) => {
      if (one.problem) return h("td", {});
      const place = by.get(one.item).get(index);
      const pair = one.card.pairs[place];
      if (!pair || pair.reconstruction === null) return h("td", { class: "muted" }, "none");
      const sources = sourcesOf(one.run_id, one.card);
      return h("td", { class: pair.is_recovered ? "recovered" : "" }, h("button", { type: "button", class: "plain", "aria-label": "enlarge", onclick: () => openZoom(one.card.pairs, place, sources) }, picture(sources.ours, pair.reconstruction, 84, `reconstruction by ${one.name}`), h("span", { class: "numbers" }, decibel(pair.psnr_db))));
    }));
  more();
  const end = h("p", {});
  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && shown < order.length && more(), { rootMargin: "800px" }).observe(end);
  return h("div", { class: "scroll" }, h("table", { class: "beside" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "private"), columns.map((one) => h("th", { scope: "col" }, head(one, asked))))), table), end);
}
