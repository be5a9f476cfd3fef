"""A picture of the terminal, for the documents:  python docs/terminal_picture.py FOLDER

Runs `automl-tl fit digits` in a terminal of its own, 120 letters wide, and draws what it printed as docs/images/terminal.png.
The run is left in FOLDER/digits: `report_pictures.py` takes it. FOLDER/terminal.txt is what README shows of it.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

from report_pictures import HERE, browser_page, slim

COMMAND = "automl-tl fit digits --budget 1m --out digits"
COLUMNS = 120
STYLE = "margin:0;padding:18px 22px;background:#1e2430;color:#d8dee9;font:14px/1.42 'DejaVu Sans Mono',monospace"


def printed(command: str, folder: Path) -> str:
    """What a command writes to a terminal, with the codes of its colours."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    program = str(Path(sys.executable).with_name("automl-tl"))
    environment = {**os.environ, "TERM": "xterm-256color", "AUTOML_TL_HOME": str(folder / "home")}
    words = [program, *shlex.split(command)[1:]]
    running = subprocess.Popen(
        words, cwd=folder, env=environment, stdout=writer, stderr=subprocess.PIPE
    )  # no bars that come and go
    os.close(writer)
    assert running.stderr is not None
    said, open_ones = b"", [reader, running.stderr.fileno()]
    while open_ones:
        for one in select.select(open_ones, [], [])[0]:
            part = read(one)
            said += part
            if not part:
                open_ones.remove(one)
    os.close(reader)
    running.stderr.close()
    if running.wait():
        raise SystemExit(f"{command} ended with {running.returncode}")
    return said.decode().replace("\r\n", "\n")


def read(descriptor: int) -> bytes:
    """What there is to read; nothing at the end."""
    try:
        return os.read(descriptor, 65536)
    except OSError as error:
        if error.errno == errno.EIO:  # so says Linux when the program's side of a terminal has closed
            return b""
        raise


def draw(text: str, path: Path) -> None:
    from rich.console import Console
    from rich.terminal_theme import NIGHT_OWLISH
    from rich.text import Text

    console = Console(record=True, file=io.StringIO(), width=COLUMNS)
    console.print(Text.from_ansi(text), no_wrap=False)
    code = console.export_html(theme=NIGHT_OWLISH, inline_styles=True, code_format="<pre>{code}</pre>")
    with browser_page(1080, 800) as (page, wrong):
        page.set_content(
            f"<body style='margin:0'><div id='terminal' style=\"{STYLE}\">{code}</div><style>pre{{margin:0;font:inherit}}</style>"
        )
        page.locator("#terminal").screenshot(path=path)
    if wrong:
        raise SystemExit("; ".join(wrong))
    slim(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    said = printed(COMMAND, place)
    (place / "terminal.txt").write_text(re.sub(r"\x1b\[[0-9;]*m", "", said), encoding="utf-8")
    draw(f"\x1b[1m$ {COMMAND}\x1b[0m\n" + said, HERE / "images" / "terminal.png")
    print(HERE / "images" / "terminal.png")
