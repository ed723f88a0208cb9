"Tables of texts, and fastai's own interpretation of other data."
import importlib
import os
import pickle
import re
import subprocess
import sys
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from conftest import characters, make_objects, make_texts
from datasets import Dataset
from fastai.data.all import ColReader, ColSplitter, DataBlock, ItemTransform, Transform
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.tabular.all import CategoryBlock, Normalize, TabularDataLoaders, tabular_learner
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as skm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
)

import blurlike.show
from blurlike.all import HFTextBlock, HFTextDataLoaders, hf_learner
from blurlike.core.inputs import HFInputs
from blurlike.show import MarkedText, SampleTable, TaggedWords, cut_text, format_number

sys.path.insert(0, str(Path(__file__).parents[1]/'tools'))
from screenshot import browser_page, find_browser  # noqa: E402


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
    assert '✗&nbsp;&lt;b&gt;…' in html
    assert re.search('<mark style=[^>]+>warm</mark>', html)
    assert '&lt;u&gt; …' in html
    assert all(o in repr(table) for o in ('✗ <b>…', '»warm«', '<u> …'))


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


# ---- texts as they were written

def written(n=24):
    "Texts that an uncased tokenizer cannot give back: some of them have the same tokens"
    ends = ['Über', 'über', '東京', '北京', 'run-of-the-mill <br />', "I've"]
    texts = [f'{o.upper() if i%3 else o} … {ends[i%len(ends)]}' for i,o in enumerate(make_texts(n).text)]
    return pd.DataFrame(dict(text=texts, label=[f'label {i%5}' for i in range(n)], is_valid=[i%4==3 for i in range(n)]))


def loaders(df, hf=None, **kwargs):
    options = dict(bs=4, seed=0, device='cpu', valid_col='is_valid') | kwargs
    return HFTextDataLoaders.from_df(df, make_objects(num_labels=5) if hf is None else hf, **options)


def rows_of(dl): return sorted(row for b in dl for row in dl.decode_batch(b, max_n=99))
def pairs_of(df, valid=False): return sorted(zip(*(df[df.is_valid==valid][o] for o in ('text', 'label')), strict=True))


@pytest.mark.parametrize('options', [
    dict(), dict(precompute_lengths=False, pool=2), dict(num_workers=1), dict(batch_tokens=300), dict(shuffle=False),
    dict(precompute_lengths=False, pool=2, num_workers=1)], ids=str)
def test_texts_are_shown_as_they_were_written(options):
    df,size = written(),{} if 'batch_tokens' in options else dict(bs=4)
    shuffle = options.pop('shuffle', True)
    dl = HFTextDataLoaders.from_df(df, make_objects(num_labels=5), valid_col='is_valid', device='cpu', seed=0,
                                   **size, **options).train.new(shuffle=shuffle)
    for _ in range(2): assert rows_of(dl) == pairs_of(df)
    b = dl.one_batch()
    assert dl.decode_batch(b, max_n=99) == dl.decode_batch(b, max_n=99)
    assert {'raw'}.isdisjoint(b[0])


def test_a_dataset_a_stream_and_a_part_show_texts_as_they_were_written():
    df = written()
    train,valid = (Dataset.from_pandas(df[df.is_valid==o][['text', 'label']], preserve_index=False) for o in (0, 1))
    vocab = sorted(set(df.label))
    def of(train, **kwargs):
        return HFTextDataLoaders.from_dataset(dict(train=train, valid=valid), make_objects(num_labels=5), bs=4, seed=0,
                                              device='cpu', vocab=vocab, **kwargs)
    ds,stream = of(train),of(train.to_iterable_dataset(), n=len(train), pool=2)
    for o in (ds.train, stream.train): assert rows_of(o) == pairs_of(df)
    for o in (ds.valid, ds.test_dl(valid, with_labels=True)): assert rows_of(o) == pairs_of(df, True)
    halves = [of(train).train.part(i, 2) for i in range(2)]
    assert sorted(rows_of(halves[0]) + rows_of(halves[1])) == pairs_of(df)
    batches = iter(stream.train) # showing a batch does not move the stream
    shown = [row for b in batches for row in stream.train.decode_batch(b, max_n=99)]
    assert sorted(shown) == pairs_of(df)


