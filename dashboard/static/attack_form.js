// Another attack on a recording, started from the page.

import { get, post, runApi } from "./api.js";
import { h } from "./dom.js";

// `state` is { rounds, clients, round, client }: what is recorded, and what is looked at.
export function attackForm(runId, state) {
  const body = h("div", { class: "form-body" });
  const fold = h("details", { class: "panel attack-form" }, h("summary", {}, "Attack this recording"), body);
  fold.addEventListener("toggle", () => fold.open && !body.childElementCount && load(runId, state, body), { once: false });
  return fold;
}

async function load(runId, state, body) {
  body.replaceChildren(h("p", { class: "muted" }, "…"));
  try {
    const { parts, planned } = await get(runApi(runId, "parts"));
    body.replaceChildren(form(runId, state, parts, planned));
  } catch (error) {
    body.replaceChildren(h("p", { class: "wrong", role: "alert" }, error.message));
  }
}

function form(runId, state, parts, planned) {
  const attack = h("select", { name: "attack" }, parts.attacks.map((one) => h("option", { value: one.name, selected: one.name === planned.attack }, one.name)));
  const model = h("select", { name: "threat_model" }, parts.threat_models.map((one) => h("option", { value: one.name, selected: one.name === planned.threat_model }, `${one.name}${one.realistic ? "" : " (upper bound)"}`)));
  const modelNote = h("p", { class: "muted small" });
  const attackNote = h("p", { class: "muted small" });
  const options = h("div", { class: "options" });
  const rounds = choices("round", state.rounds, [state.round()]);
  const clients = choices("client", state.clients, state.client() === null ? state.clients : [state.client()]);
  const seed = h("input", { name: "seed", type: "number", min: 0, step: 1, value: 0 });
  const said = h("p", { role: "status", class: "said" });
  const start = h("button", { type: "submit", class: "primary" }, "Start");

  const describe = () => {
    const chosen = parts.attacks.find((one) => one.name === attack.value);
    const own = attack.value === planned.attack ? planned.options : {};
    attackNote.textContent = chosen.summary;
    modelNote.textContent = parts.threat_models.find((one) => one.name === model.value)?.description ?? "";
    options.replaceChildren(...chosen.options.map((one) => optionField(one, own[one.name])));
  };
  attack.addEventListener("change", describe);
  model.addEventListener("change", describe);
  describe();

  return h("form", {
    onsubmit: async (event) => {
      event.preventDefault();
      start.disabled = true;
      said.className = "said muted";
      said.textContent = "starting …";
      try {
        await post(runApi(runId, "attacks"), {
          attack: attack.value, threat_model: model.value, rounds: picked(rounds), clients: picked(clients),
          seeds: [Number(seed.value)], options: changedOptions(options),
        });
        said.textContent = "Started. It stands at the top of this page while it runs.";
        dispatchEvent(new Event("poll"));
        scrollTo({ top: 0, behavior: "smooth" });
      } catch (error) {
        said.className = "said wrong";
        said.textContent = error.message;
      }
      start.disabled = false;
    },
  },
    h("div", { class: "fields" },
      h("label", {}, "attack", attack, attackNote),
      h("label", {}, "threat model", model, modelNote),
      h("label", {}, "seed of the attack", seed)),
    h("fieldset", {}, h("legend", {}, "rounds"), rounds),
    h("fieldset", {}, h("legend", {}, "clients"), clients),
    h("details", {}, h("summary", {}, "hyper-parameters"), options),
    h("div", { class: "row" }, start, said));
}

const LARGEST_CHOICE = 40;

// Boxes to tick, or a line to write into where there are many.
function choices(noun, numbers, chosen) {
  if (numbers.length > LARGEST_CHOICE) {
    return h("input", { type: "text", "aria-label": `${noun}s, for instance 1,3`, value: (chosen.length > LARGEST_CHOICE ? numbers.slice(0, 4) : chosen).join(","), pattern: "[0-9]+(,[0-9]+)*", required: true });
  }
  return h("div", { class: "chips" }, numbers.map((number) => h("label", { class: "chip" }, h("input", { type: "checkbox", value: String(number), checked: chosen.includes(number), "aria-label": `${noun} ${number}` }), String(number))));
}

const picked = (element) => (element.tagName === "INPUT" ? element.value.split(",").map(Number) : [...element.querySelectorAll("input:checked")].map((box) => Number(box.value)));

function optionField(option, planned) {
  const shown = planned ?? option.default;
  const data = { name: option.name, "data-kind": option.kind, "data-start": JSON.stringify(shown ?? "") };
  if (option.kind === "switch") return h("label", { class: "option" }, option.name, h("input", { ...data, type: "checkbox", checked: Boolean(shown) }));
  const isNumber = option.kind === "integer" || option.kind === "number";
  return h("label", { class: "option" }, option.name, h("input", { ...data, type: isNumber ? "number" : "text", step: option.kind === "integer" ? 1 : "any", value: shown ?? "", placeholder: "as in the paper" }));
}

function changedOptions(element) {
  const found = {};
  for (const input of element.querySelectorAll("input")) {
    const kind = input.dataset.kind;
    let value = kind === "switch" ? input.checked : input.value.trim();
    if (kind === "integer" || kind === "number") value = value === "" ? "" : Number(value);
    if (kind === "text" && value !== "" && Number.isFinite(Number(value))) value = Number(value);
    if (value !== "" && JSON.stringify(value) !== input.dataset.start) found[input.name] = value;
  }
  return found;
}
