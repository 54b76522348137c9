"use strict";
// The table: one body per group of comparable rows, error bars beside the metric that ranks, and the details of a row.
(() => {
  const { el, byId, board, fixed, short, missing } = HZ;

  HZ.drawTable = (task) => {
    const columns = HZ.chosenColumns(task);
    const rows = HZ.visibleRows(task);
    const width = columns.length;
    const table = byId("board");
    table.caption.textContent = `${task.title}: ${HZ.plural(rows.length, "row")}. Column titles are buttons that sort.`;
    drawHead(table, columns);
    [...table.tBodies].forEach((body) => body.remove());
    for (const group of task.groups) {
      const members = rows.filter((row) => row.group === group.key);
      if (!members.length) continue;
      const scale = scaleOf(members, task.primary);
      const body = el("tbody", { role: "rowgroup" }, el("tr", { class: "group-row", role: "row" },
        el("th", { class: "group", scope: "rowgroup", colspan: width, role: "cell" },
          el("div", { class: "stick" }, el("span", { class: "group-mark " + group.kind, "aria-hidden": "true" }), group.label,
            el("span", { class: "note" }, group.note)))));
      for (const row of members) {
        body.append(el("tr", { class: "entry", role: "row", id: "row-" + row.id },
          ...columns.map((column) => cell(row, column, scale))));
        if (HZ.state.open.has(row.id)) body.append(detail(task, row, width));
      }
      table.append(body);
    }
    if (!rows.length) {
      table.append(el("tbody", {}, el("tr", {}, el("td", { class: "empty", colspan: width }, "No row matches. “Reset” shows all."))));
    }
    byId("count").textContent = `${rows.length} of ${HZ.plural(task.rows.length, "row")}`;
    return rows;
  };

  // Head ----------------------------------------------------------------------------------------------------------

  function drawHead(table, columns) {
    const cells = columns.map((column) => {
      const active = HZ.state.sort === column.key;
      const arrow = active ? (HZ.state.descending ? "▼" : "▲") : "";
      const better = column.metric ? (column.metric.higher_is_better ? ", higher is better" : ", lower is better") : "";
      return el("th", { scope: "col", role: "columnheader", class: column.number ? "num" : "",
        "aria-sort": active ? (HZ.state.descending ? "descending" : "ascending") : "none" },
        el("button", { type: "button", id: "sort-" + column.key, title: `Sort by ${column.title}${better}`, onclick: () => sortBy(column) },
          el("span", { class: "arrow", "aria-hidden": "true" }, arrow), column.title,
          column.metric && column.metric.unit ? el("small", {}, " " + column.metric.unit) : null,
          column.metric ? el("small", { class: "way", "aria-hidden": "true" }, column.metric.higher_is_better ? " ↑" : " ↓") : null));
    });
    table.tHead.replaceChildren(el("tr", { role: "row" }, ...cells));
  }

  function sortBy(column) {
    const { state } = HZ;
    const first = !column.up; // the direction that puts the best (or the first name) on top
    if (state.sort !== column.key) { state.sort = column.key; state.descending = first; }
    else if (state.descending === first) state.descending = !first;
    else state.sort = null; // the third press gives the ranking back
    HZ.update();
    byId("sort-" + column.key).focus();
  }

  // Cells ---------------------------------------------------------------------------------------------------------

  function cell(row, column, scale) {
    if (column.key === "rank") {
      return el("td", { class: "num rank", role: "cell" }, row.rank === null ? "–" : el("span", { class: "place place-" + row.rank }, String(row.rank)));
    }
    if (column.key === "label") {
      return el("th", { scope: "row", class: "name", role: "rowheader", "aria-label": row.label },
        el("div", { class: "title" }, HZ.dot(row.family), el("span", {}, row.label),
          ...row.badges.map((badge) => el("span", { class: "badge " + badge.kind, title: badge.title }, badge.text))),
        evidence(row));
    }
    if (column.metric) return metricCell(row, column, scale);
    const value = column.value(row);
    const text = column.key === "params" || column.cost ? short(value)
      : missing(value) ? "–" : typeof value === "number" ? value.toLocaleString("en") : String(value);
    return el("td", { class: column.number ? "num" : "", role: "cell", "data-label": column.title }, text);
  }

  function metricCell(row, column, scale) {
    const { metric } = column;
    const score = row.metrics[metric.name];
    if (!score) return el("td", { class: "num", role: "cell", "data-label": column.title }, "–");
    const best = row.best.includes(metric.name);
    const classes = ["num", best ? "best" : "", column.primary ? "primary" : ""].filter(Boolean).join(" ");
    return el("td", { class: classes, role: "cell", "data-label": column.title },
      column.primary && scale ? errorBar(score, scale, row) : null,
      el("span", { class: "value" }, fixed(score.value, metric.digits)),
      best ? el("span", { class: "hidden" }, " best of its group") : null,
      score.error === null ? null : el("span", { class: "error", title: board.errors[score.kind] }, "±" + fixed(score.error, metric.digits)));
  }

  // The range of a group's values with their errors, for the small bars.
  function scaleOf(rows, primary) {
    const scores = rows.map((row) => row.metrics[primary]).filter(Boolean);
    if (scores.length < 2) return null;
    const low = Math.min(...scores.map((s) => s.value - (s.error || 0)));
    const high = Math.max(...scores.map((s) => s.value + (s.error || 0)));
    return high > low ? { low, high } : null;
  }

  function errorBar(score, { low, high }, row) {
    const x = (value) => 5 + (66 * (value - low)) / (high - low);
    const colour = HZ.colour(row.family);
    const error = score.error || 0;
    return el("svg", { class: "spread", width: 76, height: 14, viewBox: "0 0 76 14", "aria-hidden": "true" },
      el("line", { x1: 1, x2: 75, y1: 7, y2: 7, class: "rail" }),
      error ? el("path", { d: `M${x(score.value - error)},7H${x(score.value + error)}M${x(score.value - error)},4v6M${x(score.value + error)},4v6`, stroke: colour, "stroke-width": 1.5 }) : null,
      el("circle", { cx: x(score.value), cy: 7, r: 3.2, fill: row.status === "paper" ? "var(--panel)" : colour, stroke: colour, "stroke-width": 1.5 }));
  }

  // Evidence and details ------------------------------------------------------------------------------------------

  const link = (href, text, label) => el("a", { href, "aria-label": label }, text);

  // Under the name: the way from the number back to what made it.
  function evidence(row) {
    const open = HZ.state.open.has(row.id);
    const first = row.runs[0];
    const code = first.commit ? el("code", {}, first.commit.slice(0, 8)) : null;
    return el("div", { class: "links" },
      el("button", { type: "button", class: "linky", "aria-expanded": String(open), "aria-label": "Details of " + row.label, id: "details-" + row.id,
        onclick: () => toggle(row) }, open ? "▾ details" : "▸ details"),
      row.recipe ? (row.recipe.href ? link(row.recipe.href, "recipe", "Recipe of " + row.label) : el("span", { title: row.recipe.label }, "recipe")) : null,
      first.command ? el("button", { type: "button", class: "linky", "aria-label": "Copy the command of " + row.label, title: first.command,
        onclick: (event) => HZ.copy(commandsOf(row).join("\n"), event.target) }, "command") : null,
      row.source_url ? link(row.source_url, "source", "Source of " + row.label) : null,
      link(first.json, "JSON", "Result file of " + row.label),
      !code ? null : first.commit_href ? el("a", { href: first.commit_href, "aria-label": "Commit of " + row.label }, code)
        : el("button", { type: "button", class: "linky", "aria-label": "Copy the command that shows the commit of " + row.label, title: "git show " + first.commit,
          onclick: (event) => HZ.copy("git show " + first.commit, event.currentTarget.firstChild) }, code));
  }

  const commandsOf = (row) => [...new Set(row.runs.map((run) => run.command).filter(Boolean))];

  function toggle(row) {
    if (!HZ.state.open.delete(row.id)) HZ.state.open.add(row.id);
    HZ.update();
    byId("details-" + row.id).focus();
  }

  HZ.openRow = (row) => {
    HZ.state.open.add(row.id);
    HZ.update();
    byId("details-" + row.id).focus({ preventScroll: true });
    byId("row-" + row.id).scrollIntoView({ block: "center" });
  };

  function detail(task, row, width) {
    const facts = el("dl", {});
    for (const [name, value] of row.facts) facts.append(el("dt", {}, name), el("dd", {}, value));
    const text = commandsOf(row).join("\n");
    return el("tr", { class: "detail", role: "row" }, el("td", { colspan: width, role: "cell" }, el("div", { class: "stick" },
      el("div", { class: "two" }, facts, HZ.confusion(row)),
      text ? el("p", { class: "over" }, "Command ", el("button", { type: "button", class: "linky", onclick: (event) => HZ.copy(text, event.target) }, "copy")) : null,
      text ? el("pre", { tabindex: 0, "aria-label": "Command" }, el("code", {}, text)) : null,
      HZ.sampleStrip(row), runsTable(task, row), classesTable(row))));
  }

  function runsTable(task, row) {
    const metrics = task.metrics.filter((metric) => row.metrics[metric.name]);
    const titles = ["seed", "date", "commit", "weights", ...metrics.map((m) => m.label), "file"];
    return wide("Every run of this row", titles, row.runs.map((run) => [
      missing(run.seed) ? "–" : String(run.seed), run.date || "–", el("code", {}, (run.commit || "–").slice(0, 8)),
      el("code", {}, (run.weights || "–").slice(0, 12)), ...metrics.map((m) => fixed(run.values[m.name], m.digits)),
      link(run.json, "JSON", `Result file of ${row.label}, seed ${run.seed}`)]));
  }

  // Scores of each class, if the result states them: numbers only, as they stand in the file.
  function classesTable(row) {
    if (!row.classes) return null;
    return wide("By class", ["class", ...row.classes.columns], row.classes.rows.map(([name, ...values]) =>
      [name, ...values.map((v) => (missing(v) ? "–" : Number.isInteger(v) ? v.toLocaleString("en") : v.toFixed(2)))]));
  }

  function wide(title, titles, lines) {
    return el("div", { class: "inner", tabindex: 0, role: "region", "aria-label": title + ", scrolls sideways" },
      el("table", {}, el("caption", {}, title),
        el("thead", {}, el("tr", {}, ...titles.map((t, i) => el("th", { scope: "col", class: i ? "num" : "" }, t)))),
        el("tbody", {}, ...lines.map((line) => el("tr", {}, ...line.map((v, i) => el("td", { class: i ? "num" : "" }, v)))))));
  }
})();
