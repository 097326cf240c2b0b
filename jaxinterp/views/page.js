// Draws the view in the JSON block of this page, with the plots of plots.js, which stands below it in the same script.
// Nothing is fetched; every string reaches the page as text, never as markup.
"use strict";

const { view: VIEW, palette: PALETTE } = JSON.parse(document.getElementById("view").textContent);
const root = document.documentElement;
const wantsDark = matchMedia("(prefers-color-scheme: dark)");
const redraws = [];   // what to paint again when the theme or the width changes

const theme = () => root.dataset.theme || (wantsDark.matches ? "dark" : "light");

// ---- small helpers

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name === "class" ? node.className = value : node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function svg(tag, attributes = {}, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

function number(value, style = "number") {
  if (Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (style === "percent") return value === 0 ? "0 %" : value >= 0.0005 ? (100 * value).toFixed(1) + " %" : "<0.1 %";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const digits = size >= 1000 ? size.toFixed(0) : size >= 100 ? size.toFixed(1) : size >= 0.005 ? size.toFixed(2) : size.toPrecision(2);
  return (value < 0 ? "−" : style === "signed" ? "+" : "") + digits;
}

// Tokens come here with every invisible character already made visible; their spaces are only made fainter.
function tokenNodes(shown) {
  return shown.split(/(␣)/).filter((part) => part).map((part) => part === "␣" ? el("span", { class: "space" }, part) : part);
}

// ---- colours

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

function colourAt(fraction, kind) {
  const stops = PALETTE.scales[kind][theme()].map(rgb);
  const place = Math.min(Math.max(fraction, 0), 1) * (stops.length - 1);
  const below = Math.min(Math.floor(place), stops.length - 2);
  return stops[below].map((low, i) => Math.round(low + (place - below) * (stops[below + 1][i] - low)));
}

function readableOn(colour) {
  const [r, g, b] = colour.map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#101216" : "#ffffff";
}

const css = (colour) => `rgb(${colour.join(" ")})`;
const variable = (name) => getComputedStyle(root).getPropertyValue(name).trim();

function legend(scale, low, high) {
  const strip = el("i");
  redraws.push(() => {
    const stops = Array.from({ length: 13 }, (_, i) => css(colourAt(i / 12, scale)));
    strip.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  });
  return el("div", { class: "legend" }, low, strip, high);
}

// ---- data

async function unpack(entry) {
  const bytes = Uint8Array.from(atob(entry.data), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const typed = { "<f4": Float32Array, "<f8": Float64Array, "<i4": Int32Array, "|u1": Uint8Array }[entry.dtype];
  const stored = new typed(buffer);
  if (!entry.scale) return stored;
  const { low, high, steps, nan } = entry.scale;
  return Float32Array.from(stored, (code) => code === nan ? NaN : low + code * (high - low) / steps);
}

function axisLabels(view, axis, size) {
  if (view.shown[axis]) return view.shown[axis];
  if (["position", "query", "key"].includes(axis) && view.shown.tokens) return view.shown.tokens;
  return Array.from({ length: size }, (_, i) => String(i));
}

// ---- tooltip

const tip = el("div", { id: "tip", role: "status" });

function showTip(event, text) {
  tip.textContent = text;
  tip.style.display = "block";
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 6)) + "px";
  tip.style.top = (event.clientY + box.height + 24 > innerHeight ? event.clientY - box.height - 10 : event.clientY + 16) + "px";
}

const hideTip = () => { tip.style.display = "none"; };

function hover(node, text) {
  node.addEventListener("pointermove", (event) => { const shown = text(event); shown ? showTip(event, shown) : hideTip(); });
  node.addEventListener("pointerleave", hideTip);
}

// A canvas that is sharp on every screen; `paint(context)` works in CSS pixels.
function canvas(width, height, label, paint) {
  const node = el("canvas", { role: "img", "aria-label": label });
  node.style.width = width + "px";
  node.style.height = height + "px";
  node.paint = () => {
    const ratio = devicePixelRatio || 1;
    node.width = Math.round(width * ratio);
    node.height = Math.round(height * ratio);
    const context = node.getContext("2d");
    context.scale(ratio, ratio);
    context.textBaseline = "middle";
    paint(context);
  };
  redraws.push(node.paint);
  return node;
}

const place = (node, event) => {
  const box = node.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

const SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif";
const MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
const cut = (text, length) => text.length > length ? text.slice(0, length - 1) + "…" : text;

// ---- one function a kind

// The numbers of one column, with the same decimals.
function columnNumbers(values, kind) {
  const largest = Math.max(0, ...Array.from(values).filter(Number.isFinite).map(Math.abs));
  if (kind === "percent" || (largest > 0 && largest < 0.001) || largest >= 1e6) return Array.from(values, (value) => number(value, kind));
  const decimals = largest >= 1000 ? 0 : largest >= 100 ? 1 : largest >= 0.1 || largest === 0 ? 2 : 4;
  return Array.from(values, (value) => cellNumber(value, decimals, kind === "signed"));
}

function cellNumber(value, decimals, signed) {
  if (!Number.isFinite(value)) return number(value);
  const digits = Math.abs(value).toFixed(decimals);
  return (Number(digits) === 0 ? "" : value < 0 ? "−" : signed ? "+" : "") + digits;
}

function drawTable(view, box) {
  const columns = view.options.columns, texts = {};
  for (const { name, kind } of columns) if (view.data[name]) texts[name] = columnNumbers(view.data[name], kind);
  const rows = columns.map(({ name }) => (view.shown[name] || view.data[name]).length)[0] || 0;
  const right = (kind) => kind === "number" || kind === "signed" ? "right" : kind === "token" ? "token" : "";
  const body = el("tbody");
  for (let i = 0; i < rows; i++) {
    body.append(el("tr", {}, ...columns.map(({ name, kind }) => {
      if (kind === "token") return el("td", { class: "token" }, ...tokenNodes(view.shown[name][i]));
      if (kind === "text") return el("td", {}, view.labels[name][i]);
      const value = view.data[name][i], text = texts[name][i];
      if (kind !== "percent") return el("td", { class: "right" }, text);
      const bar = el("i");
      bar.style.width = 100 * Math.max(0, Math.min(1, value)) + "%";
      return el("td", {}, el("div", { class: "bar" }, el("span", {}, text), bar));
    })));
  }
  const head = el("tr", {}, ...columns.map(({ name, kind }) => el("th", { class: right(kind) === "right" ? "right" : "" }, name)));
  box.append(el("table", {}, columns.some(({ name }) => name.trim()) ? el("thead", {}, head) : "", body));
}

// A grid of coloured cells with row and column names; used by heatmaps and by one head's attention pattern.
function grid({ values, rows, columns, axes, scale, cell, numbers, texts, mono, label, tipText }) {
  const font = mono ? MONO : SANS, longest = (names) => Math.max(0, ...names.map((name) => cut(name, 14).length));
  const left = Math.min(120, 14 + longest(rows) * 7), top = longest(columns) > 3 ? 10 + longest(columns) * 5.4 : 22;
  const slanted = longest(columns) > 3, [cw, ch] = cell;
  const width = left + columns.length * cw + (slanted ? 50 : 2), height = top + rows.length * ch + 2;
  const signed = scale.kind === "diverging", span = scale.high - scale.low;
  const node = canvas(width, height, label, (context) => {
    context.clearRect(0, 0, width, height);
    const faint = variable("--faint"), paper = variable("--paper");
    context.font = `11px ${font}`;
    context.fillStyle = faint;
    const skip = Math.max(1, Math.ceil(13 / ch)), skipColumns = Math.max(1, Math.ceil((slanted ? 13 : 18) / cw));
    context.textAlign = "right";
    rows.forEach((name, i) => { if (i % skip === 0) context.fillText(cut(name, 14), left - 7, top + (i + 0.5) * ch); });
    columns.forEach((name, j) => {
      if (j % skipColumns) return;
      context.save();
      context.translate(left + (j + 0.5) * cw, top - 9);
      context.textAlign = slanted ? "left" : "center";
      if (slanted) context.rotate(-Math.PI / 4);
      context.fillText(cut(name, 14), 0, 0);
      context.restore();
    });
    context.textAlign = "center";
    context.font = `11px ${texts ? MONO : SANS}`;
    const room = texts ? Math.floor((cw - 4) / context.measureText("0").width) : 0;
    const gap = Math.min(cw, ch) > 9 ? 1 : 0;
    for (let i = 0; i < rows.length; i++) for (let j = 0; j < columns.length; j++) {
      const value = values[i * columns.length + j];
      if (Number.isNaN(value)) continue;
      const colour = colourAt((value - scale.low) / span, scale.kind);
      context.fillStyle = css(colour);
      context.fillRect(left + j * cw, top + i * ch, cw - gap, ch - gap);
      if (texts) {
        context.fillStyle = readableOn(colour);
        context.fillText(cut(texts(i, j), room), left + (j + 0.5) * cw, top + (i + 0.5) * ch);
      } else if (numbers) {
        context.fillStyle = readableOn(colour);
        context.globalAlpha = Math.abs(value) < 0.08 * Math.max(Math.abs(scale.low), Math.abs(scale.high)) ? 0.45 : 1;
        context.fillText(cellNumber(value, 2, signed), left + (j + 0.5) * cw, top + (i + 0.5) * ch);
        context.globalAlpha = 1;
      }
    }
  });
  hover(node, (event) => {
    const [px, py] = place(node, event), i = Math.floor((py - top) / ch), j = Math.floor((px - left) / cw);
    return i >= 0 && j >= 0 && i < rows.length && j < columns.length ? tipText(i, j, values[i * columns.length + j]) : "";
  });
  return node;
}

function drawHeatmap(view, box) {
  const { shape, axes } = view.arrays.values, scale = view.options.scale, values = view.data.values;
  const rows = axisLabels(view, axes[0], shape[0]), columns = axisLabels(view, axes[1], shape[1]);
  const room = Math.min(box.clientWidth || 880, 960) - 130;
  const words = view.shown.texts, textAt = (i, j) => words[view.data.texts[i * shape[1] + j]] || "";
  const least = words && shape[1] <= 40 ? 52 : 4;   // texts may make the grid wider than the page, which then scrolls
  const cw = Math.max(least, Math.min(58, Math.floor(room / shape[1]))), ch = Math.max(4, Math.min(21, Math.floor(900 / shape[0])));
  const style = scale.kind === "diverging" ? "signed" : "number", most = Math.max(Math.abs(scale.low), Math.abs(scale.high));
  const node = grid({
    values, rows, columns, axes, scale, cell: [cw, ch], numbers: cw >= 40 && ch >= 15 && most < 1000 && most >= 0.1,
    texts: words && cw >= 40 && ch >= 15 ? textAt : null,
    mono: axes.some((axis) => view.shown.tokens && ["position", "query", "key"].includes(axis)),
    label: `${view.title}: ${axes[0]} by ${axes[1]}`,
    tipText: (i, j, value) => `${axes[0]} ${rows[i]}, ${axes[1]} ${columns[j]}\n${words ? `${textAt(i, j)}  ` : ""}${number(value, style)}`,
  });
  box.append(el("div", { class: "hint" }, `rows ${axes[0]}, columns ${axes[1]}`), el("div", { class: "scroll" }, node),
    legend(scale.kind, number(scale.low, style), number(scale.high, style)));
}

function drawAttention(view, box) {
  return view.arrays.pattern.shape.length === 4 ? drawAllHeads(view, box) : drawRows(view, box);
}

function drawRows(view, box) {
  const [heads, keys] = view.arrays.pattern.shape, names = axisLabels(view, "head", heads), scale = view.options.scale;
  for (let h = 0; h < heads; h++) {
    const words = el("div", { class: "words mono" });
    for (let k = 0; k < keys; k++) {
      const share = view.data.pattern[h * keys + k], word = el("span", { class: "word" }, ...tokenNodes(view.shown.tokens[k]));
      redraws.push(() => {
        const colour = colourAt(share, "sequential");
        word.style.background = share > 0.01 ? css(colour) : "none";
        word.style.color = share > 0.01 ? readableOn(colour) : "";
      });
      hover(word, () => `${names[h]} at ${view.shown.tokens[k]} (position ${k})\n${number(share, "percent")}`);
      words.append(word);
    }
    const title = el("div", {}, el("b", {}, names[h]), view.labels.note ? el("small", {}, view.labels.note[h]) : "");
    box.append(el("div", { class: "head" }, title, words));
  }
  box.append(legend("sequential", number(scale.low, "percent"), number(scale.high, "percent")));
}

function drawAllHeads(view, box) {
  const [L, H, Q, K] = view.arrays.pattern.shape, pattern = view.data.pattern, tokens = view.shown.tokens;
  const side = Math.max(12, Math.min(44, Math.floor(400 / H), Math.floor(720 / L))), margin = 26;
  const layers = axisLabels(view, "layer", L), headNames = axisLabels(view, "head", H);
  let chosen = [0, 0];
  const detail = el("div");
  const thumbs = canvas(margin + H * side, margin + L * side, `${view.title}: ${L} layers by ${H} heads, arrow keys choose`, (context) => {
    const stamp = new OffscreenCanvas(K, Q), small = stamp.getContext("2d"), image = small.createImageData(K, Q);
    const table = Array.from({ length: 256 }, (_, i) => colourAt(Math.sqrt(i / 255), "sequential"));
    context.fillStyle = variable("--faint");
    context.font = `11px ${SANS}`;
    context.textAlign = "center";
    for (let h = 0; h < H; h++) if (h % Math.ceil(18 / side) === 0) context.fillText(headNames[h], margin + (h + 0.5) * side, margin - 10);
    for (let l = 0; l < L; l++) {
      context.fillStyle = variable("--faint");
      if (l % Math.ceil(13 / side) === 0) context.fillText(layers[l], margin - 13, margin + (l + 0.5) * side);
      for (let h = 0; h < H; h++) {
        const begin = (l * H + h) * Q * K;
        for (let i = 0; i < Q * K; i++) {
          const colour = table[Math.round(255 * Math.max(0, Math.min(1, pattern[begin + i] || 0)))];
          image.data.set([...colour, 255], i * 4);
        }
        small.putImageData(image, 0, 0);
        context.imageSmoothingEnabled = K > side;
        context.imageSmoothingQuality = "high";
        context.drawImage(stamp, margin + h * side, margin + l * side, side - 2, side - 2);
      }
    }
    context.strokeStyle = variable("--mark");
    context.lineWidth = 2;
    context.strokeRect(margin + chosen[1] * side - 1, margin + chosen[0] * side - 1, side, side);
  });
  thumbs.tabIndex = 0;
  thumbs.style.cursor = "pointer";
  const at = (event) => { const [px, py] = place(thumbs, event); return [Math.floor((py - margin) / side), Math.floor((px - margin) / side)]; };
  const inside = ([l, h]) => l >= 0 && h >= 0 && l < L && h < H;
  hover(thumbs, (event) => inside(at(event)) ? `layer ${layers[at(event)[0]]}, head ${headNames[at(event)[1]]}` : "");
  const choose = (next) => {
    if (!inside(next)) return;
    chosen = next;
    const [l, h] = chosen, begin = (l * H + h) * Q * K, cell = Math.max(5, Math.min(22, Math.floor(400 / K)));
    const before = redraws.length;
    const node = grid({
      values: pattern.subarray(begin, begin + Q * K), rows: tokens, columns: tokens, axes: ["query", "key"], scale: view.options.scale, cell: [cell, cell],
      mono: true, label: `attention of head ${layers[l]}.${headNames[h]}`,
      tipText: (q, k, value) => `${tokens[q]} (${q}) looks at ${tokens[k]} (${k})\n${number(value, "percent")}`,
    });
    redraws.splice(before);   // the detail is painted by itself, and again through `repaint`
    repaint = node.paint;
    detail.replaceChildren(el("div", { class: "hint" }, `head ${layers[l]}.${headNames[h]}: rows query, columns key`), node);
    node.paint();
    thumbs.paint();
  };
  let repaint = () => {};
  redraws.push(() => repaint());
  thumbs.addEventListener("click", (event) => choose(at(event)));
  thumbs.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (move) { event.preventDefault(); choose([chosen[0] + move[0], chosen[1] + move[1]]); }
  });
  const grids = el("div", {}, el("div", { class: "hint" }, "rows layer, columns head, colours the square root; choose one"), el("div", { class: "scroll" }, thumbs));
  box.append(el("div", { class: "split" }, grids, el("div", { class: "scroll" }, detail)), legend("sequential", "0 %", "100 %"));
  choose([L - 1, 0]);
}

