//! The page of `ui/` around its document: as one file that asks nobody for anything, and as what
//! `guardrail ui` serves.
//!
//! Its built parts are committed (`cargo xtask build-ui` makes them), so that building the command
//! needs no Node.js. Script and style are allowed by their hash, everything else is forbidden.

use std::io::Write;

use guardrail_graph::Snapshot;
use guardrail_lifecycle::page::Page;

use crate::coverage;

/// The script.
pub(crate) const SCRIPT: &str = include_str!("../../ui/dist/page.js");
/// The style.
pub(crate) const SHEET: &str = include_str!("../../ui/dist/page.css");
/// What the hashes allow, for the single file.
const POLICY: &str = include_str!("../../ui/dist/policy.txt");

/// The page as it is served: script, style and document (`document.json`) stand beside it.
pub(crate) const SERVED: &str = "\
<!doctype html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<meta name=\"color-scheme\" content=\"light dark\">
<title>guardrail: who talks to whom</title>
<link rel=\"stylesheet\" id=\"__________cytoscape_stylesheet\" href=\"page.css\">
</head>
<body>
<noscript>This page is drawn by its own script; allow scripts for it.</noscript>
<script src=\"page.js\" defer></script>
</body>
</html>
";

/// Writes the page as one file.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn file(out: &mut impl Write, snapshot: &Snapshot) -> anyhow::Result<()> {
    // Inside a script element only `<` can end it, and JSON has other ways to write that.
    let document = serde_json::to_string(&Page::new(snapshot, coverage::incomplete(snapshot)))?.replace('<', "\\u003c");
    let policy = POLICY.trim_end();
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>guardrail: who talks to whom</title>\n\
         <style id=\"__________cytoscape_stylesheet\">{SHEET}</style>\n</head>\n<body>\n\
         <noscript>This page is drawn by its own script; allow scripts for this file.</noscript>\n\
         <script type=\"application/json\" id=\"document\">{document}</script>\n\
         <script>{SCRIPT}</script>\n</body>\n</html>\n"
    )?;
    Ok(())
}
