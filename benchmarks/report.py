"""Rewrites the marked tables and plots of README.md and the documentation from results.

A table stands between `<!-- table: FILE -->` and `<!-- end of table -->`, a plot likewise, where
FILE lies in benchmarks/results. Plots are PNG files beside the results.

python benchmarks/report.py
python benchmarks/report.py --check
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from report_plots import draw, is_drawn_from
from report_tables import table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(r"(<!-- (table|plot): (\S+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> None:
    """Rewrites the files, or with ``--check`` says whether they would change.

    Raises:
        SystemExit: if no file has a mark, or if one would change under ``--check``.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, default=DOCUMENTS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the JSON files")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if out of date")
    args = parser.parse_args(argv)
    marked = [file for file in args.files if _BLOCK.search(file.read_text())]
    if not marked:
        names = ", ".join(map(str, args.files))
        raise SystemExit(f"there is no <!-- table: FILE --> ... <!-- end of table --> in {names}")
    for file in marked:
        update(file, args.results, check=args.check)


def update(file: Path, results: Path, *, check: bool) -> None:
    """Brings one document and its plots up to date, or with ``check`` demands that they are.

    Raises:
        SystemExit: if they are not.
    """
    old = file.read_text()
    for _, kind, name, _ in _BLOCK.findall(old):
        source = results / name
        if kind != "plot" or is_drawn_from(source.with_suffix(".png"), source):
            continue
        if check:
            raise SystemExit(f"{source.with_suffix('.png')} is out of date: {_REMEDY}")
        draw(source)
    new = _BLOCK.sub(lambda block: _filled(block, file, results), old)
    if check and new != old:
        raise SystemExit(f"{file} is out of date: {_REMEDY}")
    if not check:
        file.write_text(new)


_REMEDY = "run python benchmarks/report.py"


def _filled(block: re.Match[str], file: Path, results: Path) -> str:
    begin, kind, name, end = block.groups()
    source = results / name
    if kind == "table":
        return f"{begin}{table(json.loads(source.read_text()))}{end}"
    image = os.path.relpath(source.with_suffix(".png"), file.parent)
    return f"{begin}![{source.stem}]({image})\n{end}"


if __name__ == "__main__":
    main()
