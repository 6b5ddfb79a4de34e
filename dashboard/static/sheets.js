// Pictures cut from sheets. Each is drawn pixel by pixel, once it comes near the screen.

import { seen } from "./api.js";
import { h } from "./dom.js";

const sheets = new Map();
const MOST_SHEETS = 400;

// Loads a sheet once; the key `version` tells a changed picture at the same address.
export function loadSheet(path, version = "") {
  const plain = seen(path);
  const address = version === "" ? plain : `${plain}${plain.includes("?") ? "&" : "?"}version=${version}`;
  if (!sheets.has(address)) {
    const image = new Image();
    image.src = address;
    const loaded = image.decode().then(() => image);
    loaded.catch(() => sheets.delete(address)); // asked for again next time
    sheets.set(address, loaded);
    if (sheets.size > MOST_SHEETS) sheets.delete(sheets.keys().next().value);
  }
  return sheets.get(address);
}

const waiting = new WeakMap();
const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      waiting.get(entry.target)?.();
    }
  },
  { rootMargin: "300px" },
);

// The shown side of a picture: a whole multiple of its own, so that all pixels look equally large.
export function shownSize(cut, side) {
  const longest = Math.max(cut.width, cut.height);
  const factor = longest * 1.5 <= side ? Math.round(side / longest) : side / longest;
  return [Math.round(cut.width * factor), Math.round(cut.height * factor)];
}

// One picture of a sheet, about `side` CSS pixels large. `source` is { path, version, cut }.
export function picture(source, index, side, label) {
  const { cut } = source;
  const [width, height] = shownSize(cut, side);
  const canvas = h("canvas", {
    class: "picture", width: cut.width, height: cut.height, role: "img", "aria-label": label,
    style: { width: `${width}px`, height: `${height}px` },
  });
  waiting.set(canvas, () => paint(canvas, source, index));
  watcher.observe(canvas);
  return canvas;
}

async function paint(canvas, { path, version, cut }, index) {
  try {
    const sheet = await loadSheet(path, version);
    const left = (index % cut.columns) * cut.width;
    const top = Math.floor(index / cut.columns) * cut.height;
    canvas.getContext("2d").drawImage(sheet, left, top, cut.width, cut.height, 0, 0, cut.width, cut.height);
    canvas.dataset.drawn = "yes";
  } catch {
    canvas.classList.add("broken");
  }
}

// The pixels of one picture, for a difference.
export async function pixelsOf({ path, version, cut }, index) {
  const canvas = h("canvas", { width: cut.width, height: cut.height });
  await paint(canvas, { path, version, cut }, index);
  return canvas.getContext("2d").getImageData(0, 0, cut.width, cut.height);
}
