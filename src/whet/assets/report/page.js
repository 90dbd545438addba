// Draws the run that is embedded in the page, after what is chosen: methods, set, step, prompt.

const run = JSON.parse(document.getElementById("run").textContent);
const place = (id) => document.getElementById(id);
const methods = run.methods.map((method, i) => ({ ...method, i, color: i % 12, again: i > 11 }));
const state = { hidden: new Set(), set: run.curves[0].name, step: run.steps.indexOf(run.step), prompt: 0, find: "", order: 0, room: 60 };
const shown = () => methods.filter((method) => !state.hidden.has(method.i));
const percent = (prompt, i, step) => (100 * prompt.bits[i][step]) / prompt.base;
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`;
const swatch = (method) => make("span", { class: `swatch m${method.color}` });
const lead = methods[run.lead];
const rival = methods.find((method) => method.name === "nearest");

function change(changes) {
  Object.assign(state, changes);
  draw();
}

function drawCurves() {
  const curve = run.curves.find((own) => own.name === state.set);
  place("steps-caption").textContent = `Bits per byte by step, % of base: ${curve.name}, n = ${curve.n}`;
  lineChart(place("steps"), { x: run.steps, base: 100, digits: 1, tall: 440, name: "Bits per byte in % of base",
    lines: shown().map((method) => ({ method, values: curve.values[method.i].map((v) => v[0]),
      low: curve.values[method.i].map((v) => v[1]), high: curve.values[method.i].map((v) => v[2]) })) });
}

function drawSets() {
  place("sets-caption").textContent = `By set after ${run.steps[state.step]} steps`;
  dotChart(place("sets"), { base: 100, digits: 1, name: "Bits per byte by set, % of base",
    pick: (set) => { place("set").value = set; change({ set }); },
    rows: run.curves.map(({ name, values }) => ({ name, dots: shown().map((method) => {
      const [value, low, high] = values[method.i][state.step];
      return { method, value, low, high };
    }) })) });
}

function drawTable() {
  const near = run.table.some((line) => line.near), own = shown();
  const pairs = run.pairs.filter((i) => !state.hidden.has(i));
  const head = ["set", "n", near && "near", "base", ...own.map((m) => m.short), run.delta && "Δ",
    ...pairs.map((i) => `${methods[i].short} − NN`)].filter(Boolean);
  const rows = run.table.map((line) => {
    const best = line.n < 10 ? null : Math.min(...own.map((m) => line.methods[m.i][0])); // MIN_N
    const cells = own.map((m) => {
      const [value, low, high] = line.methods[m.i];
      return make("td", { class: value === best ? "best" : null }, value.toFixed(1), " ",
        make("i", {}, `± ${((high - low) / 2).toFixed(1)}`));
    });
    return make("tr", { class: line.set ? null : "total" }, make("th", { scope: "row", title: line.name }, line.name),
      make("td", {}, String(line.n)), near && make("td", {}, String(line.near)), make("td", {}, line.base.toFixed(3)), cells,
      run.delta && make("td", {}, line.delta === null ? "" : signed(line.delta)),
      pairs.map((i) => {
        const [value, low, high] = line.paired[i];
        return make("td", {}, signed(value), " ", make("i", {}, `[${signed(low)}, ${signed(high)}]`));
      }));
  });
  place("table").replaceChildren(
    make("thead", {}, make("tr", {}, head.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, rows));
}

/** One bar per method with its seconds by phase, which `seconds` returns. */
function bars(seconds, tokens) {
  const own = shown(), totals = own.map((m) => seconds(m).reduce((a, b) => a + b, 0));
  const most = Math.max(...totals, 1e-9);
  const legend = make("p", { class: "facts" }, run.phases.map((phase, p) =>
    make("span", { class: "key" }, make("span", { class: `swatch p${p}` }), phase)));
  return [legend, ...own.map((m, row) => {
    const parts = seconds(m), text = parts.map((s, p) => `${run.phases[p]} ${s.toFixed(3)} s`).join(", ");
    const cells = parts.map((s, p) => {
      const cell = make("span", { class: `p${p}` });
      cell.style.width = `${(100 * s) / most}%`;
      return cell;
    });
    return make("div", { class: "bar" }, make("span", { class: "key" }, swatch(m), m.short),
      make("span", { role: "img", "aria-label": `${m.short}: ${text}`, title: text }, cells),
      make("small", {}, make("b", {}, `${totals[row].toFixed(2)} s`), ` · ${Math.round(tokens(m)).toLocaleString("en")} training tokens`));
  })];
}

const inSet = () => run.prompts.filter((prompt) => run.curves.length === 1 || state.set === run.curves[0].name || prompt.set === state.set);

function drawCosts() {
  const prompts = inSet(), mean = (of) => prompts.reduce((sum, prompt) => sum + of(prompt), 0) / prompts.length;
  place("costs").replaceChildren(...bars(
    (m) => run.phases.map((_, p) => mean((prompt) => prompt.seconds[m.i][p])),
    (m) => mean((prompt) => prompt.tokens[m.i])));
}


function drawSummary() {
  const head = ["method", "% of base", "median", "trimmed mean", "− NN", "median", "trimmed mean", "sets better : worse"];
  const rows = run.summary.filter((each) => !state.hidden.has(each.method)).map(({ method, percent, difference, sets }) =>
    make("tr", {}, make("th", { scope: "row" }, methods[method].short),
      percent.map((value) => make("td", {}, value.toFixed(1))),
      difference.map((value) => make("td", {}, value === null ? "" : signed(value))), make("td", {}, sets)));
  place("summary").replaceChildren(
    make("caption", {}, `All prompts, after ${run.step} steps`),
    make("thead", {}, make("tr", {}, head.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, rows));
}

const ORDERS = [
  [`largest gain of ${lead.short}`, (prompt) => percent(prompt, lead.i, state.step)],
  [`smallest gain of ${lead.short}`, (prompt) => -percent(prompt, lead.i, state.step)],
  ...(rival && rival !== lead ? [
    [`${lead.short} better than ${rival.short}`, (prompt) => percent(prompt, lead.i, state.step) - percent(prompt, rival.i, state.step)],
    [`${lead.short} worse than ${rival.short}`, (prompt) => percent(prompt, rival.i, state.step) - percent(prompt, lead.i, state.step)],
  ] : []),
  ["highest base", (prompt) => -prompt.base / prompt.bytes],
  ["in the data space", (prompt) => -prompt.cosine - prompt.near],
];

function drawPrompts() {
  const wanted = state.find.toLowerCase(), key = ORDERS[state.order][1];
  const found = inSet().filter((prompt) => prompt.id.toLowerCase().includes(wanted)).sort((a, b) => key(a) - key(b));
  place("prompts").replaceChildren(...found.slice(0, state.room).map((prompt) => make("li", {},
    make("button", { type: "button", "aria-current": String(run.prompts[state.prompt] === prompt), title: prompt.id,
      onclick: () => open(run.prompts.indexOf(prompt)) },
      make("span", {}, prompt.id), make("b", { class: `m${lead.color}` }, `${percent(prompt, lead.i, state.step).toFixed(1)} %`),
      make("small", {}, prompt.set, prompt.near ? " · in the data space" : "")))));
  if (!found.length) place("prompts").append(make("li", { class: "note" }, "No prompt of that name in this set."));
  place("more").hidden = found.length <= state.room;
}

function open(prompt) {
  const focus = [...place("prompts").querySelectorAll("button")].indexOf(document.activeElement);
  change({ prompt });
  history.replaceState(null, "", `#${encodeURIComponent(run.prompts[prompt].id)}`);
  if (focus >= 0) place("prompts").querySelectorAll("button")[focus]?.focus();
}

