// Where and how it was measured: the fingerprint, what is worth knowing, the ceilings, and where the time went.
"use strict";

attnbench.start((main, data) => {
  const { el, format, table, title, tone, isNumber } = attnbench;
  const { runs } = data;
  title(main, "Environment", "Times compare only where the fingerprints are equal; the rest is worth knowing and blocks nothing.", runs.length > 1 ? " Fields that differ between the runs are marked." : "");
  const heading = () => el("tr", {}, el("th", {}, ""), runs.map((run) => el("th", {}, run.label)));
  const rows = (fields) => fields.filter(([, values]) => values.some((value) => value !== undefined && value !== "")).map(([name, values]) => el("tr", { class: new Set(values).size > 1 ? "differs" : null }, el("th", { scope: "row" }, format.words(name)), values.map((value) => el("td", {}, value ?? format.nothing))));
  const block = (name, fields) => main.append(el("h2", {}, name), el("div", { class: "scroll" }, el("table", { class: "pairs" }, runs.length > 1 ? el("thead", {}, heading()) : "", el("tbody", {}, rows(fields)))));
  const union = (of) => [...new Set(runs.flatMap((run) => Object.keys(of(run))))].sort().map((name) => [name, runs.map((run) => of(run)[name])]);

  block("Run", [
    ["id", runs.map(({ run }) => run.id)], ["suite", runs.map(({ run }) => run.suite)],
    ["started", runs.map(({ run }) => format.time(run.started_at))], ["finished", runs.map(({ run }) => format.time(run.finished_at))],
    ["commit", runs.map(({ git }) => (git ? `${git.commit}${git.dirty ? " with changes" : ""}` : undefined))],
    ["branch", runs.map(({ git }) => git?.branch ?? undefined)], ["committed", runs.map(({ git }) => (git ? format.time(git.committed_at) : undefined))],
    ["rounds", runs.map(({ run }) => `${run.rounds_done} of ${run.rounds_planned}${run.complete ? "" : ", interrupted"}`)],
    ["device to itself", runs.map(({ run }) => (run.device_shared ? "no: another attnbench measured at the same time" : "yes"))],
    ["seed", runs.map(({ run }) => String(run.seed))], ["attnbench", runs.map(({ run }) => run.attnbench_version)],
    ["command", runs.map(({ run }) => run.command.join(" "))],
  ]);
  block("Fingerprint", union((run) => run.fingerprint));
  block("Worth knowing", union((run) => run.provenance));

  for (const run of runs) {
    if (run.controls.length) {
      const shown = table.make([
        { name: "name", title: "control", value: (control) => control.name, cell: (control) => el("code", {}, control.name) },
        { name: "provider", title: "provider", value: (control) => control.provider, cell: (control) => control.provider },
        { name: "mode", title: "mode", minor: true, value: (control) => control.mode, cell: (control) => control.mode },
        { name: "threads", title: "threads", number: true, minor: true, value: (control) => control.threads, cell: (control) => (control.threads ? String(control.threads) : format.nothing) },
        { name: "set", title: "working set", number: true, minor: true, value: (control) => control.working_set_bytes, cell: (control) => format.bytes(control.working_set_bytes) },
        { name: "rate", title: "best round", number: true, value: (control) => control.rate_per_s, cell: (control) => (control.kind === "fma" ? format.rate(control.rate_per_s) : format.bandwidth(control.rate_per_s)) },
        { name: "spread", title: "slowest round", number: true, hint: "Time over the best round's", value: spread, cell: (control) => (isNumber(spread(control)) ? format.change(spread(control)) : format.nothing) },
      ], { name: `controls${run.place}` });
      shown.show(run.controls);
      main.append(el("h2", {}, `Ceilings${runs.length > 1 ? `: ${run.label}` : ""}`), el("p", { class: "note" }, "What this device can do, measured beside the cases by code that no commit changes."), shown.table);
    }
  }
  for (const run of runs) spent(run);

  function spread(control) {
    const rounds = control.rounds_ns.filter(isNumber);
    return rounds.length ? Math.max(...rounds) / Math.min(...rounds) : undefined;
  }

  function spent(run) {
    const { time } = run.run;
    if (!time.total_ns) return;
    const parts = [["timed calls", time.calls_ns], ["emptying caches", time.flush_ns], ["inputs", time.inputs_ns], ["oracle", time.oracle_ns], ["starting", time.start_ns], ["controls", time.controls_ns], ["all else", run.overhead_ns]];
    main.append(el("h2", {}, `Where the time went${runs.length > 1 ? `: ${run.label}` : ""}`), attnbench.pairs([["in all", format.duration(time.total_ns)], ...parts.map(([name, ns]) => [name, `${format.duration(ns)}, ${format.percent(ns / time.total_ns)}`])]));
  }
});
