// One pair, enlarged: private image, reconstruction, and where they differ.

import { h } from "./dom.js";
import { picture, pixelsOf, shownSize } from "./sheets.js";
import { decibel, fraction } from "./words.js";

const dialog = document.getElementById("zoom");
let pairs = [];
let place = 0;
let sources = {};

dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
  else return;
  event.preventDefault();
  event.stopPropagation();
});

// `sources` is { ours, truth }; truth is null where private images are not shown.
export function openZoom(given, index, from) {
  [pairs, place, sources] = [given, index, from];
  draw();
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  place = Math.max(0, Math.min(pairs.length - 1, place + by));
  draw();
}

function draw() {
  const pair = pairs[place];
  const { ours, truth } = sources;
  const side = Math.min(320, Math.max(120, (innerWidth - 80) / 2));
  const figures = [];
  if (truth && pair.private !== null) figures.push(figure("private image", pair.label && `class ${pair.label}`, picture(truth, pair.private, side, "private image")));
  if (pair.reconstruction !== null) {
    figures.push(figure("reconstruction", pair.recovered_label && `taken for class ${pair.recovered_label}`, picture(ours, pair.reconstruction, side, "reconstruction")));
    if (truth && pair.private !== null) figures.push(figure("difference", "black: equal", difference(pair, side)));
  }
  const numbers = [
    pair.psnr_db !== null && `PSNR ${decibel(pair.psnr_db)}`,
    pair.ssim !== null && `SSIM ${fraction(pair.ssim)}`,
    pair.lpips !== null && `LPIPS ${fraction(pair.lpips)}`,
  ].filter(Boolean);
  dialog.replaceChildren(
    h("div", { class: "zoomed" }, figures),
    h("p", { class: "numbers" }, numbers.join(" · ") || "in the attack’s own order; nothing is known of its worth"),
    h("div", { class: "row spread" },
      h("button", { type: "button", onclick: () => step(-1), disabled: place === 0, "aria-label": "pair before" }, "←"),
      h("span", { class: "muted" }, `${place + 1} of ${pairs.length}`),
      h("button", { type: "button", onclick: () => step(1), disabled: place === pairs.length - 1, "aria-label": "pair after" }, "→"),
      h("button", { type: "button", onclick: () => dialog.close(), autofocus: true }, "Close")),
  );
}

const figure = (title, note, content) => h("figure", {}, content, h("figcaption", {}, title, note ? h("span", { class: "muted" }, ` ${note}`) : null));

function difference(pair, side) {
  const { cut } = sources.ours;
  const [width, height] = shownSize(cut, side);
  const canvas = h("canvas", { class: "picture", width: cut.width, height: cut.height, role: "img", "aria-label": "absolute difference", style: { width: `${width}px`, height: `${height}px` } });
  Promise.all([pixelsOf(sources.truth, pair.private), pixelsOf(sources.ours, pair.reconstruction)]).then(([one, other]) => {
    for (let index = 0; index < one.data.length; index += 1) {
      if (index % 4 !== 3) one.data[index] = Math.abs(one.data[index] - other.data[index]);
    }
    canvas.getContext("2d").putImageData(one, 0, 0);
  });
  return canvas;
}
