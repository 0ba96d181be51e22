"""Tests of the modules of scripts/gpu-check: numbers, the table, parts that go wrong. `tests/gpu_check/main.rs` runs them."""

import argparse
import contextlib
import io
import os
import pathlib
import sys
import tempfile
import time
import unittest
import unittest.mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent / "scripts"))

import gpu_pack
import gpu_parts
import gpu_peers
import gpu_run
import gpu_table

CARD = "NVIDIA H200, compute capability 9.0, 143771 MiB"


class Quiet(unittest.TestCase):
    """Runs parts into a folder of its own, and keeps what is printed."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = pathlib.Path(folder.name)
        self.printed = io.StringIO()
        printing = contextlib.redirect_stdout(self.printed)
        printing.__enter__()
        self.addCleanup(printing.__exit__, None, None, None)

    def run_of(self, seconds=60):
        return gpu_run.Run(self.out, seconds, {})


def shell(script):
    return ["sh", "-c", script]


class Parts(Quiet):
    def test_numbers_of_a_part_that_takes_too_long_count_and_all_that_it_started_is_ended(self):
        run = self.run_of()
        script = "printf 'a product\\t12.5\\tTFLOP/s\\n'; sleep 600 & echo child $!; wait"
        begin = time.monotonic()
        part = run.part("slow", shell(script), limit=1)
        self.assertLess(time.monotonic() - begin, 30)
        self.assertEqual(part.state, "ended")
        self.assertEqual(run.numbers, [("a product", 12.5, "TFLOP/s")])
        self.assertIn("| a product | 12.5 TFLOP/s |", run.table_file.read_text())
        self.assertTrue(run.failed)
        child = int(part.output.split("child ")[1])
        self.assertTrue(has_ended(child), "a process of the part goes on")

    def test_a_part_that_fails_is_told_with_what_it_said_last_and_the_others_run(self):
        run = self.run_of()
        self.assertEqual(run.part("bad", shell("echo the reason; exit 3"), limit=9).state, "FAILED")
        self.assertEqual(run.part("killed", shell("kill -9 $$"), limit=9).text.split(",")[0], "it ended with signal 9")
        self.assertEqual(run.part("good", shell("printf 'x\\t1\\ts\\n'"), limit=9, measures=True).state, "passed")
        self.assertIn("the reason", self.printed.getvalue())
        self.assertTrue(run.failed)
        self.assertEqual(run.numbers, [("x", 1.0, "s")])

    def test_a_part_that_has_to_measure_and_does_not_has_failed(self):
        run = self.run_of()
        self.assertEqual(run.part("none", shell("echo nothing to measure"), limit=9, measures=True).state, "FAILED")

    def test_what_is_skipped_fails_where_it_is_needed_alone(self):
        for needed in (False, True):
            run = self.run_of()
            part = run.part("torch", shell("echo it is not here; exit 77"), limit=9, needed=needed)
            self.assertEqual((part.state, run.failed), ("skipped", needed))
            self.assertIn("it is not here", part.text)
            run = self.run_of()
            part = run.part("missing", ["/no/such/program"], limit=9, needed=needed)
            self.assertEqual((part.state, run.failed), ("skipped", needed))
            run = self.run_of(seconds=0)
            part = run.part("late", shell("true"), limit=9, needed=needed)
            self.assertEqual((part.state, part.text, run.failed), ("skipped", "no time is left", needed))

    def test_no_part_goes_on_when_all_the_time_is_over(self):
        part = self.run_of(seconds=4).part("slow", shell("sleep 600"), limit=500)
        self.assertEqual(part.state, "ended")

    def test_only_well_formed_numbers_are_read_and_any_bytes_are_survived(self):
        run = self.run_of()
        lines = ["a\\t1e-3\\tms", "b\\tnan\\tms", "c\\t1\\tms\\tmore", "d\\t1.2.3\\tms", "\\t1\\tms", "e\\tinf\\ts", "f\\t2"]
        script = f"printf '\\377\\376 bytes\\n'; printf '{chr(92)}n'; printf 'card\\tOne, 1 MiB\\t\\n'"
        script += "".join(f"; printf '{line}\\n'" for line in lines)
        self.assertEqual(run.part("odd", shell(script), limit=9).state, "passed")
        self.assertEqual(run.numbers, [("a", 0.001, "ms")])
        self.assertEqual(run.card, "One, 1 MiB")

    def test_all_output_is_in_the_log(self):
        run = self.run_of()
        run.part("first", shell("echo one"), limit=9)
        run.part("second", shell("echo two >&2"), limit=9)
        log = run.log_file.read_text()
        self.assertRegex(log, r"(?s)== first: .*\none\n.*== second: .*\ntwo\n")


class Groups(Quiet):
    def test_a_mistake_in_one_group_is_told_and_the_others_run(self):
        run, seen = self.run_of(), []

        def wrong(*_):
            raise OSError("the disk is full")

        groups = {"first": wrong, "second": lambda *_: seen.append("second"), "third": wrong}
        options = argparse.Namespace(only=["first", "second"])
        with unittest.mock.patch.dict(gpu_parts.GROUPS, groups, clear=True):
            gpu_parts.everything(run, self.out, options)
        self.assertEqual(seen, ["second"])
        self.assertEqual([(p.name, p.state) for p in run.parts], [("the group first", "FAILED")])
        self.assertTrue(run.failed and "the disk is full" in run.table_file.read_text())


def has_ended(process, seconds=10):
    for _ in range(10 * seconds):
        try:
            # one that has ended may be there until its parent has looked
            state = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


class Judges(unittest.TestCase):
    def test_test_programs_pass_with_tests_alone(self):
        result = "test result: ok. 7 passed; 0 failed; 0 ignored\n"
        self.assertEqual(gpu_parts.tested(0, result), ("passed", "7 tests"))
        self.assertEqual(gpu_parts.tested(0, result.replace("7", "0"))[0], "FAILED")
        self.assertEqual(gpu_parts.tested(-11, "")[0], "FAILED")
        failed = "test a::b ... FAILED\ntest c ... ok\ntest result: FAILED. 1 passed; 1 failed; 0 ignored\n"
        self.assertEqual(gpu_parts.tested(101, failed), ("FAILED", "1 of 2 tests: a::b"))

    def test_findings_of_the_sanitizer_count_and_its_refusals_do_not(self):
        clean = "========= ERROR SUMMARY: 0 errors\n"
        self.assertEqual(gpu_parts.sanitized(0, clean)[0], "passed")
        self.assertEqual(gpu_parts.sanitized(3, "========= ERROR SUMMARY: 2 errors\n"), ("FOUND", "2 errors"))
        self.assertEqual(gpu_parts.sanitized(101, "========= ERROR SUMMARY: 1 error\n")[0], "FOUND")
        refused = "========= Error: Device not supported. Please refer to the documentation\n========= ERROR SUMMARY: 1 error\n"
        self.assertEqual(
            gpu_parts.sanitized(3, refused), ("skipped", "Error: Device not supported. Please refer to the documentation")
        )
        self.assertEqual(gpu_parts.sanitized(101, "thread 'main' panicked")[0], "FAILED")
        self.assertEqual(gpu_parts.sanitized(0, "it said nothing")[0], "FAILED")

    def test_a_library_that_finds_no_card_has_failed(self):
        self.assertEqual(gpu_parts.found(0, "threads 2\n")[0], "FAILED")
        self.assertEqual(gpu_parts.found(1, "cuda:0")[0], "FAILED")
        self.assertEqual(gpu_parts.found(0, "cuda:0  NVIDIA H200")[0], "passed")

    def test_files_go_to_memory_that_has_room(self):
        self.assertEqual(gpu_parts.scratch(1 << 60)[0], pathlib.Path(tempfile.gettempdir()))
        if pathlib.Path("/dev/shm").is_dir() and os.access("/dev/shm", os.W_OK):
            self.assertEqual(gpu_parts.scratch(0)[0], pathlib.Path("/dev/shm"))


class Table(unittest.TestCase):
    def test_every_line_finds_what_pytorch_measures_beside_it(self):
        for what, peer in [
            ("product int8 Q4_K 4096x4096 n=1024", "product int8 4096x4096 n=1024"),
            ("hopper product int8 Q4_K 4096x12288 n=64", "product int8 4096x12288 n=64"),
            ("hopper product bf16 BF16 4096x4096 n=1024", "product bf16 4096x4096 n=1024"),
            ("attention 32 heads of 128, 1057 tokens", "attention 32 heads of 128, 1057 tokens"),
            ("ampere attention 64 heads of 64, 4096 tokens", "attention 64 heads of 64, 4096 tokens"),
            ("Q4_K_M text step of 1024 tokens", "text step of 1024 tokens"),
            ("Q8_0 image step of 2x1057 tokens", "image step of 2x1057 tokens"),
            ("Q8_0 pass over 2x1057 tokens", "pass over 2x1057 tokens"),
            ("Q8_0 picture of 512x512 in 15 steps with guidance", "picture in 15 steps, not decoded"),
            ("unpacking Q4_K 4096x4096", None),
            ("Q4_K_M first step after opening, kernels translated anew", None),
        ]:
            self.assertEqual(gpu_table.peer_of(what), peer)

    def test_pytorch_measures_under_the_names_that_are_looked_for(self):
        names = [f"product int8 {rows}x{cols} n={n}" for rows, cols in gpu_peers.SHAPES for n in gpu_peers.TOKENS]
        self.assertIn(gpu_table.peer_of("hopper product int8 Q4_K 12288x4096 n=1024"), names)
        self.assertEqual(gpu_peers.IMAGE_TOKENS, 1057)

    def table(self, card=CARD):
        numbers = [
            ("hopper product bf16 BF16 4096x4096 n=1024", 600.0, "TFLOP/s"),
            ("hopper product bf16 BF16 4096x4096 n=4096", 400.0, "TFLOP/s"),
            ("hopper product int8 Q4_K 4096x4096 n=4096", 1200.0, "TFLOP/s"),
            ("attention 32 heads of 128, 1057 tokens", 300.0, "TFLOP/s"),
            ("Q4_K_M text step of 1024 tokens", 20.0, "ms"),
            ("Q8_0 text step of 1024 tokens", 25.0, "ms"),
            ("torch product bf16 4096x4096 n=1024", 750.0, "TFLOP/s"),
            ("torch product bf16 4096x4096 n=4096", 800.0, "TFLOP/s"),
            ("torch ceiling bf16 8192x8192x8192", 800.0, "TFLOP/s"),
            ("torch text step of 1024 tokens", 30.0, "ms"),
        ]
        return gpu_table.table(card, numbers, [("a part", "FAILED", "one | two")])

    def test_numbers_stand_beside_pytorchs_the_ceilings_and_the_targets(self):
        table = self.table()
        for line in [
            "| hopper product bf16 BF16 4096x4096 n=1024 | 600 TFLOP/s | 750 | 80% | 75% | 61% | 75% of PyTorch's | met |",
            "| hopper product bf16 BF16 4096x4096 n=4096 | 400 TFLOP/s | 800 | 50% | 50% | 40% | 75% of PyTorch's | **missed** |",
            "| hopper product int8 Q4_K 4096x4096 n=4096 | 1200 TFLOP/s |  |  |  | 61% | 55% of the datasheet | met |",
            "| attention 32 heads of 128, 1057 tokens | 300 TFLOP/s |  |  |  |  | 60% of PyTorch's best | unknown |",
            "| Q4_K_M text step of 1024 tokens | 20 ms | 30 | 150% |  |  | under 30 ms | met |",
            "| Q8_0 text step of 1024 tokens | 25 ms | 30 | 120% |  |  | under 25 ms | **missed** |",
            "| PyTorch: ceiling bf16 8192x8192x8192 | 800 | | | | | | |",
            "| a part | FAILED | one \\| two |",
        ]:
            self.assertIn(line + "\n", table)
        self.assertRegex(table, r"\| under 1\.5 s \| `.*` \| not measured \|")
        self.assertRegex(table, r"\| 75% of PyTorch's \| `.*` \| 1 \| 1 \| 0 \|")
        self.assertTrue(table.startswith(f"Measured on {CARD}, "))

    def test_targets_are_for_the_card_that_they_name(self):
        table = self.table("NVIDIA GeForce RTX 3090, compute capability 8.6, 24576 MiB")
        self.assertIn("The targets are for an H100.", table)
        self.assertNotIn("missed", table)

    def test_a_table_of_nothing_is_one(self):
        self.assertIn("no card", gpu_table.table(None, [], []))


class Peers(Quiet):
    def test_what_goes_wrong_is_a_line_and_the_rest_goes_on(self):
        gpu_peers.failures.clear()

        def fails():
            raise RuntimeError("no kernel for it\nand more")

        with contextlib.redirect_stderr(io.StringIO()):
            self.assertIsNone(gpu_peers.attempt("a section", fails))
        self.assertEqual(gpu_peers.attempt("another", lambda: 7), 7)
        self.assertEqual(gpu_peers.failures, ["a section"])
        self.assertIn("error: a section: RuntimeError: no kernel for it\n", self.printed.getvalue())


class Packing(Quiet):
    def test_an_archive_that_is_too_large_is_told_in_a_sentence(self):
        archive = self.out / "programs.tar.xz"
        archive.write_bytes(bytes(100))
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            self.assertEqual(gpu_pack.too_large(archive, 99), 1)
        self.assertRegex(said.getvalue(), r"programs.tar.xz has 100 bytes, more than the 99 that are allowed")
        self.assertEqual((gpu_pack.too_large(archive, 100), gpu_pack.too_large(archive, None)), (0, 0))

    def test_an_empty_folder_says_what_to_do(self):
        with self.assertRaisesRegex(SystemExit, "gpu-check --pack"), gpu_pack.unpacked(self.out):
            pass


if __name__ == "__main__":
    unittest.main()
