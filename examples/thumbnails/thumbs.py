"""Portable pixmaps (PGM, PPM) to thumbnails, with nothing but Python; use Pillow for real pictures."""

from pathlib import Path

WIDTH = 64
OUT = Path(__file__).parent / "thumbnails"


def make(event):
    with event.open() as picture:
        kind, width, height, depth = header(picture)
        bytes_per_pixel = 3 if kind == b"P6" else 1
        rows = [picture.read(width * bytes_per_pixel) for _ in range(height)]
    step = max(1, width // WIDTH)
    small = [shrink(row, step, bytes_per_pixel) for row in rows[::step]]
    target = OUT / Path(event.data["key"]).name
    OUT.mkdir(exist_ok=True)
    size = f"{len(small[0]) // bytes_per_pixel} {len(small)}"
    target.write_bytes(kind + f"\n{size}\n{depth}\n".encode() + b"".join(small))
    print(event.subject, "->", target.name, size)


def header(picture):
    words = []
    while len(words) < 4:
        line = picture.readline()
        if not line:
            raise ValueError("not a portable pixmap")
        words += line.split(b"#")[0].split()
    return words[0], *map(int, words[1:4])


def shrink(row, step, size):
    return b"".join(row[at : at + size] for at in range(0, len(row), step * size))
