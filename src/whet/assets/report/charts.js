"use strict";
// Lines and dots as SVG, with a cursor for mouse, touch and keyboard. What is text enters the page
// as text alone, never as markup.

const SVG = new Set(["svg", "g", "line", "path", "circle", "rect", "text"]);

/** An element with attributes, listeners (on…) and children; nothing for what is null or false. */
function make(tag, attributes = {}, ...children) {
  const element = SVG.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child || child === 0));
  return element;
}

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * (1 - 1e-9));
  const made = [];
  for (let t = Math.ceil(low / step - 1e-9); t * step <= high + step * 1e-9; t++) made.push(t * step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return made.map((at) => ({ at, label: at.toFixed(digits).replace("-", "−") }));
}

/** From numbers to pixels. */
function scale([low, high], [from, to]) {
  const width = high - low || 1;
  return (value) => from + ((value - low) / width) * (to - from);
}

function range(values, share) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const more = (high - low || Math.abs(high) || 1) * share;
  return [low - more, high + more];
}

/** The box of values at the cursor; a screen reader is told it too. */
function tip(holder, x, title, entries) {
  let box = holder.querySelector(".tip");
  if (!box) holder.append((box = make("div", { class: "tip", role: "status" })));
  box.replaceChildren(
    make("p", {}, title),
    make("ul", {}, entries.map(({ method, value, interval }) =>
      make("li", {}, make("span", { class: `swatch m${method.color}` }), method.short,
        make("b", {}, value, " ", make("i", {}, interval ?? ""))))),
  );
  const left = x > holder.clientWidth / 2;
  box.style.left = left ? "auto" : `${x + 14}px`;
  box.style.right = left ? `${holder.clientWidth - x + 14}px` : "auto";
}

/** Moves a cursor over `count` places: `show(place)`, or `show(null)` when it leaves. */
function cursor(svg, count, nearest, show, [back, forth]) {
  let at = null;
  const go = (place) => show((at = place));
  svg.addEventListener("pointermove", (event) => go(nearest(event)));
  svg.addEventListener("pointerdown", (event) => go(nearest(event)));
  svg.addEventListener("pointerleave", () => go(null));
  svg.addEventListener("blur", () => go(null));
  svg.addEventListener("keydown", (event) => {
    const steps = { [back]: (at ?? count) - 1, [forth]: (at ?? -1) + 1, Home: 0, End: count - 1, Escape: null };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const place = steps[event.key];
    go(place === null ? null : Math.max(0, Math.min(count - 1, place)));
  });
}

/** Curves over the steps `x`; a line is {method, values, low?, high?}, null where unknown. */
function lineChart(holder, { x, lines, name, xName = "gradient steps", base = null, digits, tall = 300 }) {
  const width = Math.max(holder.clientWidth, 240), height = width < 400 ? 240 : tall;
  const box = { left: 44, right: width - 10, top: 10, bottom: height - 38 };
  const known = lines.flatMap((l) => [...l.values, ...(l.low ?? []), ...(l.high ?? [])]).filter((v) => v !== null);
  if (base !== null) known.push(base);
  if (!lines.length || !known.length) return holder.replaceChildren(make("p", { class: "note" }, "Nothing to show."));
  const span = range(known, 0.06);
  const sx = scale([x[0], x.at(-1)], [box.left, box.right]), sy = scale(span, [box.bottom, box.top]);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, tabindex: 0, role: "img",
    "aria-label": `${name} by ${xName}; arrow keys tell the values` });
  for (const { at, label } of ticks(...span, 5)) {
    svg.append(make("line", { class: "grid", x1: box.left, x2: box.right, y1: sy(at), y2: sy(at) }),
      make("text", { x: box.left - 8, y: sy(at) + 4, "text-anchor": "end" }, label));
  }
  let last = -Infinity;
  for (const value of x.length > 12 ? ticks(x[0], x.at(-1), 6).map((t) => t.at) : x) {
    if (sx(value) - last < 22) continue;
    last = sx(value);
    svg.append(make("text", { x: last, y: box.bottom + 18, "text-anchor": "middle" }, String(value)));
  }
  svg.append(make("text", { x: (box.left + box.right) / 2, y: height - 3, "text-anchor": "middle" }, xName));
  if (base !== null) svg.append(make("line", { class: "base", x1: box.left, x2: box.right, y1: sy(base), y2: sy(base) }));
  const path = (values) => {
    const points = values.map((v, i) => [sx(x[i]), v]).filter(([, v]) => v !== null);
    return points.map(([px, v], i) => `${i ? "L" : "M"}${px.toFixed(1)},${sy(v).toFixed(1)}`).join("");
  };
  for (const { method, values, low, high } of lines) {
    const group = make("g", { class: `m${method.color}` });
    if (low) group.append(make("path", { class: "band", d: `${path(high)}${[...low.keys()].reverse().map((i) => `L${sx(x[i])},${sy(low[i])}`).join("")}Z` }));
    group.append(make("path", { class: `curve ${method.again ? "again" : ""}`, d: path(values) }));
    if (x.length <= 12) values.forEach((v, i) => v !== null && group.append(make("circle", { class: "dot", r: 3.5, cx: sx(x[i]), cy: sy(v) })));
    svg.append(group);
  }
  const line = make("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
  svg.append(line);
  holder.replaceChildren(svg);
  const nearest = (event) => {
    const px = event.clientX - svg.getBoundingClientRect().left;
    return x.reduce((best, _, i) => (Math.abs(sx(x[i]) - px) < Math.abs(sx(x[best]) - px) ? i : best), 0);
  };
  cursor(svg, x.length, nearest, (i) => {
    line.setAttribute("visibility", i === null ? "hidden" : "visible");
    if (i === null) return holder.querySelector(".tip")?.remove();
    line.setAttribute("x1", sx(x[i]));
    line.setAttribute("x2", sx(x[i]));
    const own = lines.filter((l) => l.values[i] !== null).sort((a, b) => a.values[i] - b.values[i]);
    tip(holder, sx(x[i]), `after ${x[i]}`, own.map(({ method, values, low, high }) => ({ method,
      value: values[i].toFixed(digits), interval: low ? `[${low[i].toFixed(digits)}, ${high[i].toFixed(digits)}]` : "" })));
  }, ["ArrowLeft", "ArrowRight"]);
}

