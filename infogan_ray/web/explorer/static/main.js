// Shows the library or one model. The address after '#' says which, so that a link or a reload shows the same.

import { getJson } from "./api.js";
import { byId, clearError, element, showError } from "./dom.js";
import { Library } from "./library.js";
import { Model } from "./model.js";

const root = await getJson("/api/root").catch(error => { showError(error); throw error; });
const isSingle = root.kind === "run" || root.kind === "model";

const model = new Model(({ id, checkpoint, seed, codes }) => {
  const held = Object.entries(codes).map(([code, value]) => [`code.${code}`, value]);
  const address = new URLSearchParams([["model", id], ["checkpoint", checkpoint], ["seed", seed], ...held]);
  history.replaceState(null, "", `#${address}`);
});
const library = new Library();

async function route() {
  clearError();
  const parameters = new URLSearchParams(location.hash.slice(1));
  const id = parameters.get("model") ?? (isSingle ? "" : null);
  byId("model").hidden = true;
  byId("library").hidden = id !== null;
  showBreadcrumbs(id ?? parameters.get("search") ?? "");
  try {
    if (id === null) {
      byId("state").textContent = `infogan_ray ${root.version}`;
      return await library.open(parameters.get("search") ?? "");
    }
    const codes = Object.fromEntries([...parameters].filter(([name, value]) => name.startsWith("code.") && Number.isFinite(Number(value)))
      .map(([name, value]) => [name.slice(5), Number(value)]));
    const seed = Number(parameters.get("seed") ?? 0);
    byId("model").hidden = false;
    await model.open(id, { checkpoint: parameters.get("checkpoint") ?? undefined, seed: Number.isInteger(seed) && seed >= 0 ? seed : 0, codes });
    document.title = `${model.about.title} - InfoGAN explorer`;
  } catch (error) {
    byId("model").hidden = true;
    showError(error);
    if (id !== null && /refreshes automatically/.test(error.message)) setTimeout(() => { if (!byId("model").hidden) return; route(); }, 5000);
  }
}

function showBreadcrumbs(id) {
  const parts = [];
  if (!isSingle) {
    const [search, trial] = id.includes("/trials/") ? id.split("/trials/") : [null, null];
    parts.push(id ? element("a", { href: "#" }, root.title) : element("span", { ariaCurrent: "page" }, root.title));
    if (search) parts.push(element("a", { href: `#${new URLSearchParams({ search })}` }, search));
    if (id) parts.push(element("span", { ariaCurrent: "page" }, trial ?? id));
  } else {
    parts.push(element("span", { ariaCurrent: "page" }, root.title));
  }
  byId("breadcrumbs").replaceChildren(...parts.flatMap((part, i) => i ? [" / ", part] : [part]));
}

addEventListener("hashchange", route);
await route();
