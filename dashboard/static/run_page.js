// One run: a slider over its rounds, a grid of its clients, and all about what is open.

import { changed, go, here, link } from "./address.js";
import { get, runApi } from "./api.js";
import { attackForm } from "./attack_form.js";
import { compareButton, itemText, pairList, scoreLine, toggleCompared } from "./card.js";
import { drawDetail } from "./detail.js";
import { empty, facts, h, part, problem } from "./dom.js";
import { leftOvers, stateBadge, underWay } from "./live.js";
import { lines } from "./plots.js";
import { count, decibel, percent, whose } from "./words.js";

const IN_A_CARD = 10;

export function runPage(root) {
  const id = here().id;
  const [head, live, tools, body, after] = ["run-head", "under-way", "tools", "body", "after"].map((name) => h("section", { class: name }));
  const foot = h("section", { class: "foot" });
  root.replaceChildren(head, live, tools, body, after, foot);
  document.title = `${id} – fl-sim`;
  let data = null;
  let turn = 0;
  let open = null;
  let isShowing = 0;

  async function refresh() {
    const mine = ++turn;
    try {
      const found = await get(runApi(id));
      if (mine !== turn) return;
      data = found;
    } catch (error) {
      if (mine === turn && !data) part(body, error.message, () => problem(error));
      return;
    }
    await draw(mine);
  }

  async function draw(mine) {
    const { run, jobs } = data;
    const at = selection(run);
    part(head, [here().attacker, run.line, at.attack?.label, run.problems, run.num_hidden], () => drawHead(run, at));
    part(live, [run.line.progress, run.line.campaigns, jobs], () => [underWay(id, run.line, jobs), leftOvers(run.line, jobs)].flat());
    part(tools, [here().attacker, run.rounds.map((one) => one.server_round), run.attacks, at.attack?.label, attackedRounds(run, at), at.seeds], () => drawTools(run, at));
    placeSlider(tools, run, at);
    await drawBody(run, at, mine);
    if (mine !== turn) return;
    drawAfter(run, at);
    part(foot, [here().attacker, run.facts, run.rounds, run.evaluations], () => drawFoot(run, at));
  }

  async function drawBody(run, at, mine) {
    if (!run.rounds.length) {
      part(body, "no rounds", () => empty("Nothing is recorded yet.", "The first round appears here when it is done."));
      return;
    }
    if (!at.attack) {
      part(body, ["no attack", run.num_hidden], () => empty("No update of this run has been attacked yet.", run.num_hidden ? `${count(run.num_hidden, "attack")} with a piece of the truth are hidden in this view.` : "Start an attack below."));
      return;
    }
    try {
      const { cards } = await get(runApi(id, "rounds", String(at.round), at.attack.label));
      if (mine !== turn) return;
      const own = cards.filter((card) => card.seed === at.seed);
      open = at.client === null ? null : own.find((card) => card.clients.join("+") === at.client && !card.problem) ?? null;
      if (open) {
        const result = await get(runApi(id, "results", at.attack.label, open.key));
        if (mine !== turn) return;
        part(body, ["open", here().attacker, result], () => drawDetail(id, run, result, neighbours(own, open)));
      } else {
        part(body, ["grid", here().attacker, at.client, own, at.round, run.rounds, running(run, at)], () => drawGrid(run, at, own));
      }
    } catch (error) {
      if (mine === turn) part(body, error.message, () => problem(error));
    }
  }

  function drawGrid(run, at, cards) {
    const entry = run.rounds.find((one) => one.server_round === at.round);
    const attacked = new Set(cards.flatMap((card) => card.clients));
    const rest = (entry?.clients ?? []).filter((client) => !attacked.has(client));
    const under = new Map(running(run, at).map((now) => [now.clients.join("+"), now]));
    const lost = at.client === null ? null : h("p", { class: "notice" }, `Client ${at.client} has no result of this attack in round ${at.round}.`);
    return [
      lost,
      entry?.problem ? h("p", { class: "wrong" }, entry.problem) : null,
      cards.length || rest.length ? h("div", { class: "grid" }, cards.map((card) => drawCard(run, at, card)), rest.map((client) => idle(client, under.get(String(client))))) : empty(`Round ${at.round} was not attacked with ${at.attack.name}.`, "Choose another round, or attack it below."),
      cards.some((card) => card.score) ? h("p", { class: "muted small" }, "In each pair the private image stands above the reconstruction that is assigned to it, the best first; a line marks the recovered ones. A click enlarges.") : null,
    ];
  }

  function drawCard(run, at, card) {
    if (card.problem) return h("article", { class: "card damaged" }, h("h3", {}, whoseTitle(card.clients)), h("p", { class: "wrong" }, card.problem));
    const address = changed({ client: card.clients.join("+"), round: at.round, attack: at.attack.label });
    return h("article", { class: "card" },
      h("div", { class: "row spread" }, h("h3", {}, h("a", { href: address }, whoseTitle(card.clients))), compareButton(id, card)),
      scoreLine(card.score),
      pairList(id, card, { side: 56, most: IN_A_CARD }),
      card.pairs.length > IN_A_CARD ? h("a", { href: address, class: "more" }, `all ${card.pairs.length} images`) : null,
      card.notice ? h("p", { class: "muted small" }, card.notice) : null);
  }

  const idle = (client, now) => h("article", { class: "card idle" }, h("h3", {}, `Client ${client}`), h("p", { class: "muted" }, now ? `under attack: step ${now.step} of ${now.num_steps}` : "not attacked in this round"));

  function drawHead(run, at) {
    const { line } = run;
    const best = line.best?.line.score ? line.best : null;
    const score = best?.line.score;
    const model = at.attack?.threat_model;
    return [
      h("p", { class: "crumbs" }, h("a", { href: link("/") }, "Runs"), " / ", line.study ? `${line.study} / ` : "", h("strong", {}, line.name), " ", stateBadge(line)),
      h("h1", {}, score
        ? `From ${best.line.clients.length > 1 ? "a mean update" : `client ${best.line.clients[0]}’s update`} of round ${best.line.server_round} the server recovered ${score.recovered || "none"} of ${score.num_images} images: ${decibel(score.mean_psnr_db)}, against ${decibel(score.guess_psnr_db)} for the best guess.`
        : here().attacker ? `What the server makes of ${count(run.results.length, "recorded update")}.` : run.results.length ? "Reconstructions that are not scored yet." : "A recording."),
      h("p", { class: "muted" }, [...line.setting, line.defenses && `defended: ${line.defenses}`, line.accuracy !== null && `accuracy ${percent(line.accuracy, 1)}`].filter(Boolean).join(" · ")),
      model ? h("p", { class: "threat" }, h("span", { class: `badge ${model.realistic ? "realistic" : "bound"}` }, model.realistic ? "realistic" : "upper bound"), " ", h("strong", {}, model.name), `: ${model.description} `, h("span", { class: "muted" }, `Granted: ${model.granted}.`)) : null,
      run.num_hidden ? h("p", { class: "notice" }, `${count(run.num_hidden, "attack")} that ${run.num_hidden === 1 ? "was" : "were"} granted a piece of the truth ${run.num_hidden === 1 ? "is" : "are"} hidden in this view.`) : null,
      run.problems.map((text) => h("p", { class: "wrong" }, text)),
    ];
  }

  function drawTools(run, at) {
    if (!run.rounds.length) return [];
    const numbers = run.rounds.map((one) => one.server_round);
    const done = new Set(attackedRounds(run, at));
    const slide = (index) => go(changed({ round: numbers[Math.max(0, Math.min(numbers.length - 1, index))] }), { replace: true });
    const slider = h("input", { type: "range", min: 0, max: numbers.length - 1, step: 1, id: "round", "aria-label": "round", disabled: numbers.length < 2 });
    slider.addEventListener("input", () => slide(Number(slider.value)));
    return [h("div", { class: "toolbar" },
      at.attack ? h("label", { class: "field" }, "attack", h("select", { id: "attack", onchange: (event) => go(changed({ attack: event.target.value, seed: null })) },
        run.attacks.map((one) => h("option", { value: one.label, selected: one.label === at.attack.label }, attackTitle(run, one))))) : null,
      at.seeds.length > 1 ? h("label", { class: "field" }, "seed", h("select", { onchange: (event) => go(changed({ seed: event.target.value })) }, at.seeds.map((seed) => h("option", { value: String(seed), selected: seed === at.seed }, String(seed))))) : null,
      h("div", { class: "field slide" },
        h("output", { for: "round", id: "round-text" }),
        h("div", { class: "row" },
          h("button", { type: "button", class: "quiet", "aria-label": "round before", onclick: () => slide(Number(slider.value) - 1) }, "←"),
          h("div", { class: "track" }, slider, numbers.length <= 100 ? h("div", { class: "ticks", "aria-hidden": "true" }, numbers.map((number) => h("span", { class: done.has(number) ? "has" : "" }))) : null),
          h("button", { type: "button", class: "quiet", "aria-label": "round after", onclick: () => slide(Number(slider.value) + 1) }, "→"))))];
  }

  function placeSlider(element, run, at) {
    const slider = element.querySelector("#round");
    if (!slider) return;
    const index = run.rounds.findIndex((one) => one.server_round === at.round);
    if (Number(slider.value) !== index) slider.value = String(index);
    const accuracy = run.rounds[index]?.accuracy;
    element.querySelector("#round-text").textContent = `Round ${at.round} of ${run.rounds.at(-1).server_round}${accuracy === null || accuracy === undefined ? "" : ` · model at ${percent(accuracy, 1)} accuracy`}`;
  }

  async function drawAfter(run, at) {
    if (!at.attack || here().attacker) {
      part(after, "nothing", () => []);
      return;
    }
    try {
      const { rounds } = await get(runApi(id, "training", at.attack.label));
      part(after, [rounds, run.evaluations], () => drawTraining(rounds, run));
    } catch {
      part(after, "nothing", () => []);
    }
  }

  function drawTraining(rounds, run) {
    if (!rounds.length) return [];
    const pick = (value) => go(changed({ round: value }), { replace: true });
    const by = (name) => rounds.map((one) => [one.server_round, one[name]?.mean ?? null]);
    const clients = [...new Set(rounds.flatMap((one) => one.clients.map((leak) => leak.client_id)))].sort((a, b) => a - b);
    const some = clients.length <= 5 ? clients : [];
    return [h("h2", {}, "Leakage along training"), h("div", { class: "panels" },
      lines({ title: "PSNR by round, in dB", x: "round", y: "dB", onpick: pick, series: [
        { name: "mean of the clients", points: by("psnr_db"), kind: 1 },
        { name: "guess: mean image", points: by("guess_psnr_db"), kind: "muted", dashed: true },
        ...some.map((client, index) => ({ name: `client ${client}`, points: rounds.map((one) => [one.server_round, one.clients.find((leak) => leak.client_id === client)?.psnr_db ?? null]), kind: 2 + (index % 5), dashed: true })),
      ] }),
      lines({ title: "Recovered images and accuracy of the model", x: "round", y: "share", onpick: pick, series: [
        { name: "recovered share", points: by("recovered_share"), kind: 1 },
        { name: "accuracy of the model sent out", points: run.rounds.map((one) => [one.server_round, one.accuracy]), kind: 2 },
      ] }))];
  }

  function drawFoot(run, at) {
    const known = { rounds: run.rounds.map((one) => one.server_round), clients: [...new Set(run.rounds.flatMap((one) => one.clients))].sort((a, b) => a - b), round: () => selection(data.run).round, client: () => (selection(data.run).client === null ? null : Number.parseInt(selection(data.run).client, 10)) };
    const failures = run.rounds.flatMap((one) => one.failures.map((text) => [`round ${one.server_round}`, text]));
    return [
      known.rounds.length ? attackForm(id, known) : null,
      run.evaluations.length ? h("details", { class: "panel" }, h("summary", {}, "Training"), h("div", { class: "panels" },
        lines({ title: "Accuracy on the test images", x: "round", y: "share", series: [{ name: "accuracy", points: run.evaluations.map((one) => [one.server_round, one.accuracy]), kind: 1 }] }),
        lines({ title: "Loss on the test images", x: "round", y: "cross-entropy", series: [{ name: "loss", points: run.evaluations.map((one) => [one.server_round, one.loss]), kind: 2 }] }))) : null,
      failures.length ? h("details", { class: "panel" }, h("summary", {}, `Replies that could not be used: ${failures.length}`), facts(failures)) : null,
      h("details", { class: "panel" }, h("summary", {}, "Setting"), facts(run.facts)),
    ];
  }

  function keys(event) {
    if (!data?.run.rounds.length) return false;
    const at = selection(data.run);
    const numbers = data.run.rounds.map((one) => one.server_round);
    const index = numbers.indexOf(at.round);
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      go(changed({ round: numbers[Math.max(0, Math.min(numbers.length - 1, index + (event.key === "ArrowRight" ? 1 : -1)))] }), { replace: true });
    } else if (event.key === "Escape" && at.client !== null) go(changed({ client: null }));
    else if ((event.key === "[" || event.key === "]") && open) root.querySelector(event.key === "[" ? "[data-before]" : "[data-after]")?.click();
    else if (event.key === "c" && open) toggleCompared(itemText(id, open));
    else return false;
    return true;
  }

  // A look never overtakes what somebody has asked for.
  const show = async () => {
    isShowing += 1;
    await refresh().finally(() => (isShowing -= 1));
  };
  return { id, show, poll: async () => isShowing || (await refresh()), keys };
}

