// Requests to the machine that serves this page, and to no other.

const trouble = document.getElementById("trouble");

async function checked(response) {
  if (response.ok) return response;
  let line = `${response.status} ${response.statusText}`;
  try { line = (await response.json()).error ?? line; } catch { /* not from us */ }
  throw new Error(line);
}

const query = values => new URLSearchParams(Object.entries(values).filter(([, value]) => value !== undefined));

export async function get(path, values = {}) {
  return (await checked(await fetch(`${path}?${query(values)}`))).json();
}

export async function ask(path, body) {
  return checked(await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  }));
}

export async function send(path, values, file) {
  return (await checked(await fetch(`${path}?${query(values)}`, { method: "POST", body: file }))).json();
}

export const pictureOf = values => `/api/picture?${query(values)}`;

// A picture into an <img>; the one before it is let go.
export async function show(image, response) {
  const address = URL.createObjectURL(await response.blob());
  const before = image.src;
  image.src = address;
  await image.decode().catch(() => {});
  if (before.startsWith("blob:")) URL.revokeObjectURL(before);
}

// What went wrong stays until the same thing goes well: that something else works does not mend it.
const complaints = new Map();

export function complain(error, source = "page") {
  const away = error instanceof TypeError;
  complaints.set(source, away ? "The explorer does not answer; is 'infogan explore' still running?" : error.message);
  say();
}

export function calm(source = "page") {
  if (complaints.delete(source)) say();
}

function say() {
  trouble.textContent = [...new Set(complaints.values())].join(" ");
  trouble.hidden = complaints.size === 0;
}

// Only the latest wish counts: while one is being served, later ones replace each other.
export function latest(serve) {
  let busy = false, next = null;
  return async function wish(...values) {
    next = values;
    if (busy) return;
    busy = true;
    while (next) {
      const now = next;
      next = null;
      try { await serve(...now); calm(serve); } catch (error) { complain(error, serve); }
    }
    busy = false;
  };
}

export function element(tag, values = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(values)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// One image out of a row of `count`, as an element's background.
export function sprite(target, picture, index, count) {
  target.style.backgroundImage = `url("${picture}")`;
  target.style.backgroundSize = `${count * 100}% 100%`;
  target.style.backgroundPosition = `${count > 1 ? (index / (count - 1)) * 100 : 0}% 0`;
  return target;
}

export const brief = value => Number.isInteger(value) ? String(value) : String(Number(value.toFixed(3)));
