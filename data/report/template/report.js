"use strict";

// The wrong answers: filter by label, search in the text. Without this script they are a plain table.
for (const box of document.querySelectorAll(".browse")) {
  const [gold, given, search] = box.querySelectorAll("select, input");
  const rows = [...box.querySelectorAll("tbody tr")].map((row) => ({
    row,
    gold: JSON.parse(row.dataset.gold),
    given: JSON.parse(row.dataset.given),
    text: row.querySelector(".text").textContent.toLowerCase(),
  }));
  const update = () => {
    const words = search.value.trim().toLowerCase();
    let shown = 0;
    for (const each of rows) {
      const fits =
        (gold.value === "" || each.gold.includes(gold.value)) &&
        (given.value === "" || each.given.includes(given.value)) &&
        each.text.includes(words);
      each.row.hidden = !fits;
      shown += fits;
    }
    box.querySelector("output").textContent = `${shown} / ${rows.length}`;
    box.querySelector(".nothing").hidden = shown > 0;
  };
  for (const control of [gold, given, search]) control.addEventListener("input", update);
  box.querySelector(".controls").hidden = false;
  update();
}

for (const box of document.querySelectorAll(".command")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = box.dataset.copy;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(box.querySelector("pre").textContent);
    button.textContent = box.dataset.copied;
    setTimeout(() => { button.textContent = box.dataset.copy; }, 1500);
  });
  box.append(button);
}

window.addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
});
