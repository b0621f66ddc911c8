"use strict";
// The ledger: verdict buttons and the search field together decide which groups and lines show.
const ledger = document.getElementById("ledger");
const buttons = [...ledger.querySelectorAll("button[data-verdict]")];
const field = ledger.querySelector("[data-filter]");
function filter() {
  const wanted = new Set(buttons.filter((b) => b.getAttribute("aria-pressed") === "true").map((b) => b.dataset.verdict));
  const text = field.value.trim().toLowerCase();
  let shown = 0;
  for (const group of ledger.querySelectorAll(".group")) {
    const inReason = group.querySelector("summary").textContent.toLowerCase().includes(text);
    let lines = 0;
    for (const line of group.querySelectorAll("li")) {
      line.hidden = !(inReason || line.textContent.toLowerCase().includes(text));
      lines += !line.hidden;
    }
    group.hidden = !wanted.has(group.dataset.verdict) || lines === 0;
    group.querySelector(".count").textContent = lines;
    if (text && !group.hidden && !inReason) group.open = true;
    shown += !group.hidden;
  }
  ledger.querySelector(".empty").hidden = shown > 0;
}
for (const button of buttons) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    filter();
  });
}
field.addEventListener("input", filter);
const copy = document.querySelector("[data-copy]");
copy.addEventListener("click", async () => {
  const code = document.querySelector("#recipe pre code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    copy.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);
    copy.textContent = "Selected: press Ctrl+C";
  }
});
