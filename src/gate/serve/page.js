"use strict";
// The server writes the page; this asks for it again and takes over what has changed, so that names are escaped in one
// place only. What it draws itself it writes as text, never as HTML.

const LIVE_MS = 2000;
const CHARTS_MS = 10000;
const CHARTS_MAX = 8;
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);
let filter = new URLSearchParams(location.search).get("key") ?? "";
let past = null;

function url() {
  const query = new URLSearchParams(location.search);
  query.delete("key");
  if (filter) query.set("key", filter);
  const text = query.toString();
  return text ? `/?${text}` : "/";
}

function lost(why) {
  const note = at("lost");
  if (why && note.hidden) {
    note.textContent = `${why} since ${new Date().toLocaleTimeString()}. What follows is as it was then.`;
  }
  note.hidden = !why;
  document.body.classList.toggle("lost", Boolean(why));
}

async function get(path) {
  return fetch(path, { cache: "no-store", signal: AbortSignal.timeout(10000) });
}

// Replaces the live sections that have changed, and leaves the others alone: what is selected there stays so.
async function live() {
  const asked = filter;
  let fresh;
  try {
    const answer = await get(url());
    fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  } catch {
    lost("No answer from qpatch gate serve");
    return;
  }
  if (asked !== filter) return;
  const parts = fresh.querySelectorAll(".live");
  if (parts.length === 0) {
    lost("Another server answers at this address");
    return;
  }
  lost("");
  document.title = fresh.title;
  document.querySelectorAll(".live").forEach((old, i) => take(old, [...parts[i].children]));
}

function take(old, sections) {
  if (sections.length !== old.children.length) {
    old.replaceChildren(...sections);
    return;
  }
  sections.forEach((section, i) => {
    if (!section.isEqualNode(old.children[i])) old.children[i].replaceWith(section);
  });
}

function element(name, attributes, ...children) {
  const svg = ["svg", "path"].includes(name);
  const made = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const largest = (numbers) => numbers.reduce((most, number) => Math.max(most, number ?? 0), 0);
const last = (numbers) => numbers[numbers.length - 1] ?? 0;

// The area between two lines; a gap where there was no status.
function area(low, high, scale, from) {
  let path = "";
  for (let start = 0; start < high.length; start++) {
    if (high[start] === null) continue;
    let end = start;
    while (end < high.length && high[end] !== null) end++;
    const point = (values) => (x) => `${from + x} ${100 - values[x] * scale} H${from + x + 1}`;
    const back = (x) => `${from + x + 1} ${100 - low[x] * scale} H${from + x}`;
    const xs = Array.from({ length: end - start }, (_, i) => start + i);
    path += `M${xs.map(point(high)).join("L")}L${xs.reverse().map(back).join("L")}Z`;
    start = end;
  }
  return path;
}

function steps(values, scale, from) {
  let path = "";
  values.forEach((value, x) => {
    if (value === null) return;
    const before = x > 0 && values[x - 1] !== null;
    path += `${before ? "L" : "M"}${from + x} ${100 - value * scale}H${from + x + 1}`;
  });
  return path;
}

function chart(track, samplesMax) {
  const { title, running, held, away, limit } = track;
  const from = samplesMax - running.length;
  const both = running.map((value, i) => (value === null ? null : value + held[i]));
  const zeros = running.map(() => 0);
  const box = { viewBox: `0 0 ${samplesMax} 100`, preserveAspectRatio: "none" };
  const mostRunning = largest(both);
  // A limit far above what runs is not drawn: it would flatten the rest.
  const mostLimit = largest(limit.filter((value) => value <= 4 * Math.max(mostRunning, 5)));
  const scale = 96 / Math.max(1, mostRunning, mostLimit);
  const now = `${last(running)} running, ${last(held)} held, ${last(away)} away`;
  const shown = limit.map((value) => (value !== null && value <= mostLimit ? value : null));
  const most = `most ${mostRunning} running or held, ${largest(away)} away`;
  return element("figure", {},
    element("figcaption", {}, element("span", {}, now), title),
    element("svg", { ...box, role: "img", "aria-label": `${title}: ${now}; in the last hour ${most}` },
      element("path", { class: "running", d: area(zeros, running, scale, from) }),
      element("path", { class: "held", d: area(running, both, scale, from) }),
      element("path", { class: "limit", d: steps(shown, scale, from) })),
    element("svg", { ...box, class: "small", "aria-hidden": "true" },
      element("path", { class: "away", d: area(zeros, away, 96 / Math.max(1, largest(away)), from) })),
    element("span", { class: "dim" }, most));
}

function draw() {
  if (!past) return;
  const wanted = filter.toLowerCase();
  const keys = past.keys.filter((track) => track.title.toLowerCase().includes(wanted));
  const tracks = (wanted ? keys : [past.all, ...keys]).slice(0, CHARTS_MAX);
  at("charts").replaceChildren(...tracks.map((track) => chart(track, past.samples_max)));
  at("hour").hidden = tracks.length === 0;
}

async function charts() {
  try {
    past = await (await get("/history.json")).json();
  } catch {
    // The live part says so.
    return;
  }
  draw();
}

// Runs `task` again and again, but not while nobody looks.
function repeat(task, pause) {
  const turn = async () => {
    if (!document.hidden) await task();
    setTimeout(turn, pause);
  };
  turn();
  document.addEventListener("visibilitychange", () => { if (!document.hidden) task(); });
}

const search = document.querySelector("input");
search.addEventListener("input", () => {
  filter = search.value.trim();
  window.history.replaceState(null, "", url());
  live();
  draw();
});
search.form.addEventListener("submit", (event) => event.preventDefault());
repeat(live, LIVE_MS);
repeat(charts, CHARTS_MS);
