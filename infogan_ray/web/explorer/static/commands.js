// The samples on the screen as a shell command and as Python.

import { byId } from "./dom.js";

export function showCommands(path, values, controls, seed) {
  const held = Object.entries(values).map(([code, value]) => [controls.flag(code), value]);
  const words = held.map(([flag, value]) => /^[\w.-]+$/.test(flag) ? `${flag}=${value}` : `'${flag.replaceAll("'", "'\\''")}=${value}'`);
  const set = words.length ? ` --set ${words.join(" ")}` : "";
  byId("shell").textContent = `infogan sample ${path} -n 64${set} --seed ${seed} -o samples.png`;
  const plain = path.startsWith("'") ? path.slice(1, -1).replaceAll("'\"'\"'", "'") : path;
  const codes = held.map(([flag, value]) => `${JSON.stringify(flag)}: ${value}`).join(", ");
  byId("python").textContent = `infogan_ray.load(${JSON.stringify(plain)}).sample(64, codes={${codes}}, seed=${seed})`;
}

export async function copy(button) {
  const source = byId(button.dataset.of);
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {  // not allowed without https away from this machine
    const range = document.createRange();
    range.selectNodeContents(source);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}
