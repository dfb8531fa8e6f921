// Shows the report in the page; a page without one becomes live.
const view = new View();
const embedded = embeddedReport();
if (embedded) {
  const made = new Date(embedded.created * 1000).toISOString().slice(0, 16).replace("T", " ");
  byId("made").textContent = `incant ${embedded.incant}, ${made} UTC`;
  document.title = `${shortened(embedded.prompts[0])} · compare`;
  view.show(embedded);
} else {
  goLive(view);
}

/** Makes the page live. */
function goLive(view) {
  const server = new Server(() => panels[tabs.current].focus());
  const panels = { compare: new Compare(server, view), chat: new Chat(server) };
  const tabs = new Tabs(() => view.rest());
  server.load(Object.values(panels));
}