// A prompt whose tokens are coloured by their scores, which stand below them.
function drawHighlight(view, box) {
  const scores = view.data.scores, scale = view.options.scale, tokens = view.shown.tokens;
  const style = scale.kind === "diverging" ? "signed" : "number", texts = columnNumbers(scores, style);
  const words = el("div", { class: "words scored mono" });
  scores.forEach((score, p) => {
    const there = Number.isFinite(score), word = el("span", { class: "word" }, ...tokenNodes(tokens[p]));
    redraws.push(() => {
      const colour = there ? colourAt((score - scale.low) / (scale.high - scale.low), scale.kind) : null;
      word.style.background = there ? css(colour) : "none";
      word.style.color = there ? readableOn(colour) : "";
    });
    const both = el("span", { class: "pair" }, word, el("small", {}, there ? texts[p] : ""));
    hover(both, () => `${tokens[p]} (position ${p})\n${number(score, style)}`);
    words.append(both);
  });
  box.append(words, legend(scale.kind, number(scale.low, style), number(scale.high, style)));
}

const DRAW = {
  table: drawTable, line: drawLine, heatmap: drawHeatmap, attention: drawAttention, highlight: drawHighlight, scatter: drawScatter,
};

// ---- the page

async function figure(view, parent) {
  const wide = view.kind === "table" ? "table" : "wide";
  const box = el("figure", { class: wide }, el("figcaption", {}, view === VIEW ? "" : el("b", {}, view.title), el("span", {}, view.normalisation || "")));
  parent.append(box);
  view.labels = view.labels || {};
  view.data = {};
  for (const [name, entry] of Object.entries(view.arrays || {})) view.data[name] = await unpack(entry);
  DRAW[view.kind](view, box);
}

async function main() {
  const page = document.getElementById("page");
  document.body.append(tip);
  const parts = VIEW.kind === "report" ? VIEW.sections : [{ heading: "", text: "", views: [VIEW] }];
  for (const part of parts) {
    const section = el("section");
    if (part.heading) section.append(el("h2", {}, part.heading));
    if (part.text) section.append(el("p", {}, part.text));
    const row = el("div", { class: "row" });
    section.append(row);
    page.append(section);
    for (const view of part.views) await figure(view, row);
  }
  if (VIEW.provenance) page.append(el("footer", {}, ...Object.entries(VIEW.provenance).map(([key, value]) => el("span", {}, `${key} ${value}`))));
  const repaint = () => redraws.forEach((draw) => draw());
  const button = document.getElementById("theme");
  const name = () => { button.textContent = theme() === "dark" ? "light" : "dark"; };
  button.addEventListener("click", () => { root.dataset.theme = theme() === "dark" ? "light" : "dark"; name(); repaint(); });
  wantsDark.addEventListener("change", () => { name(); repaint(); });
  name();
  repaint();
}

main().catch((error) => document.getElementById("page").append(el("p", {}, `This picture could not be drawn: ${error}`)));
