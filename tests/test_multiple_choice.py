"Multiple choice: rows of any number of choices, their tokens, targets, predictions, tables and invalid input."
import pickle

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_objects, mentions
from fastai.data.all import CategoryBlock, ColReader, ColSplitter, DataBlock
from fastai.interpret import Interpretation
from fastai.learner import load_learner
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMultipleChoice

from blurlike.all import (
    ChoiceBlock,
    HFLoss,
    HFTextBlock,
    HFTextDataLoaders,
    MultipleChoice,
    find_batch_size,
    hf_learner,
    load_hf_learner,
)
from blurlike.tasks.multiple_choice import ChoicesReader

WORDS = 'warm dull slow funny moving lovely sour grim'.split()
LONG = 'the film warm the plot dull '*20


def make_mc(arch='bert', **kwargs):
    "A tiny model that scores choices; smaller initial weights give all of them about the same score"
    return make_objects(arch, auto_model=AutoModelForMultipleChoice, initializer_range=0.2, **kwargs)


def make_rows(n=36, fewest=2, most=5):
    "Questions that contain a word, and choices of which one is that word"
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(n):
        choices = rng.choice(WORDS, rng.integers(fewest, most+1), replace=False).tolist()
        right = int(rng.integers(len(choices)))
        rows.append((f"the film {choices[right]}{' the cast'*int(rng.integers(4))}", choices, right))
    df = pd.DataFrame(rows, columns=['question', 'choices', 'label'])
    return df.assign(is_valid=df.index >= n*2//3)


@pytest.fixture
def rows(): return make_rows()


def from_df(df, hf=None, **kwargs):
    defaults = dict(task='multiple-choice', valid_col='is_valid', bs=8, seed=0, device='cpu')
    return HFTextDataLoaders.from_df(df, hf or make_mc(), **(defaults | kwargs))


def make_learner(df, hf=None, **kwargs):
    hf = hf or make_mc()
    learn = hf_learner(from_df(df, hf, **kwargs), hf.model, lr=1e-2)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__=='ProgressCallback'])
    learn.logger = lambda *_: None
    return learn


def by_hand(hf, question, choices):
    "The logits of a model that is called as its documentation shows, with one row of shape 1 x choices x sequence"
    enc = hf.tokenizer([question]*len(choices), choices, padding=True, return_tensors='pt')
    with torch.no_grad(): return hf.model.eval()(**{k: v[None] for k,v in enc.items()}).logits[0]


def samples_of(df): return list(zip(df.question, df.choices, strict=True))


# ---- predictions

# XLNet pads on the left. Other models read a score from the first token, so that padding on the left changes it: with
# `batch_tokens=1`, a batch has one row, and no more padding than a call by hand
@pytest.mark.parametrize(('arch', 'side', 'batch_tokens'), [
    *((o, 'right', n) for o in ('bert', 'albert', 'deberta-v2', 'roberta', 'modernbert') for n in (1, 100, 4096)),
    *(('xlnet', 'left', n) for n in (1, 100, 4096)), ('bert', 'left', 1), ('roberta', 'left', 1)])
def test_predictions_are_those_of_the_model_whatever_the_batch(arch, side, batch_tokens, rows):
    hf = make_mc(arch)
    hf.tokenizer.padding_side = side
    learn = make_learner(rows, hf)
    preds = learn.hf_predict(samples_of(rows), batch_tokens=batch_tokens)
    assert len({round(o['score'], 3) for o in preds}) > 10
    for (question,choices),o in zip(samples_of(rows), preds, strict=True):
        assert o['probs'] == pytest.approx(by_hand(hf, question, choices).softmax(-1).tolist(), abs=1e-6)
        assert (o['choice'], o['score']) == (choices[o['index']], max(o['probs']))


def test_a_slow_tokenizer_predicts_as_the_model_does(rows):
    hf = make_mc('canine')
    assert not hf.tokenizer.is_fast
    learn = make_learner(rows[['question', 'choices', 'label', 'is_valid']], hf, bs=2)
    for question,choices in samples_of(rows)[:4]:
        pred = learn.hf_predict((question, choices))
        assert pred['probs'] == pytest.approx(by_hand(hf, question, choices).softmax(-1).tolist(), abs=1e-6)


