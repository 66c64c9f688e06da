"use strict";
// The page of `asrlora compare`. Everything shown comes from #data; the view lives in the address (#…), so that a
// copied link shows what its sender saw. Names come from people's folders: they are set as text, never as markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SETS = ["domain", "heldout"];
const STATES = ["accept", "inconclusive", "reject", "complete", "running", "preempted", "failed"];
const SYMBOLS = { accept: "circle", inconclusive: "diamond", reject: "x", failed: "x-open" };
const CLASSES = 8; // colours; more values than that share one with their neighbours, more runs are told by verdict
const ERROR_BARS = 40; // runs; more crosses than that hide each other
const FOREST = 24; // rows of the figure of all against one
const DARK = matchMedia("(prefers-color-scheme: dark)");
// Okabe and Ito 2008, told apart by colour-blind eyes; viridis for what has an order, lighter on a dark page
const UNORDERED = ["#2f86c9", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#7f7f7f"];
const ORDERED = ["#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#8fd744", "#e3c812"];
const ORDERED_ON_DARK = ["#a07be0", "#7490e0", "#4fa3d1", "#31b5b0", "#3cc48a", "#7cd35c", "#b5de2b", "#fde725"];

const $ = (id) => document.getElementById(id);
const percent = (x) => (x == null ? "–" : (100 * x).toFixed(2));
const signed = (x) => (x == null ? "–" : (x >= 0 ? "+" : "−") + Math.abs(100 * x).toFixed(2));
const shown = (x) => (x == null || (Array.isArray(x) && !x.length) ? "–" : Array.isArray(x) ? x.join(", ")
  : typeof x === "number" && x !== 0 && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e6) ? x.toExponential().replace("e+", "e")
  : String(x));
const brief = (x) => shown(x).replace(/\b([0-9a-f]{12})[0-9a-f]{52}\b/g, "$1…"); // a sha256
/** A setting as plots take it: a number, or the text of anything else. */
const setting = (run, name) => (typeof run.settings[name] === "number" ? run.settings[name] : shown(run.settings[name]));
const between = (ends, format) => (ends ? ` [${format(ends[0])}, ${format(ends[1])}]` : "");

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// ---- the view and the address

const EMPTY = { g: 0, q: "", off: [], sort: "", dir: 1, hide: [], colour: "", x: "", a: "", b: "", pick: "" };
let view = { ...EMPTY };
let group, rows; // the group that is looked at, and its table rows by run

function fromAddress() {
  const found = new URLSearchParams(location.hash.slice(1));
  view = { ...EMPTY };
  for (const [key, value] of found) {
    if (!(key in EMPTY)) continue;
    view[key] = Array.isArray(EMPTY[key]) ? [...view[key], value] : typeof EMPTY[key] === "number" ? Number(value) : value;
  }
  view.g = DATA.groups[view.g] ? view.g : 0;
}

function toAddress() {
  const words = new URLSearchParams();
  for (const [key, value] of Object.entries(view)) {
    if (Array.isArray(value)) value.forEach((one) => words.append(key, one));
    else if (value !== EMPTY[key]) words.set(key, value);
  }
  history.replaceState(null, "", words.size ? "#" + words : location.pathname + location.search);
}

let waiting = 0;
function change(changes) {
  Object.assign(view, changes);
  toAddress();
  showTable();
  if (Object.keys(changes).every((key) => key === "sort" || key === "dir")) return; // no plot knows the order
  document.body.setAttribute("aria-busy", "true");
  clearTimeout(waiting);
  waiting = setTimeout(drawAll, 80); // the table follows every key at once, the plots follow the typist's pauses
}

// ---- which runs

const matches = (run) => {
  const text = [run.name, run.state, run.why, ...group.columns.map((c) => `${c}=${shown(run.settings[c])}`)];
  return view.q.toLowerCase().split(/\s+/).every((word) => text.join(" ").toLowerCase().includes(word));
};
const listed = () => group.runs.filter((run) => !view.off.includes(run.state) && matches(run));
const drawn = () => listed().filter((run) => !view.hide.includes(run.name));
const byName = (name) => group.runs.find((run) => run.name === name);
const scored = (run) => run.scores.domain;
// best first is the order that the page comes in
const best = () => group.runs.find((run) => scored(run) && group.paired.includes(run.name));

