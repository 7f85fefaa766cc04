// What each round saw of a case: every sample, the median of each round, and how they are distributed.
"use strict";

attnbench.rounds = (() => {
  const { el, format, colour, plot, fetchData } = attnbench;

  const of = async (entry) => (await fetchData(`rounds/${entry.rounds[0]}`))[entry.rounds[1]];

  // Most samples that are drawn.
  const MOST_POINTS = 5000;

  // Times in the unit that fits their median.
  function unit(ns) {
    const [factor, name] = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]].find(([factor]) => ns >= factor) ?? [1, "ns"];
    return { factor, name };
  }

  const median = (values) => {
    const sorted = [...values].sort((a, b) => a - b);
    const middle = sorted.length >> 1;
    return sorted.length % 2 ? sorted[middle] : 0.5 * (sorted[middle - 1] + sorted[middle]);
  };

  // Places beside each other, the same ones in every drawing.
  const jitter = (place) => (((place * 7919) % 101) / 100 - 0.5) * 0.56;

  function draw(place, data, entry, rounds, { height = 340 } = {}) {
    const timed = rounds.filter((round) => round.device_ns.length > 0);
    if (timed.length === 0) {
      place.append(el("p", { class: "empty" }, "No sample of this case counts."));
      return;
    }
    const all = timed.flatMap((round) => round.device_ns);
    // Browsers draw some thousands of points with ease: of more, every so many of each round.
    const every = Math.ceil(all.length / MOST_POINTS);
    const points = timed.flatMap((round, at) => round.device_ns.map((ns, sample) => ({ round, at, ns, sample })).filter(({ sample }) => sample % every === 0));
    const { factor, name } = unit(median(all));
    // A few calls that took far longer would leave no room for the others: they are drawn at the edge, as triangles.
    const sorted = [...all].sort((a, b) => a - b);
    const interval = data.interval(entry, "latency_ns_median");
    const most = 1.15 * Math.max(sorted[Math.floor(0.975 * (sorted.length - 1))], interval?.[2] ?? 0, ...timed.map((round) => median(round.device_ns)));
    const edge = sorted.at(-1) > 1.3 * most ? most : Infinity;
    const beyond = all.filter((ns) => ns > edge).length;
    const kept = (ns) => Math.min(ns, edge) / factor;
    plot.draw(place, () => {
      const main = plot.kernelLook(data, entry).colour;
      const traces = [];
      const shapes = interval ? [{ type: "rect", xref: "paper", x0: 0, x1: 0.8, yref: "y", y0: interval[1] / factor, y1: interval[2] / factor, fillcolor: plot.faded(main, 0.13), line: { width: 0 }, layer: "below" }, { type: "line", xref: "paper", x0: 0, x1: 0.8, yref: "y", y0: interval[0] / factor, y1: interval[0] / factor, line: { color: main, width: 1, dash: "dot" } }] : [];
      traces.push({
        type: "scatter", mode: "markers", hoverinfo: "text",
        x: points.map(({ at, sample }) => at + jitter(sample + at)),
        y: points.map(({ ns }) => kept(ns)),
        text: points.map(({ round, ns, sample }) => `${format.ns(ns)}<br>round ${round.round + 1}, sample ${sample + 1}${flags(round, sample)}`),
        marker: { size: 4.5, opacity: 0.55, symbol: points.map(({ ns }) => (ns > edge ? "triangle-up" : "circle")), color: points.map(({ round, sample }) => (round.sample_flags?.[sample] ? colour("bad") : main)) },
      });
      const step = Math.ceil(timed.length / Math.max(4, Math.floor(place.clientWidth / 60)));
      const ticked = timed.map((_, at) => at).filter((at) => at % step === 0);
      timed.forEach((round, at) => {
        const middle = median(round.device_ns) / factor;
        shapes.push({ type: "line", x0: at - 0.36, x1: at + 0.36, y0: middle, y1: middle, line: { color: colour("ink"), width: 2 } });
      });
      traces.push({ type: "histogram", y: all.map(kept), xaxis: "x2", nbinsy: 40, marker: { color: plot.faded(main, 0.5) }, hoverinfo: "skip" });
      return {
        traces,
        layout: {
          shapes, bargap: 0.06,
          xaxis: plot.axis({ title: "round", domain: [0, 0.8], range: [-0.6, timed.length - 0.4], tickvals: ticked, ticktext: ticked.map((at) => String(timed[at].round + 1)), showgrid: false, zeroline: false }),
          xaxis2: plot.axis({ domain: [0.83, 1], showgrid: false, showticklabels: false, zeroline: false }),
          yaxis: plot.axis({ title: `${name} a call`, zeroline: false, exponentformat: "none" }),
        },
      };
    }, { height });
    if (every > 1) place.after(el("p", { class: "note" }, `Of ${all.length} samples every ${every}th is drawn; medians are of all.`));
    if (beyond) place.after(el("p", { class: "note" }, `${beyond} sample${beyond === 1 ? "" : "s"} of ${all.length} took longer than the plot is high, up to ${format.ns(sorted.at(-1))}.`));
  }

  const flags = (round, sample) => (round.sample_flags?.[sample] ? `<br>${plot.safe(round.sample_flags[sample].join(", "))}` : "");

  return { of, draw, median };
})();
