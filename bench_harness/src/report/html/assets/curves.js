// Something against sequence length, a line a kernel: latency, memory or energy, by the page.
"use strict";

attnbench.start((main, data) => {
  const { el, format, filter, plot, state, segments, kernelOf, isNumber, title } = attnbench;
  const page = document.body.dataset.page;
  const metric = (name) => (entry) => data.interval(entry, name);
  const scaled = (interval, factor) => interval?.map((value, at) => (at < 3 ? value * factor : value));

  // What can be drawn on each page: { name, title, show, of: entry => [value, low, high, confidence] }.
  const QUANTITIES = {
    latency: [
      { name: "latency", title: "time of a call", show: format.ns, of: (entry) => scaled(metric("latency_ns_median")(entry), 1) },
      { name: "p99", title: "99th percentile of a call", show: format.ns, of: metric("latency_ns_p99") },
      { name: "rate", title: "FLOP/s", show: format.rate, of: metric("flops_per_s") },
      { name: "bandwidth", title: "bytes a second", show: format.bandwidth, of: (entry) => scaled(metric("bandwidth_gb_per_s")(entry), 1e9) },
      { name: "limit", title: "share of the device's limit", show: format.percent, of: (entry) => scaled(metric("percent_of_limit")(entry), 0.01) },
    ],
    memory: [
      { name: "extra", title: "peak beside inputs and outputs", show: format.bytes, of: metric("extra_peak_bytes") },
      { name: "tensors", title: "inputs and outputs that must move", show: format.bytes, of: (entry) => [1, 1, 1, 1].map((one) => one * (entry.work.read_bytes + entry.work.write_bytes)) },
      { name: "resident", title: "peak of the process", show: format.bytes, of: metric("rss_peak_bytes") },
      { name: "process", title: "device memory of the process", show: format.bytes, of: metric("process_memory_peak_bytes") },
    ],
    energy: [
      { name: "energy", title: "energy of a call", show: format.joules, of: metric("energy_per_call_j") },
      { name: "work", title: "FLOPs for each joule", show: (value) => format.rate(value).replace("FLOP/s", "FLOP/J"), of: (entry) => { const energy = metric("energy_per_call_j")(entry); return energy && [entry.work.flops / energy[0], entry.work.flops / energy[2], entry.work.flops / energy[1], energy[3]]; } },
      { name: "power", title: "power while it runs", show: (watts) => `${format.digits(watts)} W`, of: metric("power_w") },
    ],
  }[page];
  const WORDS = {
    latency: ["Latency", "Against the keys of the longest sequence, both on logarithmic scales. A line is a kernel, its band the 95 % interval. A slope of one is linear, of two quadratic."],
    memory: ["Memory", "What a call needs beside its inputs and outputs, as the allocator saw it at its highest, against sequence length. What needs nothing is not on a logarithmic scale, and is listed below."],
    energy: ["Energy", "From the counter of the device's management library over loops of at least two seconds."],
  };
  title(main, ...WORDS[page]);

  const there = QUANTITIES.filter((quantity) => data.cases.some((entry) => isNumber(quantity.of(entry)?.[0])));
  if (there.length === 0) {
    const how = page === "energy" ? "No case has a measured energy: attnbench run --energy measures it where NVML has a counter, on GPUs since Volta." : "No case has a value.";
    main.append(el("p", { class: "empty" }, how));
    return;
  }
  let quantity = there.find(({ name }) => name === state.get("show")) ?? there[0];
  const choice = segments("Quantity", there, quantity, (one) => {
    quantity = one;
    bar.update();
  });

  const kernels = plot.legend(data, () => shown);
  const place = el("div");
  let shown = [];
  let isOpen = false;
  const bar = filter.bar(data, data.cases, (entries) => {
    shown = entries.filter((entry) => isNumber(quantity.of(entry)?.[0]));
    kernels.fill();
    draw(entries.length - shown.length);
  });
  main.append(there.length > 1 ? el("p", { class: "segments-line" }, choice) : "", bar.controls, kernels.list, place);
  bar.update();

  // Cases that differ in kernel and length alone share a panel.
  function panels(entries) {
    const groups = new Map();
    for (const entry of entries.filter((entry) => entry.seqlen)) {
      const [, , mechanism, phase, pattern, dtype, batch, heads, q, k, head, options] = entry.axes;
      // Queries beside keys: as many, so many, or a share of them.
      const queries = q === k ? "" : phase === "prefill" && Number(q) > 1 ? `q/k ${format.digits(q / k)}` : `q${q}`;
      const parts = [mechanism, phase, pattern, dtype, `b${batch}`, `h${heads}`, queries, `d${head}`, options, entry.mode, entry.threads ? `${entry.threads} thr` : ""];
      const key = parts.join("\n");
      if (!groups.has(key)) groups.set(key, { parts, entries: [] });
      groups.get(key).entries.push(entry);
    }
    const all = [...groups.values()];
    const isShared = (at) => all.every((group) => group.parts[at] === all[0].parts[at]);
    const varying = all[0]?.parts.map((_, at) => at).filter((at) => !isShared(at)) ?? [];
    for (const group of all) {
      const names = (varying.length ? varying : group.parts.map((_, at) => at)).map((at) => group.parts[at]).filter(Boolean);
      group.name = names.join(" · ");
      group.series = lines(group.entries);
      const lengths = group.entries.map((entry) => entry.seqlen);
      // Lengths that are nearly the same are no curve.
      group.isCurve = Math.max(...lengths) >= 1.5 * Math.min(...lengths);
    }
    return all;
  }

  function lines(entries) {
    const series = new Map();
    for (const entry of entries) series.set(kernelOf(entry), [...(series.get(kernelOf(entry)) ?? []), entry]);
    for (const members of series.values()) members.sort((a, b) => a.seqlen - b.seqlen);
    return series;
  }

  function draw(without) {
    place.replaceChildren();
    const all = panels(shown);
    const curves = all.filter((group) => group.isCurve).sort((a, b) => b.entries.length - a.entries.length);
    const single = all.filter((group) => !group.isCurve).flatMap((group) => group.entries);
    if (curves.length) {
      const most = isOpen ? curves.length : 12;
      const grid = el("div", { class: "plots" });
      for (const group of curves.slice(0, most)) {
        const target = el("div");
        grid.append(el("figure", {}, el("figcaption", {}, group.name), target));
        panel(target, group.series, group.entries, curves.length === 1 ? 460 : 300, true);
      }
      place.append(grid);
      if (curves.length > most) {
        const more = el("button", { type: "button" }, `Show all ${curves.length} panels`);
        more.addEventListener("click", () => { isOpen = true; draw(without); });
        place.append(more);
      }
      if (curves.length === 1) grid.style.gridTemplateColumns = "1fr";
    }
    if (single.length) {
      if (curves.length) place.append(el("h2", {}, "Problems that were measured at one length"));
      const target = el("div");
      place.append(el("figure", {}, el("figcaption", {}, curves.length ? "" : "No problem of these was measured at several lengths: each point is a case."), target));
      panel(target, lines(single), single, 460, false);
    }
    const zero = shown.filter((entry) => quantity.of(entry)[0] === 0);
    if (zero.length) place.append(el("p", { class: "note" }, `${zero.length} case${zero.length === 1 ? " needs" : "s need"} nothing: ${[...new Set(zero.map(kernelOf))].join(", ")}.`));
    if (without > 0) place.append(el("p", { class: "note" }, `${without} chosen case${without === 1 ? " has" : "s have"} no such value.`));
    if (!curves.length && !single.length && !zero.length) place.append(el("p", { class: "empty" }, "No case is as chosen above."));
  }

  function panel(target, series, entries, height, isLine) {
    plot.draw(target, () => {
      const traces = [];
      for (const members of series.values()) {
        const { colour, symbol, dash } = plot.kernelLook(data, members[0]);
        const points = members.map((entry) => [entry, quantity.of(entry)]).filter(([, value]) => value[0] > 0);
        const x = points.map(([entry]) => entry.seqlen);
        if (isLine && points.length > 1) {
          const ends = [...points.map(([, value]) => value[1]), ...points.map(([, value]) => value[2]).reverse()];
          traces.push({ type: "scatter", mode: "lines", x: [...x, ...[...x].reverse()], y: ends, fill: "toself", fillcolor: plot.faded(colour, 0.16), line: { width: 0 }, hoverinfo: "skip" });
        }
        traces.push({
          type: "scatter", mode: isLine ? "lines+markers" : "markers", x, y: points.map(([, value]) => value[0]),
          line: { color: colour, width: 1.8, dash }, marker: { color: colour, size: 6.5, symbol }, hoverinfo: "text",
          error_y: isLine ? undefined : { type: "data", symmetric: false, array: points.map(([, value]) => value[2] - value[0]), arrayminus: points.map(([, value]) => value[0] - value[1]), color: colour, thickness: 1, width: 0 },
          text: points.map(([entry, [value, low, high]]) => `<b>${plot.safe(kernelOf(entry))}</b> ${plot.safe(entry.axes.slice(2).filter(Boolean).join(" "))}<br>${quantity.show(value)}${low < high ? ` (${quantity.show(low)} to ${quantity.show(high)})` : ""}`),
          customdata: points.map(([entry]) => plot.link(entry)),
        });
      }
      // Ends of intervals are in view, too.
      const values = entries.flatMap((entry) => quantity.of(entry).slice(0, 3));
      return {
        traces,
        layout: {
          xaxis: plot.logarithmic("keys", entries.map((entry) => entry.seqlen), (keys) => String(keys), 2),
          yaxis: plot.logarithmic(quantity.title, values, quantity.show),
        },
      };
    }, { height });
  }
});
