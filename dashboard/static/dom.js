// Elements from values. Text is always text: nothing here is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

export function s(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (name === "value" || name === "checked" || name === "selected") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Draws a part again only where what it shows has changed, so that focus, scrolling and open folds stay.
const drawn = new WeakMap();

export function part(element, data, draw) {
  const text = JSON.stringify(data);
  if (drawn.get(element) === text) return false;
  drawn.set(element, text);
  element.replaceChildren(...[draw(data)].flat(Infinity).filter(Boolean));
  return true;
}

export function empty(title, ...rest) {
  return h("div", { class: "empty" }, h("p", { class: "title" }, title), ...rest.map((text) => h("p", {}, text)));
}

export function problem(error) {
  return h("div", { class: "empty problem", role: "alert" }, h("p", { class: "title" }, "This cannot be shown."), h("p", {}, error.message ?? String(error)));
}

export function facts(rows) {
  return h("dl", { class: "facts" }, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

export function bar(share, label) {
  const shown = Math.max(0, Math.min(1, share));
  return h("span", { class: "progress", role: "progressbar", "aria-valuenow": Math.round(100 * shown), "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": label }, h("span", { style: { width: `${100 * shown}%` } }));
}