function drawPrompt() {
  const prompt = run.prompts[state.prompt], holders = [0, 1].map(() => make("div", { class: "chart" }));
  const figures = ["Bits per byte", "σ, what is not known of the answer"].map((caption, i) =>
    make("figure", {}, make("figcaption", {}, caption), holders[i]));
  place("prompt").replaceChildren(
    make("h3", {}, prompt.id),
    make("p", { class: "facts" }, prompt.set, make("span", {}, `${prompt.bytes.toLocaleString("en")} bytes`),
      make("span", {}, `base ${(prompt.base / prompt.bytes).toFixed(3)} bits per byte`),
      prompt.near && make("span", { class: "tag near" },
        `${prompt.exact ? "in the data space" : "nearly in the data space"}: cosine ${prompt.cosine.toFixed(2)}, shared words ${Math.round(100 * prompt.overlap)} %`)),
    make("div", { class: "two" }, figures));
  lineChart(holders[0], { x: run.steps, digits: 3, name: "Bits per byte", base: prompt.base / prompt.bytes,
    lines: shown().map((method) => ({ method, values: prompt.bits[method.i].map((bits) => bits / prompt.bytes) })) });
  if (!prompt.detail) {
    figures[1].remove();
    place("prompt").append(...bars((m) => prompt.seconds[m.i], (m) => prompt.tokens[m.i]),
      make("p", { class: "note" }, "Its picks are not in this page, whose size is bounded: they are in the run."));
    return;
  }
  const { sigma } = prompt.detail, selecting = shown().filter((m) => sigma[m.i].some((s) => s !== null));
  lineChart(holders[1], { x: sigma[0].map((_, i) => i), xName: "picks", digits: 3, name: "σ",
    lines: selecting.map((method) => ({ method, values: sigma[method.i] })) });
  place("prompt").append(...bars((m) => prompt.seconds[m.i], (m) => prompt.tokens[m.i]),
    ...shown().flatMap((m) => prompt.detail.picks[m.i].map((picks, part) => pickedBy(prompt, m, picks, part))));
}

