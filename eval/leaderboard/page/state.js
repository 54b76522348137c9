"use strict";
// What the reader chose. It lives in HZ.state and in the address (#task=…&q=…), so a view can be shared and survives
// a reload. Nothing is stored elsewhere, but for the theme.
(() => {
  const { board } = HZ;

  // Facts of a row that can be filtered by, in the order of the panel.
  HZ.FACETS = [
    { key: "family", title: "Family", name: (value) => HZ.familyTitle(value) },
    { key: "status", title: "Status" },
    { key: "track", title: "Track" },
    { key: "size", title: "Parameters", order: ["under 1M", "1M to 10M", "10M to 100M", "100M to 1G", "over 1G", "not stated"] },
    { key: "license", title: "Licence of the weights" },
    { key: "device", title: "Device" },
    { key: "backend", title: "Backend" },
  ];

  HZ.sizeOf = (params) => {
    if (HZ.missing(params)) return "not stated";
    const at = [1e6, 1e7, 1e8, 1e9].findIndex((limit) => params < limit);
    return HZ.FACETS[3].order[at < 0 ? 4 : at];
  };
  for (const task of board.tasks) for (const row of task.rows) row.size = HZ.sizeOf(row.costs.params);

  HZ.fresh = (task) => ({
    task, query: "", sort: null, descending: true, columns: null, metric: null, cost: null, linear: false,
    open: new Set(), facets: Object.fromEntries(HZ.FACETS.map((facet) => [facet.key, new Set()])),
  });
  HZ.state = HZ.fresh(null);

  HZ.readFragment = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    const task = HZ.task(given.get("task"));
    const state = HZ.fresh(task ? task.name : null);
    HZ.state = state;
    if (!task) return;
    state.query = given.get("q") || "";
    for (const { key } of HZ.FACETS) {
      const allowed = new Set(task.rows.map((row) => row[key]));
      state.facets[key] = new Set(given.getAll(key).filter((value) => allowed.has(value)));
    }
    const known = HZ.columns(task).map((column) => column.key);
    if (known.includes(given.get("sort"))) {
      state.sort = given.get("sort");
      state.descending = given.get("order") !== "up";
    }
    if (given.has("columns")) {
      state.columns = new Set(given.get("columns").split(",").filter((key) => known.includes(key)));
    }
    if (task.metrics.some((m) => m.name === given.get("metric"))) state.metric = given.get("metric");
    if (task.costs.some((c) => c.key === given.get("cost"))) state.cost = given.get("cost");
    state.linear = given.get("axis") === "linear";
    const rows = new Set(task.rows.map((row) => row.id));
    state.open = new Set(given.getAll("open").filter((id) => rows.has(id)));
  };

  HZ.writeFragment = () => {
    const { state } = HZ;
    const parts = new URLSearchParams();
    if (state.task) parts.set("task", state.task);
    if (state.query) parts.set("q", state.query);
    for (const { key } of HZ.FACETS) for (const value of state.facets[key]) parts.append(key, value);
    if (state.sort) { parts.set("sort", state.sort); parts.set("order", state.descending ? "down" : "up"); }
    if (state.columns) parts.set("columns", [...state.columns].join(","));
    if (state.metric) parts.set("metric", state.metric);
    if (state.cost) parts.set("cost", state.cost);
    if (state.linear) parts.set("axis", "linear");
    for (const id of state.open) parts.append("open", id);
    history.replaceState(null, "", "#" + parts);
  };
})();
