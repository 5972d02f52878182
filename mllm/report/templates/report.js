"use strict";
(function () {
  const form = document.getElementById("filters");
  if (!form) return;
  const cards = Array.from(document.querySelectorAll("#cards > .card"));
  const texts = cards.map((card) => card.textContent.toLowerCase());
  const search = document.getElementById("search");
  const count = document.getElementById("count");
  function update() {
    const verdict = form.elements.verdict.value;
    const words = search.value.toLowerCase().trim();
    let shown = 0;
    cards.forEach((card, index) => {
      const visible = (!verdict || card.dataset.verdict === verdict) && texts[index].includes(words);
      card.hidden = !visible;
      shown += visible;
    });
    count.textContent = shown + " of " + cards.length + " shown";
  }
  form.hidden = false;
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
})();
