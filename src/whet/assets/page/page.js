// The page's only module: calls the server's API and draws the results as they arrive.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let running = null; // the AbortController of the current run
let model = "";

// ---- API

function headers() {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

async function call(path, init = {}) {
  const response = await fetch(path, { ...init, headers: headers() });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw Object.assign(new Error(error?.message ?? `status ${response.status}`), { status: response.status });
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const line = part.replace(/^data: /, "");
      if (line === "[DONE]") return;
      const event = JSON.parse(line);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function describe() {
  try {
    const models = (await (await call("v1/models")).json()).data;
    const spaces = (await (await call("v1/data_spaces")).json()).data;
    model = models[0].id;
    $("space").replaceChildren(...spaces.map((space) => new Option(`${space.id} (${space.documents.toLocaleString("en")})`, space.id)));
    $("about").textContent = `${model}, fine-tuned on your documents for each prompt`;
    showStatus("");
  } catch (error) {
    if (error.status !== 401) return showStatus(error.message, true);
    $("key-row").hidden = false;
    showStatus("This server needs an API key.");
  }
}

// ---- running

async function run() {
  running?.abort();
  const controller = (running = new AbortController());
  clear();
  setBusy(true);
  showStatus("Selecting…");
  const prompt = $("prompt").value;
  const body = { prompt, max_tokens: Number($("tokens").value), temperature: 0.8, seed: 0, stream: true };
  const adapt = {
    data_space: $("space").value, n: Number($("steps").value), progress: true, cache: "refresh", include: ["selection", "trace", "texts"],
    ...($("deadline").value && { deadline_s: Number($("deadline").value) }),
  };
  try {
    await Promise.all([
      stream({ ...body, model: `${model}@base` }, controller, "base"),
      stream({ ...body, model, adapt }, controller, "adapted"),
    ]);
    showStatus("Done.");
  } catch (error) {
    controller.abort();
    if (running === controller) showStatus(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  } finally {
    if (running === controller) { running = null; setBusy(false); }
  }
}

async function stream(body, { signal }, panel) {
  const started = performance.now();
  const losses = [], texts = new Map();
  let first = 0;
  const response = await call("v1/completions", { method: "POST", signal, body: JSON.stringify(body) });
  for await (const event of events(response)) {
    const progress = event.adapt_progress;
    if (progress?.selection) {
      plot("sigma", progress.sigma, "σ", 1);
      showSources(progress.selection, body.prompt);
      for (const source of progress.selection) texts.set(source.id, source.text);
      showStatus("Training…");
    } else if (progress) {
      losses.push(progress.bits_per_byte);
      plot("loss", losses, "bits per byte");
      showStatus(`Step ${progress.done} of ${progress.total}`);
    }
    const text = event.choices?.[0]?.text;
    if (text) {
      first ||= performance.now() - started;
      $(panel).textContent += text;
    }
    if (event.adapt) showTrace(event.adapt);
  }
  const total = `finished after ${seconds(performance.now() - started)}`;
  $(`${panel}-note`).textContent = first ? `first token after ${seconds(first)}, ${total}` : `no text, ${total}`;
}

// ---- showing

const seconds = (ms) => formatSeconds(ms / 1000);
const formatSeconds = (s) => `${s.toFixed(2)} s`;

function showStatus(text, isError = false) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
}

function setBusy(busy) {
  $("go").disabled = busy;
  $("stop").disabled = !busy;
  $("result").setAttribute("aria-busy", busy);
}

function clear() {
  $("result").hidden = false;
  for (const id of ["base", "adapted", "base-note", "adapted-note", "sigma", "loss", "time", "time-legend", "sources"]) $(id).replaceChildren();
}

function showTrace(adapt) {
  if (adapt.sigma.length) plot("sigma", adapt.sigma, "σ", 1);
  const names = ["queue", "select", "train", "generate"];
  const total = names.reduce((sum, name) => sum + (adapt.seconds[name] ?? 0), 0) || 1;
  $("time").replaceChildren(...names.map((name, i) => {
    const part = make("i", { className: `t${i}` });
    part.style.width = `${(100 * (adapt.seconds[name] ?? 0)) / total}%`;
    return part;
  }));
  $("time-legend").replaceChildren(...names.map((name, i) => {
    const item = make("span", {}, make("i", { className: `t${i}` }));
    item.append(`${name} ${formatSeconds(adapt.seconds[name] ?? 0)}`);
    return item;
  }));
  $("time").setAttribute("aria-label", $("time-legend").textContent);
  const cached = adapt.cached ? ", from a cached adapter" : "";
  const id = adapt.adapter_id ? `${adapt.adapter_id}, ` : "";
  $("adapted-name").title = `${id}${adapt.steps} steps, stopped by ${adapt.stop_reason}${cached}`;
  $("adapted-name").textContent = `Adapted: ${adapt.steps} steps${cached}`;
}

function showSources(sources, prompt) {
  const seen = new Set(grams(prompt));
  $("sources").replaceChildren(...sources.map((source) => {
    const head = make("div", { className: "head" }, make("b", { textContent: source.id }));
    if (source.count > 1) head.append(make("span", { className: "times", textContent: `× ${source.count}` }));
    head.append(make("span", { textContent: `σ ${source.sigma.toFixed(3)}` }));
    const text = make("p", { tabIndex: 0, ariaLabel: `Text of ${source.id}` });
    text.append(...marked(source.text ?? "", seen));
    return make("li", {}, head, text);
  }));
}

const WORDS = 4; // a repeat is a run of at least this many words
const words = (text) => [...text.matchAll(/[\p{L}\p{N}_]+/gu)];
const gram = (run) => run.map((word) => word[0].toLowerCase()).join(" ");

function grams(text) {
  const all = words(text);
  return all.slice(WORDS - 1).map((_, i) => gram(all.slice(i, i + WORDS)));
}

/** Pieces of `text`, with repeats of `seen` inside <mark>; adds the runs of words of `text` to `seen`. */
export function marked(text, seen) {
  const all = words(text), pieces = [], runs = grams(text);
  let from = 0, low = -1, high = -1;
  const flush = () => {
    if (low < 0) return;
    pieces.push(text.slice(from, low), make("mark", { textContent: text.slice(low, high) }));
    from = high;
  };
  runs.forEach((run, i) => {
    if (!seen.has(run)) return;
    const end = all[i + WORDS - 1].index + all[i + WORDS - 1][0].length;
    if (all[i].index > high) { flush(); low = all[i].index; }
    high = end;
  });
  flush();
  pieces.push(text.slice(from));
  runs.forEach((run) => seen.add(run));
  return pieces;
}

/** Draw a line through `values` and print the last one. */
function plot(id, values, name, top = Math.max(...values)) {
  const [left, right, upper, lower] = [34, 354, 10, 128];
  const x = (i) => left + ((right - left) * i) / Math.max(1, values.length - 1);
  const y = (value) => lower - ((lower - upper) * value) / (top || 1);
  const points = values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`);
  const last = values.at(-1);
  $(id).replaceChildren(
    draw("line", { class: "axis", x1: left, x2: right, y1: lower, y2: lower }),
    draw("line", { class: "axis", x1: left, x2: right, y1: upper, y2: upper }),
    draw("text", { x: left - 6, y: lower + 4, "text-anchor": "end" }, "0"),
    draw("text", { x: left - 6, y: upper + 4, "text-anchor": "end" }, top.toFixed(1)),
    draw("text", { x: right, y: lower + 18, "text-anchor": "end" }, `${values.length - (id === "sigma")} steps`),
    draw("polyline", { class: "line", points: points.join(" ") }),
    draw("circle", { class: "dot", cx: x(values.length - 1), cy: y(last), r: 3.5 }),
    draw("text", { x: right + 9, y: y(last) + 4 }, last.toFixed(3)),
  );
  $(id).setAttribute("aria-label", `${name} from ${values[0].toFixed(3)} to ${last.toFixed(3)} in ${values.length} points`);
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return element;
}

// ---- keys and buttons

$("ask").addEventListener("submit", (event) => { event.preventDefault(); run(); });
$("stop").addEventListener("click", () => running?.abort());
$("steps").addEventListener("input", () => { $("steps-shown").textContent = $("steps").value; });
$("key").addEventListener("change", describe);
$("theme").addEventListener("click", () => {
  const root = document.documentElement.dataset;
  const dark = root.theme ? root.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.theme = dark ? "light" : "dark";
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});
describe();
