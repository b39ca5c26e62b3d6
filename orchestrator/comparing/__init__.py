"""Two studies, or a study and a published table, side by side: which frontier lies higher where.

`sides` opens them, `difference` is the numeric core, `answer` says it in objects and sentences, `charts`, `tables` and
`page` show it, and `writing` puts all into one folder.
"""

from orchestrator.comparing.answer import Comparison, compare, named, sentence, to_json
from orchestrator.comparing.difference import Cells, Difference, Region, find_difference
from orchestrator.comparing.sides import Side, open_sides
from orchestrator.comparing.writing import folder_name, write_comparison

__all__ = [
    "Cells",
    "Comparison",
    "Difference",
    "Region",
    "Side",
    "compare",
    "find_difference",
    "folder_name",
    "named",
    "open_sides",
    "sentence",
    "to_json",
    "write_comparison",
]
