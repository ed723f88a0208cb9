"Functions of the data that change texts are named, because predictions start from texts"
import pytest
from conftest import make_objects, make_texts
from fastai.text.all import CategoryBlock, ColReader, DataBlock, ItemTransform, Pipeline, Transform

from blurlike.all import HFTextBlock, HFTextDataLoaders, hf_learner
from blurlike.core.checks import print_once


def shout(text): return text.upper()


class ShoutItem(ItemTransform):
    def encodes(self, o): return o


def lines(capsys, hf, get_x, **kwargs):
    print_once.cache_clear()
    block = DataBlock((HFTextBlock(*hf), CategoryBlock), get_x=get_x, get_y=ColReader('label'), **kwargs)
    learn = hf_learner(block.dataloaders(make_texts(20), bs=4, device='cpu'), hf.model)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.fit(1)
    return [o for o in capsys.readouterr().out.splitlines() if 'hf_predict' in o]


@pytest.mark.parametrize(('get_x', 'kwargs', 'name'), [
    (Pipeline([ColReader('text'), shout]), {}, 'shout'), (ColReader('text'), dict(item_tfms=ShoutItem()), 'ShoutItem')])
def test_they_are_named_once(capsys, hf, get_x, kwargs, name):
    line, = lines(capsys, hf, get_x, **kwargs)
    assert name in line


@pytest.mark.parametrize('get_x', [ColReader('text'), lambda row: row['text'].upper()])
def test_a_function_that_reads_rows_is_not_named(capsys, hf, get_x): assert lines(capsys, hf, get_x) == []


def test_a_transform_for_training_alone_is_not_named(capsys, hf):
    assert lines(capsys, hf, Pipeline([ColReader('text'), Transform(shout, split_idx=0)])) == []


def test_loaders_of_the_library_name_none(capsys):
    hf = make_objects()
    learn = hf_learner(HFTextDataLoaders.from_df(make_texts(20), hf, seed=0, bs=4, device='cpu'), hf.model)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert 'hf_predict' not in capsys.readouterr().out
