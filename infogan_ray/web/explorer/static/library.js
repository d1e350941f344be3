// The runs, searches and models of a folder, as cards with their latest pictures; it looks again while they train.

import { calm, complain, element, get, pictureOf } from "./api.js";

const by = id => document.getElementById(id);
const LOOK_AGAIN_MS = 5000;

export class Library {
  constructor() {
    by("filter").addEventListener("input", () => this.draw());
    setInterval(() => { if (!by("library").hidden && !document.hidden) this.look(); }, LOOK_AGAIN_MS);
  }

  async open(id) {
    if (id !== this.id) { this.drawn = undefined; by("filter").value = ""; }
    this.id = id;
    await this.look();
  }

  async look() {
    const { id } = this;
    try {
      const found = await get("/api/library", { id });
      if (id !== this.id) return;
      this.found = found;
      this.draw();
      calm();
    } catch (error) { complain(error); }
  }

  draw() {
    const { found } = this, wanted = by("filter").value.toLowerCase();
    const words = JSON.stringify([found, wanted]);
    if (words === this.drawn) return;  // a card that has the focus keeps it
    this.drawn = words;
    by("library-title").textContent = found.title;
    const left = found.left_out ? ` ${found.left_out} more are not shown.` : "";
    by("library-note").textContent = (found.rows.length ? `${found.rows.length} here, looked at again every five seconds.`
      : "Nothing here yet; this page looks again every five seconds.") + left;
    if (found.report) by("library-note").append(" ", reportLink(found.search, "Report of the search"));
    const rows = found.rows.filter(row => JSON.stringify(row).toLowerCase().includes(wanted));
    const focused = document.activeElement?.getAttribute("href");
    by("cards").replaceChildren(...rows.map(card));
    if (focused) by("cards").querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }
}

function reportLink(id, words) {
  return element("a", { href: `/report?id=${encodeURIComponent(id)}`, target: "_blank" }, words);
}

function card(row) {
  const target = `#${new URLSearchParams({ [row.kind === "search" ? "search" : "model"]: row.id })}`;
  const has = row.kind === "model" || (row.picture ?? null) !== null;
  const picture = row.kind === "search"
    ? element("div", { className: "none" }, `${row.trials ?? "?"} trials${(row.best ?? null) === null ? "" : `, best: ${row.best}`}`)
    : has ? element("img", { src: pictureOf({ id: row.id, step: row.picture ?? undefined }), alt: `Samples of ${row.name}`, loading: "lazy" })
    : element("div", { className: "none" }, "no picture yet");
  const state = String(row.state).split(/[ ,]/)[0];
  const parts = [
    element("span", { className: `badge ${state}` }, row.best === true ? `best, ${row.state}` : row.state),
    ...(row.step === undefined || row.step === null ? [] : [` step ${row.step.toLocaleString("en")}`]),
  ];
  const measured = row.measured ?? [];
  const values = Object.entries(row.values ?? {}).map(([name, value]) =>
    `${name.split(".").pop()} ${typeof value === "number" ? Number(value.toPrecision(3)) : value}`);
  return element("article", { className: row.best === true ? "card best" : "card" },
    element("a", { href: target, ariaLabel: `Open ${row.name}` }, picture),
    element("h3", {}, element("a", { href: target }, row.name)),
    element("p", {}, ...parts),
    ...(measured.length ? [element("p", { className: "soft" }, measured.join(", "))] : []),
    ...(values.length ? [element("p", { className: "soft" }, values.join(", "))] : []));
}
