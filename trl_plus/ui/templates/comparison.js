// Filters and order of the answers. Without this script all answers are shown, and the filters are not.
(function () {
  const list = document.getElementById("pairs");
  const pairs = Array.from(list.children);
  const texts = new Map(pairs.map((pair) => [pair, pair.textContent.toLowerCase()]));
  const [choose, words, order, hit, differ] = ["choose", "words", "order", "hit", "differ"].map((id) => document.getElementById(id));
  const keys = {
    number: (pair) => Number(pair.dataset.number),
    change: (pair) => -Number(pair.dataset.change),
    longer: (pair) => -Number(pair.dataset.longer),
    shorter: (pair) => Number(pair.dataset.longer),
  };

  function apply() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const pair of pairs) {
      const fits =
        (!hit.checked || pair.dataset.hit === "1") &&
        (!differ.checked || Number(pair.dataset.change) > 0) &&
        wanted.every((word) => texts.get(pair).includes(word));
      pair.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    const key = keys[order.value];
    list.append(...pairs.slice().sort((a, b) => key(a) - key(b) || keys.number(a) - keys.number(b)));
    document.getElementById("count").textContent = shown + " of " + pairs.length + " shown";
    document.getElementById("nothing").hidden = shown > 0;
  }

  function reset() {
    words.value = "";
    order.value = "number";
    hit.checked = differ.checked = false;
    apply();
  }

  choose.addEventListener("input", apply);
  document.getElementById("all").addEventListener("click", reset);
  choose.hidden = false;
  apply(); // a browser may have kept what was chosen before a reload
})();
