"use strict";
// Filters of the findings. Without this script all findings are shown, and the filters are not.
(function () {
  const filters = document.getElementById("filters");
  if (filters) {
    const findings = Array.from(document.querySelectorAll("article.finding"));
    const texts = new Map(findings.map((finding) => [finding, finding.textContent.toLowerCase()]));
    const boxes = Array.from(filters.querySelectorAll("input[type=checkbox]"));
    const [code, split, text] = ["code", "split", "text"].map((id) => document.getElementById(id));

    function apply() {
      const severities = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
      const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const finding of findings) {
        const { severity, code: itsCode, split: itsSplit } = finding.dataset;
        const fits =
          severities.has(severity) &&
          (!code.value || code.value === itsCode) &&
          (!split.value || split.value === itsSplit) &&
          words.every((word) => texts.get(finding).includes(word));
        finding.hidden = !fits;
        shown += fits ? 1 : 0;
      }
      document.getElementById("shown").textContent = shown + " of " + findings.length + " shown";
      document.getElementById("none").hidden = shown > 0;
    }

    function reset() {
      boxes.forEach((box) => (box.checked = true));
      [code, split, text].forEach((field) => (field.value = ""));
      apply();
    }

    filters.addEventListener("input", apply);
    document.getElementById("reset").addEventListener("click", reset);
    filters.hidden = false;
    apply(); // a browser may have kept what was chosen before a reload
  }
  // paper cannot be unfolded
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
})();