/** B's rate minus A's on one set: {change, interval}, or null where there are no hypotheses. */
function pair(set, a, b) {
  let [i, j] = [group.paired.indexOf(a), group.paired.indexOf(b)];
  if (i < 0 || j < 0 || !group.pairs[set]) return null;
  if (i === j) return { change: 0, interval: [0, 0] };
  const sign = i < j ? 1 : -1;
  if (i > j) [i, j] = [j, i];
  const n = group.paired.length;
  const [change, low, high] = group.pairs[set][i * n - (i * (i + 1)) / 2 + (j - i - 1)];
  return { change: sign * change, interval: sign > 0 ? [low, high] : [-high, -low] };
}
const settled = (found) => found.interval[0] > 0 || found.interval[1] < 0;

// ---- the table

function columns() {
  const score = (set, key) => (run) => run.scores[set]?.[key];
  const found = [
    { key: "name", label: "run", value: (r) => r.name },
    { key: "state", label: "verdict", value: (r) => STATES.indexOf(r.state), text: (r) => r.state },
    ...group.columns.map((c) => ({ key: c, label: c, value: (r) => r.settings[c], text: (r) => shown(r.settings[c]) })),
  ];
  for (const set of group.sets) {
    const key = SETS.includes(set) ? set : `guardrail-${set}`; // else a guardrail could be called like a setting
    found.push({ key, label: `${set} ${group.metric}, %`, number: true, value: score(set, "rate"),
      text: (r) => (r.scores[set] ? `${percent(r.scores[set].baseline)} → ${percent(r.scores[set].rate)}` : "–"),
      interval: (r) => between(r.scores[set]?.interval, percent) });
    found.push({ key: key + "-change", label: "change, points", number: true, value: score(set, "change"),
      text: (r) => signed(r.scores[set]?.change), interval: (r) => between(r.scores[set]?.change_interval, signed) });
  }
  const first = best();
  if (first && group.paired.length > 2) {
    const against = (r) => pair("domain", first.name, r.name);
    found.push({ key: "best", label: `domain, against ${first.name}`, number: true, value: (r) => against(r)?.change,
      text: (r) => (r === first ? "best" : against(r) ? signed(against(r).change) : "–"),
      interval: (r) => (r === first || !against(r) ? "" : settled(against(r)) ? between(against(r).interval, signed) : " not settled") });
  }
  found.push(
    { key: "best_step", label: "best step", number: true, value: (r) => r.best_step,
      text: (r) => r.best_step + (r.learned_step == null ? "" : ` (shown: ${r.learned_step})`) },
    { key: "done", label: "steps done", number: true, value: (r) => r.done, text: (r) => String(r.done) },
    { key: "seconds", label: "minutes", number: true, value: (r) => r.seconds,
      text: (r) => (r.seconds == null ? "–" : (r.seconds / 60).toFixed(1)) },
    { key: "why", label: "why", value: (r) => r.why, text: (r) => r.why },
    { key: "report", label: "report", value: (r) => r.report ?? "", text: () => "" },
  );
  return found;
}

function buildTable() {
  const head = $("runs").tHead.rows[0];
  head.replaceChildren(...columns().map((c) => make("th", { scope: "col", class: c.key === "name" ? "name" : null, "data-key": c.key },
    make("button", { type: "button", onclick: () => change(view.sort !== c.key ? { sort: c.key, dir: 1 }
      : view.dir > 0 ? { dir: -1 } : { sort: "", dir: 1 }) }, c.label))));
  rows = new Map(group.runs.map((run) => [run, buildRow(run)]));
}

function buildRow(run) {
  const cells = columns().map((c) => {
    if (c.key === "name") {
      return make("th", { scope: "row", class: "name" }, make("span", {},
        make("input", { type: "checkbox", "aria-label": `draw ${run.name}`, onchange: (e) => change({
          hide: e.target.checked ? view.hide.filter((n) => n !== run.name) : [...view.hide, run.name] }) }),
        make("button", { type: "button", title: run.name, onclick: () => change({ pick: view.pick === run.name ? "" : run.name }) }, run.name)));
    }
    if (c.key === "report") return make("td", {}, run.report ? make("a", { href: run.report, "aria-label": `report of ${run.name}` }, "report") : "–");
    if (c.key === "state") return make("td", {}, make("span", { class: `mark ${run.state}` }, run.state));
    const interval = c.interval?.(run);
    if (c.key === "why") return make("td", { class: "why" }, make("span", {}, run.why));
    return make("td", { class: c.number ? "number" : null }, c.text(run),
      interval ? make("span", { class: "interval" }, interval) : "");
  });
  const row = make("tr", {}, ...cells);
  // the name's button does the same for the keyboard
  row.addEventListener("click", (e) => e.target.closest("a, button, input") || getSelection().toString()
    || change({ pick: view.pick === run.name ? "" : run.name }));
  return row;
}

