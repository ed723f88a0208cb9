"Rows are read the same from every kind of table: DataFrames, Parquet files, datasets."
import json

import numpy as np
import pandas as pd
import pytest
from conftest import make_objects, mentions
from fastai.torch_basics import L
from hypothesis import given
from hypothesis import strategies as st
from test_causal_lm import chats, make_lm
from test_matrix import frame as task_frame
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from blurlike.all import HFTextDataLoaders, hf_learner
from blurlike.text.rows import as_plain

AUTO = {'token-classification': AutoModelForTokenClassification, 'multiple-choice': AutoModelForMultipleChoice,
        'question-answering': AutoModelForQuestionAnswering}
# A template that writes all that a message contains
TEMPLATE = ("{% for m in messages %}<{{ m.role }}> {% if m.content is string %}{{ m.content }}"
            "{% else %}{% for o in m.content %}({{ o.type }} {{ o.text }}){% endfor %}{% endif %}"
            "{% for o in m.tool_calls or [] %}[{{ o.function.name }} {{ o.function.arguments | tojson }}]{% endfor %}"
            "<|endoftext|>{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}")


def through_parquet(df, tmp_path):
    df.to_parquet(tmp_path/'rows.parquet')
    return pd.read_parquet(tmp_path/'rows.parquet')


def deep_chats():
    call = dict(type='function', function=dict(name='search', arguments=dict(films=['good', 'bad'])))
    part = lambda text: [dict(type='text', text=text)]
    messages = lambda i: [dict(role='user', content=part(f'Film {i}?')),
                          dict(role='assistant', content=part('So.'), tool_calls=[call, call])]
    return pd.DataFrame(dict(messages=[messages(i) for i in range(8)]))


def chat_rows(df, **kwargs):
    "The texts of a causal model's rows"
    hf = make_lm()
    hf.tokenizer.chat_template = TEMPLATE
    dls = HFTextDataLoaders.from_df(df, hf, task='causal-lm', text_col='messages', bs=4, splits=(range(6), [6, 7]),
                                    device='cpu', max_length=None, **kwargs)
    return [hf.tokenizer.decode(o.ids) for o, in dls.train_ds]


def same_batches(a, b):
    for x,y in zip(a.valid, b.valid, strict=True): assert repr(x) == repr(y)


@given(st.recursive(st.integers() | st.text(max_size=3) | st.none(),
                    lambda o: st.lists(o, max_size=3) | st.dictionaries(st.text(max_size=2), o, max_size=3)))
def test_arrays_at_any_depth_become_lists(cell):
    def arrays(o):
        if isinstance(o, dict): return {k: arrays(v) for k,v in o.items()}
        if not isinstance(o, list): return o
        res = np.empty(len(o), dtype=object)
        for i,v in enumerate(o): res[i] = arrays(v)
        return res
    assert as_plain(arrays(cell)) == as_plain(cell) == cell


def test_arrays_of_numbers_and_tuples_are_plain_too():
    assert as_plain(np.array([[1, 2], [3, 4]])) == [[1, 2], [3, 4]]
    assert as_plain(('a', np.array(['b']))) == ('a', ['b'])


def test_a_deep_chat_is_the_same_from_parquet(tmp_path):
    df = deep_chats()
    rows = chat_rows(df)
    assert 'good' in rows[0]
    assert 'ndarray' not in rows[0]
    assert chat_rows(through_parquet(df, tmp_path)) == rows


@pytest.mark.parametrize('write', [json.dumps, repr])
@pytest.mark.parametrize('make', [chats, deep_chats])
def test_a_chat_in_a_string_is_a_chat(make, write, capsys):
    df = make()
    assert chat_rows(df.assign(messages=df.messages.map(write))) == chat_rows(df)
    assert "chats" in capsys.readouterr().out


def as_sharegpt(messages):
    names = dict(user='human', assistant='gpt')
    return [{'from': names.get(o['role'], o['role']), 'value': o['content']} for o in messages]


@pytest.mark.parametrize('write', [lambda o: o, np.array, json.dumps, repr])
def test_sharegpt_chats_are_chats(write):
    df = chats()
    assert chat_rows(df.assign(messages=[write(as_sharegpt(o)) for o in df.messages])) == chat_rows(df)


