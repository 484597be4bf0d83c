"""ROWS.md names every test of the matrix, and nothing that is not there."""

import pathlib
import re

HERE = pathlib.Path(__file__).parent
LAST = {"K": 23, "Z": 8, "B": 10, "R": 10, "P": 7, "L": 12}  # rows of each part of the matrix
NAMED = r"test_(?:[BKLPRZ]\d+_|a_bad|a_record|with_|without_|soak)\w*"


def test_the_table_of_rows_is_the_list_of_tests():
    there = {name for file in HERE.glob("test_*.py") for name in re.findall(r"^def (" + NAMED + r")\(", file.read_text(), re.M)}
    told = set(re.findall(r"`(" + NAMED + ")`", (HERE / "ROWS.md").read_text()))
    assert told == there
    rows = set(re.findall(r"^\| ([BKLPRZ]\d+) \|", (HERE / "ROWS.md").read_text(), re.M))
    assert rows == {f"{letter}{n}" for letter, last in LAST.items() for n in range(1, last + 1)}