class Shorten(ItemTransform):
    "Keep a random number of words"
    def encodes(self, sample): return (' '.join(sample[0].split()[:int(np.random.randint(1, 9))]), *sample[1:])


def test_random_texts_are_those_of_the_batch():
    df = written()
    block = HFTextBlock(*make_objects(num_labels=5))
    dblock = DataBlock(blocks=(block, CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'),
                       splitter=ColSplitter(), item_tfms=Shorten())
    for options in (dict(), dict(precompute_lengths=False, pool=2)):
        dls = dblock.dataloaders(df, bs=4, device='cpu', **options)
        for b in dls.train:
            found = [t for t,_ in dls.train.decode_batch(b)]
            lengths = b[0]['attention_mask'].sum(1).tolist()
            assert [len(dls.hf_block.hf_tokenizer(o)['input_ids']) for o in found] == lengths
            assert all(df.text.str.startswith(o).any() for o in found)


class Swap(Transform):
    "Change the first token of each row"
    def encodes(self, x:dict):
        x['input_ids'][:,1] = 1
        return {k: v[:] for k,v in x.items()}


def test_tokens_that_were_changed_are_decoded():
    dl = loaders(written()).valid
    def decoded(b): return dl.hf_block.decode(b[0])
    b = dl.one_batch()
    other = (HFInputs(b[0]), *b[1:])
    assert [t for t,_ in dl.decode_batch(other)] == decoded(b)
    b[0]['input_ids'][0,1] = 1
    shown = [t for t,_ in dl.decode_batch(b)]
    assert shown[0] == decoded(b)[0]
    assert all(a!=b for a,b in zip(shown[1:], decoded(b)[1:], strict=True))
    changing = dl.new(after_batch=Swap())
    assert [t for t,_ in changing.decode_batch(changing.one_batch())] == decoded(changing.one_batch())
    by_hand = dl.hf_block.encode(['The FILM'])
    for x in (by_hand, dict(by_hand)): assert dl.decode_batch((x, b[1][:1]))[0][0] == 'the film'


def test_a_deleted_file_is_decoded(tmp_path):
    for split in ('train', 'valid'):
        for label in ('good', 'bad'):
            (tmp_path/split/label).mkdir(parents=True)
            for i in range(2): (tmp_path/split/label/f'{i}.txt').write_text(f'The FILM {i}')
    dls = HFTextDataLoaders.from_folder(tmp_path, make_objects(), valid='valid', bs=2, device='cpu')
    b = dls.valid.one_batch()
    assert all(t.startswith('The FILM') for t,_ in dls.valid.decode_batch(b))
    for o in tmp_path.rglob('*.txt'): o.unlink()
    assert all(t.startswith('the film') for t,_ in dls.valid.decode_batch(b))


def test_a_batch_keeps_no_text_that_the_data_keeps():
    df = written()
    dls = loaders(df)
    x = dls.train.one_batch()[0]
    assert x.raw.samples is None
    assert pickle.loads(pickle.dumps(x)).raw is None
    pooled = loaders(df, precompute_lengths=False).train
    assert all(b[0].raw.samples is None for b in pooled)
    random = pooled.new(after_item=Transform(lambda o: o))
    texts = {id(o) for column in random.read.rows.columns for o in column}
    assert all(id(s[0]) in texts for b in random for s in b[0].raw.samples)


TEXTS = st.text(alphabet='abcdefgh ABCÜß.,-<>\'东🎬\n', min_size=1, max_size=60)


@pytest.mark.parametrize('side', ['right', 'left'])
@pytest.mark.parametrize('arch', ['bert', 'roberta', 't5', 'gpt2', 'llama'])
def test_texts_are_cut_where_the_models_input_is_cut(arch, side):
    hf = make_objects(arch)
    hf.tokenizer.truncation_side = side
    block,n = HFTextBlock(*hf, max_length=9),9

    @settings(max_examples=40, deadline=None, database=None)
    @given(TEXTS)
    def check(text):
        x = block.encode([text])
        shown = block.original(text, x.samples()[0])
        full = hf.tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)
        cut = hf.tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=n)
        places = [o for o,p in zip(cut['offset_mapping'], cut.sequence_ids(), strict=True) if p is not None]
        if len(full['input_ids']) <= n: assert shown == text
        elif side=='right': assert shown == text[:max(b for _,b in places)].rstrip()
        else: assert shown == text[min(a for a,_ in places):].lstrip()
    check()


