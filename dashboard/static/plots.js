// Plots as SVG in the colours of the page.

import { h, s } from "./dom.js";
import { quantity } from "./words.js";

const WIDTH = 460;
const PAD = { left: 48, right: 14, top: 12, bottom: 40 };

// series: [{ name, points: [[x, y], …], kind: 1..6 | "muted", dashed, dots }]; marks: [{ x, text }]; onpick(x).
export function lines({ title, x, y, series, height = 230, log = false, marks = [], onpick = null, integers = true, note = "" }) {
  const shown = series.map((one) => ({ ...one, points: one.points.filter(([, v]) => v !== null && Number.isFinite(v) && (!log || v > 0)) }));
  const all = shown.flatMap((one) => one.points);
  if (!all.length) return panel(title, h("p", { class: "muted" }, note || "nothing to draw"));
  const scale = scales(all, { height, log, zero: !log && all.every(([, v]) => v >= 0 && v <= 1) });
  const body = [axes(scale, { x, y, height, integers })];
  for (const mark of marks) {
    const at = scale.x(mark.x);
    body.push(s("line", { class: "mark", x1: at, x2: at, y1: PAD.top, y2: height - PAD.bottom }), s("text", at > WIDTH * 0.6 ? { class: "tick", x: at - 5, y: PAD.top + 10, "text-anchor": "end" } : { class: "tick", x: at + 5, y: PAD.top + 10 }, mark.text));
  }
  for (const one of shown) {
    const path = one.points.map(([a, b], index) => `${index ? "L" : "M"}${scale.x(a).toFixed(1)} ${scale.y(b).toFixed(1)}`).join("");
    body.push(s("path", { class: `line kind-${one.kind}${one.dashed ? " dashed" : ""}`, d: path }));
    if (one.dots ?? one.points.length <= 40) {
      for (const [a, b] of one.points) {
        body.push(s("circle", { class: `dot kind-${one.kind}`, cx: scale.x(a), cy: scale.y(b), r: one.points.length > 40 ? 2 : 3.5 }, s("title", {}, `${one.name}: ${quantity(b)} at ${x} ${a}`)));
      }
    }
  }
  if (onpick) {
    const places = [...new Set(all.map(([a]) => a))].sort((a, b) => a - b);
    places.forEach((value, index) => {
      const from = index ? (scale.x(places[index - 1]) + scale.x(value)) / 2 : PAD.left;
      const to = index < places.length - 1 ? (scale.x(value) + scale.x(places[index + 1])) / 2 : WIDTH - PAD.right;
      body.push(s("rect", { class: "pick", x: from, y: PAD.top, width: Math.max(1, to - from), height: height - PAD.top - PAD.bottom, onclick: () => onpick(value) }, s("title", {}, `${x} ${value}`)));
    });
  }
  const legend = shown.filter((one) => one.name && one.points.length);
  return panel(title, svg(height, title, body), legend.length > 1 ? keys(legend) : null, note ? h("p", { class: "muted small" }, note) : null);
}

// points: [{ x, y, xError, yError, label, family, href, ring }].
export function scatter({ title, x, y, points, height = 330, families, guide = null }) {
  const all = points.flatMap((one) => [[one.x - (one.xError ?? 0), one.y - (one.yError ?? 0)], [one.x + (one.xError ?? 0), one.y + (one.yError ?? 0)], [one.x, one.guess ?? one.y]]);
  const scale = scales(all, { height, pad: 0.12 });
  const body = [axes(scale, { x, y, height, integers: false, percent: true })];
  if (guide !== null) body.push(s("line", { class: "mark", x1: PAD.left, x2: WIDTH - PAD.right, y1: scale.y(guide), y2: scale.y(guide) }), s("text", { class: "tick", x: WIDTH - PAD.right, y: scale.y(guide) - 5, "text-anchor": "end" }, "best guess without the update"));
  for (const one of points) {
    const [cx, cy, kind] = [scale.x(one.x), scale.y(one.y), 1 + (families.indexOf(one.family) % 6)];
    const errors = [];
    if (one.xError) errors.push(s("line", { class: `error kind-${kind}`, x1: scale.x(one.x - one.xError), x2: scale.x(one.x + one.xError), y1: cy, y2: cy }));
    if (one.yError) errors.push(s("line", { class: `error kind-${kind}`, x1: cx, x2: cx, y1: scale.y(one.y - one.yError), y2: scale.y(one.y + one.yError) }));
    body.push(...errors, s("a", { href: one.href, class: "point", "aria-label": one.label },
      s("circle", { class: "hit", cx, cy, r: 14 }), one.ring ? s("circle", { class: "ring", cx, cy, r: 9 }) : null,
      s("circle", { class: `dot kind-${kind}`, cx, cy, r: 5.5 }), s("title", {}, one.label)));
  }
  return panel(title, svg(height, title, body), keys(families.map((name, index) => ({ name, kind: 1 + (index % 6), dots: true }))));
}

