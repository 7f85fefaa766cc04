// Ratios of times over kernel and shape: head over base, or each kernel over the fastest one of the same problem.
"use strict";

attnbench.start((main, data) => {
  const { el, format, filter, plot, state, segments, kernelOf, isNumber, title, colour } = attnbench;
  const MOST_ROWS = 60;
  const latency = (entry) => data.value(entry, "latency_ns_median");
  const LETTERS = ["", "", "", "", "b", "h", "q", "k", "d", ""];
  const shape = (entry) => [...entry.axes.slice(2, 12).map((value, at) => value && LETTERS[at] + value), entry.mode, entry.threads ? `${entry.threads} thr` : ""];
  const shapeKey = (entry) => `${entry.run}\n${shape(entry).join("\n")}`;

  // The fastest time of each problem, where more than one kernel computed it.
  const fastest = new Map();
  const rivals = new Map();
  for (const entry of data.cases.filter((entry) => isNumber(latency(entry)))) {
    fastest.set(shapeKey(entry), Math.min(fastest.get(shapeKey(entry)) ?? Infinity, latency(entry)));
    rivals.set(shapeKey(entry), (rivals.get(shapeKey(entry)) ?? 0) + 1);
  }
  const MODES = [
    { name: "base", title: "head over base", of: (entry) => entry.compared?.metrics.find((metric) => metric.metric === "latency_ns_median")?.ratio?.value },
    { name: "best", title: "over the fastest kernel of the problem", of: (entry) => (rivals.get(shapeKey(entry)) > 1 && isNumber(latency(entry)) ? latency(entry) / fastest.get(shapeKey(entry)) : undefined) },
  ].filter((mode) => data.cases.some((entry) => isNumber(mode.of(entry))));
  title(main, "Ratios", "Times as ratios, a row a problem and a column a kernel. Click a cell for its case.");
  if (MODES.length === 0) {
    main.append(el("p", { class: "empty" }, "There is nothing to relate: no base, and no problem that several kernels computed."));
    return;
  }
  let mode = MODES.find(({ name }) => name === state.get("show")) ?? MODES[0];
  const choice = segments("Ratio", MODES, mode, (one) => {
    mode = one;
    bar.update();
  });
  const place = el("div");
  const under = el("p", { class: "note" });
  const more = el("button", { type: "button", hidden: true });
  let most = MOST_ROWS;
  let shown = [];
  more.addEventListener("click", () => { most = Infinity; draw(); });
  const bar = filter.bar(data, data.cases, (entries) => {
    shown = entries.filter((entry) => isNumber(mode.of(entry)));
    draw();
  });
  main.append(MODES.length > 1 ? el("p", { class: "segments-line" }, choice) : el("p", {}, `Times ${mode.title}.`), bar.controls, place, more, under);
  bar.update();

  function draw() {
    place.replaceChildren();
    more.hidden = true;
    if (shown.length === 0) {
      place.append(el("p", { class: "empty" }, "No case that is as chosen above has such a ratio."));
      under.textContent = "";
      return;
    }
    const rows = new Map();
    for (const entry of shown) {
      const key = shapeKey(entry);
      if (!rows.has(key)) rows.set(key, { parts: shape(entry), entries: new Map() });
      rows.get(key).entries.set(kernelOf(entry), entry);
    }
    const all = [...rows.values()];
    const varying = all[0].parts.map((_, at) => at).filter((at) => all.some((row) => row.parts[at] !== all[0].parts[at]));
    all.forEach((row, at) => {
      const words = varying.map((part) => row.parts[part]).filter(Boolean);
      row.name = words.join(" ") || "the problem";
      row.order = at;
    });
    const extreme = (row) => Math.max(...[...row.entries.values()].map((entry) => Math.abs(Math.log(mode.of(entry)))));
    // What stands out comes first where not all are shown.
    const kept = all.length > most ? [...all].sort((a, b) => extreme(b) - extreme(a)).slice(0, most).sort((a, b) => a.order - b.order) : all;
    const kernels = data.kernels.filter((kernel) => kept.some((row) => row.entries.has(kernel)));
    more.hidden = kept.length === all.length;
    more.textContent = `Show all ${all.length} problems`;
    const isBase = mode.name === "base";
    const shared = all[0].parts.filter((part, at) => part && !varying.includes(at)).join(" ");
    under.textContent = `${isBase ? "Below 1 head is faster, above 1 slower." : "1 is the fastest kernel of its problem, 2 takes twice as long."}${shared ? ` All rows: ${shared}.` : ""}`;
    const target = el("div");
    place.append(target);
    plot.draw(target, () => {
      const of = (row, kernel) => { const entry = row.entries.get(kernel); return entry ? mode.of(entry) : null; };
      const z = kept.map((row) => kernels.map((kernel) => { const ratio = of(row, kernel); return ratio === null ? null : Math.log2(ratio); }));
      const flat = z.flat().filter((value) => value !== null);
      const reach = isBase ? Math.max(Math.log2(1.1), ...flat.map(Math.abs)) : Math.max(1, ...flat);
      const [blue, orange] = plot.theme() === "dark" ? ["#4a9fd6", "#f07c33"] : ["#2b7bba", "#d55e00"];
      const still = colour("raised");
      const cellText = kept.map((row) => kernels.map((kernel) => { const ratio = of(row, kernel); return ratio === null ? "" : isBase ? format.change(ratio) : format.times(ratio); }));
      const annotate = kernels.length * kept.length <= 600;
      return {
        traces: [{
          type: "heatmap", z, x: kernels, y: kept.map((row, at) => at), zmin: isBase ? -reach : 0, zmax: reach, xgap: 2, ygap: 2, showscale: false,
          colorscale: isBase ? [[0, blue], [0.5, still], [1, orange]] : [[0, still], [1, orange]],
          text: cellText, texttemplate: annotate ? "%{text}" : undefined, textfont: { size: 11 },
          hoverinfo: "text", hovertext: kept.map((row) => kernels.map((kernel) => { const ratio = of(row, kernel); return ratio === null ? "" : `<b>${plot.safe(kernel)}</b><br>${plot.safe(row.parts.filter(Boolean).join(" "))}<br>${isBase ? format.change(ratio) : format.times(ratio)}`; })),
          customdata: kept.map((row) => kernels.map((kernel) => { const entry = row.entries.get(kernel); return entry ? plot.link(entry) : ""; })),
        }],
        layout: {
          xaxis: plot.axis({ side: "top", showgrid: false, tickangle: kernels.length > 6 ? -35 : 0, fixedrange: true }),
          yaxis: plot.axis({ autorange: "reversed", tickvals: kept.map((_, at) => at), ticktext: kept.map((row) => short(row.name)), showgrid: false, fixedrange: true, zeroline: false }),
        },
      };
    }, { height: 90 + 24 * kept.length });
  }

  // Names that leave room for the cells; the whole is under the pointer.
  function short(name) {
    const room = Math.max(18, Math.floor(Math.min(innerWidth, 1240) / 14));
    return plot.safe(name.length > room ? `${name.slice(0, room - 1)}…` : name);
  }
});
