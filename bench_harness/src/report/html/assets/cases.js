// Every case, whatever became of it.
"use strict";

attnbench.start((main, data) => {
  const { title, filter, table, el } = attnbench;
  title(main, "Cases", "Every planned case, whatever became of it. Click a column to sort by it, a case for everything that is known of it; the address keeps what is chosen.");
  const shown = table.make(table.caseColumns(data), { most: 250 });
  const none = el("p", { class: "empty", hidden: true }, "No case is as chosen above.");
  const { controls, update } = filter.bar(data, data.cases, (entries) => {
    shown.show(entries);
    none.hidden = entries.length > 0;
  });
  main.append(controls, shown.table, none);
  update();
});
