"""The page table, before and after a fork."""

from __future__ import annotations

from drawing import Drawing

CELL, ROW = 40, 34


def draw() -> Drawing:
    d = Drawing(
        "pages",
        "Rows of the page table name pages of the cache. After fork([0, 0]) both rows name the "
        "same full pages 3 and 1; the partly filled page 4 is copied to page 2 for the second row.",
        760,
        342,
    )
    d.text(8, 18, "page_table", kind="code strong", anchor="start")
    d.text(250, 18, "lengths", kind="code strong", anchor="start")
    table(d, 40, (("row 0", (3, 1, 4, 0), 150), ("row 1", (5, 0, 0, 0), 40)))
    d.text(330, 62, "page_size = 64: 150 tokens are 2 full pages and 22 tokens.", anchor="start")
    d.text(330, 80, "0 is no page; page 0 itself is reserved.", anchor="start")
    d.text(8, 146, "k, v", kind="code strong", anchor="start")
    cache(d, 128, {1: ("row 0", 64), 3: ("row 0", 64), 4: ("row 0", 22), 5: ("row 1", 40)})
    d.line((8, 186), (752, 186), kind="dotted")
    d.text(8, 210, "after", anchor="start")
    d.text(44, 210, "state.fork([0, 0])", kind="code", anchor="start")
    table(d, 236, (("row 0", (3, 1, 4, 0), 150), ("row 1", (3, 1, 2, 0), 150)))
    d.text(330, 252, "Full pages are shared, the partly filled one is copied:", anchor="start")
    d.text(330, 270, "it will be written. Row 1's old page is free.", anchor="start")
    cache(d, 302, {1: ("both", 64), 2: ("row 1", 22), 3: ("both", 64), 4: ("row 0", 22)})
    return d


def table(d: Drawing, y: float, rows: tuple[tuple[str, tuple[int, ...], int], ...]) -> None:
    for i, (name, pages, length) in enumerate(rows):
        top = y - 12 + i * (ROW - 4)
        d.text(44, top + 20, name, kind="small", anchor="end")
        for j, page in enumerate(pages):
            kind = "cache" if page else "free"
            d.box(
                52 + j * CELL, top, CELL, ROW - 6, str(page), kind=kind, text_kind="code", radius=0
            )
        d.text(270, top + 19, str(length), kind="code")


def cache(d: Drawing, y: float, pages: dict[int, tuple[str, int]]) -> None:
    """The pages 0 to 7, each as full as it is."""
    width = 86
    for page in range(8):
        x, (owner, tokens) = 52 + page * (width + 1), pages.get(page, ("", 0))
        d.box(x, y, width, ROW, kind="free", radius=0)
        if tokens:
            d.box(x, y, width * tokens / 64, ROW, kind="cache", radius=0)
        text = owner or ("reserved" if page == 0 else "free")
        d.text(x + width / 2, y + 15, f"page {page}", kind="label")
        d.text(x + width / 2, y + 29, text, kind="label")
