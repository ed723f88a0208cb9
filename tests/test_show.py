"Tables of texts, and fastai's own interpretation of other data."
import importlib
import os
import subprocess
import sys
from functools import partial

import pandas as pd
import pytest
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.tabular.all import CategoryBlock, Normalize, TabularDataLoaders, tabular_learner
from sklearn import metrics as skm

import blurlike.show
from blurlike.show import MarkedText, SampleTable, TaggedWords


@pytest.fixture(params=[False, True], ids=['imported', 'reloaded'])
def show(request):
    "The module as it is, and after a reload"
    return importlib.reload(blurlike.show) if request.param else blurlike.show


@pytest.fixture(scope='module')
def tabular():
    "An untrained fastai learner"
    df = pd.DataFrame({'size': [i/7 % 1 for i in range(24)], 'kind': ['no', 'yes', 'yes']*8})
    options = dict(procs=[Normalize], cont_names=['size'], y_names='kind', y_block=CategoryBlock())
    dls = TabularDataLoaders.from_df(df, valid_idx=range(12, 24), bs=4, device='cpu', **options)
    return tabular_learner(dls, layers=[4])


def test_other_learners_have_fastais_confusion_matrix_and_report(show, tabular, capsys):
    with tabular.no_bar():
        interp = ClassificationInterpretation.from_learner(tabular)
        _,targs,preds = tabular.get_preds(with_decoded=True)
        capsys.readouterr()
        interp.print_classification_report()
        assert interp.confusion_matrix().tolist() == skm.confusion_matrix(targs, preds, labels=[0, 1]).tolist()
    report = skm.classification_report(targs, preds, labels=[0, 1], target_names=['no', 'yes'])
    assert capsys.readouterr().out == f'{report}\n'
    for o in ('confusion_matrix', 'print_classification_report'):
        assert getattr(ClassificationInterpretation, f'_orig_{o}').__module__ == 'fastai.interpret'


def test_texts_are_shown_and_compared_by_their_task(show, learn, df, capsys):
    learn.show_results(max_n=3)
    assert capsys.readouterr().out.count('prediction') == 1
    with learn.no_bar(): matrix = ClassificationInterpretation.from_learner(learn).confusion_matrix()
    assert matrix.sum(1).tolist() == df.label[df.is_valid].value_counts().sort_index().tolist()


def test_any_cell_is_cut_formatted_and_escaped():
    span,words = MarkedText('<i> warm film', 4, 8),TaggedWords(['<u>', 'Oslo'], ['O', 'B-LOC'])
    table = SampleTable([dict(text='<b> film', span=span, words=words)], [True], mark='text', trunc_at=6)
    html = table._repr_html_()
    assert '✗ &lt;b&gt; fi…' in html
    assert '<mark>warm</mark>' in html
    assert '&lt;u&gt; …' in html
    assert all(o in repr(table) for o in ('✗ <b> fi…', '»warm«', '<u> …'))


@pytest.mark.parametrize('option', ['trun_at', 'max_m'])
def test_misspelled_options_of_tables_are_refused(option, learn):
    losses = Interpretation.from_learner(learn).plot_top_losses
    for show in (learn.dls.show_batch, learn.show_results, partial(losses, 2)):
        with pytest.raises(TypeError, match=option): show(**{option: 5})


def test_a_table_is_printed_where_its_lines_cannot_be_encoded():
    code = "from blurlike.show import SampleTable; SampleTable([dict(text='東京 – a film')]).show(); print('done')"
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, check=True,
                         env=os.environ | dict(PYTHONIOENCODING='cp1252'))
    assert b'a film' in run.stdout
    assert run.stdout.rstrip().endswith(b'done')