def test_all_forms_of_a_question_predict_the_same(rows):
    learn = make_learner(rows)
    one = learn.hf_predict(('the film warm', ['warm', 'dull']))
    for o in [('the film warm', 'warm', 'dull'), dict(question='the film warm', choices=('warm', 'dull')),
              ('the film warm', np.array(['warm', 'dull'], dtype=object)), ('the film warm', 'warm\ndull\n')]:
        assert learn.hf_predict(o) == one
    assert learn.hf_predict([['the film warm', ['warm', 'dull']]]) == [one]
    text,index,probs = learn.predict(('the film warm', ['warm', 'dull']))
    assert (text, int(index)) == (one['choice'], one['index'])
    assert probs.tolist() == pytest.approx(one['probs'], abs=1e-6)


@pytest.mark.parametrize('bs', [1, 5, 12])
def test_losses_metrics_and_predictions_do_not_depend_on_the_batch(bs, rows):
    hf = make_mc()
    learn = make_learner(rows, hf, bs=bs)
    valid = rows[rows.is_valid]
    logits = [by_hand(hf, *o) for o in samples_of(valid)]
    losses = [cross_entropy(o, torch.tensor(y)).item() for o,y in zip(logits, valid.label, strict=True)]
    right = np.mean([o.argmax().item()==y for o,y in zip(logits, valid.label, strict=True)])
    assert list(learn.validate()) == pytest.approx([np.mean(losses), right], abs=1e-6)
    probs,targets,decoded,each = learn.get_preds(with_decoded=True, with_loss=True)
    assert targets.tolist() == valid.label.tolist()
    assert decoded.tolist() == [o.argmax().item() for o in logits]
    assert each.tolist() == pytest.approx(losses, abs=1e-6)
    for p,o in zip(probs, logits, strict=True):
        assert p.tolist() == pytest.approx([*o.softmax(-1).tolist(), *[0.]*(len(p)-len(o))], abs=1e-6)


def test_a_model_learns_from_rows_of_different_sizes(rows):
    easy = rows.assign(choices=[['warm' if i==y else 'dull' for i in range(len(o))]
                                for o,y in zip(rows.choices, rows.label, strict=True)])
    learn = make_learner(easy, make_objects(auto_model=AutoModelForMultipleChoice))
    learn.fit_one_cycle(8, 1e-2)
    assert learn.validate()[1] > 0.9
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())


