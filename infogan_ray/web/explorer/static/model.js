// One model: its samples and what each code does. Its parts: timeline, comparison, walk, real images, commands.

import { getJson, pictureUrl, postJson } from "./api.js";
import { CodeControls } from "./code_controls.js";
import { copy, showCommands } from "./commands.js";
import { Comparison } from "./comparison.js";
import { byId, element, formatNumber, latestOnly, showError, showPicture, sprite } from "./dom.js";
import { RealImages } from "./real_images.js";
import { Timeline } from "./timeline.js";
import { Walk } from "./walk.js";

const COLUMNS = 8, IMAGES = 64, REFRESH_MS = 10000;

export class Model {
  // `onChange({id, checkpoint, seed, codes})` is called with what is on the screen.
  constructor(onChange) {
    this.onChange = onChange;
    this.controls = new CodeControls(byId("controls"), () => this.codesChanged(), () => this.draw());
    this.timeline = new Timeline((step, checkpoint) => this.selectStep(step, checkpoint));
    this.comparison = new Comparison(() => this.drawSecond());
    this.walk = new Walk(this, () => this.chosenPoint(), codes => this.controls.describe(codes));
    this.realImages = new RealImages(this, this.controls);
    this.drawFirst = latestOnly(() => this.drawGrid(byId("grid-a"), this.id, this.checkpoint, this.step));
    this.drawSecond = latestOnly(() => this.drawGrid(byId("grid-b"), this.comparison.id, this.comparison.checkpoint));
    this.drawStrips = latestOnly(() => this.loadStrips());
    this.bind();
  }