def test_a_slow_tokenizer_shows_texts_that_were_not_cut():
    hf = make_objects('canine', num_labels=5)
    assert not characters().is_fast
    df = written()
    long = loaders(df, hf, truncation=True, max_length=32).train
    for b in long: assert [t for t,_ in long.decode_batch(b)] == long.hf_block.decode(b[0])
    short = df.assign(text=[o[:40] for o in df.text])
    assert rows_of(loaders(short, hf).train) == pairs_of(short)


@pytest.mark.parametrize('arch', ['bert', 'roberta'])
def test_pairs_and_lists_of_words_are_shown_as_they_were_written(arch):
    df,hf,cut = written(),make_objects(arch, num_labels=5),dict(max_length=24)
    df['text'] = [' '.join(o.split()[-4:]) for o in df.text]
    df['other'] = df.text[::-1].tolist()
    for options in (dict(), cut, cut | dict(truncation='only_second'), cut | dict(windows=True, stride=2)):
        if 'truncation' in options: df['text'] = ['A SHORT One']*len(df)
        dls = loaders(df, hf, text_col=['text', 'other'], **options)
        shown = [o for b in dls.valid for o in dls.valid.decode_batch(b, max_n=99)]
        valid = df[df.is_valid]
        for (a,b),label in shown:
            found = valid[valid.label==label]
            assert any(a and b and x.startswith(a) and y.startswith(b)
                       for x,y in zip(found.text, found.other, strict=True))
        whole = {*zip(valid.text, valid.other, strict=True)}
        if not options or 'windows' in options: assert {o for o,_ in shown} <= whole
    words = df.assign(text=[o.split() for o in df.other])
    for options in (dict(), cut):
        dls = loaders(words, hf, is_split_into_words=True, task='sequence-classification', **options)
        shown = [t for t,_ in dls.valid.decode_batch(dls.valid.one_batch())]
        assert all(any(' '.join(o).startswith(t) for o in words.text) and len(t) > 3 for t in shown)


def test_windows_show_the_whole_text():
    df = written()
    assert rows_of(loaders(df, max_length=12, windows=True, stride=4).train) == pairs_of(df)


def labeled(task):
    "Rows for a task whose samples are not texts with a class, and the objects to read them with"
    df = written()
    words = [o.split() for o in df.text]
    if task=='token-classification':
        df = df.assign(tokens=words, labels=[['B-A' if i%3 else 'O' for i,_ in enumerate(o)] for o in words])
        return df,make_objects(auto_model=AutoModelForTokenClassification)
    if task=='question-answering':
        df = df.assign(question='WHICH Film?', context=df.text, answer_text=[o[0] for o in words], answer_start=0)
        return df,make_objects(auto_model=AutoModelForQuestionAnswering)
    if task=='multiple-choice':
        df = df.assign(question=df.text, choices=[['The FILM', 'Über', f'Number {i}'] for i in df.index],
                       label=[i%3 for i in df.index])
        return df,make_objects(auto_model=AutoModelForMultipleChoice)
    if task=='translation':
        return df.assign(translation=df.text[::-1].tolist()),make_objects('t5', auto_model=AutoModelForSeq2SeqLM)
    if task=='masked-lm': return df,make_objects(auto_model=AutoModelForMaskedLM)
    return df,make_objects('gpt2', auto_model=AutoModelForCausalLM)


