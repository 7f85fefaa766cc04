// The first page: what it came to, the cases that need somebody first, and the kernels at a glance.
"use strict";

attnbench.start((main, data) => {
  const { el, format, tag, tone, title, caseLink, caseId, kernelOf, isNumber, command } = attnbench;
  const { gate } = data;
  const entries = data.cases.filter((entry) => entry.run === data.current);
  const run = data.runs[data.current];

  if (gate) judgement();
  else if (run) summary();
  else title(main, "A history", "There are no runs in this report: see its history.");
  if (run) atAGlance();

  function counts(words, page, name) {
    const tally = new Map();
    for (const word of words) tally.set(word, (tally.get(word) ?? 0) + 1);
    const order = ["regressed", "incorrect", "crashed", "timed_out", "not_comparable", "inconclusive", "throttled", "out_of_memory", "unsupported", "skipped", "improved", "unchanged", "measured"];
    const found = order.filter((word) => tally.has(word));
    main.append(
      el("ul", { class: "counts" }, found.map((word) => el("li", {}, el("a", { href: `${page}.html#${new URLSearchParams({ [name]: word })}` }, el("b", { class: tone(word) }, String(tally.get(word))), el("span", {}, format.words(word)))))),
      el("div", { class: "bar", "aria-hidden": "true", hidden: found.length < 2 }, found.map((word) => el("i", { class: tone(word), style: `flex: ${tally.get(word)}` }))),
    );
  }

  function judgement() {
    const said = { 0: "Nothing got worse", 1: "Regressed", 3: "Undecided", 4: "Not comparable", 5: "Cases failed to run" }[gate.exit_code] ?? "No judgement";
    title(main, said, `${gate.headline}. Head is compared with base; a verdict is of a case.`);
    counts(gate.comparison.cases.map((compared) => compared.verdict), "comparison", "result");
    if (gate.causes.length || gate.accepted?.length) {
      main.append(el("ul", { class: "bullets" }, (gate.accepted ?? []).map((accepted) => el("li", {}, `accepted: ${accepted.metric} of `, el("code", {}, accepted.case), ` by ${accepted.by} until ${accepted.expires}: ${accepted.reason}`)), gate.causes.map((cause) => el("li", {}, cause))));
    }
    const severity = ["regressed", "not_comparable", "inconclusive", "improved", "unchanged"];
    const latency = (compared) => compared.metrics.find((metric) => metric.metric === "latency_ns_median");
    const deciding = (compared) => compared.metrics.find((metric) => metric.verdict === compared.verdict) ?? latency(compared);
    const effect = (compared) => deciding(compared)?.ratio?.value ?? Infinity;
    const worst = [...gate.comparison.cases].sort((a, b) => severity.indexOf(a.verdict) - severity.indexOf(b.verdict) || effect(b) - effect(a)).slice(0, 10);
    const rows = worst.map((compared) => {
      const metric = deciding(compared);
      const ratio = metric?.ratio;
      return el("tr", {},
        el("td", { class: "case" }, el("a", { class: "quiet", href: `comparison.html#${new URLSearchParams({ q: compared.case_id })}` }, caseId(compared.case_id))),
        el("td", {}, tag(compared.verdict)),
        el("td", { class: "number" }, ratio ? format.change(ratio.value) : format.nothing, ratio && ratio.low !== ratio.high ? el("span", { class: "under" }, `${format.change(ratio.low)} to ${format.change(ratio.high)}`) : null),
        el("td", { class: "reason minor" }, metric?.reason ?? compared.reason));
    });
    main.append(el("h2", {}, "The ten that need somebody first"), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "case"), el("th", {}, "verdict"), el("th", { class: "number" }, "change"), el("th", { class: "minor" }, "why"))), el("tbody", {}, rows))));
    const first = gate.comparison.cases.findIndex((compared) => compared === worst[0]);
    if (first >= 0 && worst[0].verdict !== "unchanged") main.append(el("h3", {}, "To measure the first of them again"), command(data.gate_repeat[first]));
  }

  function summary() {
    const measured = entries.filter((entry) => entry.disposition === "measured").length;
    const at = run.git ? ` at ${format.short(run.git.commit)}${run.git.dirty ? " with changes" : ""}` : "";
    title(main, `${measured} of ${entries.length} cases measured`, `Suite ${run.run.suite} on ${run.device ?? "an unknown device"}${at}, ${run.run.rounds_done} of ${run.run.rounds_planned} rounds. Every output was compared with an f64 oracle before its time counts.`);
    counts(entries.map((entry) => entry.disposition), "cases", "result");
    const warnings = [!run.run.complete && "The run was interrupted: not every planned round was reached.", run.run.device_shared && "Another attnbench measured on this device at the same time: times are disturbed."].filter(Boolean);
    if (warnings.length) main.append(el("ul", { class: "bullets text-doubt" }, warnings.map((warning) => el("li", {}, warning))));
    const others = entries.filter((entry) => entry.disposition !== "measured");
    if (others.length) {
      const shown = attnbench.table.make([
        { title: "case", className: "case", cell: caseLink },
        { title: "result", cell: (entry) => tag(entry.disposition) },
        { title: "why", className: "reason", cell: (entry) => entry.reason ?? "" },
      ], { most: 10 });
      shown.show(others);
      main.append(el("h2", {}, "Cases without a time"), shown.table);
    }
    const limit = (entry) => data.value(entry, "percent_of_limit");
    const far = entries.filter((entry) => isNumber(limit(entry))).sort((a, b) => limit(a) - limit(b)).slice(0, 10);
    if (far.length) {
      const columns = attnbench.table.caseColumns(data).filter((column) => ["case", "latency", "rate", "bandwidth", "limit"].includes(column.name));
      const table = attnbench.table.make(columns.map((column) => ({ ...column, value: undefined })));
      table.show(far);
      main.append(el("h2", {}, "The ten farthest from their device's limit"), table.table);
    }
  }

  function atAGlance() {
    const families = new Map();
    for (const entry of entries.filter((entry) => isNumber(data.value(entry, "latency_ns_median")))) {
      const name = `${kernelOf(entry)} ${entry.axes[3]}`;
      families.set(name, [...(families.get(name) ?? []), entry]);
    }
    const range = (values, show) => {
      const usable = values.filter(isNumber);
      if (usable.length === 0) return format.nothing;
      const [low, high] = attnbench.extent(usable);
      return low === high ? show(low) : `${show(low)} to ${show(high)}`;
    };
    const of = (members, name) => members.map((entry) => data.value(entry, name));
    const rows = [...families].map(([name, members]) => el("tr", {},
      el("td", {}, el("a", { class: "quiet", href: `cases.html#${new URLSearchParams({ provider: members[0].axes[0], kernel: members[0].axes[1], phase: members[0].axes[3] })}` }, el("span", { class: "id" }, name))),
      el("td", { class: "number" }, String(members.length)),
      el("td", { class: "number" }, range(of(members, "latency_ns_median"), format.ns)),
      el("td", { class: "number" }, range(of(members, "flops_per_s"), format.rate)),
      el("td", { class: "number minor" }, range(of(members, "bandwidth_gb_per_s"), (gb) => format.bandwidth(gb * 1e9))),
      el("td", { class: "number" }, range(of(members, "percent_of_limit"), (percent) => format.percent(percent / 100)))));
    if (rows.length) main.append(el("h2", {}, "Kernels at a glance"), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "kernel and phase"), ["cases", "latency", "rate", "bandwidth", "share of limit"].map((name) => el("th", { class: name === "bandwidth" ? "number minor" : "number" }, name)))), el("tbody", {}, rows))));
  }
});
