"""The report's page, and the command as a person types it."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from html import unescape

import pytest

from experiments.reporting.sections import Section
from tests.conftest import ROOT
from tests.made_up_runs import config_of, falling, found, lines_of, seeds, write_plan, write_run

pytest.importorskip("markdown")
pytest.importorskip("matplotlib")

from experiments.reporting import claims, markup, page, tables

EVIL = "<script>alert(1)</script>"


def report(*arguments, status=0, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.report", *map(str, arguments)],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done


def section_of(cells, others=None):
    return Section("small", ["photos.zip"], "small", 48, cells, others or {})


def with_result(each, **result):
    return each._replace(result=each.result | result)


class TestMarkup:
    @pytest.mark.parametrize("text", [EVIL, "a|b", "a`b", "*a*", "_a_ __b__", "[a](b)", "a\\|b"])
    @pytest.mark.parametrize("write", ["text", "code"])
    def test_foreign_text_is_shown_as_it_is(self, write, text):
        rows = [["head", "more"], [getattr(markup, write)(text), "end"]]
        page = markup.page("\n".join(["# A title", "", *markup.table(rows)]), ROOT)
        cells = re.findall(r"<td>(.*?)</td>", page, re.DOTALL)
        shown = [unescape(re.sub(r"</?code>", "", cell)) for cell in cells]
        assert shown == [text, "end"]
        assert "<script" not in page
        assert not re.search("<(em|strong|a )", page)

    def test_words_keep_their_underscores_readable(self):
        assert markup.text("full_crop is as full_crop\nwas") == "full_crop is as full_crop was"

    def test_pictures_are_in_the_page(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"abc")
        page = markup.page("# T & U\n\n![what](a.png)\n", tmp_path)
        assert '<img alt="what" src="data:image/png;base64,YWJj" />' in page
        assert "<title>T &amp; U</title>" in page
        assert 'name="viewport"' in page


class TestTables:
    def test_the_grid(self):
        cells = {
            "meanonly_crop": seeds("meanonly_crop", [[0.3, 0.1], [0.3, 0.12]]),
            "full": {0: found("full", [0.3], planned=9)},
        }
        head, none, mean_only, full = tables.grid(section_of(cells))
        assert head == ["", "no augmentation", "+ random cropping", "+ cropping and dropout"]
        assert set(none[1:]) == {tables.NOTHING}
        assert mean_only[2] == (
            "**11.0% ± 1.0 (2 seeds)**<br>test 12.0% ± 1.0 (2 seeds)<br>2 epochs"
        )
        assert full[1] == "1 unfinished"

    @pytest.mark.parametrize(
        ("train", "still"), [([0.5, 0.48, 0.3, 0.5], "2"), ([0.46, 0.5], "0"), ([0.49], "1")]
    )
    def test_a_run_says_how_many_first_epochs_stood_still(self, train, still):
        each = found("full", [0.4] * len(train), train=train)
        head, row = tables.runs(section_of({"full": {0: each}}))
        assert row[head.index("stood still")] == still

    def test_bests_of_unequal_epochs_are_not_mixed(self):
        by_seed = seeds("full", [[0.3, 0.1], [0.3, 0.12], [0.3, 0.1, 0.05]])
        assert [each.seed for each in tables.shown(by_seed)] == [2]
        assert [row[1:4] for row in tables.groups(section_of({"full": by_seed}))[1:]] == [
            ["1", "3", "5.0% (1 seed)"], ["2", "2", "11.0% ± 1.0"]
        ]  # fmt: skip

    def test_the_longest_ones_stand_for_the_cell(self):
        by_seed = seeds("full", [[0.3, 0.1], [0.3, 0.1], [0.3, 0.1, 0.05], [0.3, 0.1, 0.2]])
        by_seed[4] = found("full", [0.3, 0.1, 0.05], planned=9)
        assert [each.seed for each in tables.shown(by_seed)] == [2, 3]
        assert tables.shown({}) == []

    def test_epochs_time_and_what_was_published(self):
        by_seed = seeds("meanonly_crop", [[0.3, 0.10, 0.07], [0.3, 0.2, 0.09]])
        by_seed[1] = with_result(by_seed[1], wall_seconds=660.0, images_per_second=520.0)
        _, row = tables.groups(section_of({"meanonly_crop": by_seed}))
        assert row[5:] == [
            "2.5 ± 0.5", "not reached", "10.5 min ± 0.5", "510 ± 10", "4.1%, test 4.7%"
        ]  # fmt: skip

    def test_reached_by_some(self):
        by_seed = seeds("full", [[0.3, 0.05], [0.3, 0.2]])
        assert tables.groups(section_of({"full": by_seed}))[1][5] == "1 of 2: 2.0 (1 seed)"

    def test_times_of_several_machines_have_no_mean(self):
        by_seed = seeds("full", [[0.3], [0.3]])
        other = {"platform": "tpu", "device": "TPU v5 lite", "num_devices": 8, "num_hosts": 2}
        by_seed[1] = with_result(by_seed[1], hardware=other)
        section = section_of({"full": by_seed})
        assert tables.groups(section)[1][7:9] == ["several kinds of hardware"] * 2
        assert [row[7] for row in tables.runs(section)[1:]] == [
            "1 a processor (2 cores)", "8 TPU v5 lite (2 hosts)"
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("commit", "shown"),
        [
            ("0123456789abcdef", "0123456789"),
            ("0123456789abcdef-dirty", "0123456789-dirty"),
            (None, "not recorded"),
        ],
    )
    def test_every_run_has_its_commit(self, commit, shown):
        by_seed = {0: with_result(found("full", [0.3]), commit=commit)}
        assert tables.runs(section_of({"full": by_seed}))[1][-1] == shown

    def test_a_run_in_progress_says_so(self):
        by_seed = {0: found("full", [0.3, 0.2, 0.25], planned=60)}
        _, row = tables.runs(section_of({"full": by_seed}))
        assert row[2:5] == ["3 of 60", "0", "20.0% so far"]
        assert len(tables.groups(section_of({"full": by_seed}))) == 1

    @pytest.mark.parametrize(
        ("seconds", "shown"), [(90, "90.0 s"), (120, "2.0 min"), (7200, "2.0 h")]
    )
    def test_durations(self, seconds, shown):
        assert tables.duration([seconds]) == f"{shown} (1 seed)"


class TestPage:
    def page(self, *sections):
        verdicts = [claims.decide(section.cells) for section in sections]
        made = page.Report("runs", list(sections), verdicts, [], None, "python …", None)
        return page.markdown(made, {section.slug: {} for section in sections})

    def test_other_images_are_a_section_of_their_own(self):
        first, second = (section_of({"full": seeds("full", [[0.3]])}) for _ in range(2))
        second.slug, second.sources = "small-2", ["others_of_them.zip"]
        text = self.page(first, second)
        assert "| claim | 48x48 (small) | 48x48 (small, data 2) |" in text
        assert "## 48x48 (small, data 2)\n\nImages: `others_of_them.zip`." in text

    def test_every_rule_and_what_is_missing_are_on_it(self):
        text = self.page(section_of({"full": seeds("full", [[0.3]])}))
        for verdict in claims.decide({}):
            assert f"- **{verdict.number}.** {verdict.rule} *The post:* {verdict.published}" in text
            assert f"#### {verdict.number}. {verdict.claim}\n\n**Undecided.**\n" in text
        assert "Missing: `meanonly` has 0 of 3 runs of at least 5 epochs; `baseline` has" in text

    def test_finished_but_not_tested(self):
        each = found("full", [0.3, 0.2])._replace(result=None)
        text = self.page(section_of({"full": {0: each}}))
        assert (
            "- `full/seed0`: 2 of 2 epochs, not tested yet; best validation error so far 20.0%"
        ) in text
        assert "### Every configuration" not in text


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small sweep in progress, with runs of all kinds that are not its own."""
    root = tmp_path_factory.mktemp("sweep") / "runs"
    planned = []
    for cell, best in {"full_crop": 0.2, "meanonly_crop": 0.1}.items():
        for seed in range(3):
            errors = falling(0.5, best, 16)
            config = config_of(cell, "small", seed=seed, num_epochs=16)
            folder = f"{config['name']}/seed{seed}"
            write_run(root / folder, config, lines_of(errors), fingerprint="f")
            planned.append(folder)
    unfinished = config_of("meanonly", "small", num_epochs=16)
    write_run(root / "meanonly-small/seed0", unfinished, lines_of([0.5, 0.4]), finished=False)
    planned += [f"meanonly-small/seed{seed}" for seed in range(3)]
    write_plan(root, "figure2", planned, 16)
    failed = {folder: {"state": "failed", "error": f"no memory for {folder}"}
              for folder in ("meanonly-small/seed0", "broken")}  # fmt: skip
    (root / "sweep_state.json").write_text(json.dumps({"driver": None, "runs": failed}))
    other = config_of("full_crop", "small", num_epochs=16, model__norm_decay=0.9)
    write_run(root / "other", other, lines_of(falling(0.5, 0.3, 16)))
    write_run(root / "demo", config_of("full_crop", "demo", num_epochs=1), lines_of([0.4]))
    (root / "broken").mkdir()
    (root / "broken/config.json").write_text("{")
    (root / "<b>foreign|*one*").mkdir()
    (root / "<b>foreign|*one*/config.json").write_text('{"lr": 0.1}')
    return root


