// Filters and order of the answers. Without this script all answers are there, and the filters are not.
(function () {
  const list = document.getElementById("pairs");
  const alike = document.getElementById("alike");
  const pairs = Array.from(document.querySelectorAll("article.sample"));
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
    const folded = alike ? Array.from(alike.querySelectorAll("article.sample")) : [];
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
    const differing = pairs.filter((pair) => !folded.includes(pair));
    list.append(...differing.sort((a, b) => key(a) - key(b) || keys.number(a) - keys.number(b)));
    document.getElementById("count").textContent = shown + " of " + pairs.length + " shown";
    document.getElementById("nothing").hidden = shown > 0;
    if (alike) {
      const left = folded.filter((pair) => !pair.hidden).length;
      alike.hidden = left === 0;
      document.getElementById("alike-count").textContent = left + (left === 1 ? " prompt" : " prompts");
    }
  }

  function reset() {
    words.value = "";
    order.value = "change";
    hit.checked = differ.checked = false;
    apply();
  }

  choose.addEventListener("input", apply);
  document.getElementById("all").addEventListener("click", reset);
  choose.hidden = false;
  apply(); // a browser may have kept what was chosen before a reload
})();
