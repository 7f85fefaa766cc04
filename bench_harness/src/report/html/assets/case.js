// Everything that is known of one case, and the command that measures it again.
"use strict";

attnbench.start(async (main, data) => {
  const { el, format, state, tag, title, command, pairs, rounds, isNumber, table, extent } = attnbench;
  const same = data.cases.filter((entry) => entry.key === state.get("case"));
  const entry = same.find((entry) => String(entry.run) === state.get("run")) ?? same.at(-1);
  if (!entry) {
    title(main, "No such case", "The address names none of this report's cases. ", el("a", { href: "cases.html" }, "All cases"));
    return;
  }
  const run = data.runs[entry.run];
  const verdict = entry.compared?.verdict;
  document.title = `${entry.axes[1]} · ${document.title}`;
  main.append(el("h1", {}, attnbench.caseId(entry.id)));
  main.append(el("p", { class: "lede" }, tag(entry.disposition), " ", verdict ? [tag(verdict), " "] : "", `${entry.mode}${format.threads(entry.threads)}, matrix ${entry.matrix}, ${run.label}`,
    same.filter((other) => other !== entry).map((other) => [" · ", el("a", { href: `#${new URLSearchParams({ case: other.key, run: other.run })}` }, data.runs[other.run].label)])));
  if (entry.reason) main.append(el("p", {}, entry.reason));
  if (entry.flags.length) main.append(el("ul", { class: "bullets text-doubt" }, entry.flags.map((flag) => el("li", {}, flag))));

  const plotPlace = el("div");
  main.append(el("h2", {}, "Samples by round"), plotPlace);
  main.append(el("h2", {}, "To measure it again"), command([entry.repeat]));

  const known = data.metrics.map((metric, at) => ({ ...metric, interval: entry.values[at] })).filter(({ interval }) => interval);
  const rows = known.map(({ name, interval: [value, low, high, confidence] }) => {
    const show = format.valueOf(name);
    const exact = low === high;
    return el("tr", {}, el("td", {}, format.metric(name)), el("td", { class: "number" }, show(value)), el("td", { class: "number" }, exact ? "" : `${show(low)} to ${show(high)}`), el("td", { class: "number minor" }, exact ? "" : format.percent(confidence)));
  });
  if (rows.length) main.append(el("h2", {}, "Metrics"), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "metric"), el("th", { class: "number" }, "value"), el("th", { class: "number" }, "interval"), el("th", { class: "number minor" }, "confidence"))), el("tbody", {}, rows))));

  if (entry.compared?.metrics.length) {
    main.append(el("h2", {}, "Against base"), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "metric"), ["base", "head", "change"].map((name) => el("th", { class: "number" }, name)), el("th", { class: "number minor" }, "MDE"), el("th", {}, "verdict"), el("th", { class: "minor" }, "why"))), el("tbody", {}, entry.compared.metrics.map((metric) => {
      const show = format.valueOf(metric.metric);
      const ratio = metric.ratio;
      return el("tr", {}, el("td", {}, format.metric(metric.metric)), el("td", { class: "number" }, show(metric.base)), el("td", { class: "number" }, show(metric.head)), el("td", { class: "number" }, ratio ? [format.change(ratio.value), ratio.low < ratio.high ? el("span", { class: "under" }, `${format.change(ratio.low)} to ${format.change(ratio.high)}`) : null] : format.nothing), el("td", { class: "number minor" }, format.percent(metric.mde)), el("td", {}, tag(metric.verdict)), el("td", { class: "reason minor" }, metric.reason));
    })))));
  }

  const [bytes, flops] = entry.ceilings;
  const lengths = (list) => (list ? list.join(", ") : null);
  main.append(el("div", { class: "columns" },
    el("div", {}, el("h2", {}, "Problem"), pairs([...data.axes.map((name, at) => [format.words(name), entry.axes[at]]), ["queries of each sequence", lengths(entry.lengths_q)], ["keys of each sequence", lengths(entry.lengths_kv)]])),
    el("div", {}, el("h2", {}, "Work of a call"), pairs([
      ["visible pairs", format.count(entry.work.pairs)], ["FLOPs", format.count(entry.work.flops)],
      ["bytes read at least", format.bytes(entry.work.read_bytes)], ["bytes written at least", format.bytes(entry.work.write_bytes)],
      ["FLOPs for each byte", format.digits(entry.work.flops / (entry.work.read_bytes + entry.work.write_bytes))],
    ]), el("h2", {}, "Its device's limits"), pairs([
      ["memory", isNumber(bytes) ? format.bandwidth(bytes) : "not measured"], ["arithmetic", isNumber(flops) ? format.rate(flops) : "not measured"],
      ["least time that they allow", isNumber(entry.limit_ns) ? format.ns(entry.limit_ns) : null],
    ])),
    el("div", {}, el("h2", {}, "How it was measured"), pairs(Object.entries(entry.settings).map(([name, value]) => [format.words(name), String(value)])))));

  let seen;
  try {
    seen = await rounds.of(entry);
  } catch (error) {
    plotPlace.append(el("p", { class: "empty" }, error.message));
    return;
  }
  rounds.draw(plotPlace, data, entry, seen);
  details(seen);

  function details(seen) {
    const memory = (field) => (round) => format.bytes(round.memory?.[field] ?? undefined);
    const plain = [
      { title: "round", number: true, cell: (round) => String(round.round + 1) },
      { title: "place in order", number: true, minor: true, cell: (round) => String(round.order + 1) },
      { title: "result", cell: (round) => tag(round.disposition) },
      { title: "samples", number: true, cell: (round) => String(round.device_ns.length) },
      { title: "median", number: true, cell: (round) => (round.device_ns.length ? format.ns(rounds.median(round.device_ns)) : format.nothing) },
      { title: "fastest", number: true, minor: true, cell: (round) => (round.device_ns.length ? format.ns(extent(round.device_ns)[0]) : format.nothing) },
      { title: "wall clock", number: true, minor: true, cell: (round) => (round.wall_ns.length ? format.ns(rounds.median(round.wall_ns)) : format.nothing) },
      { title: "plan", number: true, minor: true, cell: (round) => format.ns(round.plan_ns ?? undefined) },
      { title: "extra memory", number: true, cell: memory("extra_peak_bytes") },
      { title: "process", number: true, minor: true, cell: memory("rss_peak_bytes") },
      ...(seen.some((round) => round.reason) ? [{ title: "why", className: "reason", cell: (round) => round.reason ?? "" }] : []),
    ];
    const list = table.make(plain, { most: 12 });
    list.show(seen);
    main.append(el("h2", {}, "Rounds"), list.table);

    const checks = seen.flatMap((round) => round.verification.map((check) => ({ ...check, round: round.round })));
    if (checks.length) {
      const verified = table.make([
        { title: "round", number: true, cell: (check) => String(check.round + 1) },
        { title: "when", cell: (check) => `${check.stage} timing` },
        { title: "tensor", cell: (check) => check.tensor },
        { title: "input set", number: true, minor: true, cell: (check) => String(check.set) },
        { title: "rows", number: true, cell: (check) => String(check.rows) },
        { title: "relative L2", number: true, cell: (check) => format.error(check.error.relative_l2) },
        { title: "allowed", number: true, minor: true, cell: (check) => format.error(check.error.allowed_relative_l2) },
        { title: "largest error", number: true, cell: (check) => format.error(check.error.max_abs) },
        { title: "allowed", number: true, minor: true, cell: (check) => format.error(check.error.allowed_max_abs) },
        { title: "result", cell: (check) => (check.error.pass ? "correct" : el("span", { class: "text-bad" }, check.error.reason ?? "wrong")) },
      ], { most: 12 });
      verified.show(checks);
      main.append(el("h2", {}, "Against the f64 oracle"), verified.table);
    }

    const launches = seen.find((round) => round.launches?.length)?.launches;
    if (launches) {
      const shown = table.make([
        { title: "kernel", className: "case", cell: (launch) => el("code", {}, launch.entry) },
        { title: "grid", number: true, cell: (launch) => launch.grid.join(" × ") },
        { title: "block", number: true, cell: (launch) => launch.block.join(" × ") },
        { title: "registers", number: true, cell: (launch) => String(launch.registers) },
        { title: "spilled", number: true, cell: (launch) => (isNumber(launch.spill_bytes) ? `${launch.spill_bytes} B` : format.nothing) },
        { title: "shared memory", number: true, cell: (launch) => format.bytes(launch.static_shared_bytes + launch.dynamic_shared_bytes) },
        { title: "blocks a multiprocessor", number: true, minor: true, cell: (launch) => String(launch.blocks_per_multiprocessor) },
        { title: "code", minor: true, cell: (launch) => el("code", {}, format.short(launch.code_hash)) },
      ]);
      shown.show(launches);
      main.append(el("h2", {}, "What a call launches"), shown.table);
    }

    const watched = seen.filter((round) => round.telemetry);
    if (watched.length) {
      const readings = (round) => round.telemetry.intervals.flatMap((interval) => interval.readings);
      const range = (round, field, factor, unit) => {
        const values = readings(round).map((reading) => reading[field]).filter(isNumber);
        if (!values.length) return format.nothing;
        const [low, high] = extent(values).map((value) => value * factor);
        return low === high ? `${format.digits(low)} ${unit}` : `${format.digits(low)} to ${format.digits(high)} ${unit}`;
      };
      const shown = table.make([
        { title: "round", number: true, cell: (round) => String(round.round + 1) },
        { title: "SM clock", number: true, cell: (round) => range(round, "sm_clock_mhz", 1, "MHz") },
        { title: "memory clock", number: true, minor: true, cell: (round) => range(round, "memory_clock_mhz", 1, "MHz") },
        { title: "power", number: true, cell: (round) => range(round, "power_milliwatts", 1e-3, "W") },
        { title: "temperature", number: true, cell: (round) => range(round, "temperature_c", 1, "°C") },
        { title: "batches thrown away", number: true, cell: (round) => String(round.telemetry.intervals.filter((interval) => interval.throttled_by?.length).length) },
        { title: "not known", className: "reason minor", cell: (round) => Object.entries(round.telemetry.missing ?? {}).map(([field, why]) => `${format.words(field)}: ${why}`).join("; ") },
      ]);
      shown.show(watched);
      main.append(el("h2", {}, "What the device said"), shown.table);
    }
  }
});
