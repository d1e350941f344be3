// A second model or checkpoint beside the first.

import { getJson } from "./api.js";
import { byId, clearError, showError } from "./dom.js";

const SAME_MODEL = "=";

export class Comparison {
  // `draw` is called when another model or checkpoint is to be drawn.
  constructor(draw) {
    this.draw = draw;
    byId("compare").addEventListener("change", () => this.select(byId("compare").value));
    byId("compare-checkpoint").addEventListener("change", () => this.selectCheckpoint(byId("compare-checkpoint").value));
  }

  get isOn() { return this.id !== undefined; }

  clear() {
    this.id = undefined;
    byId("grid-b").hidden = true;
  }

  // Offers the other models of the same folder, and other checkpoints of this one.
  async offer(about) {
    this.about = about;
    const before = byId("compare").value;
    const options = [["", "nothing"], ...(about.checkpoints.length > 1 ? [[SAME_MODEL, "another checkpoint of this run"]] : [])];
    if (about.id !== "") {
      try {
        const folder = about.id.includes("/trials/") ? about.id.split("/trials/")[0] : "";
        const library = await getJson("/api/library", { id: folder });
        for (const row of library.rows) if (row.id !== about.id && row.kind !== "search") options.push([row.id, row.name]);
      } catch (error) { showError(error); }
    }
    byId("compare").replaceChildren(...options.map(([value, words]) => new Option(words, value)));
    byId("compare").value = options.some(([value]) => value === before) && this.isOn ? before : "";
  }

  async select(choice) {
    const checkpoints = byId("compare-checkpoint");
    if (choice === "") {
      this.clear();
      checkpoints.hidden = true;
      return;
    }
    try {
      const about = choice === SAME_MODEL ? this.about : await getJson("/api/model", { id: choice });
      if (about.best === null) throw new Error(`${about.title} has no checkpoint yet`);
      checkpoints.replaceChildren(
        ...about.checkpoints.map(one => new Option(`step ${one.step.toLocaleString("en")}`, one.name)));
      checkpoints.hidden = about.checkpoints.length < 2;
      checkpoints.value = choice === SAME_MODEL ? about.checkpoints[0].name : about.best;
      this.id = about.id;
      this.selectCheckpoint(checkpoints.value);
      clearError();
    } catch (error) { showError(error); }
  }

  selectCheckpoint(checkpoint) {
    this.checkpoint = checkpoint;
    byId("grid-b").hidden = false;
    this.draw();
  }
}
