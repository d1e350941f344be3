// Requests to the machine that serves this page, and to no other.

async function checked(response) {
  if (response.ok) return response;
  let line = `${response.status} ${response.statusText}`;
  try { line = (await response.json()).error ?? line; } catch { /* not a response of the explorer */ }
  throw new Error(line);
}

const query = values => new URLSearchParams(Object.entries(values).filter(([, value]) => value !== undefined));

export async function getJson(path, values = {}) {
  return (await checked(await fetch(`${path}?${query(values)}`))).json();
}

export async function postJson(path, body) {
  return checked(await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  }));
}

export async function postFile(path, values, file) {
  return (await checked(await fetch(`${path}?${query(values)}`, { method: "POST", body: file }))).json();
}

export const pictureUrl = values => `/api/picture?${query(values)}`;
