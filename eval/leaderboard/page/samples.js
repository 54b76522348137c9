"use strict";
// What people look at rather than read: pictures that lie beside a result (heat maps, boxes, grids of samples), texts
// that a model wrote, and confusion matrices, which are drawn here from the counts in the result.
(() => {
  const { el, byId, svgText } = HZ;

  // Confusion matrix: rows are the true classes, the colour is the share of the row ------------------------------------

  HZ.confusion = (row) => {
    if (!row.confusion) return null;
    const { labels, counts } = row.confusion;
    const size = Math.max(22, Math.min(54, Math.floor(260 / labels.length)));
    const left = Math.min(120, 12 + 6.4 * Math.max(...labels.map((name) => name.length)));
    const side = size * labels.length, top = Math.min(96, 10 + 4.6 * Math.max(...labels.map((name) => name.length)));
    const svg = el("svg", { class: "confusion", viewBox: `0 0 ${left + side + 30} ${top + side + 4}`, width: left + side + 30, height: top + side + 4,
      role: "img", "aria-label": "Confusion matrix: " + labels.map((name, i) => `${name}: ${counts[i][i]} of ${counts[i].reduce((a, b) => a + b, 0)} right`).join("; ") });
    labels.forEach((name, i) => {
      const clipped = name.length > 18 ? name.slice(0, 17) + "…" : name;
      svg.append(svgText({ x: left - 6, y: top + i * size + size / 2 + 4, "text-anchor": "end" }, clipped),
        svgText({ x: 0, y: 0, transform: `translate(${left + i * size + size / 2},${top - 6}) rotate(-40)` }, clipped));
      const total = counts[i].reduce((a, b) => a + b, 0) || 1;
      counts[i].forEach((count, j) => {
        const share = count / total;
        const cell = el("rect", { x: left + j * size, y: top + i * size, width: size - 1, height: size - 1, rx: 2, "fill-opacity": Math.max(0.04, share), class: "cell" });
        svg.append(cell);
        if (size >= 26 && count) {
          svg.append(svgText({ x: left + j * size + size / 2, y: top + i * size + size / 2 + 4, "text-anchor": "middle", class: share > 0.55 ? "on" : "" }, HZ.short(count)));
        }
      });
    });
    return el("figure", { class: "matrix" }, svg, el("figcaption", {}, "Confusion matrix: true class in rows, predicted in columns"));
  };

  // Pictures and texts ------------------------------------------------------------------------------------------------

  HZ.sampleStrip = (row) => {
    if (!row.samples.length) return null;
    return el("div", { class: "strip" }, ...row.samples.map((sample, i) => figure(row, sample, i)));
  };

  function figure(row, sample, index) {
    const caption = el("figcaption", {}, sample.title, " ", el("a", { href: sample.href, "aria-label": `${sample.title} of ${row.label}, whole file` }, "file"));
    if (sample.text !== undefined) return el("figure", { class: "sample text" }, el("pre", { tabindex: 0 }, sample.text), caption);
    return el("figure", { class: "sample" },
      el("button", { type: "button", "aria-label": `Enlarge: ${sample.title} of ${row.label}`, onclick: () => enlarge(row, index) },
        el("img", { src: sample.src, width: sample.width, height: sample.height, alt: `${sample.title} of ${row.label}`, loading: "lazy" })), caption);
  }

  HZ.drawSamples = (task, rows) => {
    const shown = rows.filter((row) => row.samples.length || row.confusion);
    byId("samples").hidden = !shown.length;
    byId("sample-list").replaceChildren(...shown.map((row) => el("article", { class: "model" },
      el("h3", {}, HZ.dot(row.family), row.label, el("span", { class: "quiet" }, row.badges.map((b) => b.text).join(", "))),
      HZ.sampleStrip(row), row.samples.length ? null : HZ.confusion(row))));
  };

  // The enlarged picture; arrows go through the pictures of the row, Escape closes.
  let shown = null;

  function enlarge(row, index) {
    const pictures = row.samples.filter((sample) => sample.src);
    shown = { row, pictures, at: pictures.indexOf(row.samples[index]) };
    step(0);
    byId("viewer").showModal();
  }

  function step(by) {
    const { row, pictures } = shown;
    shown.at = (shown.at + by + pictures.length) % pictures.length;
    const sample = pictures[shown.at];
    byId("viewer-image").replaceChildren(el("img", { src: sample.src, alt: `${sample.title} of ${row.label}` }));
    byId("viewer-caption").replaceChildren(`${row.label}: ${sample.title} (${shown.at + 1} of ${pictures.length}). `, el("a", { href: sample.href }, "Whole file"));
    for (const id of ["viewer-back", "viewer-next"]) byId(id).hidden = pictures.length < 2;
  }

  byId("viewer-back").addEventListener("click", () => step(-1));
  byId("viewer-next").addEventListener("click", () => step(1));
  byId("viewer").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  byId("viewer").addEventListener("click", (event) => { if (event.target === byId("viewer")) byId("viewer").close(); });
})();
