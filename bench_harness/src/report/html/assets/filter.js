// Which cases a page shows: a run, a value of each axis that has several, and words to search for. All of it in the address.
"use strict";

attnbench.filter = (() => {
  const { el, state, format } = attnbench;

  // Values that say nothing without the name of their axis.
  const SHORT = new Set(["batch", "heads", "head_dim", "threads"]);

  // The controls, and a function that says which entries are chosen. `changed` is called whenever that changes.
  function bar(data, entries, changed, { runs = true, extra = [] } = {}) {
    const controls = el("div", { class: "controls" });
    const count = el("span", { class: "count", "aria-live": "polite" });
    const choices = [];
    // On a phone they would fill the first page.
    const axesPlace = el("span", { class: "axes" });
    const fold = el("button", { type: "button", class: "fold", "aria-expanded": "false" }, "Filter");
    fold.addEventListener("click", () => fold.setAttribute("aria-expanded", String(axesPlace.classList.toggle("open"))));

    const choice = (name, label, values, fallback) => {
      const select = el("select", { "aria-label": label, "data-axis": name });
      for (const [value, text] of values) select.append(el("option", { value }, text));
      select.title = label;
      select.value = state.get(name) ?? fallback;
      if (select.selectedIndex < 0) select.value = fallback;
      const mark = () => select.classList.toggle("set", select.value !== fallback);
      select.addEventListener("change", () => {
        mark();
        state.set({ [name]: select.value === fallback ? null : select.value });
        update();
      });
      mark();
      axesPlace.append(select);
      choices.push({ name, select, fallback, mark });
      return select;
    };

    const search = el("input", { type: "search", placeholder: "Search words or parts of an id", "aria-label": "Search", value: state.get("q") ?? "" });
    search.addEventListener("input", () => {
      state.set({ q: search.value });
      update();
    });
    controls.append(search, fold, axesPlace);

    let run = null;
    if (runs && data.runs.length > 1) {
      run = choice("run", "run", data.runs.map((entry) => [String(entry.place), entry.label]), String(data.current));
    }
    const axes = [];
    const several = (name, label, value) => {
      const values = [...new Set(entries.map(value))];
      if (values.length < 2) return;
      values.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
      axes.push({ value, select: choice(name, label, [["*", `${label}: all`], ...values.map((one) => [one, one === "" ? `no ${label}` : label.startsWith("seqlen") || SHORT.has(name) ? `${label} ${format.words(one)}` : format.words(one)])], "*") });
    };
    data.axes.forEach((name, at) => several(name, format.words(name), (entry) => entry.axes[at]));
    several("mode", "mode", (entry) => entry.mode);
    several("threads", "threads", (entry) => String(entry.threads));
    const result = (entry) => entry.compared?.verdict ?? entry.disposition;
    several("result", "result", result);
    controls.append(...extra);
    const reset = el("button", { type: "button" }, "Reset");
    reset.addEventListener("click", () => {
      search.value = "";
      state.set({ q: null });
      for (const { name, select, fallback, mark } of choices) {
        select.value = fallback;
        state.set({ [name]: null });
        mark();
      }
      update();
    });
    controls.append(reset, count);

    function chosen() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      return entries.filter((entry) => {
        if (run && entry.run !== Number(run.value)) return false;
        if (!axes.every(({ value, select }) => select.value === "*" || value(entry) === select.value)) return false;
        if (words.length === 0) return true;
        const text = `${entry.key} ${entry.matrix} ${entry.disposition} ${format.words(entry.compared?.verdict ?? "")} ${entry.reason ?? ""}`.toLowerCase();
        return words.every((word) => text.includes(word));
      });
    }

    function update() {
      const shown = chosen();
      const all = run ? entries.filter((entry) => entry.run === Number(run.value)).length : entries.length;
      count.textContent = shown.length === all ? `${all} case${all === 1 ? "" : "s"}` : `${shown.length} of ${all} cases`;
      changed(shown);
    }

    return { controls, update };
  }

  return { bar };
})();
