// A report in the page is shown; a page without one asks.
const view = new View();
const embedded = embeddedReport();
if (embedded) {
  const made = new Date(embedded.created * 1000).toISOString().slice(0, 16).replace("T", " ");
  part("made").textContent = `incant ${embedded.incant}, ${made} UTC`;
  document.title = `${shortened(embedded.prompts[0])} · compare`;
  view.show(embedded);
} else {
  new Live(view);
}
