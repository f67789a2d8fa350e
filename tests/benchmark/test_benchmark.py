"""Tests of the program behind scripts/bench that need no root: python3 -m unittest discover -s tests/benchmark"""

import contextlib
import io
import json
import os
import sys
import tempfile
import unittest
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from benchmark import __main__ as program  # noqa: E402
from benchmark import cases, digest, html, machine, summary, text  # noqa: E402
from benchmark.caller import call  # noqa: E402
from benchmark.paths import TITLES, World  # noqa: E402
from benchmark.run import Run  # noqa: E402

VOID = {"meta", "br", "hr", "img", "input", "link"}
NASTY = "<script>alert('&\"')</script>"


def all_cases():
    """Every case that there is."""
    settings = cases.Settings(False, 5, "tapir-load")
    return [*cases.traffic(settings), *cases.with_pods(), *cases.stages(), *cases.correctness()]


def figures(value):
    """A sample with every figure that a row asks for."""
    return {row.metric: value for row in cases.rows()}


def full_report():
    """A report with a sample of every path of every case in three rounds: tapir twice as much as the others."""
    samples = [{"case": case.name, "path": path, "round": number, "at": 0.0,
                "figures": figures(2.0 if path in html.OWN else 1.0)}
               for case in all_cases() for path in case.paths for number in (1, 2, 3)]
    stored = json.loads((REPOSITORY / "tests/benchmark/quick.json").read_text())
    return {**stored, "cases": [program.describe(case) for case in all_cases()], "samples": samples, "skipped": []}


def lines_of(report):
    """The table of a report."""
    known = {case["name"] for case in report["cases"]}
    picked = [case for case in all_cases() if case.name in known]
    return summary.lines(cases.rows(), picked, report["samples"], report["skipped"])


