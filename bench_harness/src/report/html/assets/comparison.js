// Head against base, case by case: the ratio with its interval, what would have been found, the verdict and why.
"use strict";

attnbench.start((main, data) => {
  const { el, format, filter, table, plot, tag, title, isNumber, command, caseId, keyOf, colour } = attnbench;
  const { gate } = data;
  const { comparison } = gate;
  const side = (side) => `${side.suite}, ${side.runs.length === 1 ? `run ${side.runs[0]}` : `${side.runs.length} sessions`}${side.commits.length ? ` at ${side.commits.map(format.short).join(", ")}` : ""}`;
  title(main, "Comparison", gate.headline);
  if (gate.causes.length) main.append(el("ul", { class: "bullets" }, gate.causes.map((cause) => el("li", {}, cause))));

  // Compared cases in the form that filters know.
  const head = data.runs.find((run) => run.role === "head")?.place ?? data.current;
  const entries = comparison.cases.map((compared, at) => {
    const key = keyOf(compared);
    const entry = data.cases.find((entry) => entry.key === key && entry.run === head) ?? data.cases.find((entry) => entry.key === key);
    const parts = compared.case_id.split("/");
    const letters = { 6: "b", 7: "h", 8: "q", 9: "k", 10: "d" };
    const axes = data.axes.map((_, axis) => {
      const part = axis === 11 ? parts.slice(11).join("/") : parts[axis] ?? "";
      return letters[axis] && part.startsWith(letters[axis]) ? part.slice(1) : part;
    });
    return { at, key, axes, id: compared.case_id, mode: compared.mode, threads: compared.threads, run: head, matrix: entry?.matrix ?? "", disposition: compared.head ?? "removed", reason: compared.reason, compared, entry };
  });
  const metric = (entry, name = "latency_ns_median") => entry.compared.metrics.find((metric) => metric.metric === name);
  const deciding = (entry) => entry.compared.metrics.find((metric) => metric.verdict === entry.compared.verdict) ?? metric(entry);
  const severity = ["regressed", "not_comparable", "inconclusive", "improved", "unchanged"];
  const WORDS = { latency_ns_median: "time", extra_peak_bytes: "memory", relative_l2: "error" };

  const columns = [
    { name: "case", title: "case", className: "case", value: (entry) => entry.key, cell: (entry) => [entry.entry ? el("a", { class: "quiet", href: plot.link(entry.entry) }, caseId(entry.id)) : caseId(entry.id), el("span", { class: "under" }, `${entry.mode}${format.threads(entry.threads)}`)] },
    { name: "verdict", title: "verdict", ascending: true, value: (entry) => severity.indexOf(entry.compared.verdict), cell: (entry) => tag(entry.compared.verdict) },
    { name: "metric", title: "of", minor: true, value: (entry) => deciding(entry)?.metric, cell: (entry) => WORDS[deciding(entry)?.metric] ?? (deciding(entry) ? format.metric(deciding(entry).metric) : "result") },
    { name: "base", title: "base", number: true, value: (entry) => deciding(entry)?.base, cell: (entry) => (deciding(entry) ? format.valueOf(deciding(entry).metric)(deciding(entry).base) : format.words(entry.compared.base ?? "absent")) },
    { name: "head", title: "head", number: true, value: (entry) => deciding(entry)?.head, cell: (entry) => (deciding(entry) ? format.valueOf(deciding(entry).metric)(deciding(entry).head) : format.words(entry.compared.head ?? "absent")) },
    {
      name: "change", title: "change", number: true, value: (entry) => deciding(entry)?.ratio?.value,
      cell: (entry) => { const ratio = deciding(entry)?.ratio; return ratio ? [format.change(ratio.value), ratio.low < ratio.high ? el("span", { class: "under" }, `${format.change(ratio.low)} to ${format.change(ratio.high)}`) : null] : format.nothing; },
    },
    { name: "mde", title: "MDE", number: true, minor: true, hint: "Minimum detectable effect: the smallest slowdown that would have been found with 80 % power", value: (entry) => deciding(entry)?.mde, cell: (entry) => format.percent(deciding(entry)?.mde) },
    { name: "why", title: "why", className: "reason", minor: true, value: (entry) => entry.reason, cell: (entry) => deciding(entry)?.reason ?? entry.reason },
  ];
  const list = table.make(columns, { order: "verdict", most: 250 });
  const place = el("div");
  const note = el("p", { class: "note" });
  const repeat = el("div");
  let shown = [];
  let drawn = null;
  const bar = filter.bar(data, entries, (chosen) => {
    list.show(chosen);
    const withRatio = chosen.filter((entry) => isNumber(metric(entry)?.ratio?.value));
    shown = withRatio.sort((a, b) => Math.abs(Math.log(metric(b).ratio.value)) - Math.abs(Math.log(metric(a).ratio.value))).slice(0, 40);
    shown.sort((a, b) => metric(b).ratio.value - metric(a).ratio.value);
    note.textContent = withRatio.length === 0 ? "No case that is as chosen above has a ratio of times." : `${shown.length < withRatio.length ? `The ${shown.length} of ${withRatio.length} cases that changed most: h` : "H"}ead's time over base's, with its 95 % interval. A triangle is the smallest slowdown that would have been found, where it is in view.`;
    place.hidden = shown.length === 0;
    if (shown.length) {
      place.style.height = `${70 + 22 * shown.length}px`;
      if (drawn) drawn.redraw();
      else drawn = plot.draw(place, build, { height: 70 + 22 * shown.length });
    }
    const first = [...chosen].sort((a, b) => severity.indexOf(a.compared.verdict) - severity.indexOf(b.compared.verdict))[0];
    repeat.replaceChildren(...(first && first.compared.verdict !== "unchanged" ? [el("h2", {}, "To measure the first of these again"), command(data.gate_repeat[first.at])] : []));
  }, { runs: false });
  main.append(bar.controls, el("figure", {}, el("figcaption", {}, note), place), list.table);
  bar.update();
  main.append(repeat);
  families();
  conditions();

  function build() {
    const tones = { regressed: "bad", improved: "good", inconclusive: "doubt", not_comparable: "apart", unchanged: "calm" };
    const symbols = { regressed: "circle", improved: "square", inconclusive: "circle-open", not_comparable: "x", unchanged: "diamond" };
    const y = shown.map((_, at) => at);
    const ratios = shown.map((entry) => metric(entry).ratio);
    const colours = shown.map((entry) => colour(tones[entry.compared.verdict]));
    const names = shortNames(shown);
    const lines = ratios.map((ratio, at) => ({ type: "line", x0: ratio.low, x1: ratio.high, y0: at, y1: at, line: { color: colours[at], width: 2 } }));
    const mdes = shown.map((entry, at) => [metric(entry).mde, at]).filter(([mde]) => isNumber(mde));
    const all = ratios.flatMap((ratio) => [ratio.low, ratio.high, 1]);
    const [low, high] = [Math.min(0.99, ...all), Math.max(1.01, ...all)];
    const pad = 0.04 * Math.log10(high / low);
    return {
      traces: [
        { type: "scatter", mode: "markers", x: mdes.map(([mde]) => 1 + mde), y: mdes.map(([, at]) => at), marker: { symbol: "triangle-left-open", size: 8, color: colour("faint") }, hoverinfo: "text", text: mdes.map(([mde]) => `would have found ${format.percent(mde)} or more`) },
        { type: "scatter", mode: "markers", x: ratios.map((ratio) => ratio.value), y, marker: { color: colours, size: 8, symbol: shown.map((entry) => symbols[entry.compared.verdict]) }, hoverinfo: "text", text: shown.map((entry, at) => `<b>${format.words(entry.compared.verdict)}</b> ${format.change(ratios[at].value)} (${format.change(ratios[at].low)} to ${format.change(ratios[at].high)})<br>${plot.safe(entry.key)}`), customdata: shown.map((entry) => (entry.entry ? plot.link(entry.entry) : "")) },
      ],
      layout: {
        height: 70 + 22 * shown.length,
        shapes: [{ type: "line", x0: 1, x1: 1, yref: "paper", y0: 0, y1: 1, line: { color: colour("soft"), width: 1 }, layer: "below" }, ...lines],
        xaxis: { ...plot.logarithmic("head over base", all, format.change), range: [Math.log10(low) - pad, Math.log10(high) + pad], side: "top" },
        yaxis: plot.axis({ tickvals: y, ticktext: names, range: [shown.length - 0.4, -0.6], showgrid: false, zeroline: false }),
      },
    };
  }

  // What differs between the cases that are shown, as short as the width asks.
  function shortNames(entries) {
    const parts = entries.map((entry) => [...entry.id.split("/"), entry.mode, entry.threads ? `${entry.threads} thr` : ""]);
    const varying = (parts[0] ?? []).map((_, at) => at).filter((at) => parts.some((other) => other[at] !== parts[0][at]));
    const room = Math.max(16, Math.floor(Math.min(innerWidth, 1240) / 15));
    return parts.map((own) => {
      const name = varying.map((at) => own[at]).filter(Boolean).join(" ") || own[1] || own[0];
      return plot.safe(name.length > room ? `${name.slice(0, room - 1)}…` : name);
    });
  }

  function families() {
    if (!gate.families?.length) return;
    const shown = table.make([
      { name: "family", title: "family", value: (family) => family.family, cell: (family) => el("code", {}, family.family) },
      { name: "cases", title: "cases", number: true, value: (family) => family.cases, cell: (family) => String(family.cases) },
      { name: "mean", title: "mean change", number: true, value: (family) => family.ratio?.value, cell: (family) => (family.ratio ? format.change(family.ratio.value) : format.nothing) },
      { name: "verdict", title: "verdict", value: (family) => severity.indexOf(family.verdict), cell: (family) => tag(family.verdict) },
      { title: "why", className: "reason", cell: (family) => family.reason },
    ], { name: "families" });
    shown.show(gate.families);
    main.append(el("h2", {}, "Families, each on the mean of its cases"), shown.table);
  }

  function conditions() {
    const drift = Object.entries(comparison.drift).map(([provider, drift]) => `the machine itself moved by ${format.change(Math.exp(drift.log_ratio))}: ${drift.control}, the control of ${provider} that moved most`);
    const difference = (kind) => (difference) => [`${kind}: ${difference.field}`, `${difference.base ?? "nothing"} on base, ${difference.head ?? "nothing"} on head`];
    main.append(el("h2", {}, "Conditions of both sides"), attnbench.pairs([
      ["base", side(comparison.base)], ["head", side(comparison.head)],
      ...comparison.fingerprint.map(difference("fingerprint differs")), ...comparison.provenance.map(difference("differs")),
      ...drift.map((text) => ["drift", text]), ...comparison.notes.map((text) => ["note", text]),
    ]));
  }
});
