// Plots by plotly.js, in the colours of the page; they are drawn again when these change, and follow the width of their place.
// The library is large: it is loaded when a page has its first plot, after everything else is there.
"use strict";

attnbench.plot = (() => {
  const { el, colour, onTheme, kernelOf } = attnbench;

  // Okabe and Ito's colours, which nearly everybody can tell apart, and a symbol for each, for those who cannot.
  const COLOURS = { light: ["#0072b2", "#d55e00", "#009e73", "#b0568c", "#8a6d00", "#4593c4", "#5d6269", "#7a3fa0"], dark: ["#5ab4e6", "#ff8a3d", "#3fd0a0", "#e59ac6", "#e8cf4a", "#9fd4f2", "#a5abb3", "#c49be8"] };
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const theme = () => (document.documentElement.dataset.theme === "dark" ? "dark" : "light");

  // What the n-th of something looks like: eight colours, then the same with other lines.
  const look = (place) => ({
    colour: COLOURS[theme()][place % 8],
    symbol: SYMBOLS[(place + Math.floor(place / 8) * 3) % 8],
    dash: DASHES[Math.floor(place / 8) % 4],
  });
  const kernelLook = (data, entry) => look(data.kernels.indexOf(kernelOf(entry)));

  let library = null;
  let loading = null;
  function whenLoaded(then, failed) {
    if (library) return then();
    loading ??= new Promise((resolve, reject) => {
      const script = el("script", { src: "assets/plotly.js" });
      script.onload = () => resolve(window.Plotly ?? window.moduleName);
      script.onerror = () => reject(new Error("assets/plotly.js cannot be read"));
      document.head.append(script);
    });
    loading.then((loaded) => { library = loaded; then(); }).catch(failed);
  }

  // A plot is drawn when it comes near what is seen: a page of many is there at once.
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      target.drawFirst();
    }
  }, { rootMargin: "400px" });

  function axis(options = {}) {
    return {
      gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line"), tickcolor: colour("line"),
      tickfont: { size: 11, color: colour("soft") }, automargin: true, exponentformat: "SI", ...options,
      title: { text: options.title ?? "", font: { size: 11.5, color: colour("soft") }, standoff: 8 },
    };
  }

  // About five round numbers between two.
  function round(low, high) {
    const rough = (high - low) / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((step) => step >= rough * 0.999);
    const ticks = [];
    for (let tick = Math.ceil(low / step); tick * step <= high; tick += 1) ticks.push(Number((tick * step).toPrecision(12)));
    return ticks;
  }

  // Ticks as people read them, without zeros that say nothing.
  const told = (ticks, show) => ({ tickvals: ticks, ticktext: ticks.map((value) => show(value).replace(/\.(\d*?)0+(?=\D|$)/, (_, kept) => (kept ? `.${kept}` : ""))) });

  // A logarithmic axis with a few round ticks, told as people read them.
  function logarithmic(title, values, show, base = 10) {
    const usable = values.filter((value) => value > 0 && Number.isFinite(value));
    if (usable.length === 0) return axis({ title, type: "log" });
    const [low, high] = attnbench.extent(usable);
    const pad = Math.max(0.04 * Math.log10(high / low), 0.06);
    const range = [Math.log10(low) - pad, Math.log10(high) + pad];
    const ticks = [];
    const decades = range[1] - range[0];
    if (base === 2) {
      const step = Math.max(1, Math.ceil(decades / Math.log10(2) / 9));
      for (let power = Math.ceil(range[0] / Math.log10(2)); power * Math.log10(2) <= range[1]; power += step) ticks.push(2 ** power);
    } else if (decades < 0.5) {
      ticks.push(...round(10 ** range[0], 10 ** range[1]));
    } else {
      const steps = decades > 5 ? [1] : decades > 1.4 ? [1, 3] : [1, 2, 5];
      for (let power = Math.floor(range[0]) - 1; power <= range[1]; power += 1) for (const step of steps) ticks.push(step * 10 ** power);
    }
    const shown = ticks.filter((tick) => Math.log10(tick) >= range[0] && Math.log10(tick) <= range[1]);
    if (shown.length < 2) return axis({ title, type: "log", range });
    return axis({ title, type: "log", range, ...told(shown, show) });
  }

  // Draws what `build` gives, and again whenever the theme changes. A click on a point with a `customdata` that is a link goes
  // there.
  function draw(place, build, { height = 380 } = {}) {
    place.classList.add("plot");
    place.style.height = `${height}px`;
    const config = { responsive: true, displaylogo: false, displayModeBar: false, doubleClickDelay: 400 };
    let isWanted = false;
    let isBound = false;
    const fail = (error) => place.replaceChildren(el("p", { class: "empty" }, `This plot cannot be drawn: ${error.message}`));
    const drawNow = () => {
      const { traces, layout = {} } = build();
      // A sheet of paper has its own width, which no event tells.
      const width = attnbench.isPrinting() ? (place.closest(".plots") ? 330 : 690) : undefined;
      const base = {
        height, width, autosize: width === undefined, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
        margin: { l: 8, r: 12, t: 10, b: 8 }, hovermode: "closest",
        hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { color: colour("ink"), size: 12 }, align: "left" },
      };
      library.react(place, traces, { ...base, ...layout }, config);
      if (!isBound) {
        isBound = true;
        place.on("plotly_click", ({ points }) => {
          const target = points[0]?.customdata;
          if (typeof target === "string" && target.startsWith("case.html#")) location.href = target;
        });
      }
      place.dataset.drawn = String(traces.length);
    };
    const redraw = () => {
      if (attnbench.isPrinting()) isWanted = true;
      if (isWanted && place.isConnected) whenLoaded(() => { try { drawNow(); } catch (error) { fail(error); } }, fail);
    };
    place.drawFirst = () => { isWanted = true; redraw(); };
    near.observe(place);
    onTheme(redraw, place);
    return { redraw };
  }

  // A legend of kernels, of lines and symbols as the plots have them.
  function legend(data, entries) {
    const list = el("ul", { class: "legend" });
    const fill = () => {
      const kernels = data.kernels.filter((kernel) => entries().some((entry) => kernelOf(entry) === kernel));
      list.replaceChildren(...kernels.map((kernel) => {
        const { colour: stroke, symbol, dash } = look(data.kernels.indexOf(kernel));
        return el("li", {}, swatch(stroke, symbol, dash), kernel);
      }));
    };
    onTheme(fill, list);
    return { list, fill };
  }

  const SHAPES = {
    circle: "M17 6a5 5 0 1 0-10 0a5 5 0 1 0 10 0z", square: "M8 2h8v8h-8z", diamond: "M12 0.5l5.5 5.5l-5.5 5.5l-5.5-5.5z",
    "triangle-up": "M12 1l5.5 9.5h-11z", "triangle-down": "M12 11l5.5-9.5h-11z", cross: "M10.5 1h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
    x: "M8 1l4 3.5l4-3.5l1.5 1.5l-3.5 3.5l3.5 3.5l-1.5 1.5l-4-3.5l-4 3.5l-1.5-1.5l3.5-3.5l-3.5-3.5z", star: "M12 0.5l1.7 3.8l4.2 0.4l-3.2 2.8l1 4.1l-3.7-2.2l-3.7 2.2l1-4.1l-3.2-2.8l4.2-0.4z",
  };

  function swatch(stroke, symbol, dash) {
    const space = "http://www.w3.org/2000/svg";
    const make = (name, attributes) => {
      const node = document.createElementNS(space, name);
      for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
      return node;
    };
    const svg = make("svg", { width: 24, height: 12, "aria-hidden": "true" });
    const pattern = { solid: "none", dash: "5 3", dot: "2 2", dashdot: "5 2 2 2" }[dash];
    svg.append(make("path", { d: "M0 6h24", stroke, "stroke-width": 2, "stroke-dasharray": pattern }), make("path", { d: SHAPES[symbol], fill: stroke }));
    return svg;
  }

  // A colour with an alpha, for bands.
  const faded = (hex, alpha) => `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",")},${alpha})`;
  const link = (entry) => `case.html#${new URLSearchParams({ case: entry.key, run: entry.run })}`;
  // Hover texts of plotly know a few tags: none of them may come from an id.
  const safe = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  return { draw, axis, logarithmic, round, told, look, kernelLook, legend, faded, link, safe, theme };
})();
