// Redoc for this agent's OpenAPI description, in system fonts. Search is off: it needs a worker created from a blob, which
// the page's content security policy forbids.

const dark = matchMedia("(prefers-color-scheme: dark)").matches;
const fonts = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const code = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace";

document.body.style.margin = "0";
document.body.style.background = dark ? "#0e1217" : "#fff";

const night = {
  colors: {
    primary: { main: "#70b3f8" },
    text: { primary: "#e7ecf1", secondary: "#9aa7b4" },
    border: { dark: "#29323c", light: "#29323c" },
    http: { get: "#4ecdb6", post: "#70b3f8", put: "#f2b962" },
  },
  schema: { nestedBackground: "#151b22", typeNameColor: "#9aa7b4", typeTitleColor: "#9aa7b4" },
  sidebar: { backgroundColor: "#151b22", textColor: "#e7ecf1" },
  rightPanel: { backgroundColor: "#0a0d11" },
};

Redoc.init(
  new URL("../openapi.json", document.currentScript.src).href,
  {
    disableSearch: true,
    hideDownloadButton: false,
    nativeScrollbars: true,
    theme: {
      ...(dark ? night : { colors: { primary: { main: "#1f66b0" } } }),
      typography: {
        fontFamily: fonts,
        headings: { fontFamily: fonts },
        code: { fontFamily: code, ...(dark ? { backgroundColor: "#1c242d", color: "#e7ecf1" } : {}) },
      },
    },
  },
  document.getElementById("redoc"),
);
