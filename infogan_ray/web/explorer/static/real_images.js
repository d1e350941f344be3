// Real images: Q's codes of one, and what G generates from them.

import { getJson, postFile, postJson } from "./api.js";
import { byId, clearError, element, showError, sprite } from "./dom.js";

export class RealImages {
  // `model` has the open model's id, checkpoint and seed; `controls` are the controls of its codes.
  constructor(model, controls) {
    this.model = model;
    this.controls = controls;
    byId("upload").addEventListener("change", event => this.upload(event.target.files[0]));
    byId("shuffle").addEventListener("click", () => this.offer(Math.floor(Math.random() * 1e9)));
    byId("use-codes").addEventListener("click", () => this.controls.setAll(this.codes));
    for (const zone of [byId("real"), byId("model")]) {
      zone.addEventListener("dragover", event => event.preventDefault());
      zone.addEventListener("drop", event => {
        event.preventDefault();
        event.stopPropagation();
        if (event.dataTransfer.files.length) this.upload(event.dataTransfer.files[0]);
      });
    }
  }

  open(available) {
    this.available = available;
    byId("reconstruction").hidden = true;
    this.offer(0);
  }

  // Shows some images to choose from.
  async offer(seed) {
    const container = byId("real-images"), { available } = this;
    container.replaceChildren();
    byId("shuffle").hidden = Boolean(available.why);
    byId("real-note").textContent = available.why ?? `or pick one of ${available.data}`;
    if (available.why) return;
    try {
      const { id, checkpoint } = this.model;
      const found = await getJson("/api/real", { id, checkpoint, seed });
      found.indices.forEach((index, i) => {
        const label = found.labels ? `, label ${found.labels[i]}` : "";
        const button = element("button", { type: "button", ariaLabel: `Real image ${index}${label}`, title: `image ${index}${label}` });
        button.setAttribute("aria-pressed", "false");
        button.append(sprite(element("span", { className: "sprite" }), found.picture, i, found.indices.length));
        button.addEventListener("click", () => {
          container.querySelectorAll("button").forEach(one => one.setAttribute("aria-pressed", String(one === button)));
          this.pick(index);
        });
        container.append(button);
      });
    } catch (error) { showError(error); }
  }

  async pick(index) {
    try {
      const { id, checkpoint, seed } = this.model;
      const result = await (await postJson("/api/pick", { id, checkpoint, index, seed })).json();
      this.show(result, result.label === null ? `image ${index}` : `image ${index}, label ${result.label}`);
      clearError();
    } catch (error) { showError(error); }
  }

  async upload(file) {
    if (!file) return;
    try {
      const { id, checkpoint, seed } = this.model;
      this.show(await postFile("/api/encode", { id, checkpoint, seed }, file), file.name);
      clearError();
    } catch (error) { showError(error); }
    byId("upload").value = "";
  }

  show(result, name) {
    this.codes = result.codes;
    byId("original").src = result.picture;
    byId("original").alt = `The real image (${name}) as the model gets it`;
    byId("original-note").textContent = `${name}, as the model gets it`;
    byId("reconstructions").src = result.reconstructions;
    byId("reconstructions").alt = `Eight images generated from ${this.controls.describe(result.codes)}`;
    const rows = this.controls.codes.flatMap(code => result.rows[code.code].map(row => this.readingRow(code, row)));
    byId("reading").replaceChildren(element("table", {}, element("tbody", {}, ...rows)));
    byId("reconstruction").hidden = false;
  }

  // One row of what Q reads of a code, as the code's prior describes it.
  readingRow(code, { label, share, words }) {
    const title = `${this.controls.title(code)}${label}`;
    return element("tr", {},
      element("th", { scope: "row" }, title),
      element("td", {}, element("meter", { min: 0, max: 1, value: share, ariaLabel: `${title} ${words}` })), element("td", {}, words));
  }
}
