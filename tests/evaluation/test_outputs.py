"""When an output is the expected one."""

import pytest

from mlops_tasks.evaluation.outputs import same_output


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("1 2\n3", "1\n2 3\n\n"),
        ("", " \n"),
        ("0.5", "0.5000009"),
        ("1000000.5", "1000001.0"),
        ("1e-7", "0"),
        ("2", "2.0"),
        ("2.0", "2"),
        ("1000000007", "1000000007.0000001"),
        ("3", "2.9999999999"),
        ("-.5 YES", "-0.50 YES"),
    ],
)
def test_outputs_that_are_the_same(expected: str, printed: str) -> None:
    assert same_output(expected, printed)


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("1 2", "12"),
        ("1", "1 1"),
        ("yes", "YES"),
        ("0.5", "0.500002"),
        ("1000000007", "1000000008"),
        ("7", "7.1"),
        ("1000000007", "1000000500.0"),
        ("1000000000000000007", "1e+18"),
        ("0.5", "nan"),
        ("1.0", "1_0e-1"),
        ("1.0", "inf"),
        ("inf", "Infinity"),
        ("0.5", "٠.5"),
        ("1.0", "1.0e9999"),
        ("0.5", ""),
    ],
)
def test_outputs_that_differ(expected: str, printed: str) -> None:
    assert not same_output(expected, printed)
