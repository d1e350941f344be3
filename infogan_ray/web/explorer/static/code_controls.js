// The controls of the codes. Each has a name, and a slider or a button for each value; it is free, or held at a value.

import { postJson } from "./api.js";
import { clearError, element, formatNumber, showError } from "./dom.js";

export class CodeControls {
  // `onChange` is called after a change of a value, `onRename` after a change of a name.
  constructor(container, onChange, onRename) {
    this.container = container;
    this.onChange = onChange;
    this.onRename = onRename;
    this.values = {};
    this.codes = [];
  }

  build(id, codes, metrics, values) {
    this.id = id;
    this.codes = codes;
    this.values = {};
    for (const code of codes) if (code.code in values) this.values[code.code] = values[code.code];
    this.controls = new Map();
    this.container.replaceChildren(...codes.map(code => this.fieldset(code)));
    this.showBounds(metrics);
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
    const control = code.family === "continuous" ? this.slider(code) : this.choices(code);
    const set = element("fieldset", {},
      element("div", { className: "code-head" }, element("b", { title: code.prior }, code.code), name),
      element("div", { className: "bound" }, meter, words), control.root);
    const setLabel = () => {
      set.setAttribute("aria-label", this.title(code));
      control.setLabel(this.title(code));
    };
    setLabel();
    this.controls.set(code.code, { ...control, meter, words, setLabel });
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
    const root = element("div", { className: "slide" }, track, output, element("label", {}, free, " free"));
    const refresh = value => {
      free.checked = value === undefined;
      if (value !== undefined) input.value = value;
      output.textContent = value === undefined ? "" : value.toFixed(2);
      input.setAttribute("aria-valuetext", value === undefined ? "free" : output.textContent);
    };
    const setLabel = title => {
      input.setAttribute("aria-label", title);
      free.setAttribute("aria-label", `${title} free`);
    };
    return { root, refresh, setLabel };
  }

  choices(code) {
    const root = element("div", { className: "choices", role: "radiogroup" });
    const inputs = [undefined, ...Array(code.k).keys()].map(value => {
      const words = value === undefined ? "free" : String(value);
      const input = element("input", { type: "radio", name: code.code });
      input.addEventListener("change", () => this.set(code.code, value));
      root.append(element("label", {}, input, element("span", {}, words)));
      return { input, value, words };
    });
    const refresh = value => inputs.forEach(one => { one.input.checked = one.value === value; });
    const setLabel = title => {
      root.setAttribute("aria-label", title);
      inputs.forEach(one => one.input.setAttribute("aria-label", `${title} ${one.words}`));
    };
    return { root, refresh, setLabel };
  }

  async rename(code, input) {
    try {
      const response = await postJson("/api/names", { id: this.id, names: { [code.code]: input.value } });
      const { names } = await response.json();
      for (const one of this.codes) one.name = names[one.code] ?? "";
      input.value = code.name;
      this.controls.get(code.code).setLabel();
      clearError("names");
      this.onRename();
    } catch (error) {
      input.value = code.name;
      showError(error, "names");
    }
  }

  showBounds(metrics) {
    for (const code of this.codes) {
      const { meter, words } = this.controls.get(code.code), bound = metrics[`mi/${code.code}`];
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
    this.onChange();
  }

  setAll(values) {
    this.values = { ...values };
    this.refresh();
    this.onChange();
  }

  refresh() {
    for (const code of this.codes) this.controls.get(code.code).refresh(this.values[code.code]);
  }

  // What the code is called in a command: its given name, else its own.
  flag(code) { return this.codes.find(one => one.code === code)?.name || code; }

  describe(values = this.values) {
    const parts = Object.entries(values).map(([code, value]) => `${this.flag(code)}=${formatNumber(value)}`);
    return parts.join(", ") || "all codes free";
  }
}
