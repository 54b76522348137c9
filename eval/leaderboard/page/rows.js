"use strict";
// Which columns a task has, which rows are to be seen in which order, and the CSV of what is seen.
(() => {
  const { missing } = HZ;
  const MOST_METRICS = 5; // shown at first; the column chooser has the rest

  // {key, title, number, value(row), up: the first press of the title sorts upwards, chosen: shown at first}
  HZ.columns = (task) => allColumns(task).map((column) =>
    ({ ...column, chosen: column.chosen && task.rows.some((row) => !missing(column.value(row))) }));

  const allColumns = (task) => [
    { key: "rank", title: "#", number: true, value: (row) => row.rank, up: true, fixed: true },
    { key: "label", title: "Model", value: (row) => row.label.toLowerCase(), up: true, fixed: true },
    ...metricColumns(task),
    { key: "params", title: "Parameters", number: true, value: (row) => row.costs.params, up: true, chosen: true },
    ...task.costs.filter((cost) => cost.key !== "params").map((cost) => ({
      key: "cost." + cost.key, title: cost.label, number: true, cost, up: !cost.higher_is_better,
      chosen: cost.key === "throughput", value: (row) => row.costs[cost.key],
    })),
    { key: "n", title: "Samples", number: true, value: (row) => row.n_used },
    { key: "seeds", title: "Seeds", number: true, value: (row) => row.seeds },
    { key: "device", title: "Device", value: (row) => row.device },
    { key: "license", title: "Licence", value: (row) => row.license },
    { key: "date", title: "Date", value: (row) => row.runs[0].date },
  ];

  function metricColumns(task) {
    const main = task.metrics.filter((m) => m.main || m.name === task.primary);
    const shown = new Set([task.primary, ...main.map((m) => m.name)].filter((n, i, all) => all.indexOf(n) === i).slice(0, MOST_METRICS));
    const first = task.metrics.filter((m) => m.name === task.primary);
    return [...first, ...task.metrics.filter((m) => m.name !== task.primary)].map((metric) => ({
      key: "metric." + metric.name, title: metric.label, number: true, metric, up: !metric.higher_is_better,
      chosen: shown.has(metric.name), primary: metric.name === task.primary,
      value: (row) => (row.metrics[metric.name] || { value: null }).value,
    }));
  }

  HZ.chosenColumns = (task) => HZ.columns(task).filter((column) =>
    column.fixed || (HZ.state.columns ? HZ.state.columns.has(column.key) : column.chosen));

  // "iformer_* 1a2b": every word must occur; * is any text.
  function matcher(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean).map((word) =>
      new RegExp(word.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replace(/\*/g, ".*")));
    return (row) => words.every((word) => word.test(row.search));
  }

  HZ.visibleRows = (task) => {
    const { state } = HZ;
    const matches = matcher(state.query);
    const chosen = (key, row) => !state.facets[key].size || state.facets[key].has(row[key]);
    const rows = task.rows.filter((row) => matches(row) && HZ.FACETS.every(({ key }) => chosen(key, row)));
    const column = HZ.columns(task).find((c) => c.key === state.sort);
    if (!column) return rows; // the build's order: by rank inside each group
    const sign = state.descending ? -1 : 1;
    return [...rows].sort((a, b) => {
      const [x, y] = [column.value(a), column.value(b)];
      if (missing(x) || missing(y)) return missing(x) - missing(y); // rows without the value stay last both ways
      return x < y ? -sign : x > y ? sign : 0;
    });
  };

  HZ.csv = (task, rows) => {
    const head = ["group", "rank", "model", "family", "status", "track", "parameters", "samples", "seeds", "license", "device", "commit"];
    for (const metric of task.metrics) head.push(metric.name, metric.name + "_error");
    for (const cost of task.costs) if (cost.key !== "params") head.push(cost.key);
    const lines = rows.map((row) => [
      row.group, row.rank, row.label, row.family, row.status, row.track, row.costs.params, row.n_used, row.seeds,
      row.license, row.device, row.runs[0].commit,
      ...task.metrics.flatMap((m) => { const v = row.metrics[m.name]; return v ? [v.value, v.error] : [null, null]; }),
      ...task.costs.filter((cost) => cost.key !== "params").map((cost) => row.costs[cost.key]),
    ]);
    const quote = (v) => (missing(v) ? "" : /[",\n]/.test(String(v)) ? `"${String(v).replaceAll('"', '""')}"` : String(v));
    return [head, ...lines].map((line) => line.map(quote).join(",")).join("\n") + "\n";
  };
})();
