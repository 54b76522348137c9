"use strict";
// Tabs, the search field, the filter panel with its chips, and the column chooser.
(() => {
  const { el, byId, board } = HZ;

  // Tabs: "Overview", then the tasks under the name of their kind -------------------------------------------------

  const names = () => [null, ...board.tasks.map((t) => t.name)];
  const tabId = (name) => "tab-" + (name || "overview");

  HZ.drawTabs = () => {
    const tab = (name, title, count) => {
      const selected = name === HZ.state.task;
      return el("button", { type: "button", role: "tab", id: tabId(name), "aria-selected": String(selected), "aria-controls": "results",
        tabindex: selected ? "0" : "-1", onclick: () => HZ.choose(name) },
        el("span", {}, title), count === null ? null : el("small", {}, String(count)));
    };
    const parts = [tab(null, "Overview", null)];
    let kind = null;
    for (const task of board.tasks) {
      if (task.kind !== kind) parts.push(el("span", { class: "kind", role: "presentation" }, task.kind_title));
      kind = task.kind;
      parts.push(tab(task.name, task.short, task.rows.length));
    }
    byId("tabs").replaceChildren(...parts);
    byId("results").setAttribute("aria-labelledby", tabId(HZ.state.task));
    const chosen = byId(tabId(HZ.state.task));
    const strip = byId("tabs");
    if (strip.scrollWidth > strip.clientWidth) strip.scrollLeft = chosen.offsetLeft - strip.clientWidth / 3;
    if (strip.scrollHeight > strip.clientHeight) strip.scrollTop = chosen.offsetTop - strip.clientHeight / 3;
  };

  HZ.choose = (name) => {
    HZ.state = HZ.fresh(name);
    HZ.update(true);
    byId(tabId(name)).focus({ preventScroll: true });
  };

  byId("tabs").addEventListener("keydown", (event) => {
    const all = names();
    const at = all.indexOf(HZ.state.task);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    HZ.choose(all[(to + all.length) % all.length]);
  });

  // Filters -------------------------------------------------------------------------------------------------------

  HZ.drawFilters = (task) => {
    byId("search").value = HZ.state.query;
    const sets = [];
    for (const facet of HZ.FACETS) {
      const counts = new Map();
      for (const row of task.rows) counts.set(row[facet.key], (counts.get(row[facet.key]) || 0) + 1);
      if (counts.size < 2) continue;
      const place = (value) => (facet.order ? facet.order.indexOf(value) : 0);
      const values = [...counts.keys()].sort((a, b) => place(a) - place(b) || (a < b ? -1 : 1));
      sets.push(el("fieldset", { "data-facet": facet.key }, el("legend", {}, facet.title), ...values.map((value) => {
        const box = el("input", { type: "checkbox", value, onchange: () => toggle(facet.key, value) });
        box.checked = HZ.state.facets[facet.key].has(value);
        return el("label", { class: "pill" }, box, el("span", {}, facet.key === "family" ? HZ.dot(value) : null,
          facet.name ? facet.name(value) : value, el("small", {}, String(counts.get(value)))));
      })));
    }
    byId("filter-sets").replaceChildren(...sets);
    byId("filter-panel").hidden = !sets.length;
  };

  function toggle(key, value) {
    const chosen = HZ.state.facets[key];
    if (!chosen.delete(value)) chosen.add(value);
    HZ.update();
  }

  // One chip for each filter that is on; pressing it takes the filter away.
  HZ.drawChips = () => {
    const chips = HZ.FACETS.flatMap((facet) => [...HZ.state.facets[facet.key]].map((value) =>
      el("button", { type: "button", class: "chip", title: "Remove this filter", onclick: () => {
        toggle(facet.key, value);
        HZ.drawFilters(HZ.task(HZ.state.task));
        byId("filter-panel").querySelector("summary").focus();
      } },
        `${facet.title}: ${facet.name ? facet.name(value) : value}`, el("span", { "aria-hidden": "true" }, "×"))));
    byId("chips").replaceChildren(...chips);
    byId("filter-count").textContent = chips.length ? String(chips.length) : "";
  };

  // Columns -------------------------------------------------------------------------------------------------------

  HZ.drawChooser = (task) => {
    const all = HZ.columns(task).filter((column) => !column.fixed);
    const shown = new Set(HZ.chosenColumns(task).map((column) => column.key));
    byId("column-list").replaceChildren(...all.map((column) => {
      const box = el("input", { type: "checkbox", value: column.key, onchange: (event) => {
        if (event.target.checked) shown.add(column.key); else shown.delete(column.key);
        const same = all.every((c) => Boolean(c.chosen) === shown.has(c.key));
        HZ.state.columns = same ? null : new Set(all.map((c) => c.key).filter((key) => shown.has(key)));
        HZ.update(); // draws this list anew, so the focus has to be given back
        byId("column-list").querySelector(`[value="${column.key}"]`).focus();
      } });
      box.checked = shown.has(column.key);
      return el("label", {}, box, " ", column.title);
    }));
    const sorters = [["", "ranking"], ...HZ.columns(task).filter((c) => c.key !== "rank").map((c) => [c.key, c.title])];
    byId("sort-by").replaceChildren(...sorters.map(([key, title]) =>
      el("option", { value: key, selected: key === (HZ.state.sort || "") }, title)));
  };

  byId("sort-by").addEventListener("change", (event) => {
    const column = HZ.columns(HZ.task(HZ.state.task)).find((c) => c.key === event.target.value);
    HZ.state.sort = column ? column.key : null;
    HZ.state.descending = column ? !column.up : true;
    HZ.update();
  });

  // A panel closes when the reader presses Escape or goes elsewhere.
  for (const panel of document.querySelectorAll("details.panel")) {
    panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      panel.open = false;
      panel.querySelector("summary").focus();
    });
    document.addEventListener("pointerdown", (event) => { if (!panel.contains(event.target)) panel.open = false; });
  }
})();
