"""The style sheet of the page."""

STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5c6675;--line:#dfe3e8;--ground:#fff;--raised:#f6f7f9;
--link:#0b62c4;
--get:#1a6fb5;--post:#1c7d4d;--put:#9a6200;--patch:#7a4fb0;--delete:#b3362b}
@media(prefers-color-scheme:dark){:root{--ink:#dde3ea;--soft:#97a2b0;--line:#2d343d;--ground:#14181d;--raised:#1c2128;
--link:#6bb0ff;--get:#5aa9e6;--post:#4fbf86;--put:#dba24a;--patch:#b294e0;--delete:#ee7f74}}
*{box-sizing:border-box}
html{scroll-padding-top:3.2rem}
body{margin:0 auto;max-width:64rem;padding:0 1rem 4rem;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{margin:2rem 0 .5rem;font-size:1.9rem}h2{margin:2.5rem 0 .25rem;font-size:1.35rem}
h3{margin:1.2rem 0 .4rem;font-size:.8rem;text-transform:uppercase;letter-spacing:.06em;color:var(--soft)}
small,.common,.headers{color:var(--soft)}h1 small{font-size:.5em;font-weight:400}p{margin:.4rem 0}
a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}
code,pre{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{margin:.7rem 0;padding:.7rem .9rem;overflow-x:auto;border-radius:6px;background:var(--raised);
border:1px solid var(--line)}
nav{position:sticky;top:0;z-index:1;display:flex;gap:.2rem 1rem;overflow-x:auto;padding:.6rem 0;
background:var(--ground);
border-bottom:1px solid var(--line);white-space:nowrap}
details{margin:.4rem 0;border:1px solid var(--line);border-radius:6px;background:var(--ground)}
summary{display:flex;flex-wrap:wrap;align-items:baseline;gap:.15rem .7rem;padding:.5rem .8rem;cursor:pointer;
list-style:none}
summary::-webkit-details-marker{display:none}summary:hover{background:var(--raised)}
summary>code{overflow-wrap:anywhere}summary i{font-style:normal;color:var(--soft)}
.operation{border-left:4px solid var(--kind)}.operation>summary>b{min-width:4.2em;font-size:.78rem;color:var(--kind)}
.get{--kind:var(--get)}.post{--kind:var(--post)}.put{--kind:var(--put)}.patch{--kind:var(--patch)}.delete{
--kind:var(--delete)}
.what{color:var(--soft);font-size:.92rem;margin-left:auto;text-align:right}
.scope{min-width:4.4em;text-align:center;font-size:.74rem;padding:0 .5em;border:1px solid var(--line);
border-radius:1em;color:var(--soft)}
.body{padding:.2rem .9rem .9rem;border-top:1px solid var(--line);font-size:.95rem}
.members{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;margin:.3rem 0;
border-top:1px solid var(--line)}
.members>div{padding:.3rem .6rem .3rem 0;border-bottom:1px solid var(--line);min-width:0;overflow-wrap:anywhere}
.members .members{border-top:0;margin-left:0;padding-left:.8rem;border-left:2px solid var(--line)}
.members .members>div:nth-last-child(-n+2){border-bottom:0}
.facts{color:var(--soft)}.facts code,.default code{color:var(--ink)}.pattern{font-size:.76em;opacity:.8}
.required{color:var(--delete);margin-left:.15em}.or{margin:.3rem 0;color:var(--soft);font-size:.85rem}
.answer{margin:.5rem 0;padding-left:.7rem;border-left:3px solid var(--line)}
.answer.s2{border-color:var(--post)}.answer.s4{border-color:var(--put)}.answer.s5{border-color:var(--delete)}
.common{font-size:.88rem}
@media(max-width:44rem){body{padding:0 .7rem 3rem}.what{flex-basis:100%;order:3;margin:0;text-align:left}
.scope{margin-left:auto}.operation>summary>b{min-width:0}.members{grid-template-columns:1fr}
.members>div:nth-child(odd){border-bottom:0;padding-bottom:0}.members>div:nth-child(even){padding-top:0}}
""".strip()