@pytest.mark.parametrize(('task', 'expected'), [
    ('token-classification', ['北京', "I've"]), ('question-answering', ['WHICH Film?', '北京', "I've", '»']),
    ('multiple-choice', ['The FILM', 'Number', '北京', "I've"]), ('translation', ['北京', "I've"]),
    ('masked-lm', ['[MASK]']), ('causal-lm', ['北京', "I've"])])
def test_every_task_shows_its_rows(task, expected, capsys):
    df,hf = labeled(task)
    labels = {} if 'lm' not in task else dict(label_col=None)
    learn = hf_learner(loaders(df, hf, task=task, **labels), hf.model)
    with learn.no_bar():
        learn.dls.show_batch(max_n=9, trunc_at=None)
        learn.show_results(max_n=9, trunc_at=None)
        Interpretation.from_learner(learn).plot_top_losses(6, trunc_at=None)
    shown = capsys.readouterr().out
    assert all(o in shown for o in expected)
    assert shown.count('prediction') + shown.count('next tokens guessed') == 2


def test_targets_of_generation_are_shown_as_they_were_written():
    df,hf = labeled('translation')
    dls = loaders(df, hf, task='translation')
    valid = df[df.is_valid]
    shown = rows_of(dls.valid)
    assert shown == sorted(zip(valid.text, valid.translation, strict=True))
    b = dls.valid.one_batch()
    guessed = dls.valid.decode_batch((b[0], b[1].clamp(min=3)))
    assert not {t for _,t in guessed} & set(valid.translation)
    short = loaders(df, hf, task='translation', max_target_length=8)
    assert all(len(t) < 40 for _,t in rows_of(short.valid))


def test_losses_show_the_texts_of_their_own_rows(capsys):
    df,hf = written(),make_objects(num_labels=5)
    learn = hf_learner(loaders(df, hf), hf.model)
    with learn.no_bar(): interp = Interpretation.from_learner(learn)
    losses,idxs = interp.top_losses()
    rows = learn.dls.valid_ds.items.iloc[idxs.tolist()]
    inputs,*_ = interp[idxs]
    assert [o.raw_sample()[0] for o in inputs] == rows.text.tolist()
    with learn.no_bar(): interp.plot_top_losses(len(idxs), trunc_at=12)
    out = capsys.readouterr().out
    assert format_number(losses[0].item()) in out
    with learn.no_bar(): interp.show_results([2, 0], trunc_at=None)
    text = ' '.join(capsys.readouterr().out.split())
    for i in (2, 0): assert learn.dls.valid_ds.items.text.iloc[i].split()[0] in text


# ---- how tables look

