"use strict";
// The overview, and the wiring: every change goes through HZ.update().
(() => {
  const { el, byId, board, fixed } = HZ;

  // Overview: a card per task with its best rows --------------------------------------------------------------------

  function card(task) {
    const group = task.groups[0];
    const rows = task.rows.filter((row) => row.group === group.key && row.metrics[task.primary]);
    const metric = task.metrics.find((m) => m.name === task.primary);
    const picture = task.rows.flatMap((row) => row.samples).find((sample) => sample.src);
    return el("article", { class: "card" },
      el("p", { class: "over" }, task.kind_title),
      el("h3", {}, el("a", { href: "#task=" + encodeURIComponent(task.name) }, task.title)),
      el("p", { class: "quiet" }, `${HZ.plural(task.rows.length, "row")} · ${metric.label}${metric.unit ? ", " + metric.unit : ""} · ${metric.higher_is_better ? "higher" : "lower"} is better`),
      el("p", { class: "tag" }, group.label),
      bars(rows.slice(0, 4), task, metric),
      picture ? el("img", { class: "peek", src: picture.src, width: picture.width, height: picture.height, alt: picture.title, loading: "lazy" }) : null);
  }

  // What was measured comes before what papers say, and what can be looked at first of all.
  function inOrder() {
    const weight = (task) => 2 * task.rows.some((row) => row.status === "measured") + task.rows.some((row) => row.samples.length);
    return [...board.tasks].sort((a, b) => weight(b) - weight(a));
  }

  function bars(rows, task, metric) {
    const values = rows.map((row) => row.metrics[task.primary].value);
    const top = Math.max(...values, 0) || 1;
    return el("ul", { class: "bars" }, ...rows.map((row) => {
      const score = row.metrics[task.primary];
      return el("li", {}, el("span", { class: "bar-name" }, HZ.dot(row.family), row.label),
        el("span", { class: row.best.includes(task.primary) ? "bar-value best" : "bar-value" }, fixed(score.value, metric.digits),
          score.error === null ? null : el("small", {}, " ±" + fixed(score.error, metric.digits))),
        el("span", { class: "bar", "aria-hidden": "true" }, el("i", { style: `width:${Math.max(1, (100 * score.value) / top)}%;background:${HZ.colour(row.family)}` })));
    }));
  }

  // Drawing -----------------------------------------------------------------------------------------------------------

  function drawAbout(task) {
    byId("about").replaceChildren(el("h2", {}, task.title), el("p", {}, task.about));
  }

  HZ.update = (wholeTask = false) => {
    const task = HZ.task(HZ.state.task);
    byId("overview").hidden = Boolean(task) || !board.tasks.length;
    byId("task").hidden = !task;
    if (wholeTask) {
      HZ.drawTabs();
      if (task) { drawAbout(task); HZ.drawFilters(task); }
      else byId("cards").replaceChildren(...inOrder().map(card));
    }
    document.title = task ? `${task.short} · ${board.title}` : board.title;
    if (task) {
      HZ.drawChips();
      HZ.drawChooser(task);
      const rows = HZ.drawTable(task);
      HZ.drawPlot(task, rows);
      HZ.drawSamples(task, rows);
    }
    HZ.writeFragment();
  };

  // Wiring ------------------------------------------------------------------------------------------------------------

  byId("search").addEventListener("input", (event) => { HZ.state.query = event.target.value; HZ.update(); });
  byId("plot-metric").addEventListener("change", (event) => { HZ.state.metric = event.target.value; HZ.update(); });
  byId("plot-cost").addEventListener("change", (event) => { HZ.state.cost = event.target.value; HZ.update(); });
  byId("plot-linear").addEventListener("change", (event) => { HZ.state.linear = event.target.checked; HZ.update(); });
  byId("columns-usual").addEventListener("click", () => { HZ.state.columns = null; HZ.update(); });
  byId("columns-all").addEventListener("click", () => {
    HZ.state.columns = new Set(HZ.columns(HZ.task(HZ.state.task)).filter((c) => !c.fixed).map((c) => c.key));
    HZ.update();
  });
  byId("reset").addEventListener("click", () => { HZ.state = HZ.fresh(HZ.state.task); HZ.update(true); });
  byId("csv").addEventListener("click", () => {
    const task = HZ.task(HZ.state.task);
    const url = URL.createObjectURL(new Blob([HZ.csv(task, HZ.visibleRows(task))], { type: "text/csv" }));
    el("a", { href: url, download: `leaderboard-${task.name}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });
  window.addEventListener("hashchange", () => { HZ.readFragment(); HZ.update(true); });
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    const task = HZ.task(HZ.state.task);
    if (task && window.innerWidth !== width) HZ.drawPlot(task, HZ.visibleRows(task));
    width = window.innerWidth;
  });

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

  if (board.tasks.length) {
    HZ.readFragment();
    HZ.update(true);
  } else {
    byId("overview").hidden = true;
    byId("task").hidden = true;
    byId("none").hidden = false;
  }
})();
