// The controls of the codes: a slider, or a button for each value; free, or held at a value; and a name.

import { ask, brief, calm, complain, element } from "./api.js";

export class Codes {
  // `changed` is called when a value was changed, `named` when a code has got another name.
  constructor(room, changed, named) {
    this.room = room;
    this.changed = changed;
    this.named = named;
    this.values = {};
    this.about = [];
  }

  build(id, about, metrics, values) {
    this.id = id;
    this.about = about;
    this.values = {};
    for (const code of about) if (code.code in values) this.values[code.code] = values[code.code];
    this.parts = new Map();
    this.room.replaceChildren(...about.map(code => this.fieldset(code)));
    this.measured(metrics);
    this.refresh();
  }

  fieldset(code) {
    const name = element("input", {
      type: "text", value: code.name, placeholder: "give it a name", maxLength: 40, spellcheck: false, autocomplete: "off",
      ariaLabel: `Name of ${code.code}`,
    });
    name.addEventListener("change", () => this.rename(code, name));
    name.addEventListener("keydown", event => { if (event.key === "Enter") name.blur(); });
    const meter = element("meter", { min: 0, max: code.ceiling, value: 0, ariaLabel: `Bound of ${code.code}` });
    const words = element("span");
    const control = code.control === "slider" ? this.slider(code) : this.choices(code);
    const set = element("fieldset", {},
      element("div", { className: "code-head" }, element("b", { title: code.prior }, code.code), name),
      element("div", { className: "bound" }, meter, words), control.whole);
    const call = () => {
      set.setAttribute("aria-label", this.title(code));
      control.call(this.title(code));
    };
    call();
    this.parts.set(code.code, { ...control, meter, words, call });
    return set;
  }

  slider(code) {
    const [low, high] = code.reach;
    const input = element("input", {
      type: "range", min: low, max: high, step: (high - low) / 200, value: (low + high) / 2,
    });
    const output = element("output");
    const free = element("input", { type: "checkbox" });
    input.addEventListener("input", () => this.set(code.code, Number(input.value)));
    free.addEventListener("change", () => this.set(code.code, free.checked ? undefined : Number(input.value)));
    const track = element("div", { className: "track" }, input);
    const whole = element("div", { className: "slide" }, track, output, element("label", {}, free, " free"));
    const refresh = value => {
      free.checked = value === undefined;
      if (value !== undefined) input.value = value;
      output.textContent = value === undefined ? "" : value.toFixed(2);
      input.setAttribute("aria-valuetext", value === undefined ? "free" : output.textContent);
    };
    const call = title => {
      input.setAttribute("aria-label", title);
      free.setAttribute("aria-label", `${title} free`);
    };
    return { whole, refresh, call };
  }

  choices(code) {
    const whole = element("div", { className: "choices", role: "radiogroup" });
    const inputs = [undefined, ...code.choices].map(value => {
      const words = value === undefined ? "free" : String(value);
      const input = element("input", { type: "radio", name: code.code });
      input.addEventListener("change", () => this.set(code.code, value));
      whole.append(element("label", {}, input, element("span", {}, words)));
      return { input, value, words };
    });
    const refresh = value => inputs.forEach(one => { one.input.checked = one.value === value; });
    const call = title => {
      whole.setAttribute("aria-label", title);
      inputs.forEach(one => one.input.setAttribute("aria-label", `${title} ${one.words}`));
    };
    return { whole, refresh, call };
  }

  async rename(code, input) {
    try {
      const answer = await ask("/api/names", { id: this.id, names: { [code.code]: input.value } });
      const { names } = await answer.json();
      for (const one of this.about) one.name = names[one.code] ?? "";
      input.value = code.name;
      this.parts.get(code.code).call();
      calm("names");
      this.named();
    } catch (error) {
      input.value = code.name;
      complain(error, "names");
    }
  }

  measured(metrics) {
    for (const code of this.about) {
      const { meter, words } = this.parts.get(code.code), bound = metrics[`mi/${code.code}`];
      meter.value = Math.max(0, bound ?? 0);
      words.textContent = bound === undefined ? `not measured; at most ${code.ceiling.toFixed(2)}`
        : `${bound.toFixed(2)} of ${code.ceiling.toFixed(2)} nats`;
    }
  }

  title(code) { return code.name ? `${code.name} (${code.code})` : code.code; }

  set(code, value) {
    if (value === undefined) delete this.values[code];
    else this.values[code] = value;
    this.refresh();
    this.changed();
  }

  setAll(values) {
    this.values = { ...values };
    this.refresh();
    this.changed();
  }

  refresh() {
    for (const code of this.about) this.parts.get(code.code).refresh(this.values[code.code]);
  }

  // The name in flags where there is one, else the code's own.
  flag(code) { return this.about.find(one => one.code === code)?.name || code; }

  inWords(values = this.values) {
    const parts = Object.entries(values).map(([code, value]) => `${this.flag(code)}=${brief(value)}`);
    return parts.join(", ") || "all codes free";
  }
}
