// Tables that sort by a click on a column, and remember it in the address.
"use strict";

attnbench.table = (() => {
  const { el, state, isNumber } = attnbench;

  // Columns: { name, title, number, minor, value: entry => what is sorted by, cell: entry => what is shown }.
  function make(columns, { name = "sort", order = null, className = "", most = Infinity } = {}) {
    const body = el("tbody");
    const heads = columns.map((column) => {
      const button = el("button", { type: "button", title: column.hint }, column.title);
      const head = el("th", { scope: "col", class: classes(column) }, column.value ? button : column.title);
      button.addEventListener("click", () => {
        const first = column.number && !column.ascending ? "-" : "";
        const other = first === "-" ? "" : "-";
        state.set({ [name]: sort === `${first}${column.name}` ? `${other}${column.name}` : `${first}${column.name}` });
        sort = state.get(name);
        draw();
      });
      return head;
    });
    const more = el("button", { type: "button", hidden: true });
    more.addEventListener("click", () => {
      most = Infinity;
      draw();
    });
    const table = el("div", { class: "scroll" }, el("table", { class: className }, el("thead", {}, el("tr", {}, heads)), body), more);
    let sort = state.get(name) ?? order;
    let entries = [];

    function classes(column) {
      return [column.number && "number", column.minor && "minor", column.className].filter(Boolean).join(" ") || null;
    }

    // Numbers by size, texts as people order them; what has no value is last, whichever way.
    function sorted() {
      const down = sort?.startsWith("-");
      const column = columns.find((column) => column.value && column.name === (down ? sort.slice(1) : sort));
      heads.forEach((head, at) => {
        if (columns[at] === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
      if (!column) return entries;
      const missing = (value) => value === undefined || value === null || value === "" || Number.isNaN(value);
      const keyed = entries.map((entry) => [column.value(entry), entry]);
      keyed.sort(([a], [b]) => {
        if (missing(a) || missing(b)) return missing(a) - missing(b);
        const by = isNumber(a) && isNumber(b) ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
        return down ? -by : by;
      });
      return keyed.map(([, entry]) => entry);
    }

    function draw() {
      const rows = sorted();
      const fragment = document.createDocumentFragment();
      for (const entry of rows.slice(0, most)) {
        const row = document.createElement("tr");
        for (const column of columns) {
          const cell = document.createElement("td");
          const className = classes(column);
          if (className) cell.className = className;
          cell.append(...[column.cell(entry)].flat().filter((part) => part !== null && part !== undefined));
          row.append(cell);
        }
        fragment.append(row);
      }
      body.replaceChildren(fragment);
      more.hidden = rows.length <= most;
      more.textContent = `Show all ${rows.length}`;
    }

    return {
      table,
      show(shown) {
        entries = shown;
        draw();
      },
    };
  }

  // Columns that several pages have.
  function caseColumns(data) {
    const { format, caseLink, tag } = attnbench;
    const metric = (name, title, show, { minor = false, hint } = {}) => ({
      name: title.toLowerCase().replaceAll(" ", "_"), title, number: true, minor, hint,
      value: (entry) => data.value(entry, name),
      cell: (entry) => show(data.value(entry, name)),
    });
    const flags = (entry) => entry.flags.map((flag) => attnbench.el("span", { class: "under text-doubt" }, flag));
    return [
      { name: "case", title: "case", className: "case", value: (entry) => entry.key, cell: (entry) => [caseLink(entry), flags(entry)].flat() },
      { name: "length", title: "length", number: true, minor: true, ascending: true, hint: "Keys of the longest sequence", value: (entry) => entry.seqlen, cell: (entry) => (entry.seqlen ? String(entry.seqlen) : format.nothing) },
      {
        name: "latency", title: "latency", number: true, value: (entry) => data.value(entry, "latency_ns_median"),
        cell: (entry) => {
          const interval = data.interval(entry, "latency_ns_median");
          if (!interval) return format.nothing;
          const half = Math.max(interval[2] - interval[0], interval[0] - interval[1]) / interval[0];
          return [format.ns(interval[0]), attnbench.el("span", { class: "beside", title: `${format.percent(interval[3])} interval ${format.ns(interval[1])} to ${format.ns(interval[2])}` }, `± ${format.percent(half)}`)];
        },
      },
      metric("flops_per_s", "rate", format.rate),
      metric("bandwidth_gb_per_s", "bandwidth", (gb) => format.bandwidth(gb === undefined ? undefined : gb * 1e9), { minor: true }),
      metric("percent_of_limit", "limit", (percent) => format.percent(percent === undefined ? undefined : percent / 100), { hint: "Share of what the device's own ceilings allow" }),
      metric("extra_peak_bytes", "memory", format.bytes, { minor: true, hint: "Peak memory beside inputs and outputs" }),
      metric("relative_l2", "error", format.error, { minor: true, hint: "Relative L2 error against the f64 oracle" }),
      { name: "result", title: "result", value: (entry) => entry.compared?.verdict ?? entry.disposition, cell: (entry) => tag(entry.compared?.verdict ?? entry.disposition) },
    ];
  }

  return { make, caseColumns };
})();
