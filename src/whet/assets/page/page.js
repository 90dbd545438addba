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
  throw Object.assign(new Error(error?.message ?? `status ${response.status}`), { status: response.status, code: error?.code });
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
      if (!part.startsWith("data: ")) continue; // a comment, while nothing is generated
      const line = part.slice("data: ".length);
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
    $("about").textContent = `${model}, fine-tuned on your documents for each question`;
    showStatus("");
  } catch (error) {
    if (error.status !== 401) return showStatus(error.message, true);
    $("key-row").hidden = false;
    showStatus("This server needs an API key.");
  }
}

// ---- the conversation

const STOP = ["\nuser:", "\nassistant:"]; // where a model without a chat template would go on by itself
const panels = { base: [], adapted: [] }; // the messages of each model, which has its own answers
let turn = null; // the section of the current question

async function ask() {
  running?.abort();
  const controller = (running = new AbortController());
  const question = $("prompt").value;
  addTurn(question);
  $("prompt").value = "";
  setBusy(true);
  showStatus("Selecting…");
  const n = Number($("steps").value);
  const body = { max_tokens: Number($("tokens").value), temperature: 0, seed: 0, stop: STOP, stream: true };
  const adapt = {
    data_space: $("space").value, n, use: $("use").value, progress: true, cache: "refresh", query: question,
    include: ["selection", "trace", "texts"], ...($("deadline").value && { deadline_s: Number($("deadline").value) }),
  };
  try {
    await Promise.all([
      answer({ ...body, model: `${model}@base` }, question, controller, "base"),
      answer({ ...body, model, adapt }, question, controller, "adapted"),
    ]);
    showStatus("Done.");
  } catch (error) {
    controller.abort();
    if (running === controller) showStatus(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  } finally {
    if (running === controller) { running = null; setBusy(false); }
  }
}

/** Stream the answer of one model, which joins its conversation as far as it went. */
async function answer(body, question, controller, panel) {
  const messages = panels[panel], place = messages.push({ role: "user", content: question }) - 1;
  const shown = part(panel === "base" ? ".base" : ".adapted .answer");
  try {
    await stream({ ...body, messages: [...messages] }, question, controller, panel, shown);
  } finally {
    const content = shown.textContent.trim();
    if (messages[place]?.content === question) messages.splice(place, content ? 0 : 1);
    if (content && messages.at(-1)?.content === question) messages.push({ role: "assistant", content });
  }
}

/** The response to a conversation, the oldest questions of which are left out until it fits the context. */
async function respond(body, signal) {
  for (;;) {
    try {
      return await call("v1/chat/completions", { method: "POST", signal, body: JSON.stringify(body) });
    } catch (error) {
      if (error.code !== "context_length_exceeded" || body.messages.length < 3) throw error;
      body.messages = body.messages.slice(2);
    }
  }
}

async function stream(body, question, { signal }, panel, shown) {
  const started = performance.now(), losses = [], here = turn;
  let first = 0;
  for await (const event of events(await respond(body, signal))) {
    const progress = event.adapt_progress;
    if (progress?.selection) {
      plot(part(".sigma", here), progress.sigma, "σ", 1);
      showSources(progress.selection, question, here);
      showStatus(["steps", "both"].includes(body.adapt.use) ? "Training…" : "Reading…");
    } else if (progress) {
      losses.push(progress.bits_per_byte);
      plot(part(".loss", here), losses, "bits per byte");
      showStatus(`Step ${progress.done} of ${progress.total}`);
    }
    const text = event.choices?.[0]?.delta?.content;
    if (text) {
      first ||= performance.now() - started;
      shown.textContent += text;
    }
    if (event.adapt) showAdaptation(event.adapt, here);
  }
  const total = `finished after ${seconds(performance.now() - started)}`;
  part(`.${panel}-note`, here).textContent = first ? `first token after ${seconds(first)}, ${total}` : `no text, ${total}`;
}

// ---- showing

const part = (selector, section = turn) => section.querySelector(selector);
const seconds = (ms) => formatSeconds(ms / 1000);
const formatSeconds = (s) => `${s.toFixed(2)} s`;
const count = (number, name) => `${number} ${name}${number === 1 ? "" : "s"}`;

function showStatus(text, isError = false) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
}

function setBusy(busy) {
  $("go").disabled = busy;
  $("stop").disabled = !busy;
  $("new").disabled = busy || !turn;
  turn?.setAttribute("aria-busy", busy);
}

function addTurn(question) {
  if (turn) part("details").open = false;
  turn = $("turn").content.cloneNode(true).firstElementChild;
  part(".question").textContent = question;
  $("conversation").append(turn);
  turn.scrollIntoView({ block: "start" });
}

function forget() {
  for (const messages of Object.values(panels)) messages.length = 0;
  $("conversation").replaceChildren();
  turn = null;
  setBusy(false);
  showStatus("");
}

