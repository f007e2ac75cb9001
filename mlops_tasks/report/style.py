"""The page's style sheet: light and dark, wide and narrow. In a module, so that a page is made without reading files."""

from mlops_tasks.report.markup import Markup

STYLE = Markup("""
:root {
  color-scheme: light dark;
  --paper: #fbfbf9; --card: #ffffff; --ink: #1c2024; --muted: #646b73; --line: #e3e4e1; --code: #f5f5f2;
  --accent: #2f5fd0; --candidate: #2f5fd0; --baseline: #80858e; --good: #17804f; --warn: #985a00; --bad: #b9362c; --odd: #7b4bb3;
  --heat: 222 118 16; --shadow: 0 1px 2px rgb(0 0 0 / .05), 0 4px 16px rgb(0 0 0 / .04);
  --keyword: #8a3ea8; --string: #17724a; --comment: #6a7179; --number: #9a5b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --card: #1b1e24; --ink: #e7e9ec; --muted: #9aa2ac; --line: #2c3139; --code: #16191e;
    --accent: #86a8ff; --candidate: #86a8ff; --baseline: #8e96a1; --good: #4cc38a; --warn: #f0b04a; --bad: #ff7b6e; --odd: #c39af0;
    --heat: 184 92 0; --shadow: none;
    --keyword: #d3a2ec; --string: #8fd6ae; --comment: #8d95a0; --number: #eebf78;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main, header .inner, nav .inner, footer { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
a { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: 2px; }
code, pre, .mono { font-family: ui-monospace, "SF Mono", "Cascadia Code", Menlo, "DejaVu Sans Mono", monospace; font-size: .86em; }
header { padding: 44px 0 30px; } header, footer, section > p { overflow-wrap: anywhere; }
.eyebrow { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: center; color: var(--muted); font-size: 14px; }
h1 { font-size: clamp(26px, 4.6vw, 40px); line-height: 1.15; letter-spacing: -.02em; margin: 14px 0 10px; text-wrap: balance; }
h1 span { white-space: nowrap; }
.lead { font-size: 18px; max-width: 70ch; margin: 0; color: var(--muted); }
nav { position: sticky; top: 0; z-index: 2; background: color-mix(in srgb, var(--paper) 90%, transparent); backdrop-filter: blur(8px); border-block: 1px solid var(--line); }
nav .inner { display: flex; gap: 20px; overflow-x: auto; scrollbar-width: none; }
nav a { color: var(--muted); text-decoration: none; font-size: 14px; padding: 10px 0; white-space: nowrap; }
nav a:hover { color: var(--ink); }
section { padding: 40px 0 8px; scroll-margin-top: 36px; }
h2 { font-size: 23px; letter-spacing: -.01em; margin: 0 0 4px; }
h3 { font-size: 16px; margin: 28px 0 8px; }
section > p { max-width: 74ch; margin: 4px 0 16px; }
.note, section > p { color: var(--muted); }
.absent { border: 1px dashed var(--line); border-radius: 10px; padding: 14px 18px; color: var(--muted); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; box-shadow: var(--shadow); padding: 18px 20px; margin: 14px 0; }
.pill { display: inline-block; border-radius: 99px; padding: 1px 10px; font-size: 12.5px; font-weight: 600; border: 1px solid currentColor; white-space: nowrap; }
.promoted, .passed, .run { color: var(--good); } .refused, .failed { color: var(--warn); } .error, .crashed { color: var(--bad); }
.timeout, .reads_answer, .tests_inside { color: var(--odd); } .skipped, .hit, .done, .none, .other { color: var(--muted); } .already { color: var(--accent); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 12px; margin: 26px 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; box-shadow: var(--shadow); }
.tile dt { color: var(--muted); font-size: 13px; } .tile dd { margin: 0; }
.tile .big { font-size: 27px; font-weight: 650; letter-spacing: -.02em; font-variant-numeric: tabular-nums; line-height: 1.25; }
.tile .small { color: var(--muted); font-size: 13px; font-variant-numeric: tabular-nums; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 14px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px 12px; box-shadow: var(--shadow); }
.graph { max-width: 640px; margin: 0 auto; } .card figure { border: 0; box-shadow: none; padding: 0; background: none; }
figcaption { font-weight: 600; font-size: 14.5px; margin-bottom: 6px; }
figcaption small { font-weight: 400; color: var(--muted); margin-left: 8px; font-size: 13px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px 20px; margin: 18px 4px 0; }
.figures dt { color: var(--muted); font-size: 13px; } .figures dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; font-family: inherit; overflow: visible; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .tick { fill: var(--muted); font-size: 12px; } svg .axis { fill: var(--muted); font-size: 12.5px; }
svg .line { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; } svg .dashed .line { stroke-dasharray: 5 4; }
svg .bar { fill: var(--accent); opacity: .85; } svg .mark { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .dot { fill: var(--accent); } svg .band { fill: var(--accent); opacity: .16; } svg .baseline .line { stroke: var(--baseline); } svg .baseline .band, svg .dot.baseline { fill: var(--baseline); }
svg .trial { fill: var(--muted); opacity: .85; } svg .complete { fill: var(--good); } svg .pruned { fill: var(--warn); } svg .fail { fill: var(--bad); } svg .trial.best { fill: var(--accent); opacity: 1; }
svg .path { fill: none; stroke: var(--muted); stroke-width: 1.2; } svg .path.best { stroke: var(--accent); stroke-width: 2.6; } svg .small { font-size: 11px; }
.v-complete { background: var(--good); } .v-pruned { background: var(--warn); } .v-fail { background: var(--bad); } .v-best { background: var(--accent); }
svg .edge { fill: none; stroke: var(--muted); stroke-width: 1.4; opacity: .55; } svg .node { fill: var(--code); stroke: var(--line); } svg .label { fill: var(--ink); font-size: 14px; }
.estimates { display: grid; grid-template-columns: max-content 1fr max-content; column-gap: 26px; align-items: center; font-size: 14.5px; }
.estimates b { text-align: right; font-variant-numeric: tabular-nums; } .track, .axis { position: relative; height: 32px; display: block; } .axis { height: 20px; margin-top: 3px; color: var(--muted); font-size: 12.5px; }
.axis span { position: absolute; transform: translateX(-50%); } .track i { position: absolute; display: block; top: 0; bottom: 0; }
.track .g { border-left: 1px solid var(--line); } .track .m { border-left: 1.5px dashed var(--bad); }
.track .whisker { top: 14px; bottom: auto; height: 4px; border-radius: 2px; opacity: .45; background: currentColor; }
.track .dot { top: 10px; bottom: auto; width: 12px; height: 12px; margin-left: -6px; border-radius: 50%; background: currentColor; }
.track.candidate { color: var(--candidate); } .track.baseline { color: var(--baseline); }
.track .bar { top: 11px; bottom: auto; height: 10px; border-radius: 5px; min-width: 2px; background: var(--accent); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; padding: 0; margin: 6px 0 0; font-size: 13px; color: var(--muted); }
.legend i { display: inline-block; width: 18px; border-top: 2.5px solid var(--accent); margin-right: 6px; vertical-align: middle; } .legend i.dashed { border-top-style: dashed; } .legend i.baseline { border-top-color: var(--baseline); }
.legend b { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; } th { text-align: left; font-weight: 600; color: var(--muted); font-size: 13px; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; } tr:last-child td { border-bottom: 0; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td small { color: var(--muted); margin-left: 6px; }
.time { width: 26%; min-width: 110px; } .time span { display: inline-block; height: 9px; border-radius: 5px; background: var(--good); min-width: 2px; vertical-align: middle; }
.time .saved { background: none; border: 1.5px solid var(--muted); opacity: .7; }
.shares { display: flex; height: 16px; border-radius: 5px; overflow: hidden; gap: 2px; min-width: 160px; } .shares span { min-width: 3px; }
.v-passed { background: var(--good); } .v-failed { background: var(--warn); } .v-error { background: var(--bad); } .v-timeout { background: var(--odd); } .v-crashed { background: var(--ink); } .v-other { background: var(--muted); }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 9px; padding: 12px 14px; margin: 8px 0; overflow-x: auto; line-height: 1.5; tab-size: 4; }
pre.heat { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14px; line-height: 1.75; }
pre.heat span { border-radius: 3px; padding: 1px 0; background: rgb(var(--heat) / var(--w)); } pre.heat .given { color: var(--muted); background: none; }
.ramp { display: inline-block; width: 150px; height: 12px; border-radius: 4px; vertical-align: middle; margin: 0 8px; border: 1px solid var(--line); background: linear-gradient(90deg, rgb(var(--heat) / 0), rgb(var(--heat) / .85)); }
pre .k { color: var(--keyword); font-weight: 600; } pre .s { color: var(--string); } pre .c { color: var(--comment); font-style: italic; } pre .d { color: var(--number); }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 0 18px; } .sides > div { min-width: 0; }
.who { font-size: 13px; color: var(--muted); display: flex; gap: 8px; align-items: center; flex-wrap: wrap; margin-top: 10px; }
.message { font-size: 13px; color: var(--muted); overflow-wrap: anywhere; margin: 4px 0 0; }
details { border: 1px solid var(--line); border-radius: 12px; background: var(--card); margin: 10px 0; }
summary { cursor: pointer; padding: 11px 16px; font-weight: 600; font-size: 15px; display: flex; gap: 10px; align-items: baseline; }
summary::-webkit-details-marker { display: none; }
summary::before { content: "▸"; color: var(--muted); font-size: 13px; } details[open] > summary::before { content: "▾"; }
details > div { padding: 0 16px 14px; min-width: 0; } details details { margin: 8px 0; } details details summary { font-weight: 500; font-size: 14px; padding: 7px 12px; }
.group { border: 1px solid var(--line); border-radius: 12px; background: var(--card); box-shadow: var(--shadow); overflow: hidden; margin: 10px 0; }
.group > details { border: 0; border-radius: 0; margin: 0; } .group > details + details { border-top: 1px solid var(--line); }
summary .pill { min-width: 68px; text-align: center; } summary .flag { min-width: 0; }
summary .id { min-width: 2.2em; font-variant-numeric: tabular-nums; } summary .task { flex: 1 1 0; min-width: 0; color: var(--muted); font-weight: 400; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
details[open] > summary .task { white-space: normal; }
.filter { border: 0; padding: 0; margin: 0; min-width: 0; } .filter legend { font-size: 13px; color: var(--muted); padding: 0; }
.filter input { position: absolute; opacity: 0; width: 1px; height: 1px; margin: 0; }
.filter label { display: inline-block; border: 1px solid var(--line); border-radius: 99px; padding: 5px 13px; margin: 6px 6px 0 0; font-size: 14px; cursor: pointer; background: var(--card); } .filter label small { color: var(--muted); }
.filter input:checked + label { border-color: var(--accent); color: var(--accent); font-weight: 600; } .filter input:focus-visible + label { outline: 3px solid var(--accent); outline-offset: 2px; }
#only-passed:checked ~ .group > :not(.is-passed), #only-failed:checked ~ .group > :not(.is-failed), #only-error:checked ~ .group > :not(.is-error), #only-timeout:checked ~ .group > :not(.is-timeout), #only-crashed:checked ~ .group > :not(.is-crashed), #only-other:checked ~ .group > :not(.is-other), #only-reads_answer:checked ~ .group > :not(.is-reads_answer), #only-tests_inside:checked ~ .group > :not(.is-tests_inside) { display: none; }
.why { font-size: 13px; min-width: 190px; overflow-wrap: anywhere; } .numbers { font-size: 13.5px; white-space: nowrap; } .words { min-width: 220px; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; } summary:focus-visible { outline-offset: -2px; }
.card > h3:first-child { margin-top: 0; } .card > .note { margin: 0 0 14px; max-width: 90ch; font-size: 14.5px; }
.uri { overflow-wrap: anywhere; color: var(--muted); font-size: 12.5px; } .inputs { font-size: 13px; } :target > td { background: color-mix(in srgb, var(--accent) 12%, transparent); }
footer { padding: 34px 24px 60px; color: var(--muted); font-size: 13.5px; }
@media (max-width: 620px) { .tile:last-child:nth-child(odd) { grid-column: 1 / -1; } .time { display: none; } svg .tick, svg .axis, svg .label { font-size: 17px; } main, header .inner, nav .inner { padding: 0 16px; } header { padding-top: 26px; } .card { padding: 14px; } .estimates { grid-template-columns: 1fr max-content; column-gap: 14px; } .estimates .label { grid-column: 1 / -1; margin-top: 8px; } .track { height: 26px; } .track .whisker { top: 11px; } .track .dot { top: 7px; } .estimates > span:empty { display: none; } .estimates .axis { grid-column: 1; } td.where { white-space: nowrap; } pre { font-size: 12.5px; } }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print { nav { display: none; } body { background: #fff; } }
""")