def test_gradients_are_those_of_the_rows_alone(rows):
    hf = make_mc()
    df = rows[:5].assign(is_valid=[False]*4 + [True])
    dls = from_df(df, hf, bs=4)
    hf.model.eval()
    xb,yb = dls.train.new(shuffle=False, sort=False).one_batch()
    dls.hf_block.task.loss_func()(dls.hf_block.task.pred(hf.model(**xb.for_model()), xb), yb).backward()
    ours = [p.grad.clone() for p in hf.model.parameters() if p.grad is not None]
    hf.model.zero_grad()
    for question,choices,label in df[['question', 'choices', 'label']][:4].itertuples(index=False):
        enc = hf.tokenizer([question]*len(choices), choices, padding=True, return_tensors='pt')
        (hf.model(**{k: v[None] for k,v in enc.items()}, labels=torch.tensor([label])).loss/4).backward()
    for a,b in zip(ours, [p.grad for p in hf.model.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_hf_loss_is_the_loss_of_the_task(rows):
    learn = make_learner(rows)
    own = hf_learner(learn.dls, learn.model, loss_func=HFLoss(), metrics=[])
    with own.no_bar(): assert own.validate()[0] == pytest.approx(learn.validate()[0], abs=1e-6)


# ---- rows and targets

def targets(dls): return [y.item() for _,y in dls.train.new(shuffle=False, sort=False, bs=1)]


def test_a_label_is_an_index_or_a_text(rows):
    train = rows[~rows.is_valid].label.tolist()
    texts = rows.assign(label=[o[i] for o,i in zip(rows.choices, rows.label, strict=True)])
    for df in (rows, texts, rows.assign(label=rows.label.astype(str))): assert targets(from_df(df)) == train


def test_a_text_of_digits_is_the_choice_that_it_equals(rows):
    df = rows.assign(choices=[['2', '1', '0']]*len(rows), label='0')
    assert set(targets(from_df(df))) == {2}


def test_choices_may_be_several_columns(rows):
    four = make_rows(fewest=4, most=4)
    wide = pd.DataFrame(four.choices.tolist(), columns=list('abcd')).assign(
        **{o: four[o] for o in ('question', 'label', 'is_valid')})
    one,several = make_learner(four),make_learner(wide, text_col=['question', *'abcd'])
    assert several.validate() == one.validate()
    dl = several.dls.test_dl(wide.drop(columns='label'))
    torch.testing.assert_close(several.get_preds(dl=dl)[0], one.get_preds(dl=one.dls.test_dl(four))[0])


def test_rows_come_from_a_dataset_with_names_of_classes(rows):
    three = make_rows(fewest=3, most=3)
    features = datasets.Features(question=datasets.Value('string'), choices=datasets.Sequence(datasets.Value('string')),
                                 label=datasets.ClassLabel(names=['0', '1', '2']), is_valid=datasets.Value('bool'))
    ds = datasets.Dataset.from_dict(three.to_dict('list'), features=features)
    dls = HFTextDataLoaders.from_dataset(ds, make_mc(), task='multiple-choice', valid_col='is_valid', bs=8)
    assert targets(dls) == three[~three.is_valid].label.tolist()


def test_a_datablock_infers_the_task_from_a_choice_block(rows):
    hf = make_mc()
    dblock = DataBlock(blocks=(HFTextBlock(*hf), ChoiceBlock), get_x=ChoicesReader(['question', 'choices']),
                       get_y=ColReader('label'), splitter=ColSplitter())
    dls = dblock.dataloaders(rows, bs=8, device='cpu')
    assert isinstance(dls.hf_block.task, MultipleChoice)
    learn,ours = hf_learner(dls, hf.model),make_learner(rows, hf)
    with learn.no_bar(): assert list(learn.validate()) == pytest.approx(list(ours.validate()), abs=1e-6)


def test_rows_that_are_read_pool_by_pool_are_the_same(rows):
    hf = make_mc()
    all_at_once,by_pool = (from_df(rows, hf, precompute_lengths=o).train for o in (True, False))
    assert sorted(y for _,yb in by_pool for y in yb.tolist()) == sorted(y for _,yb in all_at_once for y in yb.tolist())


# ---- tokens

def test_questions_are_truncated_and_choices_are_not(rows):
    df = rows.assign(question=[LONG + o for o in rows.question])
    dls = from_df(df, max_length=24)
    for (question,choices),_ in dls.valid.decode_batch(dls.valid.one_batch()):
        assert LONG.startswith(question)
        assert choices in df.choices.tolist()
    tokenizer,valid = dls.hf_block.hf_tokenizer,samples_of(df[df.is_valid])
    lost = [len(tokenizer(q, o)['input_ids']) - 24 for q,choices in valid for o in choices]
    report = dls.truncation_report()
    assert report.loc['valid', 'tokens_lost'] == sum(lost)
    assert report.loc['valid', 'truncated'] == df.is_valid.sum()
    assert list(report) == ['rows', 'truncated', 'share', 'tokens_lost']
    assert from_df(rows).truncation_report().tokens_lost.sum() == 0


def test_the_beginning_of_a_question_may_be_truncated(rows):
    hf = make_mc()
    hf.tokenizer.truncation_side = 'left'
    df = rows.assign(question=[LONG + o for o in rows.question])
    dls = from_df(df, hf, max_length=24)
    for (question,_),_ in dls.valid.decode_batch(dls.valid.one_batch()):
        assert any(o.endswith(question) for o in df.question)


def test_a_choice_that_leaves_no_room_for_the_question_is_reported(rows):
    df = rows.assign(choices=[[*o, LONG] if i in (3, 5) else o for i,o in enumerate(rows.choices)])
    with pytest.raises(ValueError, match=mentions('2 of 24', 'row 3', f'choice {len(rows.choices[3])}', 'max_length')):
        from_df(df, max_length=24)
    first = rows.assign(choices=[[LONG, *o] if i==3 else o for i,o in enumerate(rows.choices)])
    with pytest.raises(ValueError, match=mentions('1 of 24', 'row 3', 'choice 0')): from_df(first, max_length=24)
    with pytest.raises(ValueError, match=mentions('texts[1]', 'choice 2')):
        make_learner(rows, max_length=24).hf_predict([('the film', 'a', 'b'), ('the film', ['a', 'b', LONG])])
    assert from_df(df, max_length=24, truncation=True)


@pytest.mark.parametrize('options', [{}, dict(padding='max_length', max_length=24), dict(pad_to_multiple_of=8)])
def test_batch_tokens_counts_the_tokens_of_all_choices(options):
    df = make_rows(60, fewest=3, most=3)
    df['choices'] = [[f'{a} {a} {a}', b, c] for a,b,c in df.choices]
    dls = from_df(df, bs=None, batch_tokens=200, **options)
    sizes = [xb.for_model()['input_ids'].numel() for xb,_ in dls.train]
    assert max(sizes) <= 200
    assert max(sizes) > 140
    one_by_one = dls.train.new(bs=1, batch_tokens=None, sort=False, shuffle=False)
    alone = [xb.for_model()['input_ids'].numel() for xb,_ in one_by_one]
    assert dls.train.row_lengths.tolist() == alone
    with pytest.raises(ValueError, match=mentions('batch_tokens=10', 'row')): from_df(df, bs=None, batch_tokens=10)


def test_a_batch_size_is_found(rows):
    assert find_batch_size(make_learner(rows), max_bs=4, show=False) == 4


# ---- saving and tables

def test_a_saved_model_predicts_validates_and_trains(rows, tmp_path):
    learn = make_learner(rows, max_length=16, truncation='longest_first')
    learn.fit(1)
    learn.save_pretrained(tmp_path/'model')
    again = load_hf_learner(tmp_path/'model', device='cpu')
    samples = samples_of(rows)[:5]
    for a,b in zip(again.hf_predict(samples), learn.hf_predict(samples), strict=True):
        assert a['probs'] == pytest.approx(b['probs'], abs=1e-6)
    assert (again.dls.hf_block.truncation, again.dls.hf_block.max_length) == ('longest_first', 16)
    with again.no_bar(), again.no_logging():
        dl = again.dls.test_dl(rows[rows.is_valid], with_labels=True)
        assert list(again.validate(dl=dl)) == pytest.approx(list(learn.validate()), abs=1e-6)
    model = AutoModelForMultipleChoice.from_pretrained(tmp_path/'model')
    hf = make_mc()._replace(model=model)
    theirs = by_hand(hf, *samples[0]).softmax(-1).tolist()
    assert again.hf_predict(samples[0])['probs'] == pytest.approx(theirs, abs=1e-6)
    assert 'multiple-choice' in (tmp_path/'model'/'README.md').read_text()
    more = load_hf_learner(tmp_path/'model', dls=from_df(rows, hf))
    with more.no_bar(), more.no_logging(): more.fit(1)


def test_an_exported_learner_predicts_the_same(rows, tmp_path):
    learn = make_learner(rows)
    learn.export(tmp_path/'learn.pkl')
    assert load_learner(tmp_path/'learn.pkl').hf_predict(samples_of(rows)) == learn.hf_predict(samples_of(rows))
    assert pickle.loads(pickle.dumps(learn.dls.hf_block)).task.name == 'multiple-choice'


def test_tables_show_choices_by_number(rows, capsys):
    learn = make_learner(rows)
    learn.dls.show_batch(max_n=2)
    learn.show_results(max_n=2)
    Interpretation.from_learner(learn).plot_top_losses(2)
    shown = capsys.readouterr().out
    for o in ('question', 'choices', '0: ', '1: ', 'target', 'prediction', 'probability', 'loss'): assert o in shown
    decoded = learn.dls.valid.decode_batch(learn.dls.valid.one_batch(), max_n=20)
    found = {(q, tuple(c), t) for (q,c),t in decoded}
    valid = rows[rows.is_valid]
    assert found <= {(q, tuple(c), c[i]) for q,c,i in zip(valid.question, valid.choices, valid.label, strict=True)}


def test_the_longest_part_of_a_truncated_question_is_shown(rows):
    df = rows.assign(question=LONG, choices=[['warm warm warm', 'dull']]*len(rows), label=0)
    dls = from_df(df, max_length=16)
    (question,choices),target = dls.valid.decode_batch(dls.valid.one_batch())[0]
    assert (len(question.split()), choices, target) == (12, ['warm warm warm', 'dull'], 'warm warm warm')


# ---- invalid input

@pytest.mark.parametrize(('column', 'value', 'facts'), [
    ('choices', ['warm'], ["['warm']"]), ('choices', [], ['[]']), ('choices', None, ['None']),
    ('choices', 'warm', ["'warm'"]), ('choices', ['warm', None], ['choice 1', 'None']),
    ('choices', [float('nan'), 'warm'], ['choice 0', 'nan']), ('choices', ['warm', ' '], ['choice 1', "' '"]),
    ('choices', ['warm', 3], ['choice 1', '3']), ('question', None, ['question', 'None']),
    ('question', 3, ['question', '3']),
    ('label', 7, ['7']), ('label', -1, ['-1']), ('label', 'none', ["'none'"]), ('label', '7', ["'7'"]),
    ('label', 0.5, ['0.5']), ('label', True, ['True']), ('label', ['warm'], ["['warm']"]),
    ('label', np.array([0, 1]), ['[0, 1]'])])
def test_rows_that_cannot_be_used_are_reported_together(column, value, facts, rows):
    values = rows[column].astype(object).copy()
    for i in (4, 9): values.at[i] = value
    with pytest.raises(ValueError, match=mentions('2 of 24', 'training', 'row 4', *facts)):
        from_df(rows.assign(**{column: values}))


def test_a_missing_label(rows):
    with pytest.raises(ValueError, match=mentions("label_col='label'", '1 of 36', 'row 4')):
        from_df(rows.assign(label=[None if i==4 else o for i,o in enumerate(rows.label)]))


def test_a_missing_cell_of_several_columns(rows):
    df = rows.assign(a='warm', b=['dull' if i!=4 else None for i in range(len(rows))], label=0)
    with pytest.raises(ValueError, match=mentions('row 4', 'choice 1', 'nan')):
        from_df(df, text_col=['question', 'a', 'b'])


def test_a_label_that_is_several_choices(rows):
    df = rows.assign(choices=[['warm', 'warm'] if i==4 else o for i,o in enumerate(rows.choices)],
                     label=['warm' if i==4 else o for i,o in enumerate(rows.label)])
    with pytest.raises(ValueError, match=mentions('row 4', "'warm'", 'index')): from_df(df)
    assert from_df(df.assign(label=[0 if i==4 else o for i,o in enumerate(df.label)]))


@pytest.mark.parametrize('kwargs', [dict(text_col='question'), dict(text_col=['question']),
                                    dict(label_col=['label', 'is_valid']), dict(windows=True),
                                    dict(is_split_into_words=True)])
def test_arguments_of_other_tasks(kwargs, rows):
    (name,value), = kwargs.items()
    with pytest.raises(ValueError, match=mentions(f'{name}={value!r}')): from_df(rows, **kwargs)


def test_a_target_from_another_block(rows):
    dblock = DataBlock(blocks=(HFTextBlock(*make_mc(), task='multiple-choice'), CategoryBlock),
                       get_x=ChoicesReader(['question', 'choices']), get_y=ColReader('label'), splitter=ColSplitter())
    with pytest.raises(ValueError, match=mentions('ChoiceBlock')): dblock.dataloaders(rows, bs=8)


def test_a_model_with_another_head(rows):
    hf = make_objects()
    with pytest.raises(ValueError, match=mentions('BertForSequenceClassification', 'AutoModelForMultipleChoice')):
        hf_learner(from_df(rows, hf), hf.model)


@pytest.mark.parametrize(('text', 'facts'), [
    ('the film', ["'the film'"]), (('the film', 'warm'), ["['warm']"]),
    (('the film', ['warm', None]), ['choice 1', 'None']), ((3, ['a', 'b']), ['question', '3']),
    (dict(question='the film'), ['question'])])
def test_texts_that_are_not_questions_with_choices(text, facts, rows):
    learn = make_learner(rows)
    with pytest.raises(ValueError, match=mentions(*facts)): learn.hf_predict(text)
    with pytest.raises(ValueError, match=mentions('texts[1]', *facts)): learn.hf_predict([('the film', 'a', 'b'), text])
