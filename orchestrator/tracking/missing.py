"""What W&B lacks of a study: its runs are listed in pages, with how many rows each has and which."""

from collections.abc import Iterable
from typing import Final

from orchestrator.store import Store
from orchestrator.tracking.client import known_of, need_key, one_line
from orchestrator.tracking.journal import read_journal
from orchestrator.tracking.reading import NUM_RETRIES, READ, public_api
from orchestrator.tracking.stamps import Place
from orchestrator.tracking.syncing import StudyRefusedError
from orchestrator.tracking.trouble import Trouble, mended, trouble_of

JOB_TYPE: Final = "cell"


class AwayError(RuntimeError):
    """W&B could not say which runs it has."""


def whole_runs(store: Store, study: str, cell_ids: Iterable[str], place: Place, timeout_s: float) -> set[str]:
    """The cells that W&B has every journal line of, and no other.

    Raises:
        StudyRefusedError: W&B refuses the key, or to say.
        AwayError: it does not answer.
    """
    need_key()
    wanted, whole = set(cell_ids), set()
    filters = {"group": study, "jobType": JOB_TYPE}
    try:
        with public_api(timeout_s, NUM_RETRIES) as api:
            for run in api.runs(place.path, filters=filters, per_page=READ, lazy=False):
                if run.id not in wanted:
                    continue
                known, rows = known_of(run, run.summary_metrics or {}), read_journal(store.cell_folder(run.id))
                if known.is_all_of(rows):
                    whole.add(run.id)
    except Exception as error:  # what wandb raises is no closed set
        words = one_line(error)
        if "Could not find project" in words:
            return set()
        if trouble_of(error) is Trouble.STUDY:
            raise StudyRefusedError(mended(words, place)) from error
        raise AwayError(f"W&B at {place.server} does not say which runs it has: {words}") from error
    return whole
