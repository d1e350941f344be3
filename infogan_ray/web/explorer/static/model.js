// One model: its samples, what each code does, walks, real images, and the same as a command.

import { ask, brief, calm, complain, element, get, latest, pictureOf, send, show, sprite } from "./api.js";
import { Codes } from "./codes.js";

const by = id => document.getElementById(id);
const COLUMNS = 8, STEPS = 33, FRAME_MS = 80, LOOK_AGAIN_MS = 10000;

export class Model {
  constructor(remember) {
    this.remember = remember;
    this.codes = new Codes(by("controls"), () => this.moved(), () => this.draw());
    this.drawA = latest(() => this.grid(by("grid-a"), this.id, this.checkpoint, this.step));
    this.drawB = latest(() => this.grid(by("grid-b"), this.besideId, this.besideCheckpoint));
    this.drawStrips = latest(() => this.strips());
    this.drawWalk = latest(() => this.walk());
    this.bind();
  }

  bind() {
    by("free-all").addEventListener("click", () => this.codes.setAll({}));
    by("lock").addEventListener("click", () => this.lock(!this.locked));
    by("roll").addEventListener("click", () => this.roll());
    by("seed").addEventListener("change", () => this.reseed(Number(by("seed").value)));
    by("hold").addEventListener("click", () => this.hold());
    by("set-a").addEventListener("click", () => this.end("start"));
    by("set-b").addEventListener("click", () => this.end("end"));
    by("walk-at").addEventListener("input", () => this.stand(Number(by("walk-at").value)));
    by("walk-play").addEventListener("click", () => this.playWalk());
    by("scrub").addEventListener("input", () => this.scrub(Number(by("scrub").value)));
    by("play").addEventListener("click", () => this.playTime());
    by("beside").addEventListener("change", () => this.beside(by("beside").value));
    by("beside-checkpoint").addEventListener("change", () => this.besideAt(by("beside-checkpoint").value));
    by("upload").addEventListener("change", event => this.upload(event.target.files[0]));
    by("shuffle").addEventListener("click", () => this.real(Math.floor(Math.random() * 1e9)));
    by("take").addEventListener("click", () => this.codes.setAll(this.read));
    document.querySelectorAll(".copy").forEach(button => button.addEventListener("click", () => copy(button)));
    const frame = by("grid-a").querySelector(".frame");
    frame.addEventListener("click", event => {
      const box = frame.getBoundingClientRect();
      const at = part => Math.min(COLUMNS - 1, Math.max(0, Math.floor(part * COLUMNS)));
      this.choose(at((event.clientY - box.top) / box.height) * COLUMNS + at((event.clientX - box.left) / box.width));
    });
    frame.addEventListener("keydown", event => {
      const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -COLUMNS, ArrowDown: COLUMNS }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      this.choose((this.index + move + 64) % 64);
    });
    for (const zone of [by("real"), by("model")]) {
      zone.addEventListener("dragover", event => event.preventDefault());
      zone.addEventListener("drop", event => {
        event.preventDefault();
        event.stopPropagation();
        if (event.dataTransfer.files.length) this.upload(event.dataTransfer.files[0]);
      });
    }
    document.addEventListener("keydown", event => this.key(event));
    setInterval(() => this.lookAgain(), LOOK_AGAIN_MS);
  }

  key(event) {
    if (by("model").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input[type=text], input[type=number], input[type=search], select")) return;
    const does = {
      r: () => this.roll(), l: () => this.lock(!this.locked), h: () => this.hold(), a: () => this.end("start"),
      b: () => this.end("end"), p: () => this.playTime(), "[": () => this.goStep(-1), "]": () => this.goStep(1),
    }[event.key.toLowerCase()];
    if (does) { event.preventDefault(); does(); }
  }

  // Opening ---------------------------------------------------------------------------------------------------------

  async open(id, wanted) {
    this.stopPlaying();
    this.about = await get("/api/model", { id });
    this.id = id;
    this.locked = true;
    this.seed = wanted.seed ?? 0;
    this.index = 0;
    this.at = null;
    this.ends = {};
    this.besideId = undefined;
    const checkpoint = wanted.checkpoint ?? this.about.best;
    if (this.about.best === null) {
      by("model").hidden = true;
      throw new Error(`${this.about.title} (${this.about.state}) has no checkpoint yet; this page looks again by itself`);
    }
    this.timeline();
    const metrics = this.metricsOf(checkpoint);
    this.codes.build(id, this.about.codes, metrics, wanted.codes ?? {});
    by("seed").value = this.seed;
    this.lock(true);
    this.say();
    by("walk").hidden = by("understood").hidden = true;
    by("walk-play").disabled = true;
    by("grid-b").hidden = true;
    this.goTo(checkpoint);
    this.others();
    this.real(0);
  }

  metricsOf(checkpoint) {
    return this.about.checkpoints.find(one => one.name === checkpoint)?.metrics ?? {};
  }

  say() {
    const { about } = this, parts = [about.state, `step ${about.step.toLocaleString("en")}`];
    if (about.size) parts.push(`${about.size} x ${about.size} x ${about.channels}`, `${about.noise} noise variables`);
    by("state").textContent = parts.join(", ");
    if (about.report) by("state").append(" ", element("a", { href: `/report?id=${encodeURIComponent(about.id)}`, target: "_blank" }, "report"));
  }

  // Every step with a checkpoint or a picture of its samples; what has no weights any more shows the picture.
  timeline() {
    const steps = new Map(this.about.pictures.map(step => [step, null]));
    for (const one of this.about.checkpoints) if (one.name) steps.set(one.step, one.name);
    this.times = [...steps].sort((one, other) => one[0] - other[0]);
    by("time").hidden = this.times.length < 2;
    by("scrub").max = this.times.length - 1;
  }

  goTo(checkpoint) {
    this.checkpoint = checkpoint;
    this.step = undefined;
    const place = this.times.findIndex(([, name]) => name === checkpoint);
    if (place >= 0) this.place(place);
    this.codes.measured(this.metricsOf(checkpoint));
    this.moved();
  }

  place(place) {
    const [step, name] = this.times[place];
    by("scrub").value = place;
    const best = name !== null && name === this.about.best ? ", the best" : name === null ? ", picture only" : "";
    by("scrub-step").textContent = `${step.toLocaleString("en")}${best}`;
    by("scrub").setAttribute("aria-valuetext", `step ${by("scrub-step").textContent}`);
  }

  scrub(place) {
    const [step, name] = this.times[place];
    this.place(place);
    if (name !== null) return this.goTo(name);
    this.step = step;
    this.drawA();
    this.commands();
  }

  goStep(by_) {
    if (this.times.length < 2) return;
    this.scrub(Math.min(this.times.length - 1, Math.max(0, Number(by("scrub").value) + by_)));
  }

  playTime() {
    if (this.playing) return this.stopPlaying();
    if (this.times.length < 2) return;
    let place = Number(by("scrub").value);
    if (place === this.times.length - 1) place = -1;
    by("play").textContent = "Pause";
    this.playing = setInterval(() => {
      place += 1;
      if (place >= this.times.length) return this.stopPlaying();
      this.scrub(place);
    }, 500);
  }

  stopPlaying() {
    clearInterval(this.playing);
    clearInterval(this.walking);
    this.playing = this.walking = undefined;
    by("play").textContent = by("walk-play").textContent = "Play";
  }

  // A run that still trains has more checkpoints by and by.
  async lookAgain() {
    if (by("model").hidden || !this.about || !["running", "starting"].includes(this.about.state)) return;
    try {
      const now = await get("/api/model", { id: this.id }), known = this.about.checkpoints.length;
      const at = this.times[Number(by("scrub").value)]?.[0];
      now.codes = this.about.codes;
      this.about = now;
      this.say();
      this.timeline();
      const place = this.times.findIndex(([step]) => step === at);
      if (place >= 0) this.place(place);
      if (now.checkpoints.length !== known) this.others();
    } catch (error) { complain(error); }
  }

  // What is on the screen ---------------------------------------------------------------------------------------------

  moved() {
    if (!this.locked) this.seed = Math.floor(Math.random() * 1e9);
    by("seed").value = this.seed;
    this.draw();
  }

  draw() {
    this.drawA();
    if (this.besideId !== undefined) this.drawB();
    this.drawStrips();
    this.commands();
    this.remember({ id: this.id, checkpoint: this.checkpoint, seed: this.seed, codes: this.codes.values });
  }

  async grid(figure, id, checkpoint, step) {
    const image = figure.querySelector("img"), caption = figure.querySelector("figcaption");
    if (step !== undefined) {
      image.src = pictureOf({ id, step });
      caption.textContent = `step ${step.toLocaleString("en")}: as drawn then with its own codes; its weights are pruned`;
      return;
    }
    const words = this.codes.inWords(), { seed } = this;
    await show(image, await ask("/api/grid", { id, checkpoint, codes: this.codes.values, seed }));
    const where = [id || this.about.title, checkpoint.replace("step_", "step ").replace(/ 0+/, " ")].filter(Boolean).join(", ");
    image.alt = `64 samples of ${where} with ${words}, seed ${seed}`;
    image.dataset.drawn = JSON.stringify({ codes: this.codes.values, seed, checkpoint });
    caption.textContent = `${where}: ${words}`;
  }

  lock(locked) {
    this.locked = locked;
    by("lock").setAttribute("aria-pressed", locked);
    by("lock").textContent = locked ? "z locked" : "z unlocked";
  }

  roll() { this.reseed(Math.floor(Math.random() * 1e9)); }

  reseed(seed) {
    this.seed = Number.isInteger(seed) && seed >= 0 && seed < 1e9 ? seed : 0;
    by("seed").value = this.seed;
    this.draw();
  }

  choose(index) {
    this.index = index;
    this.mark();
    this.drawStrips();
  }

  mark() {
    const mark = by("grid-a").querySelector(".mark");
    mark.hidden = false;
    mark.style.left = `${(this.index % COLUMNS) * 12.5}%`;
    mark.style.top = `${Math.floor(this.index / COLUMNS) * 12.5}%`;
  }

  point() { return { codes: this.codes.values, seed: this.seed, index: this.index }; }

  async strips() {
    this.mark();
    const { id, checkpoint } = this;
    const found = await (await ask("/api/strips", { id, checkpoint, at: this.point() })).json();
    this.at = found.at;
    by("chosen").textContent = `Chosen: image ${this.index + 1} of 64, ${this.codes.inWords(found.at)}`;
    const focused = document.activeElement?.dataset?.strip;
    by("strips").replaceChildren(...found.strips.map(strip => this.strip(strip, found.at[strip.code])));
    if (focused) by("strips").querySelector(`[data-strip="${focused}"]`)?.focus({ preventScroll: true });
  }

  strip({ code, values, picture }, here) {
    const about = this.codes.about.find(one => one.code === code), images = element("div", { className: "strip-images" });
    const nearest = values.reduce((best, value, i) => Math.abs(value - here) < Math.abs(values[best] - here) ? i : best, 0);
    values.forEach((value, i) => {
      const out = about.inside && (value < about.inside[0] - 1e-6 || value > about.inside[1] + 1e-6);
      const words = `${this.codes.title(about)} ${brief(value)}`;
      const button = element("button", {
        type: "button", ariaLabel: words, title: out ? `${words}, outside the prior` : words, className: out ? "out" : "",
        ariaCurrent: String(i === nearest), onclick: () => this.codes.set(code, value),
      }, sprite(element("span", { className: "sprite" }), picture, i, values.length), brief(value));
      button.dataset.strip = `${code} ${i}`;
      images.append(button);
    });
    return element("div", { className: "strip", role: "group", ariaLabel: this.codes.title(about) },
      element("span", {}, this.codes.title(about)), images);
  }

  hold() { if (this.at) this.codes.setAll(this.at); }

  // Two beside each other ---------------------------------------------------------------------------------------------

  async others() {
    const before = by("beside").value;
    const options = [["", "nothing"], ...(this.about.checkpoints.length > 1 ? [["=", "another checkpoint of it"]] : [])];
    if (this.id !== "") {
      try {
        const above = this.id.includes("/trials/") ? this.id.split("/trials/")[0] : "";
        const library = await get("/api/library", { id: above });
        for (const row of library.rows) if (row.id !== this.id && row.kind !== "search") options.push([row.id, row.name]);
      } catch (error) { complain(error); }
    }
    by("beside").replaceChildren(...options.map(([value, words]) => new Option(words, value)));
    by("beside").value = options.some(([value]) => value === before) && this.besideId !== undefined ? before : "";
  }

  async beside(which) {
    const choice = by("beside-checkpoint");
    if (which === "") {
      this.besideId = undefined;
      by("grid-b").hidden = choice.hidden = true;
      return;
    }
    try {
      const about = which === "=" ? this.about : await get("/api/model", { id: which });
      if (about.best === null) throw new Error(`${about.title} has no checkpoint yet`);
      const names = about.checkpoints.map(one => one.name);
      choice.replaceChildren(...about.checkpoints.map(one => new Option(`step ${one.step.toLocaleString("en")}`, one.name)));
      choice.hidden = names.length < 2;
      choice.value = which === "=" ? names[0] : about.best;
      this.besideId = about.id;
      this.besideAt(choice.value);
      calm();
    } catch (error) { complain(error); }
  }

  besideAt(checkpoint) {
    this.besideCheckpoint = checkpoint;
    by("grid-b").hidden = false;
    this.drawB();
  }

  // Walks -------------------------------------------------------------------------------------------------------------

  end(which) {
    if (!this.at) return;
    this.ends[which] = { codes: this.at, seed: this.seed, index: this.index };
    const { start, end } = this.ends;
    by("set-a").setAttribute("aria-pressed", Boolean(start));
    by("set-b").setAttribute("aria-pressed", Boolean(end));
    by("walk-note").textContent = `A: ${start ? this.codes.inWords(start.codes) : "not set"}. B: ${end ? this.codes.inWords(end.codes) : "not set"}.`;
    if (start && end) this.drawWalk();
  }

  async walk() {
    const { id, checkpoint } = this;
    const walk = { start: this.ends.start, end: this.ends.end, columns: STEPS };
    const blob = await (await ask("/api/walk", { id, checkpoint, walk })).blob();
    this.walkPicture = await new Promise(done => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result);
      reader.readAsDataURL(blob);
    });
    const few = [0, 4, 8, 12, 16, 20, 24, 28, 32];
    by("walk-strip").replaceChildren(...few.map(i => sprite(element("div", { className: "sprite" }), this.walkPicture, i, STEPS)));
    by("walk").hidden = false;
    by("walk-play").disabled = false;
    this.stand(Number(by("walk-at").value));
  }

  stand(place) {
    by("walk-at").value = place;
    sprite(by("walk-now"), this.walkPicture, place, STEPS);
    by("walk-now").setAttribute("aria-label", `Image at ${Math.round((place / (STEPS - 1)) * 100)}% of the way from A to B`);
  }

  playWalk() {
    if (this.walking) return this.stopPlaying();
    let place = Number(by("walk-at").value), way = place === STEPS - 1 ? -1 : 1;
    by("walk-play").textContent = "Pause";
    this.walking = setInterval(() => {
      place += way;
      if (place <= 0 || place >= STEPS - 1) way = -way;
      this.stand(Math.min(STEPS - 1, Math.max(0, place)));
    }, FRAME_MS);
  }

  // Real images -------------------------------------------------------------------------------------------------------

  async real(seed) {
    const room = by("real-images"), can = this.about.real;
    room.replaceChildren();
    by("shuffle").hidden = Boolean(can.why);
    by("real-note").textContent = can.why ?? `or pick one of ${can.data}`;
    if (can.why) return;
    try {
      const found = await get("/api/real", { id: this.id, checkpoint: this.checkpoint, seed });
      found.indices.forEach((index, i) => {
        const label = found.labels ? `, label ${found.labels[i]}` : "";
        const button = element("button", { type: "button", ariaLabel: `Real image ${index}${label}`, title: `image ${index}${label}` });
        button.setAttribute("aria-pressed", "false");
        button.append(sprite(element("span", { className: "sprite" }), found.picture, i, found.indices.length));
        button.addEventListener("click", () => {
          room.querySelectorAll("button").forEach(one => one.setAttribute("aria-pressed", String(one === button)));
          this.pick(index);
        });
        room.append(button);
      });
    } catch (error) { complain(error); }
  }

  async pick(index) {
    try {
      const { id, checkpoint, seed } = this;
      const said = await (await ask("/api/pick", { id, checkpoint, index, seed })).json();
      this.understood(said, said.label === null ? `image ${index}` : `image ${index}, label ${said.label}`);
      calm();
    } catch (error) { complain(error); }
  }

  async upload(file) {
    if (!file) return;
    try {
      const { id, checkpoint, seed } = this;
      this.understood(await send("/api/encode", { id, checkpoint, seed }, file), file.name);
      calm();
    } catch (error) { complain(error); }
    by("upload").value = "";
  }

  understood(said, words) {
    this.read = said.codes;
    by("original").src = said.picture;
    by("original").alt = `The real image (${words}) as the model sees it`;
    by("original-note").textContent = `${words}, as the model sees it`;
    by("again").src = said.again;
    by("again").alt = `Eight images made of ${this.codes.inWords(said.codes)}`;
    const rows = this.codes.about.flatMap(code => said.rows[code.code].map(row => this.reading(code, row)));
    by("reading").replaceChildren(element("table", {}, element("tbody", {}, ...rows)));
    by("understood").hidden = false;
  }

  reading(code, { label, share, words }) {
    const title = `${this.codes.title(code)}${label}`;
    return element("tr", {},
      element("th", { scope: "row" }, title),
      element("td", {}, element("meter", { min: 0, max: 1, value: share, ariaLabel: `${title} ${words}` })), element("td", {}, words));
  }

  // Commands ----------------------------------------------------------------------------------------------------------

  commands() {
    const path = this.about.checkpoints.find(one => one.name === this.checkpoint)?.path ?? "MODEL";
    const held = Object.entries(this.codes.values).map(([code, value]) => [this.codes.flag(code), value]);
    const words = held.map(([flag, value]) => /^[\w.-]+$/.test(flag) ? `${flag}=${value}` : `'${flag.replaceAll("'", "'\\''")}=${value}'`);
    const set = words.length ? ` --set ${words.join(" ")}` : "";
    by("shell").textContent = `infogan sample ${path} -n 64${set} --seed ${this.seed} -o samples.png`;
    const plain = path.startsWith("'") ? path.slice(1, -1).replaceAll("'\"'\"'", "'") : path;
    const codes = held.map(([flag, value]) => `${JSON.stringify(flag)}: ${value}`).join(", ");
    by("python").textContent = `infogan_ray.load(${JSON.stringify(plain)}).sample(64, codes={${codes}}, seed=${this.seed})`;
  }
}

async function copy(button) {
  const text = by(button.dataset.of).textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // not allowed without https away from this machine
    const range = document.createRange();
    range.selectNodeContents(by(button.dataset.of));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}