@given(st.text(alphabet='ab \n東', max_size=50), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_a_cut_text_ends_with_a_word(text, n):
    short = cut_text(text, n)
    if len(text) <= n: assert short == text
    else:
        head = short.removesuffix('…')
        assert text.startswith(head)
        assert len(head) <= n
        rest = text[len(head):]
        assert rest[:1].isspace() or not any(o.isspace() for o in text[n//2:n+1])


def test_cells_are_left_aligned_and_say_what_is_empty():
    table = SampleTable([dict(text='', loss=2.8312, p=.00031), dict(text=' ', loss=12, p=1.)])
    soup = BeautifulSoup(table._repr_html_(), 'html.parser')
    assert all('text-align: left' in o['style'] for o in soup(['th', 'td']))
    assert [o.get_text() for o in soup('td')] == ['(empty)', '2.83', '0.00031', '(empty)', '12', '1.00']
    assert all(o in repr(table) for o in ('(empty)', '2.83', '0.00031'))


THEMES = """
body {{ background: {back}; color: {text}; font: 14px sans-serif; }}
.jp-RenderedHTMLCommon td, .jp-RenderedHTMLCommon th, .jp-RenderedHTMLCommon tr {{ text-align: right; }}
.rendered_html td {{ text-align: right; }} .md-typeset td {{ text-align: right; }} mark {{ color: inherit; }}
"""


@pytest.mark.skipif(find_browser() is None, reason='needs Chromium: apt-get install chromium')
def test_themes_change_neither_alignment_nor_colors():
    cells = dict(words=TaggedWords(['New-York'], ['B-LOC'], [True]), span=MarkedText('a b', 0, 1), text='a')
    html = SampleTable([cells]*2, [True, False], mark='text')._repr_html_()
    found = []
    with browser_page((390, 600)) as page:
        for back,text in (('#fff', '#111'), ('#111', '#eee')):
            style = THEMES.format(back=back, text=text)
            classes = 'jp-RenderedHTMLCommon rendered_html md-typeset'
            page.set_content(f'<style>{style}</style><div class="{classes}">{html}</div>')
            found.append(page.evaluate("""() => [...document.querySelectorAll('td, th, td span, mark, td b')].map(o => {
                const s = getComputedStyle(o); return [o.tagName, s.textAlign, s.color, s.backgroundColor] })"""))
    assert all(align=='left' for o in found for tag,align,*_ in o if tag in ('TD', 'TH'))
    light,dark = ([o for o in themed if o[0] not in ('TD', 'TH')] for themed in found)
    assert light == dark
    assert len(light) == 7


def luminance(color):
    "The relative luminance of a color, as WCAG defines it"
    c = np.array([int(color[i:i+2], 16)/255 for i in (1, 3, 5)])
    return np.where(c <= .04045, c/12.92, ((c + .055)/1.055)**2.4) @ [.2126, .7152, .0722]


def contrast(a, b):
    low,high = sorted(map(luminance, (a, b)))
    return (high + .05)/(low + .05)


def styles(html):
    "The colors in an HTML text, as pairs of background and text"
    found = re.findall(r'background: (#\w+); color: (#\w+)', html)
    return [tuple(o if len(o)==7 else '#' + ''.join(2*c for c in o[1:]) for o in pair) for pair in found]


def test_colors_are_readable_distinct_and_never_gray():
    kinds = [f'K{i}' for i in range(12)]
    words = TaggedWords(['word']*12, [f'B-{o}' for o in kinds], order=kinds)
    marked = SampleTable([dict(text=MarkedText('ab', 0, 1), prediction='a')], [True])
    pairs = styles(words._repr_html_())
    assert len({back for back,_ in pairs}) == 12
    assert all(contrast(*o) >= 4.5 for o in [*pairs, *styles(marked._repr_html_())])
    rgb = np.array([[int(o[i:i+2], 16) for i in (1, 3, 5)] for o,_ in pairs])
    assert (rgb.max(1) - rgb.min(1) >= 60).all()
    assert min(np.abs(a - b).max() for a,b in combinations(rgb, 2)) >= 25


def test_colors_follow_the_vocab_and_the_legend_names_them():
    df,hf = labeled('token-classification')
    kinds = ['PER', 'LOC', 'ORG']
    df['labels'] = [[f'B-{kinds[(i+row)%3]}' for i,_ in enumerate(o)] for row,o in enumerate(df.tokens)]
    dls = loaders(df, make_objects(num_labels=3, auto_model=AutoModelForTokenClassification),
                  task='token-classification', vocab=[f'B-{o}' for o in kinds])
    rows = dls.valid.decode_batch(dls.valid.one_batch())
    assert len({labels[0] for _,labels in rows}) > 1
    table = SampleTable([dls.hf_block.task.row(*o) for o in rows])._repr_html_()
    legend = BeautifulSoup(table, 'html.parser')('div')[-1]
    assert [o.get_text() for o in legend('span')] == kinds
    colors = dict(zip(kinds, (o for o,_ in styles(str(legend))), strict=True))
    for word in BeautifulSoup(table, 'html.parser')('small'):
        assert colors[word.get_text().removeprefix('B-')] in word.parent['style']
        assert 'white-space: nowrap' in word['style']


def test_a_thirteenth_type_has_a_color_too():
    kinds = [f'K{i}' for i in range(13)]
    assert len(styles(TaggedWords(['w']*13, [f'B-{o}' for o in kinds])._repr_html_())) == 13


def test_rows_may_lack_cells():
    table = SampleTable([dict(text='a'), dict(text='b', target='c')])
    assert table._repr_html_().count('(empty)') == 1
    assert 'c' in repr(table)
