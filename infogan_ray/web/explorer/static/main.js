// Which of the two pages is shown. The address after '#' says it, so that a link or a reload shows the same again.

import { calm, complain, element, get } from "./api.js";
import { Library } from "./library.js";
import { Model } from "./model.js";

const by = id => document.getElementById(id);
const root = await get("/api/root").catch(error => { complain(error); throw error; });
const alone = root.kind === "run" || root.kind === "model";

const model = new Model(({ id, checkpoint, seed, codes }) => {
  const held = Object.entries(codes).map(([code, value]) => [`code.${code}`, value]);
  const address = new URLSearchParams([["model", id], ["checkpoint", checkpoint], ["seed", seed], ...held]);
  history.replaceState(null, "", `#${address}`);
});
const library = new Library();

async function route() {
  calm();
  const asked = new URLSearchParams(location.hash.slice(1));
  const id = asked.get("model") ?? (alone ? "" : null);
  by("model").hidden = true;
  by("library").hidden = id !== null;
  trail(id ?? asked.get("search") ?? "");
  try {
    if (id === null) {
      by("state").textContent = `infogan_ray ${root.version}`;
      return await library.open(asked.get("search") ?? "");
    }
    const codes = Object.fromEntries([...asked].filter(([name, value]) => name.startsWith("code.") && Number.isFinite(Number(value)))
      .map(([name, value]) => [name.slice(5), Number(value)]));
    const seed = Number(asked.get("seed") ?? 0);
    by("model").hidden = false;
    await model.open(id, { checkpoint: asked.get("checkpoint") ?? undefined, seed: Number.isInteger(seed) && seed >= 0 ? seed : 0, codes });
    document.title = `${model.about.title} - InfoGAN explorer`;
  } catch (error) {
    by("model").hidden = true;
    complain(error);
    if (id !== null && /looks again/.test(error.message)) setTimeout(() => { if (!by("model").hidden) return; route(); }, 5000);
  }
}

function trail(id) {
  const parts = [];
  if (!alone) {
    const [search, trial] = id.includes("/trials/") ? id.split("/trials/") : [null, null];
    parts.push(id ? element("a", { href: "#" }, root.title) : element("span", { ariaCurrent: "page" }, root.title));
    if (search) parts.push(element("a", { href: `#${new URLSearchParams({ search })}` }, search));
    if (id) parts.push(element("span", { ariaCurrent: "page" }, trial ?? id));
  } else {
    parts.push(element("span", { ariaCurrent: "page" }, root.title));
  }
  by("trail").replaceChildren(...parts.flatMap((part, i) => i ? [" / ", part] : [part]));
}

addEventListener("hashchange", route);
await route();
