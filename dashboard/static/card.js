// One attacked update as a card of pairs, and the list of updates that are put beside each other.

import { sheetPath } from "./api.js";
import { h } from "./dom.js";
import { picture } from "./sheets.js";
import { decibel, fraction } from "./words.js";
import { openZoom } from "./zoom.js";

export function sourcesOf(runId, card) {
  return {
    ours: { path: sheetPath(runId, "results", card.attack, card.key), version: "", cut: card.sheet },
    truth: card.private_sheet && card.pairs.some((pair) => pair.private !== null)
      ? { path: sheetPath(runId, "private", card.clients.join("+")), version: "", cut: card.private_sheet }
      : null,
  };
}

// The first `most` pairs; `numbers` says how much is written below each.
export function pairList(runId, card, { side, most = Infinity, numbers = "short" }) {
  const sources = sourcesOf(runId, card);
  const list = h("ol", { class: "pairs" });
  let shown = 0;
  const more = (wanted) => {
    for (const pair of card.pairs.slice(shown, wanted)) list.append(item(pair, shown++, card, sources, side, numbers));
  };
  more(Math.min(most, 120));
  if (most > shown && card.pairs.length > shown) {
    // Thousands of pairs: the rest is made as the end of the list comes near.
    const end = h("li", { class: "end", "aria-hidden": "true" });
    list.append(end);
    const watcher = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      end.remove();
      more(shown + 120);
      if (shown < card.pairs.length) list.append(end);
      else watcher.disconnect();
    }, { rootMargin: "900px" });
    watcher.observe(end);
  }
  return list;
}

function item(pair, index, card, sources, side, numbers) {
  const label = [pair.label && `class ${pair.label}`, pair.recovered_label && `taken for ${pair.recovered_label}`, pair.psnr_db !== null && decibel(pair.psnr_db)].filter(Boolean).join(", ");
  const wrong = pair.label !== null && pair.recovered_label !== null && pair.label !== pair.recovered_label;
  const text = numbers === "none" ? null : h("span", { class: "numbers" },
    pair.psnr_db !== null ? h("strong", {}, numbers === "full" ? decibel(pair.psnr_db) : pair.psnr_db.toFixed(1)) : null,
    numbers === "full" && pair.ssim !== null ? h("span", {}, `SSIM ${fraction(pair.ssim)}`) : null,
    numbers === "full" && pair.lpips !== null ? h("span", {}, `LPIPS ${fraction(pair.lpips)}`) : null,
    numbers === "full" ? h("span", { class: wrong ? "wrong" : "muted" }, pair.label !== null ? `${pair.label} → ${pair.recovered_label ?? "–"}` : `class ${pair.recovered_label}`) : null);
  return h("li", { class: `pair${pair.is_recovered ? " recovered" : ""}` },
    h("button", { type: "button", class: "plain", "aria-label": `enlarge: ${label}`, onclick: (event) => { event.preventDefault(); event.stopPropagation(); openZoom(card.pairs, index, sources); } },
      sources.truth && pair.private !== null ? picture(sources.truth, pair.private, side, `private image, class ${pair.label}`) : null,
      pair.reconstruction !== null ? picture(sources.ours, pair.reconstruction, side, `reconstruction, taken for class ${pair.recovered_label}`) : h("span", { class: "missing" }, "none"),
      text));
}

// What is to be compared, kept in this browser until it stands in an address.
const KEY = "compared";

export const itemText = (runId, card) => `${runId}|${card.attack}|${card.key}`;

export function compared() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(found) ? found.filter((one) => typeof one === "string") : [];
  } catch {
    return [];
  }
}

export function setCompared(items) {
  localStorage.setItem(KEY, JSON.stringify([...new Set(items)].slice(0, 12)));
  dispatchEvent(new Event("compared"));
}

export function toggleCompared(item) {
  const items = compared();
  setCompared(items.includes(item) ? items.filter((one) => one !== item) : [...items, item]);
}

export function compareButton(runId, card) {
  const item = itemText(runId, card);
  const button = h("button", { type: "button", class: "quiet compare" });
  const draw = () => {
    const isIn = compared().includes(item);
    button.textContent = isIn ? "✓ compared" : "+ compare";
    button.setAttribute("aria-pressed", String(isIn));
  };
  button.addEventListener("click", (event) => {
    event.preventDefault();
    toggleCompared(item);
  });
  // A button that is gone lets go of the list.
  const follow = () => (button.isConnected ? draw() : removeEventListener("compared", follow));
  addEventListener("compared", follow);
  draw();
  return button;
}

export function scoreLine(score) {
  if (!score) return null;
  return h("p", { class: "score" }, h("strong", {}, decibel(score.mean_psnr_db)), ` · ${score.recovered} of ${score.num_images} recovered`,
    h("span", { class: score.beats_guessing ? "muted" : "warn" }, score.guess_psnr_db === null ? "" : ` · guess ${decibel(score.guess_psnr_db)}`));
}
