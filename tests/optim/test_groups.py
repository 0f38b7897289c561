"""Groups cover every parameter, none is empty, and the first match wins."""

import pytest

from llmlab.optim.groups import STANDARD, Group, assign

PATHS = [("embed", "table"), ("layers", "0", "norm", "scale"), ("layers", "0", "ffn", "up", "w"), ("head", "bias")]


def test_standard_groups_decay_all_but_scales_and_biases():
    found = assign(STANDARD, PATHS)
    assert [found[path].decay for path in PATHS] == [1, 0, 1, 0]
    assert assign(STANDARD, PATHS[:1])[PATHS[0]].decay == 1  # a model without norms and biases is no error


def test_first_match_wins():
    slow = Group(match=r"^embed\.", peak=0.1)
    assert assign((slow, *STANDARD), PATHS)[PATHS[0]] is slow


def test_a_parameter_without_group_is_named():
    with pytest.raises(ValueError, match=r"matches embed\.table, head\.bias; the groups are 'layers'.*match='\.\*'"):
        assign((Group(match="layers"),), PATHS)


def test_a_group_that_matches_nothing_is_named():
    with pytest.raises(ValueError, match=r"group 'embde' matches no parameter; the parameters are embed\.table"):
        assign((Group(match="embde"), *STANDARD), PATHS)


def test_a_group_that_comes_too_late_is_named():
    with pytest.raises(ValueError, match="group 'table' gets no parameter.*put it earlier"):
        assign((*STANDARD, Group(match="table")), PATHS)


def test_an_invalid_regex_is_named():
    with pytest.raises(ValueError, match=r"'\(scale' is .*no regular expression|'\(scale', which is no regular"):
        Group(match="(scale")


def test_negative_multiples_are_refused():
    with pytest.raises(ValueError, match="peak -1"):
        Group(match=".*", peak=-1.0)
