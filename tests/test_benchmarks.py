"Benchmarks alternate between contestants, take ratios by round, and replace only their own section of the results."
import sys
from pathlib import Path

import pytest
from conftest import mentions

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.speed import common  # noqa: E402
from benchmarks.speed.__main__ import SECTIONS, chosen  # noqa: E402
from benchmarks.speed.common import alternate, figure_row, ratio_row, section_text, write_section  # noqa: E402


def test_contestants_take_turns_in_an_order_that_is_reversed_every_other_round():
    turns = []
    def contestant(name): return lambda i: turns.append((i, name)) or {'n': i}
    alternate({o: contestant(o) for o in 'ab'}, 3, warmup=1)
    assert ''.join(o for _,o in turns) == 'ba'+'ab'+'ba'+'ab'
    assert [i for i,_ in turns[::2]] == [-1, 0, 1, 2]


def test_warm_up_rounds_are_discarded():
    assert alternate({'a': lambda i: {'n': i}}, 2, warmup=3)['a'].n.tolist() == [0, 1]


def test_a_ratio_is_taken_round_by_round():
    row = ratio_row('a over b', [2, 30, 5], [1, 10, 1])
    assert (row['median'], row['range'], row['examples/s']) == ('3', '2 to 5', '5 / 1')
    assert (row['target'], row['reached']) == ('', '')


def test_missing_rounds_raise():
    with pytest.raises(ValueError): ratio_row('a over b', [1, 2], [1])  # noqa: PT011


@pytest.mark.parametrize(('target', 'also', 'reached'),
                         [('>= 2', None, 'yes'), ('>= 2.1', None, 'no'), ('<= 2', None, 'yes'), ('<= 1.9', None, 'no'),
                          ('>= 2', {'close': True}, 'yes'), ('>= 2', {'close': False}, 'no')])
def test_a_target_applies_to_the_median_and_to_extra_conditions(target, also, reached):
    row = figure_row('a', [1, 2, 9], target, also)
    assert row['reached'] == reached
    assert row['target'] == ', '.join([target, *(also or {})])


def test_a_section_replaces_only_its_own(tmp_path):
    path = tmp_path/'RESULTS.md'
    for name,text in [('a', 'old'), ('b', 'kept'), ('c', 'kept too'), ('a', 'new\n\nlines')]:
        write_section(path, name, text)
    head,*sections = path.read_text().split('\n## ')
    assert head.strip() == common.HEADER
    assert sections == ['a\n\nnew\n\nlines\n', 'b\n\nkept\n', 'c\n\nkept too\n']
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path/'RESULTS.md'
    write_section(path, 'a', 'old')
    before = path.read_text()
    def fail(*_): raise OSError('no')
    monkeypatch.setattr(common.os, 'replace', fail)
    with pytest.raises(OSError, match='no'): write_section(path, 'a', 'new')
    assert path.read_text() == before


def test_a_section_contains_its_command_and_its_machine():
    text = section_text('What.', {'Caption.': [{'x': 1, 'y': 'b'}]}, 'python -m benchmarks.speed')
    assert text.startswith('What.\n\n`python -m benchmarks.speed`, 2')
    assert text.endswith('Caption.\n\n| x | y |\n| --- | --- |\n| 1 | b |')
    assert all(f' {o} ' in text for o in ('python', *common.PACKAGES))


def test_sections_are_chosen_by_name():
    assert chosen('') == list(SECTIONS)
    assert chosen('data,training') == ['data', 'training']
    with pytest.raises(ValueError, match=mentions("only='data,speed'", "'speed'", *SECTIONS)): chosen('data,speed')
