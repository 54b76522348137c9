"use strict";
// The scatter plot: metric against cost with error bars, one mark shape per group, labels that do not overlap, and the
// Pareto front of each group. Pure functions of their arguments; page.js decides what is shown.
const BoardPlot = (() => {
  const W = 1160, H = 430, LEFT = 64, RIGHT = 24, TOP = 18, BOTTOM = 48;

  // Numbers at 1, 2, 5 x 10^k between low and high.
  function ticks(low, high, count) {
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
  }
  function logTicks(low, high) {
    const multiples = high / low > 300 ? [1] : high / low > 20 ? [1, 3] : [1, 2, 3, 5];
    const found = [];
    for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k++) {
      for (const m of multiples) { const v = m * 10 ** k; if (v >= low && v <= high) found.push(v); }
    }
    return found;
  }

  // Points that no other point of the same group beats in one of the two values without losing in the other.
  function front(points, higherIsBetter, lowCost) {
    const sorted = [...points].sort((a, b) => (lowCost ? a.x - b.x : b.x - a.x) || (higherIsBetter ? b.y - a.y : a.y - b.y));
    const kept = [];
    for (const point of sorted) {
      const last = kept[kept.length - 1];
      if (!last || (higherIsBetter ? point.y > last.y : point.y < last.y)) kept.push(point);
    }
    return kept;
  }

  const SHAPES = { "measured-full": "circle", "measured-subset": "triangle", "measured-mini": "square", paper: "diamond" };
  function mark(el, kind, x, y, attributes) {
    const shape = SHAPES[kind] || "circle", r = 6.5;
    if (shape === "circle") return el("circle", { cx: x, cy: y, r, ...attributes });
    if (shape === "square") return el("rect", { x: x - 5.8, y: y - 5.8, width: 11.6, height: 11.6, ...attributes });
    const corners = shape === "triangle" ? [[0, -7.5], [7, 5.5], [-7, 5.5]] : [[0, -8], [8, 0], [0, 8], [-8, 0]];
    return el("polygon", { points: corners.map(([dx, dy]) => `${x + dx},${y + dy}`).join(" "), ...attributes });
  }
  function key(el, group) {
    const style = group.kind === "paper" ? { fill: "none" } : { fill: "currentColor" };
    return el("svg", { width: 18, height: 18, viewBox: "0 0 18 18", "aria-hidden": "true" },
      mark(el, group.kind, 9, 9, { ...style, stroke: "currentColor", "stroke-width": 1.5 }));
  }

  // Put each label right, left, above or below its point; one that fits nowhere is left to the hover text.
  function placeLabels(points, boxes) {
    const placed = [];
    const free = (box) => box.x > LEFT && box.x + box.w < W - 4 && box.y > 2 && box.y + box.h < H - BOTTOM
      && [...boxes, ...placed].every((o) => box.x + box.w < o.x || o.x + o.w < box.x || box.y + box.h < o.y || o.y + o.h < box.y);
    for (const p of points) {
      const w = p.row.label.length * 6.7 + 4, h = 14;
      const tries = [
        { x: p.px + 11, y: p.py - 7, anchor: "start" }, { x: p.px - 11 - w, y: p.py - 7, anchor: "end" },
        { x: p.px + 8, y: p.py - 22, anchor: "start" }, { x: p.px + 8, y: p.py + 9, anchor: "start" },
        { x: p.px - 8 - w, y: p.py - 22, anchor: "end" }, { x: p.px - 8 - w, y: p.py + 9, anchor: "end" },
      ];
      const box = tries.map((t) => ({ ...t, w, h })).find(free);
      if (box) placed.push({ ...box, text: p.row.label });
    }
    return placed;
  }

  function draw({ el, points, groups, metric, cost, colour, fixed, short, open }) {
    const ys = points.flatMap((p) => [p.y - p.error, p.y + p.error]);
    const span = Math.max(...ys) - Math.min(...ys) || Math.abs(ys[0]) * 0.1 || 1;
    const y0 = Math.min(...ys) - span * 0.08, y1 = Math.max(...ys) + span * 0.1;
    const xs = points.map((p) => p.x);
    const wide = Math.max(...xs) / Math.min(...xs);
    const pad = wide > 1 ? Math.max(wide ** 0.06, 1.15) : 2;
    const x0 = Math.min(...xs) / pad, x1 = Math.max(...xs) * pad * (wide > 1 ? 1.12 : 1);
    const X = (v) => LEFT + ((Math.log(v) - Math.log(x0)) / (Math.log(x1) - Math.log(x0))) * (W - LEFT - RIGHT);
    const Y = (v) => H - BOTTOM - ((v - y0) / (y1 - y0)) * (H - TOP - BOTTOM);
    for (const p of points) { p.px = X(p.x); p.py = Y(p.y); }

    const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": `${metric.label} against ${cost.label}, ${points.length} points; the table holds the numbers` });
    const yTicks = ticks(y0, y1, 6);
    const decimals = Math.max(0, Math.min(4, -Math.floor(Math.log10(yTicks.length > 1 ? yTicks[1] - yTicks[0] : 1) + 1e-9)));
    for (const v of yTicks) {
      svg.append(el("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: Y(v), y2: Y(v) }),
        el("text", { x: LEFT - 8, y: Y(v) + 4, "text-anchor": "end" }, v.toFixed(decimals)));
    }
    for (const v of logTicks(x0, x1)) {
      svg.append(el("line", { class: "grid", x1: X(v), x2: X(v), y1: TOP, y2: H - BOTTOM }),
        el("text", { x: X(v), y: H - BOTTOM + 18, "text-anchor": "middle" }, short(v)));
    }
    svg.append(el("text", { class: "axis", x: (LEFT + W - RIGHT) / 2, y: H - 8, "text-anchor": "middle" }, `${cost.label} (logarithmic)`),
      el("text", { class: "axis", x: -(TOP + H - BOTTOM) / 2, y: 16, transform: "rotate(-90)", "text-anchor": "middle" }, metric.label + (metric.unit ? `, ${metric.unit}` : "")));

    let fronts = 0;
    groups.forEach((group) => {
      const line = front(points.filter((p) => p.row.group === group.key), metric.higher_is_better, !cost.higher_is_better);
      if (line.length < 2) return;
      fronts += 1;
      const dash = { "measured-full": null, "measured-mini": "6 3", "measured-subset": "3 3", paper: "1 4" }[group.kind];
      svg.append(el("path", { class: "front", "stroke-dasharray": dash, d: "M" + line.map((p) => `${p.px},${p.py}`).join("L") }));
    });
    for (const p of points) {
      if (p.error) svg.append(el("path", { stroke: colour(p.row.family), "stroke-width": 1.5,
        d: `M${p.px},${Y(p.y - p.error)}V${Y(p.y + p.error)}M${p.px - 4},${Y(p.y + p.error)}h8M${p.px - 4},${Y(p.y - p.error)}h8` }));
      const group = groups.find((g) => g.key === p.row.group);
      const text = `${p.row.label}: ${fixed(p.y, metric.digits)}${p.error ? " ± " + fixed(p.error, metric.digits) : ""} at ${short(p.x)} ${cost.unit || ""} (${group.label})`;
      const shape = mark(el, group.kind, p.px, p.py, {
        class: "mark", tabindex: 0, role: "button", "aria-label": text, stroke: colour(p.row.family),
        fill: group.kind === "paper" ? "var(--panel)" : colour(p.row.family), onclick: () => open(p.row),
        onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(p.row); } },
      });
      shape.append(el("title", {}, text));
      svg.append(shape);
    }
    const boxes = points.map((p) => ({ x: p.px - 8, y: p.py - 8, w: 16, h: 16 }));
    for (const label of placeLabels(points, boxes)) {
      svg.append(el("text", { class: "label", x: label.anchor === "start" ? label.x : label.x + label.w, y: label.y + 11, "text-anchor": label.anchor }, label.text));
    }
    return { svg, fronts };
  }

  return { draw, key, front };
})();
