"use strict";
// The leaderboard page: reads the JSON that the build put into #board-data and draws tabs, filters, table and plot.
// State lives in `state` and in the URL fragment; every change goes through `update()`.
(() => {
  const board = JSON.parse(document.getElementById("board-data").textContent);
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";

  // Small helpers ------------------------------------------------------------------------------------------------

  // el("td", {class: "num"}, "text", child): an element; text is always inserted as text, never as HTML.
  function el(tag, attributes = {}, ...children) {
    const svg = ["svg", "g", "line", "path", "text", "circle", "rect", "polygon", "title"].includes(tag);
    const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const link = (href, text, label) => el("a", { href, "aria-label": label }, text);
  const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
  function short(value) {
    if (value === null || value === undefined) return "–";
    for (const [limit, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (Math.abs(value) >= limit) return Number((value / limit).toPrecision(3)) + suffix;
    }
    return String(Number(value.toPrecision(3)));
  }
  const colour = (family) => `var(--f${board.families.findIndex((f) => f.name === family) % 8})`;
  const dot = (family) => el("span", { class: "dot", style: `background:${colour(family)}`, "aria-hidden": "true" });

  // State --------------------------------------------------------------------------------------------------------

  const fresh = (task) => ({
    task, query: "", family: new Set(), status: new Set(), track: new Set(), sort: null, descending: true,
    metric: null, cost: null, all: false, open: new Set(),
  });
  let state = fresh(board.tasks.length ? board.tasks[0].name : null);
  const task = () => board.tasks.find((t) => t.name === state.task);

  function readFragment() {
    const given = new URLSearchParams(location.hash.slice(1));
    const known = board.tasks.find((t) => t.name === given.get("task")) || board.tasks[0];
    state = fresh(known ? known.name : null);
    if (!known) return;
    state.query = given.get("q") || "";
    state.all = given.get("columns") === "all";
    for (const key of ["family", "status", "track"]) {
      const allowed = new Set(known.rows.map((row) => row[key]));
      state[key] = new Set((given.get(key) || "").split(",").filter((value) => allowed.has(value)));
    }
    const sort = given.get("sort");
    if (columns(known).some((column) => column.key === sort)) {
      state.sort = sort;
      state.descending = given.get("order") !== "up";
    }
    if (known.metrics.some((m) => m.name === given.get("metric"))) state.metric = given.get("metric");
    if (known.costs.some((c) => c.key === given.get("cost"))) state.cost = given.get("cost");
  }

  function writeFragment() {
    const parts = new URLSearchParams({ task: state.task });
    if (state.query) parts.set("q", state.query);
    for (const key of ["family", "status", "track"]) if (state[key].size) parts.set(key, [...state[key]].join(","));
    if (state.sort) { parts.set("sort", state.sort); parts.set("order", state.descending ? "down" : "up"); }
    if (state.all) parts.set("columns", "all");
    if (state.metric) parts.set("metric", state.metric);
    if (state.cost) parts.set("cost", state.cost);
    history.replaceState(null, "", "#" + parts);
  }

  // Columns and rows ---------------------------------------------------------------------------------------------

  function columns(of) {
    return [
      { key: "rank", title: "#", number: true, value: (row) => row.rank, up: true },
      { key: "label", title: "Model", value: (row) => row.label.toLowerCase(), up: true },
      { key: "params", title: "Parameters", number: true, value: (row) => row.costs.params, up: true },
      ...of.metrics.filter((metric) => metric.main || state.all).map((metric) => ({
        key: "metric." + metric.name, title: metric.label, number: true, metric, up: !metric.higher_is_better,
        value: (row) => (row.metrics[metric.name] || { value: null }).value,
      })),
      { key: "n", title: "n", number: true, value: (row) => row.n_used },
      ...of.costs.filter((cost) => cost.key !== "params").map((cost) => ({
        key: "cost." + cost.key, title: cost.label, number: true, cost, up: !cost.higher_is_better,
        value: (row) => row.costs[cost.key],
      })),
    ];
  }

  function matcher(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean).map((word) =>
      new RegExp(word.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replace(/\*/g, ".*")));
    return (row) => words.every((word) => word.test(row.search));
  }

  function visibleRows() {
    const of = task();
    const matches = matcher(state.query);
    const chosen = (key, row) => !state[key].size || state[key].has(row[key]);
    const rows = of.rows.filter((row) => matches(row) && ["family", "status", "track"].every((key) => chosen(key, row)));
    const column = columns(of).find((c) => c.key === state.sort);
    if (!column) return rows; // the build's order: by rank inside each group
    const sign = state.descending ? -1 : 1;
    return [...rows].sort((a, b) => {
      const [x, y] = [column.value(a), column.value(b)];
      const [noX, noY] = [x === null || x === undefined, y === null || y === undefined];
      if (noX || noY) return noX - noY; // rows without the value stay last in both directions
      return x < y ? -sign : x > y ? sign : 0;
    });
  }

  // Tabs and filters ---------------------------------------------------------------------------------------------

  function drawTabs() {
    const tabs = board.tasks.map((t) => {
      const selected = t.name === state.task;
      return el("button", {
        type: "button", role: "tab", id: "tab-" + t.name, "aria-selected": String(selected), "aria-controls": "results",
        tabindex: selected ? "0" : "-1", onclick: () => choose(t.name),
      }, t.title, el("small", {}, String(t.rows.length)));
    });
    byId("tabs").replaceChildren(...tabs);
    byId("results").setAttribute("aria-labelledby", "tab-" + state.task);
  }

  function choose(name) {
    state = fresh(name);
    byId("search").value = "";
    update(true);
    byId("tab-" + name).focus();
  }

  byId("tabs").addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    const names = board.tasks.map((t) => t.name);
    const at = names.indexOf(state.task);
    const to = Math.abs(move) === 1 ? (at + move + names.length) % names.length : move < 0 ? 0 : names.length - 1;
    choose(names[to]);
  });

  function drawAbout() {
    const of = task();
    byId("about").replaceChildren(el("h2", {}, of.title), el("p", {}, of.about));
  }

  function drawFilters() {
    const of = task();
    const fill = (key, values, title, mark) => {
      const set = byId("filter-" + key);
      const pills = values.map((value) => {
        const box = el("input", { type: "checkbox", value, onchange: () => toggle(key, value) });
        box.checked = state[key].has(value);
        return el("label", { class: "pill" }, box, el("span", {}, mark ? mark(value) : null, title(value)));
      });
      set.replaceChildren(set.querySelector("legend"), ...pills);
      set.hidden = values.length < 2;
    };
    const distinct = (key) => [...new Set(of.rows.map((row) => row[key]))].sort();
    const families = board.families.filter((f) => of.rows.some((row) => row.family === f.name));
    fill("family", families.map((f) => f.name), (name) => families.find((f) => f.name === name).title, dot);
    fill("status", distinct("status"), (value) => value);
    fill("track", distinct("track"), (value) => value);
    byId("search").value = state.query;
    byId("all-columns").checked = state.all;
    byId("filter-columns").hidden = of.metrics.every((metric) => metric.main);
  }

  function toggle(key, value) {
    if (!state[key].delete(value)) state[key].add(value);
    update();
  }

  // Table --------------------------------------------------------------------------------------------------------

  function drawHead(cols) {
    const cells = cols.map((column) => {
      const active = state.sort === column.key;
      const arrow = active ? (state.descending ? "▼" : "▲") : "↕";
      const better = column.metric ? (column.metric.higher_is_better ? ", higher is better" : ", lower is better") : "";
      return el("th", { scope: "col", class: column.number ? "num" : "",
        "aria-sort": active ? (state.descending ? "descending" : "ascending") : "none" },
        el("button", { type: "button", id: "sort-" + column.key, title: `Sort by ${column.title}${better}`, onclick: () => sortBy(column) },
          column.title, el("span", { class: "arrow", "aria-hidden": "true" }, arrow)));
    });
    cells.push(el("th", { scope: "col" }, el("span", {}, "Evidence")));
    byId("board").tHead.replaceChildren(el("tr", {}, ...cells));
  }

  function sortBy(column) {
    const first = !column.up; // direction that puts the best (or the first name) on top
    if (state.sort !== column.key) { state.sort = column.key; state.descending = first; }
    else if (state.descending === first) state.descending = !first;
    else state.sort = null; // the third press gives the ranking back
    update();
    byId("sort-" + column.key).focus();
  }

  function cell(row, column) {
    if (column.key === "rank") return el("td", { class: "num rank" }, row.rank === null ? "–" : String(row.rank));
    if (column.key === "label") {
      return el("th", { scope: "row", class: "name" }, dot(row.family), row.label,
        ...row.badges.map((badge) => el("span", { class: "badge " + badge.kind, title: badge.title }, badge.text)));
    }
    if (column.metric) {
      const value = row.metrics[column.metric.name];
      if (!value) return el("td", { class: "num" }, "–");
      const best = row.best.includes(column.metric.name);
      const digits = column.metric.digits;
      return el("td", { class: best ? "num best" : "num" },
        el("span", { class: "value" }, fixed(value.value, digits)), best ? el("span", { class: "hidden" }, " best of its group") : null,
        value.error === null ? null : el("span", { class: "error", title: board.errors[value.kind] }, "± " + fixed(value.error, digits)));
    }
    if (column.key === "n") return el("td", { class: "num" }, row.n_used === null ? "–" : row.n_used.toLocaleString("en"));
    return el("td", { class: "num" }, short(column.value(row)));
  }

  function evidence(row) {
    const open = state.open.has(row.id);
    const first = row.runs[0];
    const commit = el("code", {}, (first.commit || "").slice(0, 8));
    return el("td", { class: "links" },
      el("button", { type: "button", "aria-expanded": String(open), "aria-label": "Details of " + row.label,
        id: "details-" + row.id, onclick: () => { if (!state.open.delete(row.id)) state.open.add(row.id); update(); byId("details-" + row.id).focus(); } },
        open ? "Hide" : "Details"),
      row.recipe ? (row.recipe.href ? link(row.recipe.href, "recipe", "Recipe of " + row.label) : el("code", {}, row.recipe.label)) : null,
      row.source_url ? link(row.source_url, "source", "Source of " + row.label) : null,
      link(first.json, "JSON", "Result file of " + row.label),
      first.commit ? (first.commit_href ? el("a", { href: first.commit_href }, commit) : commit) : null);
  }

  function detail(row, width) {
    const of = task();
    const facts = el("dl", {});
    for (const [name, value] of row.facts) facts.append(el("dt", {}, name), el("dd", {}, value));
    const commands = [...new Set(row.runs.map((run) => run.command).filter(Boolean))];
    const names = of.metrics.filter((metric) => row.metrics[metric.name]);
    const runs = el("table", {},
      el("thead", {}, el("tr", {}, ...["seed", "date", "commit", "weights", ...names.map((m) => m.label), "file"].map((t) => el("th", { scope: "col" }, t)))),
      el("tbody", {}, ...row.runs.map((run) => el("tr", {},
        el("td", {}, run.seed === null ? "–" : String(run.seed)), el("td", {}, run.date || "–"),
        el("td", {}, el("code", {}, (run.commit || "–").slice(0, 8))), el("td", {}, el("code", {}, (run.weights || "–").slice(0, 12))),
        ...names.map((m) => el("td", { class: "num" }, fixed(run.values[m.name], m.digits))),
        el("td", {}, link(run.json, "JSON", `Result file of ${row.label}, seed ${run.seed}`))))));
    const text = commands.join("\n");
    const copy = !text ? null : el("button", { type: "button", class: "quiet", onclick: (event) => copyText(text, event.target) }, "Copy");
    return el("tr", { class: "detail" }, el("td", { colspan: width }, el("div", { class: "stick" }, facts,
      text ? el("p", {}, "Command ", copy) : null, text ? el("pre", {}, el("code", {}, text)) : null, runs)));
  }

  function copyText(text, button) {
    const done = (ok) => { button.textContent = ok ? "Copied" : "Select and copy by hand"; };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => done(true), () => done(false));
    else done(false);
  }

  function drawTable() {
    const of = task();
    const cols = columns(of);
    const rows = visibleRows();
    drawHead(cols);
    const table = byId("board");
    table.caption.textContent = `${of.title}: ${rows.length} rows. Column titles are buttons that sort.`;
    [...table.tBodies].forEach((body) => body.remove());
    for (const group of of.groups) {
      const members = rows.filter((row) => row.group === group.key);
      if (!members.length) continue;
      const body = el("tbody", {}, el("tr", {}, el("th", { class: "group", scope: "rowgroup", colspan: cols.length + 1 },
        el("div", { class: "stick" }, group.label, el("span", {}, group.note)))));
      for (const row of members) {
        body.append(el("tr", { class: "entry" }, ...cols.map((column) => cell(row, column)), evidence(row)));
        if (state.open.has(row.id)) body.append(detail(row, cols.length + 1));
      }
      table.append(body);
    }
    if (!rows.length) table.append(el("tbody", {}, el("tr", {}, el("td", { class: "empty", colspan: cols.length + 1 }, "No row matches. Reset shows all."))));
    byId("count").textContent = `${rows.length} of ${of.rows.length} rows`;
    return rows;
  }

  // CSV of what is shown -----------------------------------------------------------------------------------------

  byId("csv").addEventListener("click", () => {
    const of = task();
    const head = ["group", "rank", "model", "family", "status", "track", "parameters", "n", "seeds"];
    for (const metric of of.metrics) head.push(metric.name, metric.name + "_error");
    const lines = visibleRows().map((row) => [
      row.group, row.rank, row.label, row.family, row.status, row.track, row.costs.params, row.n_used, row.seeds,
      ...of.metrics.flatMap((m) => { const v = row.metrics[m.name]; return v ? [v.value, v.error] : [null, null]; }),
    ]);
    const quote = (v) => (v === null || v === undefined ? "" : /[",\n]/.test(String(v)) ? `"${String(v).replaceAll('"', '""')}"` : String(v));
    const text = [head, ...lines].map((line) => line.map(quote).join(",")).join("\n") + "\n";
    const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    el("a", { href: url, download: `leaderboard-${of.name}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });

  // Plot ---------------------------------------------------------------------------------------------------------

  function drawPlot(rows) {
    const of = task();
    const metric = of.metrics.find((m) => m.name === (state.metric || of.primary)) || of.metrics[0];
    const cost = of.costs.find((c) => c.key === state.cost) || of.costs[0];
    const options = (id, list, key, chosen) => byId(id).replaceChildren(
      ...list.map((item) => el("option", { value: item[key], selected: item === chosen }, item.label)));
    options("plot-metric", of.metrics, "name", metric);
    options("plot-cost", of.costs, "key", cost);
    const points = rows.filter((row) => row.metrics[metric.name] && row.costs[cost.key] > 0).map((row) => ({
      row, x: row.costs[cost.key], y: row.metrics[metric.name].value, error: row.metrics[metric.name].error || 0,
    }));
    byId("plot").hidden = !points.length;
    if (!points.length) return;
    const groups = of.groups.filter((group) => points.some((p) => p.row.group === group.key));
    const { svg, fronts } = BoardPlot.draw({ el, points, groups, metric, cost, colour, fixed, short, open: openRow });
    byId("chart").replaceChildren(svg);
    byId("plot-caption").replaceChildren(...groups.map((group) => el("span", { class: "key" }, BoardPlot.key(el, group), group.label)),
      el("span", { class: "key" }, fronts ? "line: Pareto front (nothing is better at equal or lower cost) of each group" : ""));
  }

  function openRow(row) {
    state.open.add(row.id);
    update();
    byId("details-" + row.id).focus();
  }

  // Wiring -------------------------------------------------------------------------------------------------------

  function update(wholeTask = false) {
    if (wholeTask) { drawTabs(); drawAbout(); drawFilters(); }
    drawPlot(drawTable());
    writeFragment();
  }

  byId("all-columns").addEventListener("change", (event) => { state.all = event.target.checked; update(); });
  byId("search").addEventListener("input", (event) => { state.query = event.target.value; update(); });
  byId("plot-metric").addEventListener("change", (event) => { state.metric = event.target.value; update(); });
  byId("plot-cost").addEventListener("change", (event) => { state.cost = event.target.value; update(); });
  byId("reset").addEventListener("click", () => { state = fresh(state.task); update(true); });
  window.addEventListener("hashchange", () => { readFragment(); update(true); });

  const themes = ["auto", "light", "dark"];
  function setTheme(name) {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    byId("theme").textContent = "Theme: " + name;
    try { localStorage.setItem("hybridzoo-theme", name); } catch { /* private windows refuse storage */ }
  }
  byId("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || "auto";
    setTheme(themes[(themes.indexOf(now) + 1) % themes.length]);
  });
  try { const kept = localStorage.getItem("hybridzoo-theme"); if (themes.includes(kept)) setTheme(kept); } catch { /* as above */ }

  if (!board.tasks.length) {
    byId("about").append(el("p", { class: "warning" }, "There are no results yet: run `hybridzoo eval MODEL TASK`, then build the page again."));
    for (const id of ["filters", "plot", "count"]) byId(id).hidden = true;
    return;
  }
  readFragment();
  update(true);
})();
