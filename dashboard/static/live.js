// What is under way: a federation's rounds and replies, attacks with their images as they form.

import { here } from "./address.js";
import { get, post, runApi, sheetPath } from "./api.js";
import { bar, h } from "./dom.js";
import { lines } from "./plots.js";
import { loadSheet, shownSize } from "./sheets.js";
import { capital, count, duration, left, quantity, whose } from "./words.js";

export function stateBadge(line) {
  const attacking = line.campaigns.some((campaign) => campaign.state === "running");
  const state = line.problem ? "damaged" : attacking ? "attacking" : line.progress.state;
  return h("span", { class: `badge state ${state}` }, state);
}

export const isLive = (line) => !line.problem && (line.progress?.state === "running" || line.campaigns.some((one) => one.state === "running"));

export function federationBars(progress) {
  if (progress.state !== "running") return null;
  const total = progress.num_rounds;
  return h("div", { class: "live" },
    h("div", { class: "meter" }, h("span", {}, `round ${Math.min(progress.rounds_done + 1, total ?? progress.rounds_done + 1)} of ${total ?? "?"}`), bar(total ? progress.rounds_done / total : 0, "rounds"), h("span", { class: "muted" }, left(progress.seconds_left))),
    progress.asked ? h("div", { class: "meter" }, h("span", {}, `${progress.replies} of ${progress.asked} replies`), bar(progress.replies / progress.asked, "replies"), h("span", {})) : null);
}

export function campaignBars(campaigns) {
  return campaigns.filter((one) => one.state === "running").map((one) =>
    h("div", { class: "meter" }, h("span", {}, `${one.attack}: ${one.finished} of ${count(one.total, "update")}`), bar(share(one), "attacked updates"), h("span", { class: "muted" }, left(one.seconds_left))));
}

const share = (one) => (one.finished + one.failed.length + one.running.reduce((sum, now) => sum + now.step / Math.max(1, now.num_steps), 0)) / Math.max(1, one.total);

// Everything under way in a run. `jobs` are the attacks that were started from a page.
export function underWay(runId, line, jobs) {
  const started = jobs.filter((job) => job.state === "running");
  const unseen = started.filter((job) => !line.campaigns.some((one) => one.label === job.label && one.state === "running"));
  const parts = [
    federationBars(line.progress),
    ...line.campaigns.filter((one) => one.state === "running").map((one) => campaignPanel(runId, one, started.find((job) => job.label === one.label))),
    ...unseen.map((job) => h("div", { class: "panel attack-live" }, h("div", { class: "row spread" }, h("h3", {}, job.attack), cancelButton(job)), h("p", { class: "muted" }, `starting: reading the recording, loading PyTorch (${duration(job.seconds)})`), bar(0, "starting"))),
  ].filter(Boolean);
  return parts.length ? [h("h2", {}, "Under way"), ...parts] : null;
}

function campaignPanel(runId, one, job) {
  return h("div", { class: "panel attack-live" },
    h("div", { class: "row spread" }, h("h3", {}, `${one.attack}: ${one.finished} of ${count(one.total, "update")}`), h("span", { class: "muted" }, left(one.seconds_left)), job ? cancelButton(job) : null),
    bar(share(one), "attacked updates"),
    h("div", { class: "forming" }, one.running.map((now) => forming(runId, one, now))));
}

function cancelButton(job) {
  return h("button", { type: "button", class: "cancel", onclick: async (event) => {
    event.target.disabled = true;
    event.target.textContent = "cancelling …";
    await post(`/api/jobs/${job.job_id}/cancel`).catch(() => {});
    dispatchEvent(new Event("poll"));
  } }, "Cancel");
}

// What shows an attack's images stays the same while it runs, so that nothing flickers between two looks.
const shown = new Map();

function forming(runId, campaign, now) {
  const name = `${here().attacker}|${runId}|${campaign.label}|${now.key}`;
  if (!shown.has(name)) {
    if (shown.size > 50) shown.clear();
    shown.set(name, [h("div", { class: "forming-images", role: "img", "aria-label": "images as they form" }), h("div", { class: "curve" })]);
  }
  const [images, curve] = shown.get(name);
  if (now.has_snapshot) drawForming(runId, campaign, now, images, curve);
  return h("section", { class: "running-attack" },
    h("p", {}, `Round ${now.server_round}, ${whose(now.clients)}`, h("span", { class: "muted" }, ` · step ${now.step} of ${now.num_steps} · matching loss ${quantity(now.matching_loss)}`)),
    now.has_snapshot ? images : h("p", { class: "muted small" }, "no images yet; attacks started in a terminal show them with --snapshots"),
    curve);
}

async function drawForming(runId, campaign, now, images, curve) {
  try {
    const view = await get(runApi(runId, "snapshots", campaign.label, now.key));
    if (images.dataset.step === String(view.step)) return;
    const path = sheetPath(runId, "snapshots", campaign.label, now.key);
    const sheet = await loadSheet(path, view.step);
    const { cut, side } = { cut: view.sheet, side: shownSize(view.sheet, 56) };
    while (images.children.length < cut.num_images) {
      images.append(h("canvas", { class: "picture", width: cut.width, height: cut.height, style: { width: `${side[0]}px`, height: `${side[1]}px` } }));
    }
    [...images.children].forEach((canvas, index) => {
      const [left, top] = [(index % cut.columns) * cut.width, Math.floor(index / cut.columns) * cut.height];
      canvas.getContext("2d").drawImage(sheet, left, top, cut.width, cut.height, 0, 0, cut.width, cut.height);
    });
    images.dataset.step = view.step;
    curve.replaceChildren(lines({ title: "", x: "step", y: "matching loss", log: true, height: 130, series: [{ name: "matching loss", points: view.curve.map((one) => [one.step, one.loss]), kind: 1, dots: false }] }));
  } catch {
    // It has ended in between: the next look shows the result.
  }
}

// What ended without a result, and why.
export function leftOvers(line, jobs) {
  const failed = jobs.filter((job) => job.state === "failed" && job.message);
  const rows = [
    ...line.campaigns.filter((one) => one.state === "interrupted").map((one) => [one.attack, `interrupted after ${one.finished} of ${count(one.total, "update")}; the same attack goes on from there`]),
    ...line.campaigns.flatMap((one) => one.failed.map((miss) => [one.attack, `round ${miss.server_round}, ${whose(miss.clients)}: ${miss.reason}`])),
    ...failed.map((job) => [job.attack, job.message]),
    ...line.progress.warnings.map((text) => ["federation", text]),
    ...(line.progress.state === "failed" ? [["federation", line.progress.message || "failed"]] : []),
    ...(line.progress.state === "killed" ? [["federation", `ended before its last round; \`fl-sim run --resume\` goes on with it`]] : []),
  ];
  if (!rows.length) return null;
  return h("section", { class: "panel left-overs" }, h("h3", {}, "What did not go as planned"), h("dl", { class: "facts" }, rows.map(([name, text]) => [h("dt", {}, capital(name)), h("dd", {}, text)])));
}
