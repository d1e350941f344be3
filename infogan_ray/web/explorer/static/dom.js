// Elements of the page: finding and creating them, pictures in them, and the line of errors.

export const byId = id => document.getElementById(id);

export function element(tag, values = {}, ...children) {
  const created = document.createElement(tag);
  for (const [name, value] of Object.entries(values)) {
    if (name.startsWith("on")) created.addEventListener(name.slice(2), value);
    else if (name in created && name !== "list") created[name] = value;
    else created.setAttribute(name, value);
  }
  created.append(...children);
  return created;
}

// Shows the picture of a response in an <img>, and releases the one before it.
export async function showPicture(image, response) {
  const address = URL.createObjectURL(await response.blob());
  const before = image.src;
  image.src = address;
  await image.decode().catch(() => {});
  if (before.startsWith("blob:")) URL.revokeObjectURL(before);
}

// One image out of a row of `count`, as an element's background.
export function sprite(target, picture, index, count) {
  target.style.backgroundImage = `url("${picture}")`;
  target.style.backgroundSize = `${count * 100}% 100%`;
  target.style.backgroundPosition = `${count > 1 ? (index / (count - 1)) * 100 : 0}% 0`;
  return target;
}

export const formatNumber = value => Number.isInteger(value) ? String(value) : String(Number(value.toFixed(3)));

// Errors by their source. An error is shown until its own source succeeds.
const errors = new Map();

export function showError(error, source = "page") {
  const unreachable = error instanceof TypeError;
  errors.set(source, unreachable ? "The explorer does not answer; is 'infogan explore' still running?" : error.message);
  writeErrors();
}

export function clearError(source = "page") {
  if (errors.delete(source)) writeErrors();
}

function writeErrors() {
  byId("error").textContent = [...new Set(errors.values())].join(" ");
  byId("error").hidden = errors.size === 0;
}

// A function that runs `update` once at a time. While it runs, only the latest further call is kept.
export function latestOnly(update) {
  let busy = false, next = null;
  return async function request(...values) {
    next = values;
    if (busy) return;
    busy = true;
    while (next) {
      const current = next;
      next = null;
      try { await update(...current); clearError(update); } catch (error) { showError(error, update); }
    }
    busy = false;
  };
}
