// The steps of training: every step with a checkpoint or a picture of samples, on a slider that can be played.

import { byId } from "./dom.js";

const FRAME_MS = 500;

export class Timeline {
  // `onSelect(step, checkpoint)` is called when a step is selected; the checkpoint is null where it was pruned.
  constructor(onSelect) {
    this.onSelect = onSelect;
    this.steps = [];
    byId("timeline-slider").addEventListener("input", () => this.select(this.position));
    byId("timeline-play").addEventListener("click", () => this.play());
  }

  get position() { return Number(byId("timeline-slider").value); }

  build(about) {
    const steps = new Map(about.pictures.map(step => [step, null]));
    for (const one of about.checkpoints) if (one.name) steps.set(one.step, one.name);
    this.steps = [...steps].sort((one, other) => one[0] - other[0]);
    this.best = about.best;
    byId("timeline").hidden = this.steps.length < 2;
    byId("timeline-slider").max = this.steps.length - 1;
  }

  // As `build`, for a run that has more steps since; the selected step stays.
  rebuild(about) {
    const selected = this.steps[this.position]?.[0];
    this.build(about);
    this.showPosition(this.steps.findIndex(([step]) => step === selected));
  }

  showCheckpoint(checkpoint) {
    this.showPosition(this.steps.findIndex(([, name]) => name === checkpoint));
  }

  showPosition(position) {
    if (position < 0) return;
    const [step, name] = this.steps[position];
    byId("timeline-slider").value = position;
    const best = name !== null && name === this.best ? ", the best" : name === null ? ", picture only" : "";
    byId("timeline-step").textContent = `${step.toLocaleString("en")}${best}`;
    byId("timeline-slider").setAttribute("aria-valuetext", `step ${byId("timeline-step").textContent}`);
  }

  select(position) {
    this.showPosition(position);
    this.onSelect(...this.steps[position]);
  }

  move(offset) {
    if (this.steps.length < 2) return;
    this.select(Math.min(this.steps.length - 1, Math.max(0, this.position + offset)));
  }

  play() {
    if (this.timer) return this.stop();
    if (this.steps.length < 2) return;
    let position = this.position === this.steps.length - 1 ? -1 : this.position;
    byId("timeline-play").textContent = "Pause";
    this.timer = setInterval(() => {
      position += 1;
      if (position >= this.steps.length) return this.stop();
      this.select(position);
    }, FRAME_MS);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = undefined;
    byId("timeline-play").textContent = "Play";
  }
}