function showAdaptation(adapt, here) {
  if (adapt.sigma.length) plot(part(".sigma", here), adapt.sigma, "σ", 1);
  part(".loss", here).closest("figure").hidden = !part(".loss polyline", here); // nothing was trained on
  const names = ["queue", "select", "train", "generate"];
  const total = names.reduce((sum, name) => sum + (adapt.seconds[name] ?? 0), 0) || 1;
  part(".time", here).replaceChildren(...names.map((name, i) => {
    const bar = make("i", { className: `t${i}` });
    bar.style.width = `${(100 * (adapt.seconds[name] ?? 0)) / total}%`;
    return bar;
  }));
  part(".time-legend", here).replaceChildren(...names.map((name, i) => {
    const item = make("span", {}, make("i", { className: `t${i}` }));
    item.append(`${name} ${formatSeconds(adapt.seconds[name] ?? 0)}`);
    return item;
  }));
  part(".time", here).setAttribute("aria-label", part(".time-legend", here).textContent);
  const { evidence } = adapt, read = evidence.in_context.length;
  const undone = adapt.stop_reason === "evidence" && !evidence.steps;
  const parts = [adapt.steps ? count(adapt.steps, "step") + (undone ? ", undone" : "") : "", read ? `${count(read, "passage")} in the context` : ""];
  const name = parts.filter(Boolean).join(", ");
  part(".adapted-name", here).textContent = name ? `${evidence.steps ? "Adapted" : "Base model"}: ${name}` : "Base model";
  part(".adapted-name", here).title = `stopped by ${adapt.stop_reason}${adapt.cached ? ", from a cached adapter" : ""}`;
  showEvidence(adapt, here);
}

/** What the answer rests on, in one line, and the bits of the question's end before and after as bars. */
function showEvidence({ evidence, stop_reason }, here) {
  part(".evidence", here).hidden = false;
  const nothing = stop_reason === "no_match" ? "No passage is near the question: the base model has answered." : "";
  part(".evidence p", here).textContent = nothing || evidence.line;
  const svg = part(".held-back", here), { before, after } = evidence;
  const isMeasured = before != null && after != null;
  svg.toggleAttribute("hidden", !isMeasured); // SVG has no property of this name
  if (!isMeasured) return;
  const top = Math.max(before, after);
  svg.replaceChildren(...[["before", before], ["after", after]].flatMap(([name, value], i) => [
    draw("text", { x: 0, y: 16 + 21 * i }, name),
    draw("rect", { class: name, x: 48, y: 5 + 21 * i, width: Math.max(2, (160 * value) / top), height: 14, rx: 3 }),
    draw("text", { x: 56 + (160 * value) / top, y: 16 + 21 * i }, value.toFixed(2)),
  ]));
  svg.setAttribute("aria-label", `Bits per byte of the end of the question: ${before.toFixed(2)} before the steps, ${after.toFixed(2)} after`);
}

function showSources(sources, question, here) {
  const seen = new Set(grams(question));
  part(".sources", here).replaceChildren(...sources.map((source) => {
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
function plot(svg, values, name, top = Math.max(...values)) {
  const [left, right, upper, lower] = [34, 354, 10, 128];
  const x = (i) => left + ((right - left) * i) / Math.max(1, values.length - 1);
  const y = (value) => lower - ((lower - upper) * value) / (top || 1);
  const points = values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`);
  const last = values.at(-1);
  svg.replaceChildren(
    draw("line", { class: "axis", x1: left, x2: right, y1: lower, y2: lower }),
    draw("line", { class: "axis", x1: left, x2: right, y1: upper, y2: upper }),
    draw("text", { x: left - 6, y: lower + 4, "text-anchor": "end" }, "0"),
    draw("text", { x: left - 6, y: upper + 4, "text-anchor": "end" }, top.toFixed(1)),
    draw("text", { x: right, y: lower + 18, "text-anchor": "end" }, count(values.length - svg.matches(".sigma"), svg.matches(".sigma") ? "pick" : "step")),
    draw("polyline", { class: "line", points: points.join(" ") }),
    draw("circle", { class: "dot", cx: x(values.length - 1), cy: y(last), r: 3.5 }),
    draw("text", { x: right + 9, y: y(last) + 4 }, last.toFixed(3)),
  );
  svg.setAttribute("aria-label", `${name} from ${values[0].toFixed(3)} to ${last.toFixed(3)} in ${values.length} points`);
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

let described = describe(); // a question waits for it: only then is there a model to ask
$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  await described;
  if (model) ask();
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", forget);
$("steps").addEventListener("input", () => { $("steps-shown").textContent = $("steps").value; });
$("key").addEventListener("change", () => { described = describe(); });
$("theme").addEventListener("click", () => {
  const root = document.documentElement.dataset;
  const dark = root.theme ? root.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.theme = dark ? "light" : "dark";
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});
