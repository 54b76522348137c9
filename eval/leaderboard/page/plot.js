"use strict";
// One metric against one cost: points with error bars, the Pareto front of each group, hover and keyboard.
(() => {
  const { el, svgText, byId, fixed, short } = HZ;
  const RIGHT = 20, TOP = 16, BOTTOM = 50;

  let LEFT = 58; // room for the labels of the vertical axis, see draw()

  // Axes ----------------------------------------------------------------------------------------------------------

  function ticks(low, high, count) {
    const raw = (high - low) / count;
    const size = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((f) => f * size).find((s) => s >= raw) || 10 * size;
    const found = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) found.push(Number(v.toPrecision(12)));
    return found;
  }

  function logTicks(low, high) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
      const wide = high / low > 1e3;
      for (const f of wide ? [1] : [1, 2, 5]) if (f * 10 ** e >= low && f * 10 ** e <= high) found.push(f * 10 ** e);
    }
    return found.length > 1 ? found : ticks(low, high, 4);
  }

  // x -> pixels; a cost always starts at 0 on a linear axis.
  function horizontal(points, linear, width) {
    const xs = points.map((p) => p.x);
    const [low, high] = [Math.min(...xs), Math.max(...xs)];
    if (linear) {
      const end = high * 1.08;
      return { x: (v) => LEFT + (v / end) * (width - LEFT - RIGHT), ticks: ticks(0, end, Math.max(3, Math.round(width / 130))) };
    }
    const pad = high > low ? Math.max((high / low) ** 0.07, 1.12) : 2;
    const [a, b] = [Math.log(low / pad), Math.log(high * pad)];
    return { x: (v) => LEFT + ((Math.log(v) - a) / (b - a)) * (width - LEFT - RIGHT), ticks: logTicks(low / pad, high * pad) };
  }

  // Points that no other point of the group beats in both directions, from cheap to dear.
  HZ.front = (points, higherIsBetter, lowCostIsBetter) => {
    const cheap = (a, b) => (lowCostIsBetter ? a.x - b.x : b.x - a.x);
    const good = (a, b) => (higherIsBetter ? b.y - a.y : a.y - b.y);
    const kept = [];
    for (const point of [...points].sort((a, b) => cheap(a, b) || good(a, b))) {
      const last = kept[kept.length - 1];
      if (!last || (higherIsBetter ? point.y > last.y : point.y < last.y)) kept.push(point);
    }
    return kept;
  };

  // Marks ---------------------------------------------------------------------------------------------------------

  const SHAPES = { "measured-full": "circle", "measured-subset": "triangle", "measured-mini": "square", paper: "diamond" };
  const DASHES = { "measured-full": null, "measured-mini": "6 3", "measured-subset": "3 3", paper: "1 4" };

  function mark(kind, x, y, attributes) {
    const shape = SHAPES[kind] || "circle";
    if (shape === "circle") return el("circle", { cx: x, cy: y, r: 6.5, ...attributes });
    if (shape === "square") return el("rect", { x: x - 5.8, y: y - 5.8, width: 11.6, height: 11.6, rx: 1.5, ...attributes });
    const corners = shape === "triangle" ? [[0, -7.5], [7, 5.5], [-7, 5.5]] : [[0, -8], [8, 0], [0, 8], [-8, 0]];
    return el("polygon", { points: corners.map(([dx, dy]) => `${x + dx},${y + dy}`).join(" "), ...attributes });
  }

  function key(group) {
    return el("span", { class: "key" }, el("svg", { width: 18, height: 18, viewBox: "0 0 18 18", "aria-hidden": "true" },
      mark(group.kind, 9, 9, { fill: group.kind === "paper" ? "none" : "currentColor", stroke: "currentColor", "stroke-width": 1.5 })), group.label);
  }

  // Each label goes right, left, above or below its point; one that fits nowhere is left to the hover text.
  function placeLabels(points, width, height) {
    const boxes = points.map((p) => ({ x: p.px - 8, y: p.py - 8, w: 16, h: 16 }));
    const placed = [];
    const free = (b) => b.x > LEFT && b.x + b.w < width - 2 && b.y > 2 && b.y + b.h < height - BOTTOM
      && [...boxes, ...placed].every((o) => b.x + b.w < o.x || o.x + o.w < b.x || b.y + b.h < o.y || o.y + o.h < b.y);
    for (const p of points) {
      const w = p.row.label.length * 6.6 + 4, h = 14;
      const box = [[11, -7], [-11 - w, -7], [8, -22], [8, 9], [-8 - w, -22], [-8 - w, 9]]
        .map(([dx, dy]) => ({ x: p.px + dx, y: p.py + dy, w, h })).find(free);
      if (box) placed.push({ ...box, text: p.row.label });
    }
    return placed;
  }

  // Plot ----------------------------------------------------------------------------------------------------------

  HZ.drawPlot = (task, rows) => {
    const { state } = HZ;
    const metric = task.metrics.find((m) => m.name === (state.metric || task.primary)) || task.metrics[0];
    const cost = task.costs.find((c) => c.key === state.cost) || task.costs[0];
    const options = (id, list, name, chosen) => byId(id).replaceChildren(
      ...list.map((item) => el("option", { value: item[name], selected: item === chosen }, item.label)));
    options("plot-metric", task.metrics, "name", metric);
    options("plot-cost", task.costs, "key", cost);
    byId("plot-linear").checked = state.linear;
    const points = rows.filter((row) => row.metrics[metric.name] && row.costs[cost.key] > 0).map((row) => ({
      row, x: row.costs[cost.key], y: row.metrics[metric.name].value, error: row.metrics[metric.name].error || 0,
    }));
    byId("chart-box").hidden = !points.length;
    byId("plot-empty").hidden = Boolean(points.length);
    if (!points.length) return;
    const groups = task.groups.filter((group) => points.some((p) => p.row.group === group.key));
    const fronts = draw({ points, groups, metric, cost, linear: state.linear });
    const families = [...new Set(points.map((p) => p.row.family))];
    byId("plot-caption").replaceChildren(
      ...families.map((family) => el("span", { class: "key" }, HZ.dot(family), HZ.familyTitle(family))),
      ...groups.map(key),
      fronts ? el("span", { class: "key" }, el("svg", { width: 22, height: 8, "aria-hidden": "true" }, el("line", { x1: 0, x2: 22, y1: 4, y2: 4, class: "front" })),
        "Pareto front of a group: nothing in it is better at equal or lower cost") : "");
  };

  function draw({ points, groups, metric, cost, linear }) {
    const width = Math.max(300, byId("chart").clientWidth || 900);
    const height = Math.round(Math.min(440, Math.max(300, width * 0.5)));
    const ys = points.flatMap((p) => [p.y - p.error, p.y + p.error]);
    const span = Math.max(...ys) - Math.min(...ys) || Math.abs(ys[0]) * 0.1 || 1;
    const y0 = Math.min(...ys) - span * 0.08, y1 = Math.max(...ys) + span * 0.1;
    const yTicks = ticks(y0, y1, 6);
    const step = yTicks.length > 1 ? yTicks[1] - yTicks[0] : 1;
    const decimals = [0, 1, 2, 3, 4].find((d) => Math.abs(step * 10 ** d - Math.round(step * 10 ** d)) < 1e-6) ?? 4;
    LEFT = 36 + 7 * Math.max(...yTicks.map((v) => v.toFixed(decimals).length));
    const Y = (v) => height - BOTTOM - ((v - y0) / (y1 - y0)) * (height - TOP - BOTTOM);
    const axis = horizontal(points, linear, width);
    for (const p of points) { p.px = axis.x(p.x); p.py = Y(p.y); }

    const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group",
      "aria-label": `${metric.label} against ${cost.label}, ${points.length} points; the table holds the numbers` });
    for (const v of yTicks) {
      svg.append(el("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: Y(v), y2: Y(v) }),
        svgText({ x: LEFT - 8, y: Y(v) + 4, "text-anchor": "end" }, v.toFixed(decimals)));
    }
    for (const v of axis.ticks) {
      svg.append(el("line", { class: "grid", x1: axis.x(v), x2: axis.x(v), y1: TOP, y2: height - BOTTOM }),
        svgText({ x: axis.x(v), y: height - BOTTOM + 18, "text-anchor": "middle" }, short(v)));
    }
    svg.append(svgText({ class: "axis", x: (LEFT + width - RIGHT) / 2, y: height - 10, "text-anchor": "middle" }, `${cost.label}${linear ? "" : " (logarithmic)"}`),
      svgText({ class: "axis", x: -(TOP + height - BOTTOM) / 2, y: 15, transform: "rotate(-90)", "text-anchor": "middle" },
        `${metric.label}${metric.unit ? ", " + metric.unit : ""} ${metric.higher_is_better ? "(higher is better)" : "(lower is better)"}`));

    let fronts = 0;
    for (const group of groups) {
      const line = HZ.front(points.filter((p) => p.row.group === group.key), metric.higher_is_better, !cost.higher_is_better);
      if (line.length < 2) continue;
      fronts += 1;
      svg.append(el("path", { class: "front", "stroke-dasharray": DASHES[group.kind], d: "M" + line.map((p) => `${p.px},${p.py}`).join("L") }));
    }
    // The last drawn lies on top: the best of a group.
    for (const p of [...points].reverse()) svg.append(...pointMarks(p, groups.find((g) => g.key === p.row.group), metric, cost, Y));
    for (const label of placeLabels(points, width, height)) svg.append(svgText({ class: "label", x: label.x + 2, y: label.y + 11 }, label.text));
    byId("chart").replaceChildren(svg);
    byId("hover").hidden = true;
    return fronts;
  }

  function pointMarks(p, group, metric, cost, Y) {
    const colour = HZ.colour(p.row.family);
    const score = `${fixed(p.y, metric.digits)}${metric.unit === "%" ? " %" : ""}${p.error ? " ± " + fixed(p.error, metric.digits) : ""}`;
    const at = `${short(p.x)}${cost.key === "params" ? " parameters" : " " + cost.unit}`;
    const show = () => hover(p, [p.row.label, `${metric.label} ${score}`, at, HZ.familyTitle(p.row.family), group.label]);
    const hide = () => { byId("hover").hidden = true; };
    const point = mark(group.kind, p.px, p.py, {
      class: "mark", tabindex: 0, role: "button", "aria-label": `${p.row.label}: ${metric.label} ${score} at ${at}, ${group.label}. Opens its details`,
      stroke: colour, fill: group.kind === "paper" ? "var(--panel)" : colour,
      onclick: () => HZ.openRow(p.row), onpointerenter: show, onpointerleave: hide, onfocus: show, onblur: hide,
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); HZ.openRow(p.row); } },
    });
    if (!p.error) return [point];
    const [up, down] = [Y(p.y + p.error), Y(p.y - p.error)];
    return [el("path", { class: "whisker", stroke: colour, d: `M${p.px},${down}V${up}M${p.px - 4},${up}h8M${p.px - 4},${down}h8` }), point];
  }

  function hover(p, [title, ...lines]) {
    const box = byId("hover");
    box.replaceChildren(el("strong", {}, title), ...lines.map((line) => el("div", {}, line)));
    box.hidden = false;
    const room = byId("chart").clientWidth;
    box.style.left = `${Math.max(4, Math.min(p.px + 14, room - box.offsetWidth - 4))}px`;
    box.style.top = `${p.py + 18 + box.offsetHeight > byId("chart").clientHeight ? p.py - box.offsetHeight - 14 : p.py + 14}px`;
  }
})();
