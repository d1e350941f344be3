// The runs, searches and models of a folder, as cards with their latest pictures; refreshed while they train.

import { getJson, pictureUrl } from "./api.js";
import { byId, clearError, element, showError } from "./dom.js";

const REFRESH_MS = 5000;

export class Library {
  constructor() {
    byId("filter").addEventListener("input", () => this.draw());
    setInterval(() => { if (!byId("library").hidden && !document.hidden) this.refresh(); }, REFRESH_MS);
  }

  async open(id) {
    if (id !== this.id) { this.drawn = undefined; byId("filter").value = ""; }
    this.id = id;
    await this.refresh();
  }

  async refresh() {
    const { id } = this;
    try {
      const found = await getJson("/api/library", { id });
      if (id !== this.id) return;
      this.found = found;
      this.draw();
      clearError();
    } catch (error) { showError(error); }
  }

  draw() {
    const { found } = this, wanted = byId("filter").value.toLowerCase();
    const words = JSON.stringify([found, wanted]);
    if (words === this.drawn) return;  // a card that has the focus keeps it
    this.drawn = words;
    byId("library-title").textContent = found.title;
    const left = found.left_out ? ` ${found.left_out} more are not shown.` : "";
    byId("library-note").textContent = (found.rows.length ? `${found.rows.length} here, refreshed every five seconds.`
      : "Nothing here yet; this page refreshes every five seconds.") + left;
    if (found.report) byId("library-note").append(" ", reportLink(found.search, "Report of the search"));
    const rows = found.rows.filter(row => JSON.stringify(row).toLowerCase().includes(wanted));
    const focused = document.activeElement?.getAttribute("href");
    byId("cards").replaceChildren(...rows.map(card));
    if (focused) byId("cards").querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
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
    : has ? element("img", { src: pictureUrl({ id: row.id, step: row.picture ?? undefined }), alt: `Samples of ${row.name}`, loading: "lazy" })
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
