// Accuracy against leakage; a point is a run, or an arm of a study.

import { changed, go, here, link, runPath } from "./address.js";
import { get } from "./api.js";
import { empty, h, part, problem } from "./dom.js";
import { scatter } from "./plots.js";
import { count, decibel, percent } from "./words.js";

export function tradeoffPage(root) {
  const body = h("div", {});
  root.replaceChildren(h("div", { class: "page-head" }, h("h1", {}, "Accuracy against leakage")), body);
  document.title = "Trade-off – fl-sim";

  async function show() {
    try {
      const group = here().query.get("group") ?? "";
      const view = await get(`/api/tradeoff?group=${encodeURIComponent(group)}`);
      part(body, [here().attacker, view], () => draw(view));
    } catch (error) {
      part(body, error.message, () => problem(error));
    }
  }
  return { show, poll: show, keys: () => false };
}

function draw(view) {
  const chooser = view.groups.length > 1 ? h("label", { class: "field chooser" }, "runs of", h("select", { onchange: (event) => go(changed({ group: event.target.value })) }, view.groups.map((name) => h("option", { value: name, selected: name === view.group }, name ? `study ${name}` : "no study")))) : null;
  if (here().attacker) return [chooser, empty("The attacker does not know what leaked.", "Leakage is measured against the private images; switch the attacker’s view off to see it.")];
  if (!view.points.length) return [chooser, empty("No run here has both an accuracy and a scored attack.", "fl-sim defend experiments/defend.toml compares defenses; fl-sim run and fl-sim attack make single runs.")];
  const families = [...new Set(view.points.map((one) => one.family))];
  const guesses = view.points.map((one) => one.guess_psnr_db).filter((value) => value !== null);
  const guide = guesses.length ? guesses.reduce((sum, value) => sum + value, 0) / guesses.length : null;
  const address = (one) => link(runPath(one.runs[0]));
  return [
    chooser,
    h("div", { class: "panels tradeoff" },
      scatter({
        title: "Less leakage is lower, more accuracy is to the right", x: "accuracy on test images", y: "PSNR of the strongest attack, dB", families, guide,
        points: view.points.map((one) => ({ x: one.accuracy.mean, y: one.psnr_db.mean, guess: guide, xError: one.accuracy.standard_error, yError: one.psnr_db.standard_error, family: one.family, ring: one.undominated, href: address(one), label: `${one.label}: accuracy ${percent(one.accuracy.mean, 1)}, ${decibel(one.psnr_db.mean)}` })),
      }),
      h("div", { class: "panel scroll" }, h("table", {},
        h("caption", {}, "The same in numbers"),
        h("thead", {}, h("tr", {}, ["defense", "accuracy", "PSNR", "guess", "recovered", "attack"].map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, view.points.map((one) => h("tr", {}, h("th", { scope: "row" }, one.undominated ? "◆ " : "", h("a", { href: address(one) }, one.label), view.group ? null : h("span", { class: "muted small" }, ` ${one.runs[0]}`)),
          h("td", {}, percent(one.accuracy.mean, 1)), h("td", {}, decibel(one.psnr_db.mean)), h("td", {}, decibel(one.guess_psnr_db)), h("td", {}, percent(one.recovered_share?.mean)), h("td", {}, `${one.attack}${one.realistic ? "" : " *"}`))))))),
    h("p", { class: "muted small" }, "A ring and ◆ mark points that no other one beats in both. Means over attacked updates with standard errors; attacks marked * were granted more than a server has.", view.group ? "" : " Runs of their own may differ in more than their defenses.", view.left_out ? ` ${count(view.left_out, "run")} without accuracy or score left out.` : ""),
  ];
}
