// The page's one module: asks the server's own API, and draws what comes back while it comes.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let running = null; // the AbortController of what is being asked
let model = "";

// ---- the API

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
      const told = part.replace(/^data: /, "");
      if (told === "[DONE]") return;
      const event = JSON.parse(told);
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
    $("about").textContent = `${model}, sharpened on your texts for each prompt`;
    say("");
  } catch (error) {
    if (error.status !== 401) return say(error.message, true);
    $("key-row").hidden = false;
    say("This server asks for a key.");
  }
}

// ---- asking

async function ask() {
  running?.abort();
  const mine = (running = new AbortController());
  clear();
  busy(true);
  say("Selecting…");
  const prompt = $("prompt").value;
  const body = { prompt, max_tokens: Number($("tokens").value), temperature: 0.8, seed: 0, stream: true };
  const adapt = {
    data_space: $("space").value, n: Number($("steps").value), progress: true, cache: "refresh", return: ["selection", "trace", "texts"],
    ...($("deadline").value && { deadline_ms: Number($("deadline").value) }),
  };
  try {
    await Promise.all([
      stream({ ...body, model: `${model}@base` }, mine, "base"),
      stream({ ...body, model, adapt }, mine, "sharp"),
    ]);
    say("Done.");
  } catch (error) {
    mine.abort();
    if (running === mine) say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  } finally {
    if (running === mine) { running = null; busy(false); }
  }
}

async function stream(body, { signal }, where) {
  const began = performance.now();
  const losses = [], texts = new Map();
  let first = 0;
  const response = await call("v1/completions", { method: "POST", signal, body: JSON.stringify(body) });
  for await (const event of events(response)) {
    const progress = event.adapt_progress;
    if (progress?.selection) {
      plot("sigma", progress.sigma, "σ", 1);
      showSources(progress.selection, body.prompt);
      for (const source of progress.selection) texts.set(source.id, source.text);
      say("Sharpening…");
    } else if (progress) {
      losses.push(progress.bits_per_byte);
      plot("loss", losses, "bits per byte");
      say(`Step ${progress.done} of ${progress.total}`);
    }
    const text = event.choices?.[0]?.text;
    if (text) {
      first ||= performance.now() - began;
      $(where).textContent += text;
    }
    if (event.adapt) showTrace(event.adapt);
  }
  const all = `all after ${seconds(performance.now() - began)}`;
  $(`${where}-note`).textContent = first ? `first word after ${seconds(first)}, ${all}` : `no word, ${all}`;
}

// ---- showing

const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").className = wrong ? "error" : "";
}

function busy(is) {
  $("go").disabled = is;
  $("stop").disabled = !is;
  $("result").setAttribute("aria-busy", is);
}

function clear() {
  $("result").hidden = false;
  for (const id of ["base", "sharp", "base-note", "sharp-note", "sigma", "loss", "time", "time-legend", "sources"]) $(id).replaceChildren();
}

function showTrace(adapt) {
  if (adapt.sigma.length) plot("sigma", adapt.sigma, "σ", 1);
  const names = ["queue", "select", "train", "generate"];
  const total = names.reduce((sum, name) => sum + (adapt.timing_ms[name] ?? 0), 0) || 1;
  $("time").replaceChildren(...names.map((name, i) => {
    const part = make("i", { className: `t${i}` });
    part.style.width = `${(100 * (adapt.timing_ms[name] ?? 0)) / total}%`;
    return part;
  }));
  $("time-legend").replaceChildren(...names.map((name, i) => {
    const item = make("span", {}, make("i", { className: `t${i}` }));
    item.append(`${name} ${seconds(adapt.timing_ms[name] ?? 0)}`);
    return item;
  }));
  $("time").setAttribute("aria-label", $("time-legend").textContent);
  const kept = adapt.cached ? ", from a kept adapter" : "";
  const name = adapt.adapter ? `${adapt.adapter}, ` : "";
  $("sharp-name").title = `${name}${adapt.steps} steps, ended by ${adapt.stop_reason}${kept}`;
  $("sharp-name").textContent = `Sharpened: ${adapt.steps} steps${kept}`;
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

const WORDS = 4; // a run of this many words said before is a repeat
const words = (text) => [...text.matchAll(/[\p{L}\p{N}_]+/gu)];
const gram = (run) => run.map((word) => word[0].toLowerCase()).join(" ");

function grams(text) {
  const all = words(text);
  return all.slice(WORDS - 1).map((_, i) => gram(all.slice(i, i + WORDS)));
}

/** The text in pieces, those that were said before inside <mark>; its own runs of words join `seen`. */
export function marked(text, seen) {
  const all = words(text), pieces = [], own = grams(text);
  let from = 0, low = -1, high = -1;
  const flush = () => {
    if (low < 0) return;
    pieces.push(text.slice(from, low), make("mark", { textContent: text.slice(low, high) }));
    from = high;
  };
  own.forEach((run, i) => {
    if (!seen.has(run)) return;
    const end = all[i + WORDS - 1].index + all[i + WORDS - 1][0].length;
    if (all[i].index > high) { flush(); low = all[i].index; }
    high = end;
  });
  flush();
  pieces.push(text.slice(from));
  own.forEach((run) => seen.add(run));
  return pieces;
}

/** A line through `values`, the last of them written out. */
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

$("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
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
