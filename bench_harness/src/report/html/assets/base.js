// What every page needs: the data, elements, numbers as people read them, the address's state, the theme.
"use strict";

const attnbench = (() => {
  const loaded = new Map();
  const waiting = new Map();

  // Data files call this. What is loaded late is waited for by name.
  function load(name, text) {
    const value = JSON.parse(text);
    loaded.set(name, value);
    for (const resolve of waiting.get(name) ?? []) resolve(value);
    waiting.delete(name);
  }

  // The data of a file, which is loaded by a script element: a page from the disk may not ask for files in any other way.
  function fetchData(name) {
    if (loaded.has(name)) return Promise.resolve(loaded.get(name));
    return new Promise((resolve, reject) => {
      if (!waiting.has(name)) {
        waiting.set(name, []);
        const script = el("script", { src: `${name}.js` });
        script.onerror = () => reject(new Error(`${name}.js cannot be read`));
        document.head.append(script);
      }
      waiting.get(name).push(resolve);
    });
  }

  // Elements. Texts become text nodes, whatever they hold.
  function el(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === undefined || value === null || value === false) continue;
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
    return element;
  }

  // Numbers: three significant digits, prefixes of 1000. As in the terminal.
  const NOTHING = "–";
  const PREFIXES = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"], [1e-12, "p"]];

  const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

  // The smallest and the largest of any number of values.
  function extent(values) {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return [low, high];
  }

  function digits(value) {
    if (!isNumber(value)) return NOTHING;
    if (value === 0) return "0";
    const rounded = Number(value.toPrecision(3));
    const exponent = Math.floor(Math.log10(Math.abs(rounded)));
    if (exponent < -4 || exponent > 6) return rounded.toExponential(2);
    return rounded.toFixed(Math.max(0, 2 - exponent));
  }

  function scaled(value, unit, smallest = 1) {
    if (!isNumber(value)) return NOTHING;
    if (value === 0) return `0 ${unit}`;
    const rounded = Math.abs(Number(value.toPrecision(3)));
    const [factor, prefix] = PREFIXES.find(([factor]) => rounded >= factor || factor <= smallest) ?? [1, ""];
    return `${digits(value / factor)} ${prefix}${unit}`;
  }

  const format = {
    nothing: NOTHING,
    digits,
    ns: (ns) => (isNumber(ns) && ns >= 999.5e9 ? `${(ns * 1e-9).toFixed(0)} s` : scaled(isNumber(ns) ? ns * 1e-9 : ns, "s", 1e-9)),
    bytes: (bytes) => (isNumber(bytes) && Math.abs(bytes) < 1000 ? `${bytes} B` : scaled(bytes, "B")),
    rate: (rate) => scaled(rate, "FLOP/s"),
    bandwidth: (rate) => scaled(rate, "B/s"),
    joules: (joules) => scaled(joules, "J", 1e-12),
    count: (count) => (isNumber(count) && count < 1000 ? String(count) : scaled(count, "").trim()),
    percent: (share) => (isNumber(share) ? `${(100 * share).toFixed(Math.abs(share) >= 0.9995 ? 0 : 1)} %` : NOTHING),
    change: (ratio) => (isNumber(ratio) ? `${ratio >= 1 ? "+" : "−"}${format.percent(Math.abs(ratio - 1))}` : NOTHING),
    times: (ratio) => (isNumber(ratio) ? `${digits(ratio)}×` : NOTHING),
    error: (value) => (value === 0 ? "0" : isNumber(value) ? value.toExponential(1) : value === null ? "∞" : NOTHING),
    duration: (ns) => {
      const s = Math.round(ns * 1e-9);
      if (s < 60) return `${(ns * 1e-9).toFixed(1)} s`;
      const two = (n) => String(n).padStart(2, "0");
      return s < 3600 ? `${Math.floor(s / 60)} min ${two(s % 60)} s` : `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
    },
    threads: (threads) => (threads > 0 ? `, ${threads} thread${threads === 1 ? "" : "s"}` : ""),
    words: (name) => String(name).replaceAll("_", " "),
    short: (commit) => String(commit).slice(0, 10),
    time: (time) => String(time).replace("T", " ").replace(/(\.\d+)?Z$/, " UTC"),
  };

  // What metrics are called, and how their values are shown: their own names are for programs.
  const METRICS = {
    latency_ns_median: ["time of a call", format.ns],
    latency_ns_p99: ["99th percentile of a call", format.ns],
    flops_per_s: ["rate", format.rate],
    bandwidth_gb_per_s: ["bandwidth", (gb) => format.bandwidth(isNumber(gb) ? gb * 1e9 : gb)],
    percent_of_limit: ["share of the device's limit", (percent) => format.percent(isNumber(percent) ? percent / 100 : percent)],
    extra_peak_bytes: ["peak memory beside inputs and outputs", format.bytes],
    rss_peak_bytes: ["peak memory of the process", format.bytes],
    relative_l2: ["relative L2 error", format.error],
    max_abs: ["largest error", format.error],
    plan_ns: ["planning", format.ns],
    energy_per_call_j: ["energy of a call", format.joules],
    power_w: ["power", (watts) => `${format.digits(watts)} W`],
    measured_bandwidth_gb_per_s: ["bandwidth, by the device's own counters", (gb) => format.bandwidth(isNumber(gb) ? gb * 1e9 : gb)],
    tensor_activity_percent: ["tensor cores at work", (percent) => format.percent(isNumber(percent) ? percent / 100 : percent)],
    sm_clock_mhz: ["clock", (mhz) => `${format.digits(mhz)} MHz`],
    memory_clock_mhz: ["clock of the memory", (mhz) => `${format.digits(mhz)} MHz`],
    temperature_max_c: ["highest temperature", (celsius) => `${format.digits(celsius)} °C`],
    power_capped_percent: ["under the power cap", (percent) => format.percent(isNumber(percent) ? percent / 100 : percent)],
    throttled_percent: ["batches thrown away", (percent) => format.percent(isNumber(percent) ? percent / 100 : percent)],
    process_memory_peak_bytes: ["device memory of the process", format.bytes],
  };
  // Other tools have metrics of their own.
  format.metric = (name) => METRICS[name]?.[0] ?? format.words(name);
  format.valueOf = (name) => METRICS[name]?.[1] ?? format.digits;

  // Which colour a word has; the word itself is always there.
  const TONES = {
    regressed: "bad", incorrect: "bad", crashed: "bad", timed_out: "bad",
    improved: "good",
    inconclusive: "doubt", throttled: "doubt", out_of_memory: "doubt", skipped: "doubt", provisional: "doubt",
    not_comparable: "apart", unsupported: "apart", open: "bad", recovered: "good", accepted: "doubt",
  };
  const tone = (word) => TONES[word] ?? "calm";
  const tag = (word) => el("span", { class: `tag ${tone(word)}` }, format.words(word));

  // An id that breaks where a person would break it, its kernel first to be seen.
  function caseId(id) {
    const parts = String(id).split("/");
    const [provider, kernel, ...rest] = parts;
    const span = el("span", { class: "id" }, `${provider}/`, el("b", {}, kernel ?? ""));
    for (const part of rest) span.append("/", el("wbr"), part);
    return span;
  }

  const caseLink = (entry) => el("a", { href: `case.html#${new URLSearchParams({ case: entry.key, run: entry.run })}`, class: "quiet" }, caseId(entry.id));

  // The state of a page is in its address: what is seen can be sent to somebody.
  const state = {
    read: () => new URLSearchParams(location.hash.slice(1)),
    get: (name) => state.read().get(name),
    set(changes) {
      const params = state.read();
      for (const [name, value] of Object.entries(changes)) {
        if (value === null || value === undefined || value === "") params.delete(name);
        else params.set(name, value);
      }
      const hash = params.toString();
      history.replaceState(null, "", hash ? `#${hash}` : location.pathname.split("/").pop() + location.search);
    },
  };

  // Themes: the system's, unless somebody chose. Storage may be refused to pages from the disk.
  const THEMES = ["auto", "light", "dark"];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let themed = [];
  let chosen = "auto";
  try {
    chosen = localStorage.getItem("attnbench-theme") ?? "auto";
  } catch { /* The system's, then. */ }

  function applyTheme() {
    const theme = printing ? "light" : chosen === "auto" ? (dark.matches ? "dark" : "light") : chosen;
    document.documentElement.dataset.theme = theme;
    document.getElementById("theme").textContent = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" }[chosen];
    // What is no longer on the page is forgotten.
    themed = themed.filter(({ place }) => place.isConnected);
    for (const { redraw } of themed) redraw();
  }
  let printing = false;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function start(draw) {
    document.addEventListener("DOMContentLoaded", () => {
      const button = document.getElementById("theme");
      if (!THEMES.includes(chosen)) chosen = "auto";
      button.addEventListener("click", () => {
        chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
        try {
          localStorage.setItem("attnbench-theme", chosen);
        } catch { /* It lasts as long as the page. */ }
        applyTheme();
      });
      dark.addEventListener("change", applyTheme);
      // Somebody pasted another state into the address.
      addEventListener("hashchange", () => location.reload());
      addEventListener("beforeprint", () => { printing = true; applyTheme(); });
      addEventListener("afterprint", () => { printing = false; applyTheme(); });
      applyTheme();
      const data = prepare(loaded.get("data"));
      const head = data.runs.find((run) => run.role === "head") ?? data.runs.at(-1);
      const suite = data.gate?.comparison.head.suite ?? head?.run.suite ?? "";
      document.title = `${document.title.split(" · ")[0]} · ${suite} · attnbench`;
      document.querySelector('nav [aria-current]')?.scrollIntoView({ block: "nearest", inline: "center" });
      const when = head ? `, measured ${format.time(head.run.finished_at)}` : "";
      document.getElementById("footer").append(`attnbench ${data.version}: ${suite}${when}`);
      const main = document.getElementById("main");
      main.replaceChildren();
      // Some pages wait for a file of rounds.
      Promise.resolve(draw(main, data)).then(() => { document.body.dataset.ready = "yes"; });
    });
  }

  // Buttons of which one is pressed: { name, title, why }, where `why` says why an option cannot be. The page's address
  // remembers the one, which `pick` is told.
  function segments(label, options, pressed, pick) {
    const node = el("span", { class: "segments", role: "group", "aria-label": label }, options.map((one) => {
      const button = el("button", { type: "button", "aria-pressed": String(one === pressed), disabled: Boolean(one.why), title: one.why ?? null }, one.title);
      button.addEventListener("click", () => {
        for (const other of node.children) other.setAttribute("aria-pressed", String(other === button));
        state.set({ show: one === options[0] ? null : one.name });
        pick(one);
      });
      return button;
    }));
    return node;
  }

  // What several pages derive from the data.
  function prepare(data) {
    const at = Object.fromEntries(data.metrics.map((metric, place) => [metric.name, place]));
    data.value = (entry, name) => entry.values[at[name]]?.[0];
    data.interval = (entry, name) => entry.values[at[name]];
    data.verdicts = new Map((data.gate?.comparison.cases ?? []).map((compared) => [keyOf(compared), compared]));
    data.runs.forEach((run, place) => {
      run.place = place;
      run.label = run.role ?? (data.runs.length > 1 ? `${run.device ?? run.run.suite}, ${format.time(run.run.started_at)}` : run.run.suite);
    });
    data.current = data.runs.findLastIndex((run) => run.role === "head");
    if (data.current < 0) data.current = data.runs.length - 1;
    data.kernels = [...new Set(data.cases.map(kernelOf))];
    data.cases.forEach((entry) => {
      entry.compared = data.runs[entry.run].role === "base" ? undefined : data.verdicts.get(entry.key);
    });
    return data;
  }

  const kernelOf = (entry) => `${entry.axes[0]}/${entry.axes[1]}`;

  // The key of a compared case in words, as the records' cases have it.
  const keyOf = (compared) => {
    return `${compared.case_id} [${compared.mode}${format.threads(compared.threads)}]`;
  };

  const title = (main, text, ...lede) => main.append(el("h1", {}, text), lede.length ? el("p", { class: "lede" }, ...lede) : "");

  function command(lines) {
    const text = lines.join("\n");
    const button = el("button", { type: "button" }, "Copy");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
      } catch {
        // Pages from the disk may not be given the clipboard: the text is selected instead.
        getSelection().selectAllChildren(pre);
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    const pre = el("pre", {}, text);
    return el("div", { class: "command" }, pre, button);
  }

  const pairs = (rows) => el("table", { class: "pairs" }, el("tbody", {}, rows.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value)))));

  return { load, fetchData, el, format, tone, tag, caseId, caseLink, state, segments, start, colour, onTheme: (redraw, place) => themed.push({ redraw, place }), isPrinting: () => printing, kernelOf, keyOf, title, command, pairs, isNumber, extent };
})();