@pytest.mark.parametrize('name', ['chatgpt', 'bing', 'bard'])
def test_assistants_in_sharegpt_chats_have_several_names(name):
    df = chats()
    renamed = [[o | {'from': name} if o['from']=='gpt' else o for o in as_sharegpt(row)] for row in df.messages]
    assert chat_rows(df.assign(messages=renamed)) == chat_rows(df)


def test_a_role_that_is_no_text_is_refused():
    df = chats()
    df.at[1, 'messages'] = [{'from': ['gpt'], 'value': 'warm'}]
    with pytest.raises(ValueError, match=mentions('row 1')): chat_rows(df)


def test_sharegpt_prompts_and_completions_are_chats():
    df = chats()
    parts = df.assign(prompt=[o[:-1] for o in df.messages], label=[o[-1:] for o in df.messages])
    other = parts.assign(prompt=parts.prompt.map(as_sharegpt), label=parts.label.map(as_sharegpt))
    rows = [chat_rows(o.assign(messages=o.prompt), label_col='label') for o in (parts, other)]
    assert rows[0]==rows[1]


def test_a_chat_in_a_string_needs_a_chat_template():
    df = chats()
    with pytest.raises(ValueError, match=mentions('chat template', 'row 0')):
        HFTextDataLoaders.from_df(df.assign(messages=df.messages.map(json.dumps)), make_lm(), task='causal-lm',
                                  text_col='messages', splits=(range(6), [6, 7]))


def test_texts_and_chats_in_one_column_are_refused():
    df = chats()
    df['messages'] = ['a text', *df.messages.map(json.dumps)[1:]]
    with pytest.raises(ValueError, match=mentions('row 1', 'role')): chat_rows(df)


def test_texts_in_brackets_are_no_chats():
    texts = ['[{}] film', '[{"role": "user"', '[{"a": 1}]', '["role"]', '[]', '[1, "role"]', 'a', 'b']
    hf = make_lm()
    dls = HFTextDataLoaders.from_df(pd.DataFrame(dict(text=texts)), hf, task='causal-lm', packing=False, bs=4,
                                    splits=(range(6), [6, 7]), device='cpu')
    assert [hf.tokenizer.decode(o.ids, skip_special_tokens=True) for o, in dls.train_ds] == texts[:6]


def test_a_chat_from_parquet_or_a_string_is_predicted(tmp_path):
    hf = make_lm()
    hf.tokenizer.chat_template = TEMPLATE
    df = deep_chats()
    dls = HFTextDataLoaders.from_df(df, hf, task='causal-lm', text_col='messages', splits=(range(6), [6, 7]),
                                    device='cpu')
    learn = hf_learner(dls, hf.model)
    expected = learn.hf_predict(df.messages[0])
    assert learn.hf_predict(through_parquet(df, tmp_path).messages[0]) == expected
    assert learn.hf_predict(json.dumps(df.messages[0])) == expected
    prompt = [dict(role='user', content='Good?')]
    assert learn.hf_generate(json.dumps(prompt), max_new_tokens=3) == learn.hf_generate(prompt, max_new_tokens=3)


@pytest.mark.parametrize('task', ['token-classification', 'multi-label-classification', 'multiple-choice',
                                  'question-answering'])
def test_lists_from_parquet_are_those_of_the_frame(task, tmp_path):
    df = task_frame(task)
    hf = make_objects(**({'auto_model': AUTO[task]} if task in AUTO else {}), num_labels=3)
    make = lambda o: HFTextDataLoaders.from_df(o, hf, task=task, bs=4, splits=(range(6), [6, 7]), device='cpu')
    same_batches(make(df), make(through_parquet(df, tmp_path)))


# ---- Texts that are not valid Unicode

LONE = 'a\ud83c film'


def with_lone(df, column, value):
    cells = df[column].astype(object).tolist()
    cells[2] = value
    return df.assign(**{column: pd.Series(cells, df.index, dtype=object)})


@pytest.mark.parametrize('task', ['sequence-classification', 'token-classification', 'causal-lm', 'masked-lm',
                                  'multiple-choice'])
