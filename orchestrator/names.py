"""Names that are paths, as people call them: by the last part, or as many as tell them apart. Pure."""

from collections.abc import Iterable

PATHS = ("/", "./", "../", "~/")


def short_names(names: Iterable[str]) -> dict[str, str]:
    """What to show for each name: itself, or the last parts of a path, as few as no other name ends with.

    A path begins with `/`, `./`, `../` or `~/`, as a study names folders of images.
    """
    whole = list(dict.fromkeys(names))
    parts = {name: [part for part in name.split("/") if part] if name.startswith(PATHS) else [name] for name in whole}
    shown = {name: "/".join(parts[name][-1:]) or name for name in whole}
    for length in range(2, max(map(len, parts.values()), default=0) + 1):
        twice = {text for text in shown.values() if list(shown.values()).count(text) > 1}
        shown = {name: "/".join(parts[name][-length:]) if text in twice else text for name, text in shown.items()}
    # "a/b" and "/a/b" have the same parts.
    return {name: text if list(shown.values()).count(text) == 1 else name for name, text in shown.items()}
