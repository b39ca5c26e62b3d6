"""The quickstart study, whole, telling what it does while it does it."""

import time
from pathlib import Path

from models.data import shipped
from orchestrator.observe import Observation
from orchestrator.progress import watch_with_table
from orchestrator.reduced_tables import print_reduced
from orchestrator.session import open_session
from orchestrator.study import Study
from orchestrator.tables import print_plan
from orchestrator.terminal import duration, print_sentence

COLUMNS = (
    "done, running, pending and failed count cells; a cell is done once every checkpoint of it is judged.",
    "Stop it at any time (Ctrl-C): the next `upshot demo` goes on from what is done.",
)
ANSWER = (
    '"vertices" are the cells on the upper hull, the best that these models reach. "saturates at" is where downstream'
    " accuracy ends as upstream accuracy goes to 1, with its 95 % interval; alpha and k are the other two parameters of"
    ' the law fitted to the hull. "not identifiable" says that these cells cannot tell, and the sentence why.',
    '"conflicts" is the share of pairs of which one cell is better upstream and the other one downstream; "significant"'
    ' are those beyond the noise of both test sets. "best" predicts the cells that are best upstream, unseen, with'
    " the smallest error.",
)
REPORT = (
    "Open it in a browser; it needs no internet. Look first at the plots of downstream over upstream accuracy and at"
    " the verdict below each, then at the conflicts, then at accuracy by layer.",
)
OWN_DATA = """\
With your own data, three commands:
  upshot init      # writes study.toml: name your images and tasks in it
  upshot plan      # what it comes to: cells, hours, memory
  upshot submit    # runs it; then upshot watch, upshot report"""


def run_demo(cluster: str, runs: Path) -> Observation:
    """The last observation of the quickstart study, run on `cluster` and reported; ends with what to do next.

    Raises:
        UserError: the quickstart study is not where it was installed.
        SlurmError: the cluster cannot be reached.
    """
    began = time.monotonic()
    sets = [] if cluster == "local" else [f'cluster.profile="{Path(cluster).resolve()}"']
    session = open_session(shipped("studies", "quickstart.toml"), runs, sets)
    print(f"Study file: {session.file.path}\nStudy folder: {session.store.root}\n")
    seen = session.observe()
    _tell(question(session.file.study, len(seen.plan.cells)))
    print_plan(seen.plan, session)
    _tell(training(session.file.study), *COLUMNS)
    session.submit()
    seen = watch_with_table(session)
    _tell(f"{len(seen.states)} cells ended after {duration(time.monotonic() - began)}. Now the answer.", *ANSWER)
    page = session.report()
    print_reduced(session.reduced())
    print(f"\nW&B and TensorBoard mirrors lie in {session.store.root / 'cells'}")
    print(f"Report: {page}")
    _tell(*REPORT)
    print(OWN_DATA)
    return seen


def question(study: Study, num_cells: int) -> str:
    """What the study asks, and what its cells are, in words."""
    axes = {name: values for table in study.grid for name, values in table.items() if len(values) > 1}
    varied = " x ".join(f"{len(values)} of {name}" for name, values in axes.items())
    return (
        "The question: as models get better at what they are trained on (upstream), how much better do they get at"
        f" tasks that they are not trained on (downstream)? A cell is one model, trained once; here {num_cells} of them"
        f" ({varied}). Nothing has run yet; this is the plan:"
    )


def training(study: Study) -> str:
    """What a cell goes through, in words."""
    d = study.downstream
    judged = f"{len(d.tasks)} tasks it has never seen, with {', '.join(map(str, d.shots))} images a class"
    return (
        f"Now each cell is trained on real images ({Path(study.upstream.dataset).name}). Then its weights stay as they"
        f" are, and a small classifier is fitted to the features of every layer: on {judged}, drawn {d.draws} times."
    )


def _tell(*sentences: str) -> None:
    print()
    for sentence in sentences:
        print_sentence(sentence)
    print()