def test_a_lone_surrogate_names_its_row(task):
    df = task_frame(task)
    column = {'token-classification': 'tokens', 'multiple-choice': 'question'}.get(task, 'text')
    bad = [LONE]*len(df.tokens[2]) if task=='token-classification' else LONE
    arch = 'gpt2' if task=='causal-lm' else 'bert'
    with pytest.raises(ValueError, match=mentions('row 2', repr('\ud83c'))):
        HFTextDataLoaders.from_df(with_lone(df, column, bad), make_objects(arch), task=task, splits=(range(6), [6, 7]))


@pytest.mark.parametrize('task', ['sequence-classification', 'multiple-choice'])
def test_a_lone_surrogate_with_a_slow_tokenizer_names_its_row(task):
    df = task_frame(task)
    column = {'multiple-choice': 'question'}.get(task, 'text')
    hf = make_objects('canine', auto_model=AUTO.get(task, AutoModelForSequenceClassification))
    with pytest.raises(ValueError, match=mentions('row 2', repr('\ud83c'))):
        HFTextDataLoaders.from_df(with_lone(df, column, LONE), hf, task=task, splits=(range(6), [6, 7]))


def test_a_lone_surrogate_in_a_prediction_with_a_slow_tokenizer():
    hf = make_objects('canine')
    dls = HFTextDataLoaders.from_df(task_frame('sequence-classification'), hf, splits=(range(6), [6, 7]), device='cpu')
    learn = hf_learner(dls, hf.model)
    with pytest.raises(ValueError, match=mentions('texts[1]', repr('\ud83c'))): learn.hf_predict(['a', LONE])


@pytest.mark.parametrize(('task', 'column', 'arch'), [('summarization', 'summary', 'bart'),
                                                      ('causal-lm', 'label', 'gpt2')])
def test_a_lone_surrogate_in_a_target_names_its_row(task, column, arch):
    df = pd.DataFrame({'text': ['a film']*8, column: ['good']*8})
    auto = AutoModelForSeq2SeqLM if arch=='bart' else AutoModelForCausalLM
    with pytest.raises(ValueError, match=mentions('row 2', repr('\ud83c'))):
        HFTextDataLoaders.from_df(with_lone(df, column, LONE), make_objects(arch, auto_model=auto), task=task,
                                  label_col=column, splits=(range(6), [6, 7]))


def test_a_lone_surrogate_in_a_chat_names_its_row():
    df = chats()
    df.messages[2][1]['content'] = LONE
    with pytest.raises(ValueError, match=mentions('row 2', repr('\ud83c'))): chat_rows(df)


def test_a_lone_surrogate_in_a_prediction(learn):
    with pytest.raises(ValueError, match=mentions('texts[1]', repr('\ud83c'))): learn.hf_predict(['a', LONE])


# ---- Folders

def folder(path, encoding='utf-8'):
    for i,o in enumerate(['zoë film', 'café']*4):
        (path/'ab'[i%2]).mkdir(exist_ok=True)
        (path/'ab'[i%2]/f'{i}.txt').write_text(o, encoding=encoding)
    return path


def test_a_folder_in_another_encoding_names_the_file_and_the_option(tmp_path):
    folder(tmp_path, 'latin-1')
    with pytest.raises(ValueError, match=mentions('.txt', 'UTF-8', "encoding='latin-1'")):
        HFTextDataLoaders.from_folder(tmp_path, make_objects(), seed=0)
    dls = HFTextDataLoaders.from_folder(tmp_path, make_objects(), seed=0, encoding='latin-1')
    assert {x for x,_ in dls.train_ds} <= {'zoë film', 'café'}


def test_byte_order_marks_are_no_text(tmp_path):
    dls = HFTextDataLoaders.from_folder(folder(tmp_path, 'utf-8-sig'), make_objects(), seed=0)
    assert {x for x,_ in dls.train_ds} <= {'zoë film', 'café'}


def test_one_wrong_file_is_named(tmp_path):
    folder(tmp_path)
    (tmp_path/'a'/'wrong.txt').write_bytes(b'zo\xeb')
    with pytest.raises(ValueError, match=mentions(tmp_path/'a'/'wrong.txt')):
        HFTextDataLoaders.from_folder(tmp_path, make_objects(), seed=0)


# ---- Names of rows

