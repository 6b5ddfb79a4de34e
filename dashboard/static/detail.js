// All about one attacked update.

import { here, link } from "./address.js";
import { get, runApi } from "./api.js";
import { compareButton, itemText, pairList, scoreLine } from "./card.js";
import { facts, h } from "./dom.js";
import { lines, spectrum } from "./plots.js";
import { capital, decibel, duration, fraction, percent, quantity } from "./words.js";

export function drawDetail(runId, run, result, around) {
  const { card } = result;
  const score = card.score;
  return [
    h("div", { class: "row spread detail-head" },
      h("h2", {}, `Round ${card.server_round}, ${around.title}${card.seed ? `, seed ${card.seed}` : ""}`),
      h("div", { class: "row" },
        around.before ? h("a", { class: "button", href: around.before, "data-before": true, "aria-label": "client before" }, "←") : null,
        around.after ? h("a", { class: "button", href: around.after, "data-after": true, "aria-label": "client after" }, "→") : null,
        h("a", { class: "button", href: around.all }, "all clients"),
        compareButton(runId, card))),
    scoreLine(score),
    card.notice ? h("p", { class: "notice" }, card.notice) : null,
    pairList(runId, card, { side: 84, numbers: "full" }),
    score ? h("p", { class: "muted small" }, `Each pair: the private image above, the reconstruction assigned to it below; class, true → recovered. A line marks those above ${score.threshold_db} dB.`) : null,
    h("div", { class: "panels" },
      score ? scores(result) : null,
      labels(result),
      result.curve.length ? lines({ title: "Matching loss", x: "step", y: "loss", log: true, series: [{ name: "matching loss", points: result.curve.map((one) => [one.step, one.loss]), kind: 1, dots: false }] }) : null,
      card.clients.length === 1 ? spectrumPanel(runId, card) : null,
      others(runId, card),
      h("div", { class: "panel" }, h("h3", {}, "The attack"), facts([
        ["attack", result.name], ["outcome", result.outcome], ...result.remarks.map((text) => ["remark", text]),
        ["time", duration(result.seconds)], ["matching loss", quantity(result.matching_loss)], ["granted", result.threat_model.granted],
      ]), h("details", {}, h("summary", {}, "hyper-parameters"), facts(result.options)))),
  ];
}

function scores(result) {
  const { card, baselines, iip } = result;
  const score = card.score;
  const withLpips = score.mean_lpips !== null;
  const row = (name, psnr, ssim, lpips, identified, share, own) => h("tr", { class: own ? "ours" : "" }, h("th", { scope: "row" }, name), h("td", {}, decibel(psnr)), h("td", {}, fraction(ssim)), withLpips ? h("td", {}, fraction(lpips)) : null, iip !== null ? h("td", {}, percent(identified)) : null, h("td", {}, percent(share)));
  return h("div", { class: "panel scroll" }, h("table", {},
    h("caption", {}, `Against guessing without the update${score.beats_guessing || !baselines.length ? "" : ": no better"}`),
    h("thead", {}, h("tr", {}, ["", "PSNR", "SSIM", withLpips && "LPIPS", iip !== null && "IIP", "recovered"].filter((name) => name !== false).map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {},
      row("this attack", score.mean_psnr_db, score.mean_ssim, score.mean_lpips, iip, score.recovered / score.num_images, true),
      baselines.map((one) => row(`guess: ${one.name}`, one.mean_psnr_db, one.mean_ssim, one.mean_lpips, one.iip, one.recovered_share, false)))));
}

function labels(result) {
  const { counts, card } = result;
  const knowsTruth = counts.some((one) => one.true !== null);
  const title = card.score ? `Labels: ${card.score.wrong_labels} of ${card.score.num_images} wrong` : "Labels that the attack attributes";
  return h("div", { class: "panel scroll" }, h("table", { class: "counts" },
    h("caption", {}, title),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "class"), counts.map((one) => h("th", { scope: "col" }, one.name)))),
    h("tbody", {},
      knowsTruth ? h("tr", {}, h("th", { scope: "row" }, "true"), counts.map((one) => h("td", {}, one.true))) : null,
      h("tr", {}, h("th", { scope: "row" }, result.labels_granted ? "granted" : "recovered"), counts.map((one) => h("td", { class: one.true !== null && one.true !== one.recovered ? "wrong" : "" }, one.recovered))))));
}

function spectrumPanel(runId, card) {
  const place = h("div", { class: "panel spectrum" }, h("h3", {}, "What the update tells of N_c"), h("p", { class: "muted" }, "reading the update …"));
  get(runApi(runId, "spectrum", String(card.server_round), String(card.clients[0]))).then(
    (view) => {
      const range = view.low === view.high ? "" : ` (${view.low} to ${view.high})`;
      const found = view.num_examples === null ? `N_c cannot be read from it: ${view.reason}. The client says ${view.stated}.` : `N_c = ${view.num_examples}${range}, read from: ${view.method}; the client says ${view.stated}.`;
      if (!view.values.length) place.replaceChildren(h("h3", {}, "What the update tells of N_c"), h("p", {}, capital(found)));
      else place.replaceWith(spectrum({ title: "What the update tells of N_c", values: view.values, rounding: view.rounding, count: view.directions, note: found }));
    },
    (error) => place.replaceChildren(h("h3", {}, "What the update tells of N_c"), h("p", { class: "muted" }, error.message)),
  );
  return place;
}

const KINDS = { attack: "another attack", round: "another round", seed: "another seed", run: "another run" };

// Other attacks, rounds and runs on the same private images, one click away from standing beside this one.
function others(runId, card) {
  const list = h("div", {}, h("p", { class: "muted" }, "…"));
  get(runApi(runId, "alike", card.attack, card.key)).then(
    ({ alike }) => {
      if (!alike.length) {
        list.replaceChildren(h("p", { class: "muted" }, "Nothing else was made of these images yet."));
        return;
      }
      const own = itemText(runId, card);
      const text = (one) => `${one.run_id}|${one.attack}|${one.key}`;
      const groups = Object.keys(KINDS).map((kind) => [kind, alike.filter((one) => one.kind === kind)]).filter(([, found]) => found.length);
      list.replaceChildren(...groups.map(([kind, found]) => h("div", {},
        h("p", { class: "row spread" }, h("strong", {}, capital(KINDS[kind])), h("a", { href: link("/compare", { item: [own, ...found.slice(0, 7).map(text)] }) }, "all beside this one")),
        h("ul", { class: "alike" }, found.slice(0, 12).map((one) => h("li", {}, h("a", { href: link("/compare", { item: [own, text(one)] }) }, title(kind, one)), one.psnr_db === null ? null : h("span", { class: "muted" }, ` ${decibel(one.psnr_db)}`)))))));
    },
    () => list.replaceChildren(),
  );
  return h("div", { class: "panel" }, h("h3", {}, here().attacker ? "The same client" : "The same private images"), list);
}

function title(kind, one) {
  if (kind === "round") return `round ${one.server_round}`;
  if (kind === "seed") return `seed ${one.seed}`;
  if (kind === "attack") return `${one.attack_name}, round ${one.server_round}`;
  return `${one.run_name}${one.defenses ? `, ${one.defenses}` : ""}: ${one.attack_name}, round ${one.server_round}`;
}
