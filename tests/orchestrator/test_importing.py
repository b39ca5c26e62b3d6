"""Published tables: the real ones of timm, and every way in which a table can be wrong."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import DataError, UnknownNameError, UserError
from orchestrator.conflicts import controlled_pairs, strongest_pairs
from orchestrator.importing import Imported, import_tables, to_json, write_results
from orchestrator.reduce import reduce_study
from orchestrator.report.conflict_panels import changes_panels
from orchestrator.report.facts import gather
from orchestrator.results import read_results
from orchestrator.selection import select_cells
from tests.orchestrator.timm_tables import DATA, NUM_TEST, REFERENCE
from tests.orchestrator.upshot_command import upshot, upshot_json

TIMM = DATA / "timm"
SIZES = ",".join(f"results-{task}={number}" for task, number in NUM_TEST.items())
OF_TIMM = {"ids": ["model,img_size"], "upstream": "results-imagenet:top1", "downstream": ["top1"], "unit": "percent"}


def timm(*tasks: str, **options: Any) -> Imported:
    paths = [TIMM / f"results-{name}.csv" for name in ("imagenet", *(tasks or NUM_TEST))]
    return import_tables(paths, **{**OF_TIMM, **options})


def write(folder: Path, *texts: str, suffix: str = ".csv") -> list[Path]:
    """Files a, b, c, ..."""
    paths = [folder / f"{name}{suffix}" for name in "abcde"[: len(texts)]]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def imported(folder: Path, *texts: str, **options: Any) -> Imported:
    chosen: dict[str, Any] = {"ids": ["id"], "upstream": "us", "downstream": ["ds"], **options}
    return import_tables(write(folder, *texts), **chosen)


ONE = "id,us,ds,depth\nx,.5,.4,12\ny,.6,.5,24\nz,.7,.4,24\n"


# --- the tables of timm


@pytest.fixture(scope="module")
def all_timm() -> Imported:
    return timm(upstream_num_test=50_000, downstream_num_test=[SIZES])


@pytest.fixture(scope="module")
def reduced(all_timm: Imported) -> dict[str, Any]:
    return {task["task"].removeprefix("results-"): task for task in reduce_study(all_timm.results, draws=10)["tasks"]}


@pytest.mark.parametrize("name", REFERENCE)
def test_timm_agrees_with_the_reference_after_import(name: str, reduced: dict[str, Any]) -> None:
    task, expected = reduced[name], REFERENCE[name]
    assert (task["n"], task["hull_vertices"]) == (expected["n"], expected["hull"])
    assert (task["conflicts"], task["significant_conflicts"]) == (expected["conflict"], expected["conflict_sig"])
    assert (task["spearman"], task["kendall"]) == pytest.approx((expected["spearman"], expected["kendall"]), abs=1e-12)
    if expected["hull_rmse"] is not None:
        assert task["fits"]["hull"]["rmse"] == pytest.approx(expected["hull_rmse"], abs=1e-8)


def test_rows_without_a_partner_stay_with_their_reason(all_timm: Imported, reduced: dict[str, Any]) -> None:
    assert reduced["imagenet-a"]["dropped"] == {
        "no row in results-imagenet-a.csv": 1,
        "no row in results-imagenet.csv": 1,
    }
    assert all(not task["dropped"] for name, task in reduced.items() if name != "imagenet-a")
    told = {table.table: table for table in all_timm.tables}["results-imagenet-a.csv"]
    assert (told.only_here, told.only_upstream) == (["resmlp_24_224.fb_dino/224"], ["resnet50.tv_in1k/224"])
    row = all_timm.results.filter(cell_id="resmlp_24_224.fb_dino/224").row(0, named=True)
    assert (row["upstream_accuracy"], row["downstream_accuracy"]) == (None, 0.0048)


def test_axes_of_timm_are_its_settings_and_not_its_other_results(all_timm: Imported) -> None:
    assert all_timm.axes == ["model", "img_size", "param_count", "crop_pct", "interpolation"]
    assert all_timm.tables[1].left_out == ["top1_err", "top5", "top5_err", "top1_diff", "top5_diff", "rank_diff"]
    row = all_timm.results.filter(cell_id="eva_giant_patch14_560.m30m_ft_in22k_in1k/560", task="results-sketch").row(
        0, named=True
    )
    assert row["param_count"] == 1014.45
    assert (row["img_size"], row["crop_pct"], row["interpolation"]) == (560, 1.0, "bicubic")
    assert (row["upstream_num_test"], row["downstream_num_test"], row["shots"]) == (50_000, 50_889, None)
    assert all_timm.results.select("task", "cell_id").is_unique().all()


@pytest.mark.parametrize("task", NUM_TEST)
def test_each_table_imports_alone_as_with_the_others(task: str, all_timm: Imported) -> None:
    one = timm(task, upstream_num_test=50_000, downstream_num_test=[str(NUM_TEST[task])])
    assert one.results.equals(all_timm.results.filter(task=f"results-{task}").select(one.results.columns))


def test_controlled_conflicts_of_timm_are_along_its_columns(all_timm: Imported) -> None:
    one = all_timm.results.filter(task="results-imagenet-real")
    pairs = controlled_pairs(select_cells(one).cells)
    assert dict(pairs.group_by("axis").agg(pl.col("pairs").sum()).iter_rows()) == {"img_size": 58}, (
        "models are too many to be compared one by one"
    )
    assert pairs.filter("ordered")["axis"].unique().to_list() == ["img_size"]
    strongest = strongest_pairs(select_cells(one).cells, 5)
    assert set(", ".join(strongest["differs_on"]).split(", ")) <= set(all_timm.axes)


# --- several tables, several columns


def test_one_table_with_several_tasks(tmp_path: Path) -> None:
    found = imported(tmp_path, "id,us,cars,pets\nx,50,40,80\ny,60,50,70\n", downstream=["cars,pets"], unit="percent")
    assert found.results.select("task", "cell_id", "upstream_accuracy", "downstream_accuracy").rows() == [
        ("cars", "x", 0.5, 0.4),
        ("cars", "y", 0.6, 0.5),
        ("pets", "x", 0.5, 0.8),
        ("pets", "y", 0.6, 0.7),
    ]
    assert found.axes == []


def test_several_columns_of_several_tables_are_named_by_both(tmp_path: Path) -> None:
    texts = ("id,us\nx,.5\ny,.6\n", "id,one,two\nx,.1,.2\ny,.3,.4\n", "id,one\nx,.5\ny,.6\n")
    found = imported(tmp_path, *texts, downstream=["one,two"])
    assert [task.task for task in found.tasks] == ["b:one", "b:two", "c"]
    named = imported(tmp_path, *texts, downstream=["dogs=b:one", "cats=c.csv:one"])
    assert [(task.task, task.table) for task in named.tasks] == [("cats", "c.csv"), ("dogs", "b.csv")]


def test_a_further_table_may_hold_only_axes(tmp_path: Path) -> None:
    found = imported(tmp_path, "id,us,ds\nx,.5,.4\ny,.6,.5\n", "id,family,epochs\nx,vit,\nz,mixer,7\n")
    assert found.axes == ["family", "epochs"]
    assert found.results.select("cell_id", "family", "epochs").rows() == [("x", "vit", None), ("y", None, None)]
    assert (found.tables[1].only_here, found.tables[1].only_upstream) == (["z"], ["y"])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_kinds_of_files_give_the_same_table(suffix: str, tmp_path: Path) -> None:
    table = pl.DataFrame(
        {"m": ["a", "b"], "px": [224, 384], "us": [0.25, 1 / 3], "ds": [0.1, None], "params": ["1,014.45", "3"]}
    )
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        table.cast({"px": pl.Float64, "m": pl.Categorical}).write_parquet(path)
    else:
        table.write_csv(path, separator="," if suffix == ".csv" else "\t")
    whole = table.with_columns(ds=pl.Series([0.1, 0.2])).rename({"ds": "more"}).drop("params")
    whole.write_csv(tmp_path / "other.csv")
    found = import_tables([path, tmp_path / "other.csv"], ids=["m", "px"], upstream="t:us", downstream=["ds,more"])
    assert found.results.filter(task="ds").drop("task").rows() == [
        ("a/224", None, 0.25, None, 0.1, None, None, "a", 224),
        ("b/384", None, 1 / 3, None, None, None, f"no value in t{suffix}", "b", 384),
    ]


def test_nulls_keep_their_reasons_and_what_means_missing_is_known(tmp_path: Path) -> None:
    found = imported(tmp_path, "id,us\na,.1\nb,.2\nc,NA\nd,n/a\n", "id,ds\na,.1\nb,.2\nc,.5\nd,–\ne,.7\n")
    assert dict(found.results.select("cell_id", "reason").iter_rows()) == {
        "a": None,
        "b": None,
        "c": "no value in a.csv",
        "d": "no value in a.csv; no value in b.csv",
        "e": "no row in a.csv",
    }
    assert found.tasks[0].reasons["no row in a.csv"] == 1
    assert (found.tasks[0].rows, found.tasks[0].complete) == (5, 2)


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    found = imported(tmp_path, "\ufeffid, us ,ds\r\n\r\nx,.5,.4\r\n\r\ny,.6,.5\r\n\r\n")
    assert found.results["cell_id"].to_list() == ["x", "y"]


def test_ids_are_joined_as_they_read(tmp_path: Path) -> None:
    found = imported(tmp_path, "id,us\n224, .5\n007,.6\n", "id,ds\n224.0,.4\n 007 ,.5\n")
    assert found.results.drop_nulls("downstream_accuracy")["cell_id"].to_list() == ["007", "224"]


def test_a_slash_in_an_id_makes_no_two_cells_one(tmp_path: Path) -> None:
    table = "m,n,us,ds\na/b,c,.1,.2\na,b/c,.3,.4\n"
    assert imported(tmp_path, table, ids=["m,n"]).results["cell_id"].to_list() == ["a%2Fb/c", "a/b%2Fc"]
    assert imported(tmp_path, table.replace("a,b/c", "d,e"), ids=["m,n"]).results["cell_id"].to_list() == [
        "a/b/c",
        "d/e",
    ]


def test_named_axes_are_the_only_ones_beside_the_ids(tmp_path: Path) -> None:
    table = "m,px,us,ds,val_acc,loss,lr,note\na,1,.1,.2,.3,mse,1e-3,x\nb,1,.3,.4,.5,mae,1e-4,\n"
    found = imported(tmp_path, table, ids=["m,px"])
    assert found.axes == ["m", "px", "loss", "lr", "note"]
    assert found.results["lr"].to_list() == [0.001, 0.0001]
    assert found.tables[0].left_out == ["val_acc"]
    assert imported(tmp_path, table, ids=["m,px"], axes=["val_acc"]).axes == ["m", "px", "val_acc"]


def test_a_name_with_a_comma_or_colon_is_a_column(tmp_path: Path) -> None:
    found = imported(tmp_path, 'id,"us, top:1",a=b\nx,.5,.4\ny,.6,.5\n', upstream="us, top:1", downstream=["a=b"])
    assert [task.task for task in found.tasks] == ["a=b"]


def test_words_for_missing_values_are_missing_among_names_too(tmp_path: Path) -> None:
    texts = ("NA", "n/a", "-", "?", "null", "NaN", "none", "cut,mix")
    found = imported(tmp_path, "\n".join(["id,us,ds,aug", *(f'm{i},.5,.4,"{word}"' for i, word in enumerate(texts))]))
    assert found.results["aug"].to_list() == [None] * 6 + ["none", "cut,mix"], "none may be a name"


def test_params_and_flops_are_taken_over_under_their_names(tmp_path: Path) -> None:
    table = 'id,us,ds,size,params,flops\na,.3,.4,S,"22,050,664",4.6e9\nb,.4,.5,B,86567656.0,\nc,.5,.6,L,,-\n'
    found = imported(tmp_path, table)
    assert (found.axes, found.measured, found.unusable) == (["size"], ["params", "flops"], {})
    assert found.results["params"].to_list() == [22050664, 86567656, None]
    assert found.results["flops"].to_list() == [4.6e9, None, None]
    known = imported(tmp_path, table.replace("L,,", "L,300000000,")).results
    pairs = controlled_pairs(select_cells(known).cells).select("axis", "low", "high", "ordered").rows()
    assert set(pairs) == {("size", "S", "B", True), ("size", "S", "L", True), ("size", "B", "L", True)}
    write_results(known, tmp_path / "sizes.parquet")
    upshot("report", tmp_path / "sizes.parquet")


@pytest.mark.parametrize("value", ["22.1", "0", "-5", "22M", "inf"])
def test_params_that_are_no_counts_are_left_out_and_told(value: str, tmp_path: Path) -> None:
    (path,) = write(tmp_path, f"id,us,ds,params,method\nx,.3,.4,5,a\ny,.4,.5,{value},b\n")
    words = ("import", path, "--id", "id", "--upstream", "us", "--downstream", "ds", "-o", tmp_path / "o.parquet")
    said = upshot(*words)
    assert f"left out: params (a.csv, row 2: '{value}' is no whole number above 0), method" in said
    assert "--axis takes them in" not in said
    assert "params" not in pl.read_parquet(tmp_path / "o.parquet").columns


def test_columns_of_lists_and_bytes_are_neither_ids_nor_accuracies_nor_axes(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = {"id": ["x", "y"], "us": [0.5, 0.6], "ds": [0.4, 0.5], "tags": [[1], [2]], "raw": [b"a", b"\xff"]}
    pl.DataFrame({**table, "deep": [{"a": 1}] * 2, "params": [[5]] * 2}).write_parquet(path)
    found = import_tables([path], ids=["id"], upstream="us", downstream=["ds"])
    assert (found.axes, found.measured, found.tables[0].possible) == ([], [], [])
    assert found.tables[0].left_out == ["tags", "raw", "deep", "params"]
    for name, options in (
        ("tags", {"ids": ["tags"]}),
        ("raw", {"upstream": "raw"}),
        ("deep", {"downstream": ["deep"]}),
        ("raw", {"axes": ["raw"]}),
    ):
        with pytest.raises(DataError, match=rf"t.parquet: column '{name}' is of type (List|Binary|Struct)"):
            import_tables([path], **{"ids": ["id"], "upstream": "us", "downstream": ["ds"], **options})


def test_endings_may_be_in_capitals_and_lines_may_end_in_a_separator(tmp_path: Path) -> None:
    (path,) = write(tmp_path, ",id,us,ds,\n0,x,.5,.4,\n1,y,.6,.5,\n", suffix=".CSV")
    found = import_tables([path], ids=["id"], upstream="us", downstream=["ds"])
    assert (found.axes, found.tables[0].left_out, found.tables[0].possible) == ([], [""], [])
    assert found.results["cell_id"].to_list() == ["x", "y"]


# --- the long layout

LONG = "id,task,us,ds,depth\nx,cars,.5,.4,12\nx,pets,.50,.8,12\ny,cars,.6,.5,24\ny,pets,,.9,24\nz,cars,.7,.6,24\n"


def test_a_row_for_each_cell_and_task(tmp_path: Path) -> None:
    found = imported(tmp_path, LONG, task="task", downstream_num_test=["cars=100,pets=200"])
    columns = ("task", "cell_id", "upstream_accuracy", "downstream_accuracy", "downstream_num_test", "depth", "reason")
    assert found.results.select(columns).rows() == [
        ("cars", "x", 0.5, 0.4, 100, 12, None),
        ("cars", "y", 0.6, 0.5, 100, 24, None),
        ("cars", "z", 0.7, 0.6, 100, 24, None),
        ("pets", "x", 0.5, 0.8, 200, 12, None),
        ("pets", "y", 0.6, 0.9, 200, 24, None),
        ("pets", "z", 0.7, None, 200, 24, "no row in a.csv (pets)"),
    ]
    assert (found.axes, [table.left_out for table in found.tables]) == (["depth"], [[], [], []])
    wide = "id,us,cars,pets,depth\nx,.5,.4,.8,12\ny,.6,.5,.9,24\nz,.7,.6,,24\n"
    same = imported(tmp_path, wide, downstream=["cars,pets"]).results
    assert same.select(columns[:4]).equals(found.results.select(columns[:4]))


def test_the_upstream_accuracy_may_be_in_another_table_than_the_tasks(tmp_path: Path) -> None:
    long = "id,dataset,ds\nx,cars,.4\nx,pets,.8\ny,cars,.5\ny,pets,.9\n"
    found = imported(tmp_path, "id,us,depth\nx,.5,12\ny,.6,24\n", long, task="dataset")
    assert [(task.task, task.table, task.complete) for task in found.tasks] == [
        ("cars", "b.csv (cars)", 2),
        ("pets", "b.csv (pets)", 2),
    ]
    assert found.axes == ["depth"]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ((LONG.replace(".50", ".51"),), {}, "'us' of 'x' is '.5' in row 1 and '.51' in row 2; a cell has one upstream"),
        ((LONG.replace("y,pets,,", "y,pets,high,"),), {}, "'us' of 'y' is '.6' in row 3 and 'high' in row 4"),
        ((LONG.replace("x,pets", "x,cars"),), {}, r"a.csv \(cars\): id 'x' is in 2 rows \(1, 2\)"),
        ((LONG.replace("x,pets", "x,"),), {}, "a.csv: row 2 has no 'task'"),
        ((LONG.replace(".8,12", ".8,13"),), {}, r"'depth' of 'x' is 12 in a.csv \(cars\) and 13 in a.csv \(pets\)"),
        ((LONG.replace(".9,24", "9,24"),), {}, r"a.csv \(pets\): column 'ds', row 4: 9.0 is outside"),
        ((LONG,), {"task": "taks"}, "unknown column 'taks' in any table .*Did you mean 'task'"),
        ((LONG,), {"task": "us"}, "--task us: 'us' is an id or an accuracy as well"),
        ((LONG,), {"downstream": ["ds,depth"]}, "--downstream ds,depth: with --task it is one column of a.csv"),
        ((LONG, "id,us,task\nx,.5,a\n"), {}, "--task task: 'task' is in a.csv, b.csv; write TABLE:task"),
        ((LONG, "id,ds\nx,.5\n"), {"downstream": ["b:ds"]}, "--downstream b:ds: with --task it is one column of a.csv"),
    ],
)
def test_long_tables_that_make_no_sense_are_refused(
    texts: tuple[str, ...], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        imported(tmp_path, *texts, **{"task": "task", **options})


def test_the_command_imports_a_long_table(tmp_path: Path) -> None:
    (path,) = write(tmp_path, LONG)
    words = ("import", path, "--id", "id", "--upstream", "us", "--downstream", "ds", "-o", tmp_path / "long.parquet")
    assert "--task task makes a task of each value" in upshot(*words, code=2)
    said = upshot(*words, "--task", "task")
    assert "pets: ds of a.csv (pets), 2 cells with both accuracies\n    1 without: no row in a.csv (pets)" in said
    assert "1 in a.csv, not in a.csv (pets): z" in said


# --- the order of rows


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    us=st.lists(st.integers(0, 50), min_size=4, max_size=12),
    ds=st.lists(st.one_of(st.none(), st.integers(0, 50)), min_size=4, max_size=12),
    random=st.randoms(use_true_random=False),
)
def test_a_shuffled_table_gives_the_same_output(
    us: list[int], ds: list[int | None], random: Any, tmp_path: Path
) -> None:
    ds = [1, 1, *ds]
    texts = []
    for name, values in (("us", us), ("ds", ds)):
        texts.append(
            [f"id,{name},depth", *(f"m{i},{'' if v is None else v / 50},{i % 3}" for i, v in enumerate(values))]
        )
    first = imported(tmp_path, *("\n".join(lines) for lines in texts))
    for lines in texts:
        lines[1:] = random.sample(lines[1:], len(lines) - 1)
    again = imported(tmp_path, *("\n".join(lines) for lines in texts))
    assert again.results.equals(first.results)
    assert to_json(again) == to_json(first)


# --- what is refused

TWO = ("id,us\nx,.5\ny,.6\n", "id,ds\nx,.4\ny,.5\n")


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ((ONE.replace(".5,.4", "50,.4"),), {}, r"a.csv: column 'us', row 1: 50.0 is outside \[0, 1\].*--percent"),
        ((ONE.replace(".7,.4", ".7,-.4"),), {}, r"column 'ds', row 3: -0.4 is outside"),
        ((ONE,), {"unit": "percent"}, "with --percent, no value of column 'us' is above 1 %"),
        ((ONE.replace(".5,.4", "101,40"),), {"unit": "percent"}, r"row 1: 101.0 is outside \[0, 100\]$"),
        ((ONE.replace(".5,.4", "0,886,.4"),), {}, "a.csv: row 1 has 5 fields and the heading 4: 'x,0,886,.4,12'"),
        ((ONE + "\nw,.5\n",), {}, "a.csv: row 5 has 2 fields and the heading 4: 'w,.5'"),
        ((ONE.replace(".5,.4", '"0,886",.4'),), {}, "column 'us', row 1: '0,886' is no number"),
        ((ONE.replace(".5,.4", "inf,.4"),), {}, "column 'us', row 1: 'inf' is no number"),
        ((ONE.replace(".6,.5", "high,low"),), {}, "a.csv: column 'us', row 2: 'high' is no number"),
        ((ONE.replace(".6,.5", "high,.5").replace(".7", "low"),), {}, r"'high' is no number \(2 such values\)"),
        (("id,us,ds\n",), {}, "a.csv: the table has no rows"),
        (("id,us,ds\nx,.5,.4\n",), {}, "only one cell, 'x', has an upstream and a downstream accuracy"),
        (("id,us,ds\nx,.5,\ny,,.4\n",), {}, "no cell has an upstream and a downstream accuracy"),
        ((ONE + "x,.1,.2,3\n",), {}, r"a.csv: id 'x' is in 2 rows \(1, 4\).*--id id,depth tells them apart"),
        (
            ("id,us,ds,top5,crop,params,note,px\nx,.5,.4,1,.8,1,,224\nx,.6,.5,2,.9,2,b,384.0\n",),
            {},
            "--id id,px tells them apart",
        ),
        (("id,us,ds,crop\nx,.5,.4,.8\nx,.6,.5,.9\n",), {}, "Each id stands once in a table$"),
        (("id,task,us,ds\nx,a,.5,.4\nx,b,.5,.5\n",), {}, "--task task makes a task of each value$"),
        (
            (ONE + "x,.5,.4,12\n" * 9,),
            {},
            r"id 'x' is in 10 rows \(1, 4, 5, 6, 7, ...\). Each id stands once in a table$",
        ),
        ((ONE + ",.1,.2,3\n",), {}, "a.csv: row 4 has no 'id'"),
        ((TWO[0], TWO[1] + "x,.1\n"), {}, "b.csv: id 'x' is in 2 rows"),
        ((TWO[0], "id,ds\nX,.4\nY,.5\n"), {}, "b.csv: none of its 2 ids is in a.csv: .* 'X' here and like 'x' there"),
        ((ONE,), {"ids": ["idd"]}, "unknown column 'idd' in a.csv .known: id, us, ds, depth.. Did you mean 'id'"),
        ((ONE,), {"upstream": "u"}, "unknown column 'u' in a.csv"),
        ((ONE,), {"downstream": ["dss"]}, "unknown column 'dss' in a.csv .*Did you mean 'ds'"),
        ((ONE,), {"downstream": ["us"]}, "'us' of a.csv is both the upstream and a downstream accuracy"),
        ((ONE,), {"downstream": ["ds,"]}, "a column's name is empty"),
        ((ONE,), {"downstream": ["=ds"]}, "the task has no name before the ="),
        ((ONE,), {"downstream": ["t=ds,t=depth"]}, "task 't' is 'ds' of a.csv and 'depth' of a.csv; name them"),
        ((ONE,), {"axes": ["deph"]}, "unknown column 'deph' in any table .*Did you mean 'depth'"),
        ((ONE,), {"axes": ["ds"]}, "'ds' is an accuracy, so it cannot be an axis"),
        ((ONE.replace("depth", "task"),), {"axes": ["task"]}, "'task' means something else in results tables; rename"),
        ((ONE,), {"upstream": "b:us"}, "unknown table 'b' .known: a.csv."),
        (TWO, {"downstream": ["b:us"]}, "unknown column 'us' in b.csv"),
        ((*TWO, TWO[1]), {"downstream": ["t=ds"]}, "--downstream t=ds: 'ds' is in b.csv, c.csv; write t=TABLE:ds"),
        ((ONE, "id,top5\nx,.1\n"), {}, "b.csv: neither an accuracy nor an axis is taken from this table"),
        ((ONE, "id,depth\nx,12\ny,25\n"), {}, "column 'depth' of 'y' is 24 in a.csv and 25 in b.csv.*--axis"),
        ((ONE,), {"upstream_num_test": 0}, "--upstream-num-test: 0 given"),
        ((ONE,), {"shots": -1}, "--shots: -1 given"),
        (
            (ONE,),
            {"downstream_num_test": ["46,837"]},
            "--downstream-num-test 46,837: give .* without commas, 10000",
        ),
        ((ONE,), {"downstream_num_test": ["ds=46,837"]}, "--downstream-num-test ds=46,837: give one number for all"),
        ((ONE,), {"downstream_num_test": ["5", "ds=6"]}, "'ds' has two numbers"),
        ((ONE,), {"downstream_num_test": ["many"]}, "--downstream-num-test many: give one number .*, or TASK=N"),
        ((ONE,), {"downstream_num_test": ["dss=5"]}, "unknown task 'dss' .known: ds.. Did you mean 'ds'"),
        (("id,us,us,ds\nx,.5,.5,.4\n",), {}, r"two columns are called 'us' \(the 2. and the 3.\); rename one"),
        (("id,us,ds,ds \nx,.5,.5,.4\n",), {}, r"two columns are called 'ds', but for the space around it \(the 3. and"),
        (("id,us,ds,*\nx,.5,.4,1\n",), {}, r"the column '\*' has a name that stands for several columns; rename it"),
        (("id,us,ds,^d.*$\nx,.5,.4,1\n",), {}, r"the column '\^d\.\*\$' has a name that"),
        (("id,us,,ds,\nx,.5,1,.4,2\n",), {}, r"two columns are called '' \(the 3. and the 5.\)"),
        (("id;us;ds\nx;.5;.4\n",), {}, "the heading 'id;us;ds' is one column, separated by ';'. Then separate them by"),
        (("id\tus\tds\nx\t.5\t.4\n",), {}, "is one column, separated by .*. Then call it .tsv"),
        (("id\0,us,ds\nx,.5,.4\n",), {}, "this is not UTF-8 text"),
        ((ONE.replace("12", "inf"),), {}, "a.csv: column 'depth', row 1: 'inf' is no finite number"),
        ((ONE.replace("depth", "params"),), {"axes": ["params"]}, "'params' is taken over as it is, not as an axis"),
        (
            (ONE.replace("depth", "params"), "id,params\nx,13\n"),
            {},
            "'params' of 'x' is 12 in a.csv and 13 in b.*rename",
        ),
        (("",), {}, "a.csv: the table has no rows"),
        (('id,us,ds\n"x,.5,.4\n',), {}, "a.csv: the table cannot be read"),
    ],
)
def test_tables_that_make_no_sense_are_refused(
    texts: tuple[str, ...], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        imported(tmp_path, *texts, **options)


def test_a_results_table_whose_column_stands_for_several_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    pl.DataFrame({"cell_id": ["a"], "^x": [1], "x$": [1]}).write_parquet(path)
    assert read_results(path).collect_schema().names() == ["cell_id", "^x", "x$"]
    pl.DataFrame({"cell_id": ["a"], "^x$": [1]}).write_parquet(path)
    with pytest.raises(DataError, match=r"r\.parquet: the column .\^x\$. has a name that stands for several columns"):
        read_results(path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (good,) = write(tmp_path, ONE)
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "bad.csv").write_bytes(b"id,us,ds\n\xff\xfe,.5,.4\n")
    (tmp_path / "wide.csv").write_bytes(ONE.encode("utf-16"))
    (tmp_path / "table.xlsx").write_bytes(b"")
    for name, message in (
        ("nowhere.csv", "cannot be read"),
        ("bad.parquet", "cannot be read"),
        ("bad.csv", "bad.csv: line 2 is not UTF-8; save the table as UTF-8 text"),
        ("wide.csv", "wide.csv: line 1 is not UTF-8"),
        ("table.xlsx", "a table is a .csv, .tsv or .parquet file"),
        ("a.csv", "this table is given twice"),
        (".", "a table is a"),
    ):
        with pytest.raises(DataError, match=message):
            import_tables([good, tmp_path / name], ids=["id"], upstream="us", downstream=["ds"])


def test_tables_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    paths = []
    for folder in ("one", "two", "three"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "results.csv")
        paths[-1].write_text("id,acc\nx,.5\ny,.6\n")
    with pytest.raises(UserError, match=r"'results' is .*one/results.csv, .*give the whole path"):
        import_tables(paths, ids=["id"], upstream="results:acc", downstream=["acc"])
    with pytest.raises(
        UserError, match=r"task 'results' is 'acc' of .*two/results.csv and 'acc' of .*three/results.csv"
    ):
        import_tables(paths, ids=["id"], upstream="acc", downstream=["acc"])
    named = [f"a={paths[1]}:acc", f"b={paths[2]}:acc"]
    found = import_tables(paths, ids=["id"], upstream=f"{paths[0]}:acc", downstream=named)
    assert [task.table for task in found.tasks] == [str(paths[1]), str(paths[2])]


def test_an_unknown_name_is_of_its_own_kind(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError):
        imported(tmp_path, ONE, upstream="nothing")


# --- the command


def test_the_command_imports_all_of_timm_and_reduce_and_report_read_it(tmp_path: Path) -> None:
    words = ("import", *sorted(TIMM.glob("*.csv")), "--id", "model,img_size", "--upstream", "results-imagenet:top1")
    words += ("--downstream", "top1", "--percent", "--upstream-num-test", "50000", "--downstream-num-test", SIZES)
    said = upshot(*words, "-o", tmp_path / "timm.parquet", env={"COLUMNS": None})
    assert "7,781 rows of 1,557 cells" in said
    assert "results-imagenet-a: top1 of results-imagenet-a.csv, 1,555 cells with both accuracies" in said
    assert "1 in results-imagenet-a.csv, not in results-imagenet.csv: resmlp_24_224.fb_dino/224" in said
    assert "axes: model, img_size, param_count, crop_pct, interpolation" in said
    told = upshot_json(*words, "-o", tmp_path / "again.parquet")
    assert (tmp_path / "timm.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    assert [task["num_test"] for task in told["tasks"]] == [NUM_TEST[t["task"][8:]] for t in told["tasks"]]
    reduced = upshot_json("reduce", tmp_path / "timm.parquet", "--draws", 10)
    assert [task["hull_vertices"] for task in reduced["tasks"]] == [2, 6, 15, 4, 5]
    assert upshot("report", tmp_path / "timm.parquet").strip() == str(tmp_path / "timm-report" / "index.html")
    page = (tmp_path / "timm-report" / "index.html").read_text()
    assert "1,557 cells over model, img_size, param_count, crop_pct and interpolation" in page
    assert (tmp_path / "timm-report" / "figures" / "axis_img_size.svg").exists()


def test_ids_that_do_not_join_are_listed_to_ten_and_counted(tmp_path: Path) -> None:
    rows = [f"m{i:02d},.{i}1" for i in range(30)]
    a, b = write(tmp_path, "\n".join(["id,us", *rows[:10]]), "\n".join(["id,ds", *rows]))
    words = ("import", a, b, "--id", "id", "--upstream", "us", "--downstream", "ds", "-o", tmp_path / "out.parquet")
    assert "20 in b.csv, not in a.csv: m10, m11," in (said := upshot(*words, env={"COLUMNS": None}))
    assert "m19 and 10 more (--json lists them)" in said
    assert upshot_json(*words)["tables"][1]["only_here"] == [f"m{i}" for i in range(10, 30)]


@pytest.mark.parametrize(
    ("output", "table", "message"),
    [
        ("out.parquet", ONE.replace(".5", "5"), "is outside [0, 1]"),
        ("out.csv", ONE, "a results table is a .parquet file"),
        ("a.csv", ONE, "this is one of the tables to import"),
        ("a.csv/out.parquet", ONE, "cannot be written"),
    ],
)
def test_where_something_is_wrong_nothing_is_written(output: str, table: str, message: str, tmp_path: Path) -> None:
    (path,) = write(tmp_path, table)
    words = ("--id", "id", "--upstream", "us", "--downstream", "ds", "--output", tmp_path / output)
    assert message in upshot("import", path, *words, code=2)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == table


def test_a_report_draws_steps_between_values_that_have_pairs(tmp_path: Path) -> None:
    cells = (("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 3), ("c", 3), ("c", 5), ("d", 4))
    rows = [f"{model},{px},.{i + 1},.{9 - i}" for i, (model, px) in enumerate(cells)]
    results = imported(tmp_path, "\n".join(["model,px,us,ds", *rows]), ids=["model,px"]).results
    (panel,) = changes_panels(gather(results, reduce_study(results, draws=5), []))
    drawn = panel.tables["changes"].filter(pl.col("change").str.starts_with("px"))["change"].unique().sort().to_list()
    assert drawn == ["px 1 to 2", "px 2 to 3", "px 3 to 5"]
    num_models = controlled_pairs(select_cells(results).cells).filter(axis="model").height
    assert panel.tables["changes"]["change"].n_unique() == 3 + num_models
    assert panel.note == "Those with the most pairs are drawn; 1 further change in tables/axes.csv."


def test_a_report_copes_with_axes_of_any_name(tmp_path: Path) -> None:
    names = ("line", "rank", "value", "always", "lr", "lr_high", "lr_measured", "several", "order", "alike", "pairs")
    header = ",".join(("id", "us", "ds", "accuracy", *names))
    rows = [
        f"c{i},{i / 9},{(i * 7 % 9) / 9},b{i % 2},{','.join(['1'] * 4)},{i},{','.join(['2'] * 6)}" for i in range(9)
    ]
    found = imported(tmp_path, "\n".join([header, *rows]))
    assert found.axes == ["accuracy", *names]
    write_results(found.results, tmp_path / "odd.parquet")
    upshot("report", tmp_path / "odd.parquet")
    axes = pl.read_parquet(tmp_path / "odd-report" / "tables" / "axes.parquet")
    assert axes["axis"].unique().to_list() == ["lr"]
    assert axes["pairs"].sum() == 4 * 3 // 2 + 5 * 4 // 2
    assert json.loads(upshot("reduce", tmp_path / "odd.parquet", "--json"))["tasks"][0]["n"] == 9
