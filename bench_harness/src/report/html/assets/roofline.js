// Each case below the roof that its own run measured (Williams, Waterman and Patterson, 2009).
"use strict";

attnbench.start((main, data) => {
  const { el, format, filter, plot, kernelOf, isNumber, title, colour } = attnbench;
  title(main, "Roofline", "The work that a call must do for each byte that it must move, and how fast it does it. Roofs are ceilings that the same run measured: memory to the left, arithmetic to the right. A case that is more than 2 % above its own is flagged as implausible.");
  const kernels = plot.legend(data, () => shown);
  const place = el("div");
  const none = el("p", { class: "empty", hidden: true }, "No case that is as chosen above has a rate.");
  const roofs = el("p", { class: "note" });
  let shown = [];
  const rate = (entry) => data.interval(entry, "flops_per_s");
  const bytes = (entry) => entry.work.read_bytes + entry.work.write_bytes;
  const intensity = (entry) => entry.work.flops / bytes(entry);
  let drawn = null;
  const bar = filter.bar(data, data.cases, (entries) => {
    shown = entries.filter((entry) => isNumber(rate(entry)?.[0]) && bytes(entry) > 0 && entry.work.flops > 0);
    none.hidden = shown.length > 0;
    kernels.fill();
    const all = distinct();
    roofs.textContent = all.length ? `Roofs: ${all.map(({ name, bytes, flops }) => `${name} ${[isNumber(bytes) && format.bandwidth(bytes), isNumber(flops) && format.rate(flops)].filter(Boolean).join(" and ")}`).join("; ")}.` : "The run measured no ceilings.";
    if (drawn) drawn.redraw();
    else drawn = plot.draw(place, build, { height: 560 });
  });
  main.append(bar.controls, kernels.list, place, none, roofs);
  bar.update();

  // The ceilings of the cases that are shown, each once, in words of what they differ in.
  function distinct() {
    const found = new Map();
    for (const entry of shown) {
      const [bytes, flops] = entry.ceilings;
      if (!isNumber(bytes) && !isNumber(flops)) continue;
      const key = `${bytes} ${flops}`;
      if (!found.has(key)) found.set(key, { bytes, flops, entries: [] });
      found.get(key).entries.push(entry);
    }
    const all = [...found.values()];
    const parts = (entry) => [entry.axes[0], entry.mode, entry.threads ? `${entry.threads} thr` : "", entry.axes[5]];
    for (const roof of all) {
      const of = roof.entries.map(parts);
      const name = of[0].filter((part, at) => part && of.every((other) => other[at] === part));
      roof.name = name.join(" ") || "several";
    }
    return all;
  }

  function build() {
    const x = shown.map(intensity);
    const [low, high] = [Math.min(...x) / 1.6, Math.max(...x) * 1.6];
    const traces = [];
    for (const { bytes, flops, name } of distinct()) {
      const roof = (at) => Math.min(isNumber(bytes) ? bytes * at : Infinity, isNumber(flops) ? flops : Infinity);
      const ridge = flops / bytes;
      const at = [low, ...(ridge > low && ridge < high ? [ridge] : []), high];
      traces.push({ type: "scatter", mode: "lines", x: at, y: at.map(roof), line: { color: colour("faint"), width: 1.6 }, hoverinfo: "text", text: at.map(() => `roof: ${plot.safe(name)}<br>${format.bandwidth(bytes)}, ${format.rate(flops)}`) });
    }
    const groups = Map.groupBy ? Map.groupBy(shown, kernelOf) : shown.reduce((map, entry) => map.set(kernelOf(entry), [...(map.get(kernelOf(entry)) ?? []), entry]), new Map());
    for (const members of groups.values()) {
      const { colour: fill, symbol } = plot.kernelLook(data, members[0]);
      traces.push({
        type: "scatter", mode: "markers", x: members.map(intensity), y: members.map((entry) => rate(entry)[0]),
        marker: { color: fill, symbol, size: 8, opacity: 0.82, line: { width: 0.5, color: colour("paper") } }, hoverinfo: "text",
        text: members.map((entry) => `<b>${plot.safe(kernelOf(entry))}</b><br>${plot.safe(entry.axes.slice(2).filter(Boolean).join(" "))}<br>${format.rate(rate(entry)[0])}, ${format.digits(intensity(entry))} FLOP/B<br>${format.percent(data.value(entry, "percent_of_limit") / 100)} of its limit`),
        customdata: members.map(plot.link),
      });
    }
    const y = traces.flatMap((trace) => trace.y);
    return { traces, layout: { xaxis: plot.logarithmic("FLOPs for each byte", x.concat(low, high), format.digits), yaxis: plot.logarithmic("FLOP/s", y, format.rate) } };
  }
});
