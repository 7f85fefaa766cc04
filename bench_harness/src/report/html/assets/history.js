// Series over time: their values, the levels that were found in them, and the commits between which they changed.
"use strict";

attnbench.start(async (main, data) => {
  const { el, format, table, plot, state, title, tag, isNumber, colour, caseId } = attnbench;
  const all = await attnbench.fetchData("history");
  const open = all.filter((series) => isNumber(series.open_regression));
  title(main, "History", `${all.length} series, ${all.filter((series) => series.changes.length).length} with changes of level, ${open.length} with an open regression. Spikes and drift are no changes; a change within the last values may yet go away and is provisional.`);
  const name = (series) => [series.suite, series.case, series.metric, series.machine].join("\n");
  const stateOf = (series) => {
    if (isNumber(series.open_regression)) return "open";
    return series.changes.length ? series.changes.at(-1).state : "";
  };
  const size = (series) => (isNumber(series.open_regression) ? series.open_regression : series.changes.at(-1)?.size);
  const figure = el("figure");
  const changes = el("div");
  const columns = [
    {
      name: "case", title: "case", className: "case", value: (series) => series.case,
      cell: (series) => {
        const link = el("a", { class: "quiet", href: `#${new URLSearchParams({ series: name(series) })}` }, caseId(series.case));
        link.addEventListener("click", (event) => {
          event.preventDefault();
          state.set({ series: name(series) });
          show(series);
          figure.scrollIntoView({ block: "nearest" });
        });
        return link;
      },
    },
    { name: "metric", title: "metric", value: (series) => series.metric, cell: (series) => format.metric(series.metric) },
    { name: "suite", title: "suite", minor: true, value: (series) => series.suite, cell: (series) => series.suite },
    { name: "machine", title: "machine", minor: true, value: (series) => series.machine, cell: (series) => el("code", {}, series.machine) },
    { name: "values", title: "values", number: true, minor: true, value: (series) => series.values.length, cell: (series) => String(series.values.length) },
    { name: "latest", title: "latest", number: true, value: (series) => series.values.at(-1), cell: (series) => format.valueOf(series.metric)(series.values.at(-1)) },
    { name: "change", title: "last change", number: true, value: (series) => size(series), cell: (series) => (isNumber(size(series)) ? format.change(1 + size(series)) : format.nothing) },
    { name: "state", title: "state", value: (series) => ({ open: 0 }[stateOf(series)] ?? (series.changes.length ? 1 : 2)), cell: (series) => (stateOf(series) ? tag(stateOf(series) === "open" ? "open" : stateOf(series)) : "") },
  ];
  const list = table.make(columns, { order: "state", most: 100 });
  const search = el("input", { type: "search", placeholder: "Search: words, or parts of an id", "aria-label": "Search", value: state.get("q") ?? "" });
  const metrics = [...new Set(all.map((series) => series.metric))].sort();
  const metric = el("select", { "aria-label": "metric", "data-axis": "metric" }, el("option", { value: "*" }, "all"), metrics.map((one) => el("option", { value: one }, format.metric(one))));
  const usual = metrics.includes("latency_ns_median") ? "latency_ns_median" : "*";
  metric.value = state.get("metric") ?? usual;
  const count = el("span", { class: "count" });
  const update = () => {
    state.set({ q: search.value, metric: metric.value === usual ? null : metric.value });
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = all.filter((series) => (metric.value === "*" || series.metric === metric.value) && words.every((word) => `${name(series)} ${stateOf(series)}`.toLowerCase().includes(word)));
    count.textContent = chosen.length === all.length ? `${all.length} series` : `${chosen.length} of ${all.length} series`;
    list.show(chosen);
  };
  search.addEventListener("input", update);
  metric.addEventListener("change", update);
  main.append(figure, changes, el("h2", {}, "Series, open regressions first"), el("div", { class: "controls" }, search, el("label", {}, "metric", metric), count), list.table);
  update();
  const first = all.find((series) => name(series) === state.get("series")) ?? open[0] ?? all.find((series) => series.changes.length) ?? all.find((series) => series.metric === "latency_ns_median") ?? all[0];
  show(first);

  function show(series) {
    const target = el("div");
    const value = format.valueOf(series.metric);
    figure.replaceChildren(el("figcaption", {}, caseId(series.case), ` · ${format.metric(series.metric)} · ${series.suite} · ${series.machine}`), target);
    plot.draw(target, () => {
      const main = plot.look(0).colour;
      const x = series.values.map((_, at) => at);
      const hover = series.values.map((one, at) => `${value(one)}<br>${plot.safe(format.time(series.times[at]))}${series.commits[at] ? `<br>commit ${plot.safe(format.short(series.commits[at]))}` : ""}`);
      // Levels between the changes.
      const edges = [0, ...series.changes.map((change) => change.index), series.values.length];
      const levels = series.changes.length ? [series.changes[0].before, ...series.changes.map((change) => change.after)] : [];
      const tones = { regressed: "bad", improved: "good", changed: "apart" };
      const shapes = levels.map((level, at) => ({ type: "line", x0: edges[at] - 0.5, x1: edges[at + 1] - 0.5, y0: level, y1: level, line: { color: colour("soft"), width: 1.5 } }));
      for (const change of series.changes) {
        const tone = colour(tones[change.direction] ?? "calm");
        shapes.push({ type: "rect", x0: change.index_low - 0.5, x1: change.index_high - 0.5 + 0.001, yref: "paper", y0: 0, y1: 1, fillcolor: tone, opacity: 0.1, line: { width: 0 }, layer: "below" });
        shapes.push({ type: "line", x0: change.index - 0.5, x1: change.index - 0.5, yref: "paper", y0: 0, y1: 1, line: { color: tone, width: 1.5, dash: change.provisional ? "dot" : "solid" } });
      }
      const annotations = series.changes.map((change) => ({ x: change.index - 0.5, yref: "paper", y: 1, yanchor: "bottom", xanchor: "left", showarrow: false, text: `${change.direction} ${format.change(1 + change.size)}`, font: { size: 11, color: colour(tones[change.direction] ?? "calm") } }));
      const step = Math.max(1, Math.ceil(x.length / 8));
      const ticks = x.filter((at) => at % step === 0);
      const [low, high] = attnbench.extent(series.values);
      const ends = series.lows.map((low, at) => [low, series.highs[at]]);
      return {
        traces: [{
          type: "scatter", mode: "markers", x, y: series.values, marker: { color: main, size: 5.5 }, hoverinfo: "text", text: hover,
          error_y: { type: "data", symmetric: false, thickness: 1, width: 0, color: plot.faded(main, 0.35), array: ends.map(([, high], at) => (isNumber(high) ? high - series.values[at] : 0)), arrayminus: ends.map(([low], at) => (isNumber(low) ? series.values[at] - low : 0)) },
        }],
        layout: {
          shapes, annotations, margin: { l: 8, r: 12, t: 26, b: 8 },
          xaxis: plot.axis({ tickvals: ticks, ticktext: ticks.map((at) => series.times[at].slice(0, 10)), showgrid: false, zeroline: false }),
          yaxis: plot.axis({ zeroline: false, ...(high > low ? plot.told(plot.round(low, high), value) : {}) }),
        },
      };
    }, { height: 360 });
    const shown = table.make([
      { title: "when", cell: (change) => (change.time ? format.time(change.time) : String(change.index)) },
      { title: "commits", cell: (change) => el("code", {}, [change.after_commit && format.short(change.after_commit), change.until_commit && format.short(change.until_commit)].filter(Boolean).join("..") || format.nothing) },
      { title: "change", number: true, cell: (change) => [format.change(1 + change.size), el("span", { class: "under" }, `${format.change(1 + change.size_low)} to ${format.change(1 + change.size_high)}`)] },
      { title: "before", number: true, minor: true, cell: (change) => value(change.before) },
      { title: "after", number: true, minor: true, cell: (change) => value(change.after) },
      { title: "confidence", number: true, minor: true, cell: (change) => format.percent(change.confidence) },
      { title: "direction", cell: (change) => tag(change.direction) },
      { title: "state", cell: (change) => [tag(change.state), change.provisional ? [" ", tag("provisional")] : ""].flat() },
    ], { name: "changes" });
    shown.show(series.changes);
    changes.replaceChildren(series.changes.length ? shown.table : el("p", { class: "note" }, "No change of level was found in this series."));
  }
});
