"use strict";
// Shared by all scripts of the page: the data, and small functions that make elements and words. The scripts are
// inlined one after the other (see ../webpage.py), so they share the constant HZ and nothing else.
const HZ = { board: JSON.parse(document.getElementById("board-data").textContent) };

(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const SVG_TAGS = new Set(["svg", "g", "line", "path", "circle", "rect", "polygon"]);

  HZ.byId = (id) => document.getElementById(id);

  // el("td", {class: "num", onclick: f}, "text", child): an element. Text is inserted as text, never as HTML.
  HZ.el = (tag, attributes = {}, ...children) => fill(
    SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag), attributes, children);
  HZ.svgText = (attributes, text) => fill(document.createElementNS(SVG, "text"), attributes, [text]);

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  }

  const missing = (value) => value === null || value === undefined;
  HZ.missing = missing;
  HZ.fixed = (value, digits) => (missing(value) ? "–" : value.toFixed(digits));

  // 1767530 -> "1.77M"
  HZ.short = (value) => {
    if (missing(value)) return "–";
    for (const [limit, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (Math.abs(value) >= limit) return Number((value / limit).toPrecision(3)) + suffix;
    }
    return String(Number(value.toPrecision(3)));
  };

  HZ.plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

  const order = new Map(HZ.board.families.map((family, i) => [family.name, i]));
  HZ.colour = (family) => `var(--f${(order.get(family) ?? 0) % 12})`;
  HZ.familyTitle = (name) => (HZ.board.families.find((f) => f.name === name) || { title: name }).title;
  HZ.dot = (family) => HZ.el("span", { class: "dot", style: `background:${HZ.colour(family)}`, "aria-hidden": "true" });

  HZ.copy = (text, button) => {
    const say = (word) => {
      const before = button.dataset.text || button.textContent;
      button.dataset.text = before;
      button.textContent = word;
      setTimeout(() => { button.textContent = before; }, 1500);
    };
    if (!navigator.clipboard) say("select and copy by hand");
    else navigator.clipboard.writeText(text).then(() => say("copied"), () => say("select and copy by hand"));
  };

  HZ.task = (name) => HZ.board.tasks.find((t) => t.name === name) || null;
})();