const whoseTitle = (clients) => (clients.length === 1 ? `Client ${clients[0]}` : `Clients ${clients.join(", ")}: mean of their updates`);

function attackTitle(run, one) {
  const alike = run.attacks.filter((other) => other.name === one.name);
  const differing = alike.length < 2 ? [] : one.options.filter(([name, value]) => alike.some((other) => other.options.some(([its, own]) => its === name && own !== value))).map(([name, value]) => `${name} ${value}`);
  const models = new Set(alike.map((other) => other.threat_model.name));
  const extra = [...(models.size > 1 ? [one.threat_model.name] : []), ...differing].slice(0, 3);
  return `${one.name}${extra.length ? ` (${extra.join(", ")})` : ""}${one.threat_model.realistic ? "" : " *"}`;
}

// What the address asks for, as far as it is there; else what is most telling.
function selection(run) {
  const { query } = here();
  const best = run.line.best;
  const attack = run.attacks.find((one) => one.label === query.get("attack")) ?? run.attacks.find((one) => one.label === best?.attack) ?? run.attacks[0] ?? null;
  const own = run.results.filter((one) => one.attack === attack?.label);
  const seeds = [...new Set(own.map((one) => one.seed))].sort((a, b) => a - b);
  const seed = seeds.includes(Number(query.get("seed"))) && query.has("seed") ? Number(query.get("seed")) : seeds[0] ?? 0;
  const numbers = run.rounds.map((one) => one.server_round);
  const asked = Number(query.get("round"));
  const usual = own.some((one) => one.server_round === best?.line.server_round) ? best.line.server_round : own[0]?.server_round ?? numbers[0] ?? null;
  return { attack, seeds, seed, round: numbers.includes(asked) ? asked : usual, client: query.get("client") };
}

const attackedRounds = (run, at) => [...new Set(run.results.filter((one) => one.attack === at.attack?.label).map((one) => one.server_round))];
const running = (run, at) => run.line.campaigns.filter((one) => one.label === at.attack?.label && one.state === "running").flatMap((one) => one.running).filter((now) => now.server_round === at.round);

function neighbours(cards, open) {
  const known = cards.filter((card) => !card.problem);
  const index = known.indexOf(open);
  const address = (card) => (card ? changed({ client: card.clients.join("+") }) : null);
  return { before: address(known[index - 1]), after: address(known[index + 1]), all: changed({ client: null }), title: whose(open.clients) };
}
