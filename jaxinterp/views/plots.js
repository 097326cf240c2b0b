// Plots on two axes of numbers: lines and scatters, drawn by page.js, which stands above this file in the same script.

function niceTicks(low, high) {
  const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((m) => m * power >= rough) * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return [ticks, step];
}

function drawLine(view, box) {
  const [count, points] = view.arrays.values.shape, all = view.data.values;
  const names = axisLabels(view, "series", count), xName = view.arrays.values.axes[1], xs = axisLabels(view, xName, points);
  const finite = Array.from(all).filter(Number.isFinite);
  let low = finite.length ? Math.min(...finite) : 0, high = finite.length ? Math.max(...finite) : 1;
  if (Math.min(Math.abs(low), Math.abs(high)) < 2 * (high - low)) { low = Math.min(low, 0); high = Math.max(high, 0); }
  if (high <= low) { low -= 1; high += 1; }
  const pad = 0.06 * (high - low), W = 880, H = 330, left = 46, right = 130, top = 12, bottom = 40;
  const x = (i) => left + (points > 1 ? i / (points - 1) : 0.5) * (W - left - right);
  const y = (v) => top + (high + pad - v) / (high - low + 2 * pad) * (H - top - bottom);
  const hue = (s) => `var(--series-${s % PALETTE.series.light.length})`;
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${view.title}: ${names.join(", ")} by ${xName}` });
  const [ticks, step] = niceTicks(low - pad, high + pad), decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  for (const tick of ticks) {
    picture.append(svg("line", { x1: left, x2: W - right, y1: y(tick), y2: y(tick), stroke: "var(--line)", "stroke-width": Math.abs(tick) < step / 2 ? 1.6 : 1 }));
    const text = Math.abs(tick) < step / 2 ? "0" : (tick < 0 ? "−" : low < 0 ? "+" : "") + Math.abs(tick).toFixed(decimals);
    picture.append(svg("text", { x: left - 9, y: y(tick) + 4, "text-anchor": "end" }, text));
  }
  const every = Math.max(1, Math.ceil(points / 16));
  xs.forEach((name, i) => { if (i % every === 0) picture.append(svg("text", { x: x(i), y: H - bottom + 20, "text-anchor": "middle" }, cut(name, 12))); });
  picture.append(svg("text", { x: (left + W - right) / 2, y: H - 3, "text-anchor": "middle" }, xName));
  const guide = svg("line", { y1: top, y2: H - bottom, stroke: "var(--faint)", "stroke-dasharray": "2 3", visibility: "hidden" });
  picture.append(guide);
  const ends = [];
  names.forEach((name, s) => {
    const row = Array.from(all.subarray(s * points, (s + 1) * points));
    const path = row.map((v, i) => Number.isFinite(v) ? (i && Number.isFinite(row[i - 1]) ? "L" : "M") + x(i).toFixed(1) + " " + y(v).toFixed(1) : "").join("");
    picture.append(svg("path", { d: path, fill: "none", stroke: hue(s), "stroke-width": 2.2, "stroke-linejoin": "round", "stroke-linecap": "round" }));
    if (points <= 64) row.forEach((v, i) => { if (Number.isFinite(v)) picture.append(svg("circle", { cx: x(i), cy: y(v), r: 2.6, fill: hue(s) })); });
    const last = row.findLastIndex(Number.isFinite);
    if (last >= 0) ends.push({ s, name, value: row[last], at: y(row[last]) });
  });
  ends.sort((a, b) => a.at - b.at).forEach((end, i) => {
    end.label = i ? Math.max(end.at, ends[i - 1].label + 17) : end.at;
    const text = svg("text", { x: W - right + 12, y: end.label + 4, style: `fill: ${hue(end.s)}; font-weight: 600; font-size: 13px` }, `${cut(end.name, 12)} ${number(end.value, low < 0 ? "signed" : "number")}`);
    picture.append(text);
  });
  hover(picture, (event) => {
    const frame = picture.getBoundingClientRect(), px = (event.clientX - frame.left) / frame.width * W;
    const i = Math.round((px - left) / (W - left - right) * (points - 1));
    guide.setAttribute("visibility", i >= 0 && i < points ? "visible" : "hidden");
    if (i < 0 || i >= points) return "";
    guide.setAttribute("x1", x(i)); guide.setAttribute("x2", x(i));
    return `${xName} ${xs[i]}\n` + names.map((name, s) => `${name} ${number(all[s * points + i], "signed")}`).join("\n");
  });
  picture.addEventListener("pointerleave", () => guide.setAttribute("visibility", "hidden"));
  box.append(picture);
}

// Points with y = x (dashed) and a fitted line; the point that is nearest to the pointer is named.
function drawScatter(view, box) {
  const { names, ends, identity, line } = view.options, { x: xs, y: ys } = view.data;
  const W = 620, H = 470, left = 64, right = 16, top = 26, bottom = 46;
  const x = (v) => left + (v - ends.x[0]) / (ends.x[1] - ends.x[0]) * (W - left - right);
  const y = (v) => top + (ends.y[1] - v) / (ends.y[1] - ends.y[0]) * (H - top - bottom);
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "scatter", role: "img", "aria-label": `${view.title}: ${names[1]} by ${names[0]}` });
  const text = (value, step) => Math.abs(value) < step / 2 ? "0" : (value < 0 ? "−" : "") + Math.abs(value).toFixed(Math.min(20, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))));
  const rule = (place, extra = {}) => svg("line", { ...place, stroke: "var(--line)", ...extra });
  const [across, stepX] = niceTicks(...ends.x), [up, stepY] = niceTicks(...ends.y);
  for (const tick of across) {
    picture.append(rule({ x1: x(tick), x2: x(tick), y1: top, y2: H - bottom }, { "stroke-width": Math.abs(tick) < stepX / 2 ? 1.6 : 1 }));
    picture.append(svg("text", { x: x(tick), y: H - bottom + 18, "text-anchor": "middle" }, text(tick, stepX)));
  }
  for (const tick of up) {
    picture.append(rule({ x1: left, x2: W - right, y1: y(tick), y2: y(tick) }, { "stroke-width": Math.abs(tick) < stepY / 2 ? 1.6 : 1 }));
    picture.append(svg("text", { x: left - 9, y: y(tick) + 4, "text-anchor": "end" }, text(tick, stepY)));
  }
  picture.append(svg("text", { x: (left + W - right) / 2, y: H - 6, "text-anchor": "middle" }, names[0]), svg("text", { x: 4, y: 13 }, names[1]));
  const notes = [];
  const straight = (slope, intercept, colour, dash, name) => {
    // where the line is inside the frame
    const at = (v) => (v - intercept) / slope, [a, b] = slope ? [at(ends.y[0]), at(ends.y[1])].sort((p, q) => p - q) : ends.x;
    const from = Math.max(ends.x[0], a), to = Math.min(ends.x[1], b);
    if (!(from < to) || (!slope && (intercept < ends.y[0] || intercept > ends.y[1]))) return;
    picture.append(svg("line", { x1: x(from), y1: y(slope * from + intercept), x2: x(to), y2: y(slope * to + intercept), stroke: colour, "stroke-width": 1.6, "stroke-dasharray": dash }));
    notes.push(el("span", { style: `color: ${colour}` }, name));
  };
  if (identity) straight(1, 0, "var(--faint)", "5 4", "- - y = x");
  xs.forEach((value, i) => {
    if (Number.isFinite(value) && Number.isFinite(ys[i])) picture.append(svg("circle", { cx: x(value), cy: y(ys[i]), r: xs.length > 500 ? 2.2 : 3.4, fill: "var(--series-0)", "fill-opacity": 0.65 }));
  });
  if (line) straight(line[0], line[1], "var(--series-1)", "none", `— y = ${number(line[0])} x ${line[1] < 0 ? "−" : "+"} ${number(Math.abs(line[1]))}`);
  const ring = svg("circle", { r: 6, fill: "none", stroke: "var(--ink)", "stroke-width": 1.6, visibility: "hidden" });
  picture.append(ring);
  hover(picture, (event) => {
    const frame = picture.getBoundingClientRect(), px = (event.clientX - frame.left) / frame.width * W, py = (event.clientY - frame.top) / frame.height * H;
    let nearest = -1, least = 14 ** 2;
    xs.forEach((value, i) => {
      const distance = (x(value) - px) ** 2 + (y(ys[i]) - py) ** 2;
      if (distance < least) [nearest, least] = [i, distance];
    });
    ring.setAttribute("visibility", nearest < 0 ? "hidden" : "visible");
    if (nearest < 0) return "";
    ring.setAttribute("cx", x(xs[nearest])); ring.setAttribute("cy", y(ys[nearest]));
    return `${axisLabels(view, "point", xs.length)[nearest]}\n${names[0]} ${number(xs[nearest], "signed")}\n${names[1]} ${number(ys[nearest], "signed")}`;
  });
  picture.addEventListener("pointerleave", () => ring.setAttribute("visibility", "hidden"));
  box.append(picture, el("div", { class: "legend" }, ...notes));
}
