"""Numbers as people write them."""


def si(value: float | None) -> str:
    """Three significant digits with a prefix: 8.31 M, 5.57 T; a dash for nothing."""
    if value is None:
        return "–"
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g}"


def fixed(value: float | None, digits: int) -> str:
    """A number with a fixed number of decimals; a dash for nothing."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """A change of accuracy: +0.021, −0.004."""
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def ranked(rank: float | None, low: float | None, high: float | None) -> str:
    """A rank correlation with its interval: `−0.53 [−0.74, −0.22]`; a dash for nothing."""
    if rank is None:
        return "–"
    interval = "" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]"
    return f"{rank:+.2f}{interval}".replace("-", "−")


def percent(share: float) -> str:
    """A share in per cent, without decimals above ten."""
    return f"{share * 100:.0f} %" if share >= 0.1 or share == 0 else f"{share * 100:.1f} %"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 cell`, `36 cells`, `4,800 cells`; `plural` where an s does not do."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


def hours(number: float | None) -> str:
    """Hours with two decimals, none above a thousand, two digits where they are very few; a dash for nothing."""
    if number is None:
        return "–"
    return f"{number:,.0f}" if number >= 1000 else f"{number:.2g}" if 0 < number < 0.01 else f"{number:.2f}"


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