/** What one method picked: a strip in order, then every distinct text with its repeats. */
function pickedBy(prompt, method, picks, part) {
  const { documents, near_copies, sigma } = prompt.detail, steps = new Map();
  picks.forEach((own, i) => steps.set(own, [...(steps.get(own) ?? []), i + 1]));
  const groups = new Set(), copies = new Set();
  for (const own of steps.keys()) {
    const group = near_copies?.[own] ?? null;
    if (group !== null && groups.has(group)) copies.add(own);
    groups.add(group);
  }
  const light = (own, on) => place("prompt").querySelectorAll(`[data-text="${own}"]`).forEach((e) => e.classList.toggle("lit", on));
  const marked = (own) => ({ "data-text": own, onpointerenter: () => light(own, true), onpointerleave: () => light(own, false) });
  const strip = make("div", { class: `strip m${method.color}`, "aria-hidden": "true" }, picks.map((own, i) =>
    make("span", { ...marked(own), title: `${i + 1}: ${run.documents[documents[own]]}`,
      class: steps.get(own)[0] !== i + 1 ? "repeat" : copies.has(own) ? "twin" : null })));
  const item = ([own, taken]) => {
    const text = run.texts?.[documents[own]], group = near_copies?.[own] ?? null, first = sigma[method.i][taken[0]];
    return make("li", marked(own), make("div", {},
      make("span", { class: `m${method.color}` }, taken.length > 1 && make("span", { class: "tag" }, `${taken.length}×`)),
      make("code", {}, run.documents[documents[own]], " ", copies.has(own) && make("span", { class: "tag near" }, `near-duplicate ${group + 1}`)),
      make("i", {}, `${taken.length > 4 ? `steps ${taken.slice(0, 3).join(", ")} … ${taken.at(-1)}` : `step ${taken.join(", ")}`}${first == null ? "" : ` · σ ${first.toFixed(3)}`}`)),
      text && make("p", {}, text));
  };
  const items = [...steps].map(item), repeats = picks.length - steps.size;
  const text = `${steps.size} distinct documents in ${picks.length} picks, ${repeats} repeats${near_copies ? `, ${copies.size} near-duplicates` : ""}`;
  return make("section", { class: "picks", "aria-label": `Picks of ${method.short}` },
    make("header", {}, make("h4", {}, swatch(method), method.short, prompt.detail.picks[method.i].length > 1 && `, part ${part + 1}`),
      make("span", {}, `${percent(prompt, method.i, run.steps.length - 1).toFixed(1)} % · ${text}`)),
    strip, make("ol", {}, items.slice(0, 6)),
    items.length > 6 && make("details", {}, make("summary", {}, `${items.length - 6} more`), make("ol", {}, items.slice(6))));
}

function draw() {
  for (const part of [drawCurves, drawSets, drawTable, drawSummary, drawCosts, drawPrompts, drawPrompt]) part();
}

place("methods").append(...methods.map((method) => make("button", { type: "button", class: "toggle", "aria-pressed": "true", title: method.name,
  onclick: (event) => {
    const hide = !state.hidden.has(method.i);
    state.hidden[hide ? "add" : "delete"](method.i);
    event.currentTarget.setAttribute("aria-pressed", String(!hide));
    draw();
  } }, swatch(method), method.short)));
place("set").append(...run.curves.map(({ name }) => make("option", {}, name)));
place("set").addEventListener("change", (event) => change({ set: event.target.value, room: 60 }));
place("step").append(...run.steps.map((step, i) => make("option", { value: i, selected: i === state.step }, String(step))));
place("step").addEventListener("change", (event) => change({ step: Number(event.target.value) }));
place("order").append(...ORDERS.map(([name], i) => make("option", { value: i }, name)));
place("order").addEventListener("change", (event) => change({ order: Number(event.target.value) }));
place("find").addEventListener("input", (event) => { state.find = event.target.value; state.room = 60; drawPrompts(); });
place("more").addEventListener("click", () => { state.room += 60; drawPrompts(); });

const best = [...run.prompts].sort((a, b) => ORDERS[0][1](a) - ORDERS[0][1](b))[0];
const asked = run.prompts.findIndex((prompt) => prompt.id === decodeURIComponent(location.hash.slice(1)));
state.prompt = asked >= 0 ? asked : run.prompts.indexOf(best);
let width = 0;
new ResizeObserver(() => { if (width !== (width = document.body.clientWidth)) draw(); }).observe(document.body);
