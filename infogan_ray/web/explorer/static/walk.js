// A walk: images between two chosen ones, on a slider that can be played.

import { postJson } from "./api.js";
import { byId, element, latestOnly, sprite } from "./dom.js";

const IMAGES = 33, SHOWN_EVERY = 4, FRAME_MS = 80;

export class Walk {
  // `chosenPoint()` is the chosen image as {codes, seed, index}, or null; `describe(codes)` its codes in words.
  constructor(model, chosenPoint, describe) {
    this.model = model;
    this.chosenPoint = chosenPoint;
    this.describe = describe;
    this.draw = latestOnly(() => this.load());
    this.ends = {};
    byId("walk-start").addEventListener("click", () => this.setEnd("start"));
    byId("walk-end").addEventListener("click", () => this.setEnd("end"));
    byId("walk-slider").addEventListener("input", () => this.show(Number(byId("walk-slider").value)));
    byId("walk-play").addEventListener("click", () => this.play());
  }

  clear() {
    this.ends = {};
    byId("walk").hidden = true;
    byId("walk-play").disabled = true;
  }

  setEnd(which) {
    const point = this.chosenPoint();
    if (!point) return;
    this.ends[which] = point;
    const { start, end } = this.ends;
    byId("walk-start").setAttribute("aria-pressed", Boolean(start));
    byId("walk-end").setAttribute("aria-pressed", Boolean(end));
    const words = one => one ? this.describe(one.codes) : "not set";
    byId("walk-note").textContent = `A: ${words(start)}. B: ${words(end)}.`;
    if (start && end) this.draw();
  }

  async load() {
    const { id, checkpoint } = this.model;
    const walk = { start: this.ends.start, end: this.ends.end, columns: IMAGES };
    const blob = await (await postJson("/api/walk", { id, checkpoint, walk })).blob();
    this.picture = await new Promise(done => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result);
      reader.readAsDataURL(blob);
    });
    const images = [];
    for (let i = 0; i < IMAGES; i += SHOWN_EVERY) images.push(sprite(element("div", { className: "sprite" }), this.picture, i, IMAGES));
    byId("walk-strip").replaceChildren(...images);
    byId("walk").hidden = false;
    byId("walk-play").disabled = false;
    this.show(Number(byId("walk-slider").value));
  }

  show(position) {
    byId("walk-slider").value = position;
    sprite(byId("walk-image"), this.picture, position, IMAGES);
    const share = Math.round((position / (IMAGES - 1)) * 100);
    byId("walk-image").setAttribute("aria-label", `Image at ${share}% of the way from A to B`);
  }

  play() {
    if (this.timer) return this.stop();
    let position = Number(byId("walk-slider").value), direction = position === IMAGES - 1 ? -1 : 1;
    byId("walk-play").textContent = "Pause";
    this.timer = setInterval(() => {
      position += direction;
      if (position <= 0 || position >= IMAGES - 1) direction = -direction;
      this.show(Math.min(IMAGES - 1, Math.max(0, position)));
    }, FRAME_MS);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = undefined;
    byId("walk-play").textContent = "Play";
  }
}