@pytest.fixture(scope="module")
def record(runs, tmp_path_factory):
    """The folder that the report's runs are recorded in."""
    folder = tmp_path_factory.mktemp("record") / "kept"
    done = report(runs, f"--record={folder}")
    assert done.stdout == f"{runs}/report/report.html\n"
    return folder


@pytest.mark.usefixtures("record")
class TestCommand:
    def test_the_page(self, runs):
        written = {path.name for path in (runs / "report").iterdir()}
        assert written == {
            "report.md", "report.html", "figure1-small.png", "figure2-small.png",
            "figure2-demo.png", "grid-small.png", "grid-demo.png", "others-small.png",
        }  # fmt: skip
        page = (runs / "report/report.md").read_text()
        assert f"9 runs below `{runs}`, 8 finished. 2 folders not used: see the end." in page
        assert (
            "The sweep `figure2` (small) plans 9 runs: 6 finished, 1 unfinished, 2 not begun; "
            "2 of the unfinished were given up."
        ) in page
        assert "(1 seed); it was given up: no memory for meanonly-small/seed0" in page
        assert "; it was given up: no memory for broken" in page
        assert "| claim | 48x48 (small) | 32x32 (demo) |" in page
        claim = next(line for line in page.splitlines() if line.startswith("| 3. "))
        assert claim.endswith("| **supported** | undecided |")
        assert page.index("## 48x48 (small)") < page.index("## 32x32 (demo)")
        assert "- `meanonly-small/seed0`: 2 of 16 epochs; best validation error so far" in page
        assert "| `full_crop, model.norm_decay=0.9` | 1 | 16 |" in page
        assert "- `broken`: config.json is damaged: " in page
        assert "<b>" not in page
        for name in re.findall(r"\]\((\S+\.png)\)", page):
            assert (runs / "report" / name).stat().st_size > 20_000

    def test_one_self_contained_file(self, runs):
        html = (runs / "report/report.html").read_text()
        assert html.count("data:image/png;base64,") == 6
        assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)
        assert 'href="#how-claims-are-decided"' in html
        assert 'id="how-claims-are-decided"' in html
        assert "<b>foreign" not in html
        assert "<b>foreign|*one*: its configuration has no name" in unescape(html)
        assert html.count('<div class="scroll"><table>') == html.count("</table></div>") > 5

    def test_a_record_gives_the_same_report(self, record):
        kept = {str(path.relative_to(record)) for path in record.rglob("*") if path.is_file()}
        assert "full_crop-small/seed0/data.json" in kept
        assert "meanonly-small/seed0/metrics.jsonl" in kept
        assert "report/report.html" in kept
        assert not any(path.startswith(("broken", "<b>")) for path in kept)
        before = (record / "report/report.md").read_text()
        shutil.rmtree(record / "report")
        report(record)
        after = (record / "report/report.md").read_text()

        def numbers(page):
            return page[page.index("| claim |") : page.index("## How claims are decided")]

        assert numbers(before) == numbers(after)
        assert "plans 9 runs: 6 finished" in after

    def test_nothing_but_broken_runs_is_a_page_that_lists_them(self, runs, tmp_path):
        (tmp_path / "runs").mkdir()
        shutil.copytree(runs / "broken", tmp_path / "runs/broken")
        report(tmp_path / "runs")
        page = (tmp_path / "runs/report/report.md").read_text()
        assert f"0 runs below `{tmp_path}/runs`, 0 finished. 1 folder not used" in page
        assert "- `broken`: config.json is damaged" in page

    def test_the_recorded_demo_runs(self, tmp_path):
        """Of a time before some fields; ten epochs decide nothing."""
        report("experiments/results/demo_runs", f"--output={tmp_path}")
        page = (tmp_path / "report.md").read_text()
        for cell in ("baseline_crop", "meanonly_crop", "full_crop"):
            runs = (ROOT / f"experiments/results/demo_runs/{cell}-demo").glob("seed*/result.json")
            results = [json.loads(path.read_text()) for path in runs]
            valid, test = (
                f"{statistics.mean(rates):.1f}% ± {statistics.stdev(rates) / 3**0.5:.1f}"
                for name in ("best_valid_error_rate", "test_error_rate")
                for rates in [[100 * result[name] for result in results]]
            )
            assert f"| `{cell}` | 3 | 10 | {valid} | {test} |" in page
        assert "were recorded before these fields existed" in page
        assert "**supported**" not in page
        assert "**contradicted**" not in page

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["RUNS", "b"], "unexpected argument 'b'; see --help"),
            (["/nope"], "/nope does not exist; give the folder that holds the runs, such as runs"),
            (["gs://bucket/runs"], "gs://bucket/runs is not on this machine: copy the runs here"),
            (["RUNS", "--record=RUNS/kept"], "--record=RUNS/kept is within RUNS, where its copies"),
            (["RUNS", "--output=README.md/x"], "cannot write README.md/x: Not a directory"),
        ],
    )
    def test_wrong_use_ends_in_one_line(self, arguments, message, runs):
        done = report(*(each.replace("RUNS", str(runs)) for each in arguments), status=2)
        assert done.stdout == ""
        assert done.stderr.startswith("error: " + message.replace("RUNS", str(runs)))
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize(("package", "what"), [("matplotlib", "picture"), ("markdown", "page")])
    def test_without_a_package_it_ends_in_one_line(self, package, what, runs, tmp_path):
        (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError(name='{package}')")
        done = report(runs, status=2, PYTHONPATH=str(tmp_path))
        assert done.stderr == f"error: the {what} needs {package}: pip install -e '.[report]'\n"