def test_new_rows_are_called_new(dls, df):
    with pytest.raises(ValueError, match=mentions('1 of 120 new rows', 'row 7', "'mixed'", "'bad', 'good'")):
        dls.test_dl(df.assign(label=df.label.where(df.index!=7, 'mixed')), with_labels=True)


@pytest.mark.parametrize(('task', 'labels'), [('sequence-classification', [1., 2.5]),
                                              ('sequence-classification', ['a', b'b']), ('regression', [1., 'x']),
                                              ('multi-label-classification', [['a'], 'b'])])
def test_messages_show_plain_values_for_an_index_with_duplicates(task, labels, df):
    dtype = object if 'a' in str(labels) else None
    rows = df[:20].assign(label=pd.Series([labels[i%2] for i in range(20)], dtype=dtype))
    rows.index = np.repeat(np.arange(10), 2)
    with pytest.raises(ValueError, match=mentions('row 0', repr(labels[1]))) as e:
        HFTextDataLoaders.from_df(rows, make_objects(), task=task, splits=(range(15), range(15, 20)))
    assert not any(o in str(e.value) for o in ('np.', 'dtype', 'Name:'))


def test_a_missing_label_names_its_row_plainly(df):
    rows = df.assign(label=df.label.where(df.index!=7, None)).set_index(np.arange(5, 125, dtype=np.int32))
    with pytest.raises(ValueError, match=mentions('row 12')): HFTextDataLoaders.from_df(rows, make_objects())


@pytest.mark.parametrize('column', ['text', 'label', 'is_valid'])
def test_columns_of_the_same_name_are_refused_if_they_are_used(column, df):
    rows = pd.concat([df, df[[column]]], axis=1)
    with pytest.raises(ValueError, match=mentions(f'2 columns are called {column!r}')):
        HFTextDataLoaders.from_df(rows, make_objects(), valid_col='is_valid')
    more = pd.concat([df.assign(a=1), df.assign(a=1)[['a']]], axis=1)
    dls = HFTextDataLoaders.from_df(more, make_objects(), valid_col='is_valid')
    assert dls.vocab == ['bad', 'good']
    if column!='is_valid':
        with pytest.raises(ValueError, match=mentions(f'2 columns are called {column!r}')):
            dls.test_dl(rows, with_labels=True)


def test_lists_of_arrow_are_lists(tmp_path):
    df = pd.DataFrame(dict(text=['the film', 'the plot']*4, label=[['x'], ['x', 'y']]*4, is_valid=[False]*6 + [True]*2))
    df.to_parquet(tmp_path/'a.parquet')
    arrow = pd.read_parquet(tmp_path/'a.parquet', dtype_backend='pyarrow')
    for task in (None, 'multi-label-classification'):
        a,b = (HFTextDataLoaders.from_df(o, make_objects(), task=task, valid_col='is_valid', bs=2) for o in (df, arrow))
        assert [o[1].tolist() for o in a.train_ds] == [o[1].tolist() for o in b.train_ds]
        assert list(b.vocab) == ['x', 'y']


def test_files_of_a_folder_have_the_same_order_everywhere(tmp_path, monkeypatch):
    files = [tmp_path/o/f'{i}.txt' for o in 'ab' for i in range(10)]
    for o in files: o.mk_write('the film')
    def splits(order):
        monkeypatch.setattr('blurlike.data.dataloaders.get_text_files', lambda *_, **__: L(order))
        return list(HFTextDataLoaders.from_folder(tmp_path, make_objects(), seed=4).valid_ds.items)
    assert splits(files) == splits(files[::-1])


@pytest.mark.parametrize('task', ['sequence-classification', 'regression'])
def test_words_of_byte_level_tokenizers_have_spaces_in_every_task(task):
    texts,target = ['the film warm', 'plot dull the', 'film'],{'regression': [.5, .7, .1]}.get(task, ['a', 'b', 'a'])
    hf = make_objects('roberta', 1 if task=='regression' else 2)
    def batch(words):
        df = pd.DataFrame(dict(text=[o.split() for o in texts] if words else texts, label=target))
        kwargs = dict(task=task, label_col='label', splits=([0, 1], [2]), bs=2, seed=0)
        return HFTextDataLoaders.from_df(df, hf, is_split_into_words=words, **kwargs).train.one_batch()[0]['input_ids']
    assert batch(True).tolist() == batch(False).tolist()