  bind() {
    byId("free-all").addEventListener("click", () => this.controls.setAll({}));
    byId("lock-noise").addEventListener("click", () => this.lockNoise(!this.locked));
    byId("new-noise").addEventListener("click", () => this.newNoise());
    byId("seed").addEventListener("change", () => this.setSeed(Number(byId("seed").value)));
    byId("hold-codes").addEventListener("click", () => this.holdCodes());
    document.querySelectorAll(".copy").forEach(button => button.addEventListener("click", () => copy(button)));
    const frame = byId("grid-a").querySelector(".frame");
    frame.addEventListener("click", event => {
      const box = frame.getBoundingClientRect();
      const at = share => Math.min(COLUMNS - 1, Math.max(0, Math.floor(share * COLUMNS)));
      this.choose(at((event.clientY - box.top) / box.height) * COLUMNS + at((event.clientX - box.left) / box.width));
    });
    frame.addEventListener("keydown", event => {
      const offset = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -COLUMNS, ArrowDown: COLUMNS }[event.key];
      if (offset === undefined) return;
      event.preventDefault();
      this.choose((this.index + offset + IMAGES) % IMAGES);
    });
    document.addEventListener("keydown", event => this.handleKey(event));
    setInterval(() => this.refresh(), REFRESH_MS);
  }

  handleKey(event) {
    if (byId("model").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input[type=text], input[type=number], input[type=search], select")) return;
    const action = {
      r: () => this.newNoise(), l: () => this.lockNoise(!this.locked), h: () => this.holdCodes(),
      a: () => this.walk.setEnd("start"), b: () => this.walk.setEnd("end"), p: () => this.timeline.play(),
      "[": () => this.timeline.move(-1), "]": () => this.timeline.move(1),
    }[event.key.toLowerCase()];
    if (action) { event.preventDefault(); action(); }
  }

  // Opening ---------------------------------------------------------------------------------------------------------

  async open(id, wanted) {
    this.timeline.stop();
    this.walk.stop();
    this.about = await getJson("/api/model", { id });
    this.id = id;
    this.seed = wanted.seed ?? 0;
    this.index = 0;
    this.chosenCodes = null;
    const checkpoint = wanted.checkpoint ?? this.about.best;
    if (this.about.best === null) {
      byId("model").hidden = true;
      throw new Error(`${this.about.title} (${this.about.state}) has no checkpoint yet; this page refreshes automatically`);
    }
    this.timeline.build(this.about);
    this.controls.build(id, this.about.codes, this.metricsOf(checkpoint), wanted.codes ?? {});
    byId("seed").value = this.seed;
    this.lockNoise(true);
    this.showState();
    this.walk.clear();
    this.comparison.clear();
    this.showCheckpoint(checkpoint);
    this.comparison.offer(this.about);
    this.realImages.open(this.about.real);
  }

  metricsOf(checkpoint) {
    return this.about.checkpoints.find(one => one.name === checkpoint)?.metrics ?? {};
  }

  showState() {
    const { about } = this, parts = [about.state, `step ${about.step.toLocaleString("en")}`];
    if (about.size) parts.push(`${about.size} x ${about.size} x ${about.channels}`, `${about.noise} noise variables`);
    byId("state").textContent = parts.join(", ");
    if (about.report) byId("state").append(" ", element("a", { href: `/report?id=${encodeURIComponent(about.id)}`, target: "_blank" }, "report"));
  }

  showCheckpoint(checkpoint) {
    this.checkpoint = checkpoint;
    this.step = undefined;
    this.timeline.showCheckpoint(checkpoint);
    this.controls.showBounds(this.metricsOf(checkpoint));
    this.codesChanged();
  }

  // A step whose checkpoint was pruned shows the picture that was made then.
  selectStep(step, checkpoint) {
    if (checkpoint !== null) return this.showCheckpoint(checkpoint);
    this.step = step;
    this.drawFirst();
    this.showCommands();
  }

  // A run that still trains gets more checkpoints.
  async refresh() {
    if (byId("model").hidden || !this.about || !["running", "starting"].includes(this.about.state)) return;
    try {
      const about = await getJson("/api/model", { id: this.id }), count = this.about.checkpoints.length;
      about.codes = this.about.codes;
      this.about = about;
      this.showState();
      this.timeline.rebuild(about);
      if (about.checkpoints.length !== count) this.comparison.offer(about);
    } catch (error) { showError(error); }
  }

  // Samples and strips --------------------------------------------------------------------------------------------------

  codesChanged() {
    if (!this.locked) this.seed = Math.floor(Math.random() * 1e9);
    byId("seed").value = this.seed;
    this.draw();
  }

  draw() {
    this.drawFirst();
    if (this.comparison.isOn) this.drawSecond();
    this.drawStrips();
    this.showCommands();
    this.onChange({ id: this.id, checkpoint: this.checkpoint, seed: this.seed, codes: this.controls.values });
  }

  async drawGrid(figure, id, checkpoint, step) {
    const image = figure.querySelector("img"), caption = figure.querySelector("figcaption");
    if (step !== undefined) {
      image.src = pictureUrl({ id, step });
      caption.textContent = `step ${step.toLocaleString("en")}: the picture from training, with its own codes; the checkpoint was deleted`;
      return;
    }
    const words = this.controls.describe(), codes = this.controls.values, { seed } = this;
    await showPicture(image, await postJson("/api/grid", { id, checkpoint, codes, seed }));
    const source = [id || this.about.title, checkpoint.replace("step_", "step ").replace(/ 0+/, " ")].filter(Boolean).join(", ");
    image.alt = `64 samples of ${source} with ${words}, seed ${seed}`;
    image.dataset.drawn = JSON.stringify({ codes: this.controls.values, seed, checkpoint });
    caption.textContent = `${source}: ${words}`;
  }

  lockNoise(locked) {
    this.locked = locked;
    byId("lock-noise").setAttribute("aria-pressed", locked);
    byId("lock-noise").textContent = locked ? "z locked" : "z unlocked";
  }

  newNoise() { this.setSeed(Math.floor(Math.random() * 1e9)); }

  setSeed(seed) {
    this.seed = Number.isInteger(seed) && seed >= 0 && seed < 1e9 ? seed : 0;
    byId("seed").value = this.seed;
    this.draw();
  }

  choose(index) {
    this.index = index;
    this.showSelection();
    this.drawStrips();
  }

  showSelection() {
    const selection = byId("grid-a").querySelector(".selection");
    selection.hidden = false;
    selection.style.left = `${(this.index % COLUMNS) * 12.5}%`;
    selection.style.top = `${Math.floor(this.index / COLUMNS) * 12.5}%`;
  }

  chosenPoint() { return this.chosenCodes && { codes: this.chosenCodes, seed: this.seed, index: this.index }; }

  async loadStrips() {
    this.showSelection();
    const { id, checkpoint, seed, index } = this;
    const at = { codes: this.controls.values, seed, index };
    const found = await (await postJson("/api/strips", { id, checkpoint, at })).json();
    this.chosenCodes = found.at;
    byId("chosen").textContent = `Chosen: image ${this.index + 1} of 64, ${this.controls.describe(found.at)}`;
    const focused = document.activeElement?.dataset?.strip;
    byId("strips").replaceChildren(...found.strips.map(strip => this.strip(strip, found.at[strip.code])));
    if (focused) byId("strips").querySelector(`[data-strip="${focused}"]`)?.focus({ preventScroll: true });
  }

  strip({ code, values, picture }, current) {
    const about = this.controls.codes.find(one => one.code === code), images = element("div", { className: "strip-images" });
    const nearest = values.reduce((best, value, i) => Math.abs(value - current) < Math.abs(values[best] - current) ? i : best, 0);
    values.forEach((value, i) => {
      const outside = about.inside && (value < about.inside[0] - 1e-6 || value > about.inside[1] + 1e-6);
      const words = `${this.controls.title(about)} ${formatNumber(value)}`;
      const button = element("button", {
        type: "button", ariaLabel: words, title: outside ? `${words}, outside the prior` : words, className: outside ? "outside" : "",
        ariaCurrent: String(i === nearest), onclick: () => this.controls.set(code, value),
      }, sprite(element("span", { className: "sprite" }), picture, i, values.length), formatNumber(value));
      button.dataset.strip = `${code} ${i}`;
      images.append(button);
    });
    return element("div", { className: "strip", role: "group", ariaLabel: this.controls.title(about) },
      element("span", {}, this.controls.title(about)), images);
  }

  holdCodes() { if (this.chosenCodes) this.controls.setAll(this.chosenCodes); }

  showCommands() {
    const path = this.about.checkpoints.find(one => one.name === this.checkpoint)?.path ?? "MODEL";
    showCommands(path, this.controls.values, this.controls, this.seed);
  }
}
