// The same cases on several devices: in time, of their own limits, for a watt and for a dollar.
"use strict";

attnbench.start((main, data) => {
  const { el, format, table, plot, state, segments, title, caseId, isNumber } = attnbench;
  const { devices, cases, families, missing } = data.devices;
  const VIEWS = [
    { name: "speed", title: "time", lede: "Times of a call, and speed beside the first device.", mean: (relative) => relative.speed, of: (value) => value.latency_ns_median, show: format.ns },
    { name: "limit", title: "share of its own limit", lede: "How close each device comes to what its own ceilings allow: a kernel that suits it.", mean: (relative) => relative.of_limit, of: (value) => value.percent_of_limit, show: (percent) => format.percent(percent / 100) },
    { name: "watt", title: "for each watt", lede: "FLOPs for each joule, which is FLOP/s for each watt, from the energy counter.", mean: (relative) => relative.per_watt, of: (value) => value.flop_per_j, show: (value) => format.rate(value).replace("FLOP/s", "FLOP/J") },
    { name: "dollar", title: "for each dollar", lede: "US dollars for a million calls, at the prices that were given.", mean: (relative) => relative.per_dollar, of: (value) => value.usd_per_million_calls, show: (usd) => `$${format.digits(usd)}` },
  ];
  title(main, "Devices", `${cases.length} case${cases.length === 1 ? "" : "s"} that every device measured. Nothing is judged here: devices are different.`);
  main.append(attnbench.pairs(devices.map((device) => [device.slug, `${device.model}, run ${device.run}${device.price_usd_per_hour ? `, $${device.price_usd_per_hour} an hour` : ""}`])));
  const has = (view) => cases.some((entry) => entry.values.some((value) => view.of(value)));
  let view = VIEWS.find((one) => one.name === state.get("show") && has(one)) ?? VIEWS[0];
  const lede = el("p", { class: "note" });
  for (const one of VIEWS.filter((one) => !has(one))) {
    one.why = one.name === "watt" ? "No device told its energy: attnbench run --energy" : "No price was given: --price DEVICE=USD";
  }
  const choice = segments("Measure", VIEWS, view, (one) => {
    view = one;
    draw();
  });
  const bars = el("div");
  const tables = el("div");
  main.append(el("p", {}, choice), lede, el("h2", {}, `Geometric means beside ${devices[0].slug}`), bars, tables);
  let drawn = null;
  draw();
  if (missing.length) {
    const shown = table.make([{ name: "case", title: "case", className: "case", value: (entry) => entry.case_id, cell: (entry) => caseId(entry.case_id) }, ...devices.map((device, at) => ({ title: device.slug, cell: (entry) => entry.became[at] }))], { name: "missing", most: 50 });
    shown.show(missing);
    main.append(el("h2", {}, `${missing.length} case${missing.length === 1 ? "" : "s"} that not every device measured`), shown.table);
  }

  function draw() {
    lede.textContent = `${view.lede} Above 1 is better.`;
    const usable = families.filter((family) => family.relative.every((relative) => isNumber(view.mean(relative))));
    const height = Math.max(180, 60 + usable.length * (14 * devices.length + 14));
    bars.hidden = usable.length === 0;
    if (usable.length) {
      if (drawn) drawn.redraw();
      else drawn = plot.draw(bars, build, { height });
    }
    const values = (family) => family.relative.map((relative) => view.mean(relative));
    const means = table.make([
      { name: "family", title: "family", value: (family) => family.family, cell: (family) => el("code", {}, family.family) },
      { name: "cases", title: "cases", number: true, value: (family) => family.cases, cell: (family) => String(family.cases) },
      ...devices.map((device, at) => ({ name: `d${at}`, title: device.slug, number: true, value: (family) => values(family)[at], cell: (family) => format.times(values(family)[at]) })),
    ], { name: "means" });
    means.show(families);
    const every = table.make([
      { name: "case", title: "case", className: "case", value: (entry) => entry.case_id, cell: (entry) => [caseId(entry.case_id), el("span", { class: "under" }, `${entry.mode}${entry.threads === null ? ", all threads" : format.threads(entry.threads)}`)] },
      ...devices.map((device, at) => ({
        name: `d${at}`, title: device.slug, number: true, value: (entry) => view.of(entry.values[at])?.value,
        cell: (entry) => { const value = view.of(entry.values[at]); return value ? [view.show(value.value), value.low < value.high ? el("span", { class: "under" }, `${view.show(value.low)} to ${view.show(value.high)}`) : null] : format.nothing; },
      })),
    ], { most: 100 });
    every.show(cases);
    tables.replaceChildren(means.table, el("h2", {}, "Every common case"), every.table);
  }

  function build() {
    const usable = families.filter((family) => family.relative.every((relative) => isNumber(view.mean(relative))));
    const traces = devices.map((device, at) => ({
      type: "bar", orientation: "h", name: device.slug, x: usable.map((family) => view.mean(family.relative[at])), y: usable.map((family) => family.family),
      marker: { color: plot.look(at).colour }, text: usable.map((family) => format.times(view.mean(family.relative[at]))), textposition: "outside", cliponaxis: false, hoverinfo: "text",
      hovertext: usable.map((family) => `${plot.safe(device.slug)}, ${plot.safe(family.family)}: ${format.times(view.mean(family.relative[at]))} over ${family.cases} cases`),
    }));
    return { traces, layout: { barmode: "group", bargap: 0.28, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "normal" }, margin: { l: 8, r: 48, t: 36, b: 8 }, xaxis: plot.axis({ rangemode: "tozero" }), yaxis: plot.axis({ autorange: "reversed", showgrid: false }) } };
  }
});
