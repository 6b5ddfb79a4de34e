// All runs: what was trained, how far it is, what leaked.

import { go, here, link, runPath } from "./address.js";
import { get, runApi } from "./api.js";
import { pairList } from "./card.js";
import { empty, h, part, problem } from "./dom.js";
import { campaignBars, federationBars, stateBadge } from "./live.js";
import { count, decibel, percent } from "./words.js";

const STRIP = 5;

export function runsPage(root) {
  const search = h("input", { type: "search", placeholder: "Filter: name, model, defense …", "aria-label": "Filter the runs", value: here().query.get("q") ?? "" });
  const list = h("div", { class: "runs" });
  const head = h("div", { class: "row spread page-head" }, h("h1", {}, "Runs"), search);
  let view = null;
  root.replaceChildren(head, list);
  document.title = "Runs – fl-sim";

  search.addEventListener("input", () => {
    const url = new URL(location.href);
    if (search.value) url.searchParams.set("q", search.value);
    else url.searchParams.delete("q");
    history.replaceState(null, "", url);
    draw();
  });

  const draw = () => {
    if (!view) return;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (line) => [line.name, line.study, line.defenses, ...line.setting, line.problem].join(" ").toLowerCase();
    const shown = view.runs.filter((line) => words.every((word) => text(line).includes(word)));
    head.classList.toggle("only", !view.runs.length);
    part(list, [here().attacker, view.runs.length, shown], () => {
      if (!view.runs.length) return empty("No runs yet.", `This page looks into ${view.runs_dir}.`, "fl-sim run experiments/digits.toml makes a run; it appears here by itself.");
      if (!shown.length) return empty("No run matches.", "Try fewer words.");
      return shown.map(row);
    });
  };

  const refresh = async () => {
    try {
      view = await get("/api/runs");
      draw();
    } catch (error) {
      if (!view) part(list, error.message, () => problem(error));
    }
  };
  return { show: refresh, poll: refresh, keys: () => false };
}

function row(line) {
  const title = h("h2", {}, h("a", { href: link(runPath(line.run_id)) }, line.name));
  if (line.problem) {
    return h("article", { class: "run-row damaged" }, h("div", {}, h("div", { class: "row" }, title, stateBadge(line)), h("p", { class: "wrong" }, line.problem)));
  }
  const best = line.best;
  const score = best?.line.score;
  const strip = h("div", { class: "strip" });
  if (best) drawStrip(strip, line.run_id, best);
  return h("article", { class: "run-row" },
    h("div", { class: "what" },
      h("div", { class: "row" }, title, stateBadge(line), line.study ? h("span", { class: "badge" }, `study ${line.study}`) : null),
      h("p", { class: "muted" }, line.setting.join(" · ") || "no recording yet"),
      line.defenses ? h("p", {}, `defended: ${line.defenses}`) : null,
      h("p", { class: "muted" }, `${line.progress.rounds_done}${line.progress.num_rounds ? ` of ${line.progress.num_rounds}` : ""} rounds`, line.accuracy === null ? null : ` · accuracy ${percent(line.accuracy, 1)}`, ` · ${count(line.num_results, "update")} attacked`),
      federationBars(line.progress), campaignBars(line.campaigns)),
    h("div", { class: "leak" },
      score ? [
        h("p", { class: "headline" }, h("strong", { class: score.beats_guessing ? "" : "muted" }, `${score.recovered} of ${score.num_images}`), " images recovered"),
        h("p", { class: "muted" }, `${decibel(score.mean_psnr_db)} against ${decibel(score.guess_psnr_db)} for the best guess`),
        h("p", { class: "muted" }, best.name, " ", h("span", { class: `badge ${best.realistic ? "realistic" : "bound"}` }, best.realistic ? "realistic" : "upper bound")),
      ] : h("p", { class: "muted" }, best ? (here().attacker ? best.name : `${best.name}, not scored`) : "no update attacked yet")),
    strip);
}

async function drawStrip(strip, runId, best) {
  try {
    const { card } = await get(runApi(runId, "cards", best.attack, best.line.key));
    const address = link(runPath(runId), { round: card.server_round, client: card.clients.join("+"), attack: card.attack });
    strip.replaceChildren(h("a", { href: address, "aria-label": "the most revealing update", onclick: (event) => { if (event.target.closest("button")) { event.preventDefault(); go(address); } } }, pairList(runId, card, { side: 44, most: STRIP, numbers: "none" })));
  } catch {
    strip.replaceChildren();
  }
}
