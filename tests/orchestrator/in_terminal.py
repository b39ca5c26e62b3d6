"""A program in a terminal of its own: what it shows, with every escape code."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_terminal(words, *, columns=80, keys=(), cwd=None, env=None, timeout_s=120):
    """(exit code, what was shown) of a program on a terminal so wide, with 50 lines.

    Args:
        words: the command.
        columns: width.
        keys: (text, bytes) pairs: once the text has been shown, the bytes are typed.
        cwd: its working folder.
        env: its whole environment; without COLUMNS, which would be believed before the terminal.
        timeout_s: after which it counts as hung.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    variables = {**(os.environ if env is None else env), "TERM": "xterm-256color"}
    variables.pop("COLUMNS", None)
    child = subprocess.Popen(
        list(map(str, words)),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env=variables,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
    )
    os.close(theirs)
    shown, keys, end = b"", list(keys), time.monotonic() + timeout_s
    while time.monotonic() < end:
        if not select.select([ours], [], [], 0.2)[0]:
            continue
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not chunk:
            break
        shown += chunk
        while keys and keys[0][0].encode() in shown:
            os.write(ours, keys.pop(0)[1])
    else:
        child.kill()
    os.close(ours)
    code = child.wait(timeout=30)
    assert not keys, (keys, shown.decode(errors="replace"))
    return code, shown.decode(errors="replace").replace("\r\n", "\n")


def lines_of(shown):
    """The lines without escape codes; what a bar drew over itself is one line."""
    return ESCAPES.sub("", shown).splitlines()


def screen(shown, columns):
    """The lines that a terminal so wide holds in the end, down to the cursor, of a program that erases as bars do."""
    lines, row, column = [""], 0, 0
    for code, letter in re.findall(r"\x1b\[([0-9;?]*[A-Za-z])|([^\x1b])", shown):
        if code.endswith("A"):
            row -= int(code[:-1] or 1)
        elif code == "2K":
            lines[row] = ""
        elif code:
            assert code[-1] in "hlm", f"not known here: {code}"
        elif letter == "\r":
            column = 0
        else:
            if letter == "\n" or column == columns:
                row, column = row + 1, 0
                lines += [""] * (row == len(lines))
            if letter != "\n":
                lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
                column += 1
    assert not any(lines[row + 1 :]), f"below the cursor: {lines[row + 1 :]}"
    return lines[: row + 1]
