// Controls that a screen reader would have no name for, and pictures without words.
[...document.querySelectorAll("button, input, select, a, [role=img], [role=meter], dialog, section")]
  .filter((element) => {
    const by = element.getAttribute("aria-labelledby");
    const name = element.getAttribute("aria-label")
      || (by && document.getElementById(by)?.textContent)
      || (element.labels && element.labels[0]?.textContent)
      || element.textContent;
    return !name || !name.trim();
  })
  .map((element) => element.outerHTML.slice(0, 120))