// Heights of falling size on a logarithmic scale, for singular values.
export function spectrum({ title, values, rounding, count, note }) {
  const points = values.map((value, index) => [index + 1, value]);
  return lines({
    title, x: "singular value", y: "size", log: true, note,
    series: [
      { name: "singular values", points, kind: 1, dots: true },
      { name: "what rounding alone makes", points: rounding ? [[1, rounding], [Math.max(2, values.length), rounding]] : [], kind: "muted", dashed: true, dots: false },
    ],
    marks: count ? [{ x: count + 0.5, text: `${count} stand out` }] : [],
  });
}

function scales(points, { height, log = false, zero = false, pad = 0.06 }) {
  const xs = points.map(([a]) => a);
  const ys = points.map(([, b]) => (log ? Math.log10(b) : b));
  const range = (values, own) => {
    let [low, high] = [Math.min(...values), Math.max(...values)];
    if (own) [low, high] = [0, Math.max(high, 1)];
    const space = low === high ? Math.abs(low) * 0.1 || 0.5 : (high - low) * (own ? 0 : pad);
    return [low - space, high + space];
  };
  const [x0, x1] = range(xs, false);
  const [y0, y1] = range(ys, zero);
  return {
    domain: [x0, x1], range: [y0, y1], log,
    x: (value) => PAD.left + ((value - x0) / (x1 - x0)) * (WIDTH - PAD.left - PAD.right),
    y: (value) => height - PAD.bottom - (((log ? Math.log10(value) : value) - y0) / (y1 - y0)) * (height - PAD.top - PAD.bottom),
  };
}

function axes(scale, { x, y, height, integers, percent = false }) {
  const found = [];
  for (const value of ticks(...scale.range, 5, scale.log)) {
    const at = scale.y(scale.log ? 10 ** value : value);
    found.push(s("line", { class: "grid", x1: PAD.left, x2: WIDTH - PAD.right, y1: at, y2: at }), s("text", { class: "tick", x: PAD.left - 6, y: at + 4, "text-anchor": "end" }, scale.log ? power(value) : quantity(value)));
  }
  for (const value of ticks(...scale.domain, 6, integers)) {
    found.push(s("text", { class: "tick", x: scale.x(value), y: height - PAD.bottom + 16, "text-anchor": "middle" }, percent ? `${Number((100 * value).toFixed(1))} %` : quantity(value)));
  }
  found.push(s("text", { class: "name", x: (PAD.left + WIDTH - PAD.right) / 2, y: height - 5, "text-anchor": "middle" }, x));
  found.push(s("text", { class: "name", x: -(PAD.top + height - PAD.bottom) / 2, y: 11, "text-anchor": "middle", transform: "rotate(-90)" }, y));
  return found;
}

const power = (exponent) => (exponent >= -2 && exponent <= 3 ? String(Number((10 ** exponent).toPrecision(1))) : `1e${exponent}`);

function ticks(low, high, wanted, whole) {
  const rough = (high - low) / wanted;
  const size = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((factor) => factor * size).find((one) => one >= rough) ?? size;
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + 1e-9; value += step) found.push(Number(value.toPrecision(10)));
  return found;
}

const svg = (height, label, body) => s("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label }, body);
const panel = (title, ...content) => h("figure", { class: "panel" }, h("figcaption", {}, title), content);
const keys = (entries) => h("ul", { class: "legend" }, entries.map((one) => h("li", {}, h("span", { class: `key kind-${one.kind}${one.dashed ? " dashed" : ""}` }), one.name)));
