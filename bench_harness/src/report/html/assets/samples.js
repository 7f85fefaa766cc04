// How samples are distributed: which cases are noisy, and every sample of one of them.
"use strict";

attnbench.start(async (main, data) => {
  const { el, format, filter, table, rounds, state, caseLink, isNumber, title, caseId } = attnbench;
  title(main, "Samples", "Every timed call of a case, by rounds, each of which is a fresh process. The line of a round is its median; the band is the interval of the median of rounds. What differs between rounds no number of samples shows.");
  const measured = data.cases.filter((entry) => isNumber(data.value(entry, "latency_ns_median")));
  if (measured.length === 0) {
    main.append(el("p", { class: "empty" }, "No case has a time."));
    return;
  }
  const width = (entry) => { const [value, low, high] = data.interval(entry, "latency_ns_median"); return (high - low) / (2 * value); };
  const tail = (entry) => { const p99 = data.value(entry, "latency_ns_p99"); return isNumber(p99) ? p99 / data.value(entry, "latency_ns_median") : undefined; };
  const figure = el("figure");
  const columns = [
    {
      name: "case", title: "case", className: "case", value: (entry) => entry.key,
      cell: (entry) => {
        const link = el("a", { class: "quiet", href: `#${new URLSearchParams({ case: entry.key, run: entry.run })}` }, caseId(entry.id));
        link.addEventListener("click", (event) => {
          event.preventDefault();
          state.set({ case: entry.key, of: entry.run });
          show(entry);
          figure.scrollIntoView({ block: "nearest" });
        });
        return link;
      },
    },
    { name: "latency", title: "latency", number: true, value: (entry) => data.value(entry, "latency_ns_median"), cell: (entry) => format.ns(data.value(entry, "latency_ns_median")) },
    { name: "interval", title: "interval", number: true, hint: "Half of the interval, of the median", value: width, cell: (entry) => `± ${format.percent(width(entry))}` },
    { name: "tail", title: "p99 / median", number: true, minor: true, value: tail, cell: (entry) => format.times(tail(entry)) },
    { name: "rounds", title: "rounds", number: true, minor: true, value: (entry) => entry.timed_rounds, cell: (entry) => String(entry.timed_rounds) },
    { title: "", cell: (entry) => el("a", { href: caseLink(entry).getAttribute("href") }, "case") },
  ];
  const list = table.make(columns, { order: "-interval", most: 25 });
  const bar = filter.bar(data, measured, list.show);
  main.append(figure, el("h2", {}, "Cases, the noisiest first"), bar.controls, list.table);
  bar.update();
  const asked = measured.find((entry) => entry.key === state.get("case") && String(entry.run) === (state.get("of") ?? state.get("run") ?? String(entry.run)));
  const current = measured.filter((entry) => entry.run === data.current);
  await show(asked ?? [...(current.length ? current : measured)].sort((a, b) => width(b) - width(a))[0]);

  async function show(entry) {
    const target = el("div");
    figure.replaceChildren(el("figcaption", {}, caseLink(entry), ` ${entry.mode}${format.threads(entry.threads)}`), target);
    rounds.draw(target, data, entry, await rounds.of(entry), { height: 400 });
  }
});