class WellFormed(HTMLParser):
    """Fails on a tag that is closed wrongly, and keeps the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            raise AssertionError(f"</{tag}> closes nothing, inside {self.open}")

    def handle_data(self, data):
        self.text.append(data)


def parse(page):
    """The page, taken apart."""
    parser = WellFormed()
    parser.feed(page)
    parser.close()
    if parser.open:
        raise AssertionError(f"not closed: {parser.open}")
    return parser


class Catalogue(unittest.TestCase):
    """Cases and rows fit together."""

    def test_every_row_has_its_case_and_paths(self):
        named = {case.name: case for case in all_cases()}
        self.assertEqual(len(named), len(all_cases()), "a name stands twice")
        for row in cases.rows():
            self.assertIn(row.path, named[row.case].paths, row.title)
            if row.yardstick:
                self.assertIn(row.yardstick, named[row.yardstick_case or row.case].paths, row.title)

    def test_titles_of_rows_differ(self):
        titles = [row.title for row in cases.rows()]
        self.assertEqual(len(set(titles)), len(titles))

    def test_every_path_has_a_title(self):
        paths = {path for case in all_cases() for path in case.paths} - {"forward"}
        self.assertEqual(paths - set(TITLES), set())

    def test_patterns_choose_by_name(self):
        names = [case.name for case in program.chosen(all_cases(), "^rtt1/(same|cut)$", True)]
        self.assertEqual(names, ["rtt1/same", "rtt1/cut"])
        self.assertTrue(all(case.quick for case in program.chosen(all_cases(), None, True)))
        self.assertEqual(len(program.chosen(all_cases(), None, False)), len(all_cases()))


class Summary(unittest.TestCase):
    """Medians, ratios, verdicts."""

    def line(self, row, own, beside):
        samples = [{"case": "c", "path": path, "round": number, "figures": {"m": value}}
                   for path, values in (("p", own), ("y", beside)) for number, value in enumerate(values)]
        return summary.line(row, "u", samples, {("c", "y"): "it is not there"})

    def test_a_ratio_is_that_of_the_medians_and_the_spread_that_of_the_rounds(self):
        one = self.line(cases.Row("t", "c", "m", "p", "y", 1.15), [10, 30, 20], [10, 10, 40])
        self.assertEqual((one.value, one.beside, one.ratio), (20, 10, 2))
        self.assertEqual(one.spread, (0.5, 3))
        self.assertEqual(one.verdict, "met")

    def test_less_can_be_better(self):
        row = cases.Row("t", "c", "m", "p", "y", 1.6, less=True)
        self.assertEqual(self.line(row, [1.6], [1]).verdict, "met")
        self.assertEqual(self.line(row, [1.7], [1]).verdict, "missed")

    def test_a_row_without_yardstick_is_judged_by_its_value(self):
        row = cases.Row("t", "c", "m", "p", None, 500, less=True)
        self.assertEqual(self.line(row, [499], []).verdict, "met")
        self.assertEqual(self.line(row, [501], []).verdict, "missed")

    def test_a_missing_yardstick_is_skipped_with_its_reason(self):
        one = self.line(cases.Row("t", "c", "m", "p", "y", 1), [1], [])
        self.assertEqual((one.verdict, one.reason), ("skipped", "it is not there"))

    def test_p99_is_of_the_worst_in_a_hundred(self):
        row = cases.Row("t", "c", "m", "p", "y", 0.7, True, "p99")
        one = self.line(row, [*([1] * 98), 5, 9], [10] * 100)
        self.assertEqual((one.value, one.ratio), (9, 0.9))
        self.assertEqual(one.verdict, "missed")


class Report(unittest.TestCase):
    """Table, JSON and page."""

    def test_every_row_of_a_full_run_is_in_table_and_page(self):
        report = full_report()
        table = lines_of(report)
        self.assertEqual(len(table), len(cases.rows()))
        self.assertEqual([one.title for one in table if one.verdict == "skipped"], [])
        shown, page = text.table(report, table), parse(html.page(summary.as_json(report, table)))
        for one in table:
            self.assertIn(one.title, shown)
            self.assertIn(one.title, page.text)

    def test_every_case_has_a_plot_that_stays_inside(self):
        report = full_report()
        page = parse(html.page(summary.as_json(report, lines_of(report))))
        self.assertEqual(sum(tag == "figure" for tag, _ in page.tags), len(report["cases"]))
        for tag, attributes in page.tags:
            for name in ("cx", "x", "x1", "x2", "width"):
                if tag != "svg" and name in attributes:
                    self.assertTrue(0 <= float(attributes[name]) <= 960, f"{tag} {attributes}")

    def test_a_page_needs_nothing_from_elsewhere(self):
        report = full_report()
        page = html.page(summary.as_json(report, lines_of(report)))
        self.assertNotRegex(page, r"(?i)<(script|link|iframe|img)|url\(|@import|https?://")

    def test_what_comes_from_outside_is_escaped(self):
        report = full_report()
        report["machine"]["model"] = NASTY
        report["notes"] = {"cut": NASTY}
        report["skipped"] = [{"case": "tcp1/same", "path": "ovs", "kind": "failed", "reason": NASTY}]
        table = lines_of(report)
        table[0].title = table[0].reason = NASTY
        table[0].verdict = "skipped"
        page = html.page(summary.as_json(report, table))
        self.assertNotIn("<script", page)
        self.assertGreaterEqual("".join(parse(page).text).count(NASTY), 4)

    def test_a_stored_run_gives_table_and_page_again(self):
        report = json.loads((REPOSITORY / "tests/benchmark/quick.json").read_text())
        report = summary.as_json(report, lines_of(report))
        with tempfile.TemporaryDirectory() as folder:
            stored, page = Path(folder, "run.json"), Path(folder, "page.html")
            stored.write_text(json.dumps(report))
            with mock.patch.object(sys, "argv", ["bench", "--from", str(stored), "--html", str(page), "--output", folder]):
                with contextlib.redirect_stdout(io.StringIO()) as said:
                    self.assertEqual(program.main(), 0)
            parse(page.read_text())
        for row in report["rows"]:
            self.assertIn(row["title"], said.getvalue())
        self.assertRegex(said.getvalue(), r"TCP, 1 flow, two nodes, beside wireguard-go .*≥ 10  MISSED")
        self.assertRegex(said.getvalue(), r"forward, 1 M routes .* skipped: benches/forward.rs is not there")

    def test_a_failure_is_told_and_fails_the_run(self):
        report = full_report()
        report["skipped"] = [{"case": "sha256", "path": "cut", "kind": "failed", "reason": "other bytes arrived"}]
        self.assertIn("failed: sha256 on tapir, two nodes, cut: other bytes arrived", text.table(report, lines_of(report)))

    def test_a_noisy_machine_is_named(self):
        report = full_report()
        self.assertIn("NOT QUIET", text.table(report, []))
        report["machine"]["busy_cpus_before"] = 0.01
        self.assertNotIn("NOT QUIET", text.table(report, []))

    def test_axes_end_on_round_figures(self):
        for value, top in ((0.9, 1), (1, 1), (1.1, 2), (23, 25), (38.7, 40), (81, 100), (0, 1)):
            self.assertAlmostEqual(html.nice(value), top)


class Rounds(unittest.TestCase):
    """Who is sampled when."""

    def run_of(self, rounds):
        run = Run(World("test", Path("/nowhere")), cases.Settings(False, rounds, ""))
        run.world.routes.update({"same": "same", "veth": "veth"})
        run.world.unavailable["ovs"] = "no such package"
        return run

    def test_paths_take_turns_and_each_is_first_in_its_turn(self):
        order = []
        case = cases.Case("c", "title", "m", "u", ["same", "veth"], lambda route: order.append(route) or {"m": 1.0})
        with contextlib.redirect_stderr(io.StringIO()):
            self.run_of(2).traffic([case])
        self.assertEqual(order, ["same", "veth", "veth", "same"])

    def test_what_is_not_there_is_noted_once_and_is_no_failure(self):
        case = cases.Case("c", "title", "m", "u", ["ovs", "same"], lambda route: {"m": 1.0})
        run = self.run_of(2)
        with contextlib.redirect_stderr(io.StringIO()):
            run.traffic([case])
        self.assertEqual(run.skipped, [{"case": "c", "path": "ovs", "kind": "skipped", "reason": "no such package"}])
        self.assertEqual(len(run.samples), 2)

    def test_a_measurement_that_fails_is_a_failure_and_the_others_go_on(self):
        def sample(route):
            if route == "same":
                raise machine.Failed("no answer")
            return {"m": 1.0}

        run = self.run_of(1)
        with contextlib.redirect_stderr(io.StringIO()):
            run.traffic([cases.Case("c", "title", "m", "u", ["same", "veth"], sample)])
        self.assertEqual([skip["kind"] for skip in run.skipped], ["failed"])
        self.assertEqual([sample["path"] for sample in run.samples], ["veth"])

    def test_a_quick_run_stops_at_its_deadline(self):
        run = self.run_of(1)
        run.deadline = 0
        with contextlib.redirect_stderr(io.StringIO()):
            run.traffic([cases.Case("c", "title", "m", "u", ["same"], lambda route: {"m": 1.0})])
        self.assertEqual((run.samples, len(run.skipped)), ([], 1))


class Small(unittest.TestCase):
    """What the measurements are made of."""

    def test_a_program_is_timed_with_its_input_and_output(self):
        said = call("/bin/cat", {}, '{"a": 1}')
        self.assertEqual((said["ok"], said["said"]), (True, '{"a": 1}'))
        self.assertGreater(said["ms"], 0)
        self.assertFalse(call("/bin/false", {}, "")["ok"])
        self.assertRegex(call("/no/plugin", {}, "")["said"], "No such file")

    def test_blocks_differ_in_their_place(self):
        self.assertEqual(len(set(digest.blocks(3, 1))), 3)
        self.assertEqual(list(digest.blocks(2, 1)), list(digest.blocks(2, 1)))
        self.assertEqual({len(block) for block in digest.blocks(2, 1)}, {digest.BLOCK})

    def test_a_command_that_fails_says_why(self):
        with self.assertRaisesRegex(machine.Failed, "no such file"):
            machine.run(["sh", "-c", "echo no such file >&2; exit 1"])
        with self.assertRaisesRegex(machine.Failed, "no end"):
            machine.run(["sleep", "5"], timeout=0.1)

    def test_cpus_of_a_process_come_back(self):
        before = os.sched_getaffinity(0)
        with machine.on_cpus([os.getpid()], [max(before)]):
            self.assertEqual(os.sched_getaffinity(0), {max(before)})
        self.assertEqual(os.sched_getaffinity(0), before)

    def test_documentation_names_every_case(self):
        guide = (REPOSITORY / "docs/performance.md").read_text()
        kinds = {case.name.split("/")[0] for case in all_cases()}
        self.assertEqual({kind for kind in kinds if f"`{kind}`" not in guide}, set())


if __name__ == "__main__":
    unittest.main()
