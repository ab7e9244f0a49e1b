"""docs/faults.md and these tests say the same."""
import os
import re

from harness import ROOT


def rows():
    with open(os.path.join(ROOT, "docs", "faults.md"), encoding="utf-8") as f:
        return [int(number) for number in re.findall(r"^\| (\d+) \|", f.read(), re.M)]


def rows_with_tests():
    here = os.path.dirname(os.path.abspath(__file__))
    found = set()
    for name in os.listdir(here):
        if name.startswith("test_fault_"):
            with open(os.path.join(here, name), encoding="utf-8") as f:
                found |= {int(number) for number in re.findall(r"^def test_row_(\d+)_", f.read(), re.M)}
    return found


def test_every_fault_has_its_test():
    assert rows() == list(range(1, 31))
    assert rows_with_tests() == set(rows())