function sorted(runs) {
  const column = columns().find((c) => c.key === view.sort);
  if (!column) return runs;
  const order = (x, y) => (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
  const known = runs.filter((r) => column.value(r) != null); // what is missing stays at the end
  return [...known.sort((p, q) => view.dir * order(column.value(p), column.value(q))), ...runs.filter((r) => column.value(r) == null)];
}

function showTable() {
  const runs = sorted(listed());
  for (const head of $("runs").tHead.rows[0].cells) {
    if (head.dataset.key === view.sort) head.setAttribute("aria-sort", view.dir > 0 ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
  const order = runs.map((run) => rows.get(run));
  const body = $("runs").tBodies[0];
  if (order.length !== body.rows.length || order.some((row, i) => row !== body.rows[i])) {
    const focused = document.activeElement;
    body.replaceChildren(...order);
    if (body.contains(focused)) focused.focus();
  }
  for (const run of runs) {
    const row = rows.get(run), off = view.hide.includes(run.name), picked = view.pick === run.name;
    row.classList.toggle("off", off);
    row.classList.toggle("picked", picked);
    row.querySelector("input").checked = !off;
    row.querySelector("button").setAttribute("aria-pressed", picked);
  }
  $("count").textContent = `${runs.length} of ${group.runs.length} runs listed, ${drawn().length} drawn`;
  if ($("filter").value !== view.q) $("filter").value = view.q;
  for (const button of $("states").children) button.setAttribute("aria-pressed", !view.off.includes(button.dataset.state));
  showDetail();
}

function showDetail() {
  const run = byName(view.pick);
  $("detail").hidden = !run;
  if (!run) return;
  const line = (name, value) => (value ? [make("p", {}, make("span", { class: "dim" }, name + ": "), value)] : []);
  $("detail").replaceChildren(
    make("h3", {}, run.name + ": ", make("span", { class: run.state }, run.state)),
    ...line("why", run.why), ...line("started", run.started.replace("T", " ").slice(0, 16) + " UTC"),
    ...line("what differs", group.columns.map((c) => `${c} ${shown(run.settings[c])}`).join(", ")),
    make("p", {}, make("code", {}, run.command)));
}

// ---- files to keep

function save(name, href) {
  const link = make("a", { href, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

function saveCsv(name, lines) {
  const cell = (x) => (x == null ? "" : /[",\n]/.test(String(x)) ? `"${String(x).replaceAll('"', '""')}"` : String(x));
  const url = URL.createObjectURL(new Blob([lines.map((line) => line.map(cell).join(",") + "\n").join("")], { type: "text/csv" }));
  save(name, url);
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function tableCsv() {
  const names = Object.keys(group.runs[0].settings);
  const parts = ["baseline", "rate", "change"], ends = ["interval", "change_interval"];
  const head = ["run", "state", ...group.sets.flatMap((s) => [...parts, ...ends.flatMap((e) => [`${e}_low`, `${e}_high`])].map((p) => `${s}_${p === "rate" ? group.metric.toLowerCase() : p}`)),
    "best_step", "learned_step", "steps_done", "seconds", ...names, "why", "command"];
  const line = (r) => [r.name, r.state, ...group.sets.flatMap((s) => [...parts.map((p) => r.scores[s]?.[p]),
    ...ends.flatMap((e) => r.scores[s]?.[e] ?? [null, null])]), r.best_step, r.learned_step, r.done, r.seconds,
    ...names.map((n) => (Array.isArray(r.settings[n]) ? r.settings[n].join(" ") : r.settings[n])), r.why, r.command];
  saveCsv("runs.csv", [head, ...sorted(listed()).map(line)]);
}

// ---- colours: classes of runs, the same in all plots

const colour = () => view.colour || (group.runs.length <= CLASSES ? "run" : "state");

function classes(runs) {
  const style = getComputedStyle(document.documentElement);
  const colourOf = (state) => style.getPropertyValue(["accept", "reject", "inconclusive", "running"].includes(state)
    ? `--${state}` : state === "failed" ? "--reject" : "--other").trim();
  if (colour() === "state") {
    return STATES.filter((s) => group.runs.some((r) => r.state === s)).map((s) => (
      { label: s, colour: colourOf(s), runs: runs.filter((r) => r.state === s) }));
  }
  const value = colour() === "run" ? (r) => r.name : (r) => setting(r, colour());
  const values = [...new Set(group.runs.map(value))];
  const ordered = values.every((v) => typeof v === "number");
  values.sort((p, q) => (ordered ? p - q : String(p).localeCompare(String(q), "en", { numeric: true })));
  const count = Math.min(CLASSES, values.length);
  const classOf = (v) => Math.floor((values.indexOf(v) * count) / values.length);
  return Array.from({ length: count }, (_, i) => {
    const mine = values.filter((v) => classOf(v) === i).map(shown);
    const shade = ordered ? (DARK.matches ? ORDERED_ON_DARK : ORDERED)[count > 1 ? Math.round((i * (CLASSES - 1)) / (count - 1)) : 3] : UNORDERED[i];
    const label = mine.length === 1 ? mine[0] : ordered ? `${mine[0]} to ${mine.at(-1)}` : `${mine[0]} and ${mine.length - 1} more`;
    return { label, colour: shade, runs: runs.filter((r) => classOf(value(r)) === i) };
  });
}

function showLegend(found) {
  $("legend").replaceChildren(...found.filter((c) => c.runs.length).map((c) => {
    const mark = make("i");
    mark.style.background = c.colour;
    return make("span", {}, mark, `${c.label} (${c.runs.length})`);
  }));
}

// ---- plots

const FAINT = 0.15;
const picked = () => drawn().find((run) => run.name === view.pick);

function layout(x, y, extra = {}) {
  const style = getComputedStyle(document.documentElement);
  const [ink, paper, line] = ["--ink", "--paper", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = (title, more) => ({ title: { text: title, font: { size: 12 } }, gridcolor: line, zerolinecolor: line, automargin: true, ...more });
  return { paper_bgcolor: paper, plot_bgcolor: paper, font: { color: ink, size: 12 }, margin: { l: 50, r: 12, t: 10, b: 42 },
    showlegend: false, hovermode: "closest", hoverlabel: { align: "left" },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // else a finger that scrolls would zoom
    xaxis: axis(x, extra.xaxis), yaxis: axis(y, extra.yaxis), shapes: extra.shapes ?? [], annotations: extra.annotations ?? [] };
}

/** Draws one figure; `csv` are the lines of its numbers, `says` its text for those who do not see it. */
function draw(id, traces, page, says, csv) {
  const figure = $(id), plot = figure.querySelector(".plot"), title = figure.querySelector("h3").textContent;
  figure.hidden = !traces.length;
  if (!traces.length) return;
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", `${title}. ${says}`);
  figure.querySelector("figcaption").textContent = says;
  Plotly.react(plot, traces, page, { responsive: true, displayModeBar: false });
  plot.csv = csv;
  if (plot.ready) return;
  plot.ready = true;
  plot.on("plotly_click", (event) => {
    const name = event.points[0].customdata;
    if (byName(name)) change({ pick: view.pick === name ? "" : name });
  });
  figure.firstElementChild.append(make("span", {},
    make("button", { type: "button", "aria-label": `${title} as PNG`, onclick: async () =>
      save(`${id}.png`, await Plotly.toImage(plot, { format: "png", width: 900, height: 600, scale: 2 })) }, "PNG"), " ",
    make("button", { type: "button", "aria-label": `numbers of ${title} as CSV`, onclick: () => saveCsv(`${id}.csv`, plot.csv) }, "CSV")));
}

const hover = (run) => {
  const safe = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;"); // Plotly reads a little HTML
  return `<b>${safe(run.name)}</b> ${run.state}` + group.sets.map((s) => (run.scores[s]
    ? `<br>${s} ${percent(run.scores[s].baseline)} → ${percent(run.scores[s].rate)} %` : "")).join("")
    + group.columns.slice(0, 6).map((c) => `<br>${safe(c)} ${safe(shown(run.settings[c]))}`).join("");
};

/** One trace of marks a class; `x` and `y` give a run's place, the others its error bars. */
function marks(found, points, x, y, more) {
  const chosen = picked();
  return found.map((c) => [c, c.runs.filter((r) => points.includes(r))]).filter(([, runs]) => runs.length).map(([c, runs]) => ({
    type: "scatter", mode: "markers", x: runs.map(x), y: runs.map(y),
    customdata: runs.map((r) => r.name), text: runs.map(hover), hoverinfo: "text", ...more(runs),
    marker: { color: c.colour, size: runs.map((r) => (r === chosen ? 15 : 9)),
      symbol: runs.map((r) => SYMBOLS[r.state] ?? "circle-open"), opacity: runs.map((r) => (chosen && r !== chosen ? 0.35 : 1)),
      line: { width: runs.map((r) => (r === chosen ? 2 : 0)) } } }));
}

/** Error bars from an interval, in points; of many runs only those of the chosen one. */
function bars(runs, points, middle, interval) {
  const seen = (r) => interval(r) && (points.length <= ERROR_BARS || r === picked());
  return { type: "data", symmetric: false, thickness: 1, width: 0,
    array: runs.map((r) => (seen(r) ? 100 * (interval(r)[1] - middle(r)) : 0)),
    arrayminus: runs.map((r) => (seen(r) ? 100 * (middle(r) - interval(r)[0]) : 0)) };
}

function drawTrade(found) {
  const points = drawn().filter((r) => r.scores.domain && r.scores.heldout), few = points.length <= ERROR_BARS;
  const [x_, y_] = SETS.map((set) => (r) => r.scores[set].change);
  const [xs, ys] = SETS.map((set) => (r) => r.scores[set].change_interval);
  const traces = marks(found, points, (r) => 100 * x_(r), (r) => 100 * y_(r), (runs) => (
    { error_x: bars(runs, points, x_, xs), error_y: bars(runs, points, y_, ys) }));
  const ends = (set, limit) => {
    const all = points.flatMap((r) => (few && r.scores[set].change_interval) || [r.scores[set].change]).map((v) => 100 * v).concat(0, 100 * limit);
    const low = Math.min(...all), high = Math.max(...all), room = Math.max(0.06 * (high - low), 0.1);
    return [low - room, high + room];
  };
  const { min_domain_reduction: need, max_heldout_regression: limit } = group.criteria;
  const x = ends("domain", -need), y = ends("heldout", limit);
  const region = { type: "rect", layer: "below", x0: Math.min(x[0], -100), x1: -100 * need, y0: -100, y1: 100 * limit,
    fillcolor: "rgba(46,160,105,.16)", line: { color: "rgba(46,160,105,.6)", width: 1, dash: "dot" } };
  const inside = points.filter((r) => r.scores.domain.change <= -need && r.scores.heldout.change <= limit).length;
  const note = { text: "accepted region", xref: "paper", yref: "paper", x: 0.01, y: 0.01, showarrow: false, xanchor: "left", yanchor: "bottom", font: { size: 11 } };
  draw("trade", traces, layout(`domain ${group.metric} change, points (left is better)`, `heldout ${group.metric} change, points (down is better)`, {
    xaxis: { range: x }, yaxis: { range: y }, shapes: [region], annotations: [note] }),
  `${inside} of ${points.length} runs lie in the accepted region: domain ${group.metric} down by at least ${percent(need)} points, heldout ${group.metric} up by at most `
  + `${percent(limit)}. A run is accepted where the whole of its cross lies inside${few ? "" : "; choose a run to see its cross"}.`,
  [["run", "state", "domain_change", "heldout_change"], ...points.map((r) => [r.name, r.state, r.scores.domain.change, r.scores.heldout.change])]);
}

/** Curves of one class in one trace, with gaps: 200 traces would take seconds. */
function curves(found, of, scale, mode) {
  const chosen = picked();
  const trace = (runs, colour, width, opacity) => {
    const x = [], y = [], names = [];
    for (const run of runs) {
      const [steps, values] = of(run);
      steps.forEach((step, i) => { if (values[i] != null) { x.push(step); y.push(scale * values[i]); names.push(run.name); } });
      x.push(null); y.push(null); names.push(null);
    }
    return { type: "scatter", mode, x, y, customdata: names, opacity, hovertemplate: "%{customdata}<br>step %{x}: %{y:.4g}<extra></extra>",
      line: { color: colour, width }, marker: { color: colour, size: 5 }, connectgaps: false };
  };
  const traces = found.filter((c) => c.runs.length).map((c) => trace(c.runs, c.colour, 1.5, chosen ? FAINT : drawn().length > ERROR_BARS ? 0.4 : 0.85));
  const mine = found.find((c) => c.runs.includes(chosen));
  if (mine) traces.push(trace([chosen], mine.colour, 3, 1));
  return traces.filter((t) => t.y.some((v) => v != null));
}

const CURVES = { loss: (r) => r.loss, domain: (r) => [r.evaluations[0], r.evaluations[1]], heldout: (r) => [r.evaluations[0], r.evaluations[2]] };

function drawCurve(id, found) {
  const read = CURVES[id];
  const set = SETS.includes(id), runs = drawn().filter((r) => read(r)[1].some((v) => v != null));
  const last = runs.map((r) => [read(r)[1].findLast((v) => v != null), r.name]).sort((p, q) => p[0] - q[0]);
  const baseline = runs.find((r) => r.scores[id])?.scores[id].baseline;
  const limit = id === "heldout" && baseline != null ? 100 * (baseline + group.criteria.max_heldout_regression) : null;
  const shapes = limit == null ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: limit, y1: limit, line: { dash: "dash", width: 1, color: "#888" } }];
  const says = !runs.length ? "" : `${runs.length} runs; at their last step from ${set ? percent(last[0][0]) + " %" : last[0][0].toFixed(3)} (${last[0][1]}) `
    + `to ${set ? percent(last.at(-1)[0]) + " %" : last.at(-1)[0].toFixed(3)} (${last.at(-1)[1]}).`
    + (limit == null ? "" : ` Dashed: the guardrail, ${limit.toFixed(2)} %.`);
  draw(id, curves(found, read, set ? 100 : 1, set ? "lines+markers" : "lines"),
    layout("step", set ? `${group.metric}, %` : "nats per token", { shapes, yaxis: { rangemode: "tozero" } }), says,
    [["run", "step", id === "loss" ? "loss" : `${id}_${group.metric.toLowerCase()}`], ...runs.flatMap((r) => read(r)[0].map((s, i) => [r.name, s, read(r)[1][i]]))]);
}

function drawSweep(set, found) {
  if (!view.x) return;
  const value = (r) => setting(r, view.x);
  const points = drawn().filter(scored);
  const ordered = points.every((r) => typeof value(r) === "number");
  const positive = ordered && points.every((r) => value(r) > 0), all = points.map(value);
  const log = positive && Math.max(...all) / Math.min(...all) >= 8;
  const here = points.filter((r) => r.scores[set]);
  const rate = (r) => r.scores[set].rate;
  const traces = marks(found, here, value, (r) => 100 * rate(r), (runs) => (
    { error_y: bars(runs, here, rate, (r) => r.scores[set].interval) }));
  const values = [...new Set(here.map(value))].sort((p, q) => (ordered ? p - q : 0));
  const mean = (v) => {
    const mine = here.filter((r) => value(r) === v);
    return mine.reduce((sum, r) => sum + rate(r), 0) / mine.length;
  };
  if (ordered && values.length > 1) { // says where the middle goes while other settings vary
    traces.unshift({ type: "scatter", mode: "lines", x: values, y: values.map((v) => 100 * mean(v)), hoverinfo: "skip", line: { color: "#888", width: 1, dash: "dot" } });
  }
  const low = values.map((v) => [mean(v), v]).sort((p, q) => p[0] - q[0])[0];
  const axis = ordered ? { type: log ? "log" : "linear", ...(log && values.length <= 9 ? { tickvals: values, ticktext: values.map(shown) } : {}) } : { type: "category" };
  draw(`sweep-${set}`, traces, layout(view.x, `${group.metric}, %`, { xaxis: axis }),
    low ? `Lowest mean ${group.metric}, ${percent(low[0])} %, at ${view.x} ${shown(low[1])}; dotted: means of the runs with one value, whose other settings may differ.` : "",
    [["run", view.x, `${set}_${group.metric.toLowerCase()}`], ...here.map((r) => [r.name, value(r), r.scores[set].rate])]);
}

// ---- two runs

function showPair() {
  const names = group.paired;
  const [a, b] = [view.a || names[1] || "", view.b || names[2] || names[0] || ""];
  for (const [id, name] of [["a", a], ["b", b]]) $(id).value = name;
  $("swap").disabled = !names.length;
  if (!names.length) {
    $("pair").replaceChildren(make("p", {}, "These directories keep no hypotheses, so no two runs can be compared utterance by utterance."));
    return;
  }
  const found = Object.fromEntries(SETS.filter((s) => group.pairs[s]).map((s) => [s, pair(s, a, b)]));
  const rate = (name, set) => (name === names[0] ? group.runs.find((r) => names.includes(r.name)).scores[set].baseline : byName(name).scores[set].rate);
  const says = (set, f) => (a === b ? "the same run" : settled(f) ? `B has ${f.change < 0 ? "fewer" : "more"} errors` : "not settled");
  $("pair").replaceChildren(make("table", {},
    make("caption", { class: "hidden" }, `${group.metric} of ${b} minus ${group.metric} of ${a}`),
    make("thead", {}, make("tr", {}, ...["set", "A, %", "B, %", "B − A, points"].map((t) => make("th", { scope: "col" }, t)))),
    make("tbody", {}, ...Object.entries(found).map(([set, f]) => make("tr", {}, make("th", { scope: "row" }, set),
      make("td", {}, percent(rate(a, set))), make("td", {}, percent(rate(b, set))),
      make("td", {}, signed(f.change), make("span", { class: "interval" }, between(f.interval, signed)), make("br"), make("span", { class: "says" }, says(set, f))))))),
    make("p", { class: "dim" }, "95 % intervals of the paired difference over the same utterances. Of twenty pairs without a difference one "
      + "looks settled by chance; the more pairs you try, the more of these you meet."));
}

function drawAgainst(found) {
  const a = view.a || group.paired[1];
  const all = a ? drawn().filter((r) => r.name !== a && pair("domain", a, r.name)).map((r) => [r, pair("domain", a, r.name)]) : [];
  const runs = all.sort((p, q) => p[1].change - q[1].change).slice(0, FOREST);
  const plot = $("against").querySelector(".plot");
  $("against").querySelector("h3").textContent = a ? `Domain: all against ${a}` : "";
  plot.style.height = `${Math.min(34, 5 + 1.4 * runs.length)}rem`;
  const shade = new Map(found.flatMap((c) => c.runs.map((r) => [r, c.colour])));
  const y = runs.map(([r]) => r.name);
  draw("against", runs.length ? [{ type: "scatter", mode: "markers", x: runs.map(([, f]) => 100 * f.change), y, customdata: y,
    text: runs.map(([r]) => hover(r)), hoverinfo: "text", marker: { color: runs.map(([r]) => shade.get(r)), size: 8, symbol: runs.map(([r]) => SYMBOLS[r.state] ?? "circle-open") },
    error_x: { type: "data", symmetric: false, thickness: 1.5, width: 0, color: "#888", array: runs.map(([, f]) => 100 * (f.interval[1] - f.change)), arrayminus: runs.map(([, f]) => 100 * (f.change - f.interval[0])) } }] : [],
  layout("points (left: fewer errors)", "", { xaxis: { zeroline: true, zerolinewidth: 2, zerolinecolor: "#888" },
    yaxis: { type: "category", autorange: "reversed", tickfont: { size: 11 }, tickvals: y, ticktext: y.map((n) => (n.length > 22 ? n.slice(0, 21) + "…" : n)) } }),
  `${all.filter(([, f]) => settled(f) && f.change < 0).length} of ${all.length} runs have fewer errors than ${a}, ${all.filter(([, f]) => settled(f) && f.change > 0).length} have more, `
  + `the rest is not settled.${all.length > runs.length ? ` Drawn: the ${runs.length} lowest.` : ""}`,
  [["run", "change", "low", "high"], ...all.map(([r, f]) => [r.name, f.change, ...f.interval])]);
}

// ---- all of it

let drawings = 0;
/** One plot a task, so that the page answers in between; a newer drawing takes the place of an older one. */
async function drawAll() {
  const mine = ++drawings, found = classes(drawn());
  document.body.setAttribute("aria-busy", "true");
  $("colour").value = colour();
  $("x").value = view.x;
  $("sweep").hidden = !view.x;
  showLegend(found);
  showPair();
  const plots = [drawTrade, drawAgainst, ...Object.keys(CURVES).map((id) => (f) => drawCurve(id, f)), ...SETS.map((set) => (f) => drawSweep(set, f))];
  for (const plot of plots) {
    plot(found);
    await new Promise((next) => setTimeout(next));
    if (mine !== drawings) return;
  }
  document.body.setAttribute("aria-busy", "false");
}

function lead() {
  const count = (state) => group.runs.filter((r) => r.state === state).length;
  const told = STATES.map((s) => [s, count(s)]).filter(([, n]) => n).map(([s, n]) => `${n} ${s}`).join(", ");
  const first = group.runs.find(scored);
  const of = (set) => `${set} ${group.metric} ${percent(first.scores[set].baseline)} → ${percent(first.scores[set].rate)} %`;
  const better = { accept: "Best accepted", inconclusive: `None is accepted; lowest domain ${group.metric} among the inconclusive` }[first?.state] ?? "None is accepted; first in line";
  const like = group.runs.filter((r) => first && r !== first && r.state === first.state).map((r) => pair("domain", first.name, r.name));
  const open = like.filter((found) => found && !settled(found)).length;
  return `${group.runs.length} run${group.runs.length === 1 ? "" : "s"}: ${told}.`
    + (first ? ` ${better}: ${first.name}, ${SETS.filter((s) => first.scores[s]).map(of).join(", ")}.` : "")
    + (open ? ` On the domain ${open} of the ${like.length} others of this verdict cannot be told from it.` : "");
}

function openGroup() {
  group = DATA.groups[view.g];
  const sweepable = group.columns.filter((c) => c !== "git_commit" && c !== "training_content");
  if (!sweepable.includes(view.x)) view.x = ["learning_rate", "max_steps"].find((c) => sweepable.includes(c)) ?? sweepable[0] ?? "";
  if (!["state", "run", ...group.columns].includes(view.colour)) view.colour = "";
  for (const key of ["a", "b"]) if (!group.paired.includes(view[key])) view[key] = "";
  const options = (names) => names.map((name) => make("option", { value: name }, name));
  $("colour").replaceChildren(make("option", { value: "state" }, "verdict"), ...options(["run", ...group.columns]));
  $("x").replaceChildren(...options(sweepable));
  for (const id of ["a", "b"]) $(id).replaceChildren(...options(group.paired));
  $("lead").textContent = lead();
  for (const button of $("groups").children) button.setAttribute("aria-pressed", Number(button.dataset.g) === view.g);
  $("differs").hidden = !group.differs.length;
  $("differs").replaceChildren(make("p", {}, "These runs were scored under another fingerprint than group 1. They are not ranked or compared with it:"),
    make("ul", {}, ...group.differs.map(([key, here, there]) => make("li", {}, make("b", {}, key), `: ${brief(here)} here, ${brief(there)} in group 1`))));
  $("states").replaceChildren(...STATES.filter((s) => group.runs.some((r) => r.state === s)).map((s) => make("button", {
    type: "button", "data-state": s, onclick: () => change({ off: view.off.includes(s) ? view.off.filter((o) => o !== s) : [...view.off, s] }) },
    `${s} ${group.runs.filter((r) => r.state === s).length}`)));
  buildTable();
  showTable();
  drawAll();
}

function start() {
  $("written").textContent = `Written by asrlora compare on ${DATA.written}.`;
  $("groups").hidden = DATA.groups.length < 2;
  $("groups").replaceChildren(...DATA.groups.map((g, i) => make("button", { type: "button", "data-g": i,
    onclick: () => { view = { ...EMPTY, g: i }; toAddress(); openGroup(); } }, `Group ${i + 1}: ${g.runs.length} run${g.runs.length === 1 ? "" : "s"}`)));
  $("filter").addEventListener("input", (e) => change({ q: e.target.value }));
  for (const id of ["colour", "x", "a", "b"]) $(id).addEventListener("change", (e) => change({ [id]: e.target.value }));
  $("swap").addEventListener("click", () => change({ a: $("b").value, b: $("a").value }));
  $("show").addEventListener("click", () => change({ q: "", off: [], hide: [] }));
  $("reset").addEventListener("click", () => { view = { ...EMPTY, g: view.g }; toAddress(); openGroup(); });
  $("table-csv").addEventListener("click", tableCsv);
  addEventListener("hashchange", () => { fromAddress(); openGroup(); });
  DARK.addEventListener("change", drawAll);
  fromAddress();
  openGroup();
}

start();
