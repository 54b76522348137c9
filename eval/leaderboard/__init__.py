"""The leaderboard: result files -> LEADERBOARD.md, leaderboard.csv and one self-contained page.

rows.py     result files -> tables of rows (which results may be compared, seeds, ranks)
render.py   tables -> Markdown, CSV, HTML (page/: template, style, scripts, inlined)
build.py    writes the three files;  check.py  finds what is invalid, doubled, not reproducible or stale
"""