/** A row a name, a dot with its interval a method; a row is {name, dots: [{method, value, low, high}]}. */
function dotChart(holder, { rows, name, base, digits, pick }) {
  const width = Math.max(holder.clientWidth, 240), each = Math.max(24, 9 + 7 * (rows[0]?.dots.length ?? 0));
  const names = Math.min(150, width * 0.34), height = rows.length * each + 40;
  const known = rows.flatMap((row) => row.dots.flatMap((dot) => [dot.value, dot.low, dot.high]));
  if (!known.length) return holder.replaceChildren(make("p", { class: "note" }, "Nothing to show."));
  const box = { left: names, right: width - 10, bottom: height - 34 }, span = range([...known, base], 0.03);
  const sx = scale(span, [box.left, box.right]);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, tabindex: 0, role: "img", "aria-label": `${name}; arrow keys tell the values` });
  const back = rows.map((_, i) => make("rect", { class: `row ${i % 2 ? "odd" : ""}`, x: 0, width, y: i * each, height: each, rx: 5 }));
  svg.append(...back);
  for (const { at, label } of ticks(...span, width < 400 ? 3 : 5)) {
    svg.append(make("line", { class: "grid", x1: sx(at), x2: sx(at), y1: 0, y2: box.bottom }),
      make("text", { x: sx(at), y: box.bottom + 16, "text-anchor": "middle" }, label));
  }
  svg.append(make("line", { class: "base", x1: sx(base), x2: sx(base), y1: 0, y2: box.bottom }),
    make("text", { x: (box.left + box.right) / 2, y: height - 3, "text-anchor": "middle" }, "% of base"));
  const room = Math.floor(names / 7.4);
  rows.forEach(({ name: own, dots }, i) => {
    const label = own.length > room ? `${own.slice(0, room - 1)}…` : own;
    svg.append(make("text", { x: names - 10, y: (i + 0.5) * each + 4, "text-anchor": "end" }, label));
    dots.forEach(({ method, value, low, high }, j) => {
      const y = i * each + (each * (j + 1)) / (dots.length + 1);
      svg.append(make("g", { class: `m${method.color}` },
        make("line", { class: "range", x1: sx(low), x2: sx(high), y1: y, y2: y }),
        make("circle", { class: "dot", r: 4, cx: sx(value), cy: y })));
    });
  });
  holder.replaceChildren(svg);
  const nearest = (event) => {
    const y = event.clientY - svg.getBoundingClientRect().top;
    return Math.max(0, Math.min(rows.length - 1, Math.floor(y / each)));
  };
  let at = null;
  cursor(svg, rows.length, nearest, (i) => {
    at = i;
    back.forEach((rect, j) => rect.classList.toggle("at", j === i));
    if (i === null) return holder.querySelector(".tip")?.remove();
    const own = [...rows[i].dots].sort((a, b) => a.value - b.value);
    tip(holder, names, rows[i].name, own.map(({ method, value, low, high }) => ({ method,
      value: value.toFixed(digits), interval: `[${low.toFixed(digits)}, ${high.toFixed(digits)}]` })));
    holder.querySelector(".tip").style.top = `${(i + 1) * each + 4}px`;
  }, ["ArrowUp", "ArrowDown"]);
  svg.addEventListener("click", () => at !== null && pick(rows[at].name));
  svg.addEventListener("keydown", (event) => event.key === "Enter" && at !== null && pick(rows[at].name));
}
