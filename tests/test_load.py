"A saved model loads in this process and in others with the same predictions, and no pickle or code in its folder runs."
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import make_objects, mentions
from fastai.data.all import CategoryBlock, ColReader, ColSplitter, DataBlock
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from huggingface_hub import ModelCard
from test_matrix import ROWS, TASKS, assert_same, frame, make_learner
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.pipelines import SUPPORTED_TASKS

from blurlike.all import HFCallback, HFTextBlock, HFTextDataLoaders, get_block, hf_learner, load_hf_learner

# others are served by a BERT
ARCHS = {'summarization': 't5', 'translation': 'bart', 'text2text-generation': 'mbart', 'causal-lm': 'gpt2'}
EVERY_TASK = pytest.mark.parametrize('task', sorted(TASKS))


def texts_of(task, tokenizer):
    xs = ROWS[task][0][:4]
    if task=='token-classification': return [' '.join(o) for o in xs]
    if task=='question-answering': return [dict(question=q, context=c) for q,c in xs]
    return [f'{o} {tokenizer.mask_token}' for o in xs] if task=='masked-lm' else xs


def quiet(learn):
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__=='ProgressCallback'])
    learn.logger = lambda *_: None
    return learn


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "For each task, the folder of a model that was trained for an epoch, texts, and its predictions"
    res = {}
    for task in TASKS:
        learn = quiet(make_learner(ARCHS.get(task, 'bert'), task))
        learn.fit(1)
        texts = texts_of(task, learn.dls.hf_block.hf_tokenizer)
        folder = learn.save_pretrained(tmp_path_factory.mktemp(task)/'model')
        res[task] = folder,texts,learn.hf_predict(texts, many=True)
    return res


def ask(code, saved):
    "Return what another process prints for all models"
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code],
                         input=json.dumps({k: (str(v[0]), v[1]) for k,v in saved.items()}), capture_output=True,
                         text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


LOAD = """
import json, sys
from blurlike.all import load_hf_learner
def ask(path, texts): return load_hf_learner(path, device='cpu').hf_predict(texts, many=True)
print(json.dumps({k: ask(*o) for k,o in json.load(sys.stdin).items()}))
"""


@pytest.fixture(scope='module')
def loaded(saved): return ask(LOAD, saved)


@EVERY_TASK
def test_a_learner_in_another_process_predicts_the_same(task, saved, loaded):
    assert_same(loaded[task], json.loads(json.dumps(saved[task][2])))


# Where transformers 5 has no pipeline, the code that its documentation shows instead
WITHOUT_US = """
import json, sys
sys.modules['blurlike'] = sys.modules['fastai'] = sys.modules['fastcore'] = None
import torch
from transformers import (AutoModelForMultipleChoice, AutoModelForQuestionAnswering, AutoModelForSeq2SeqLM,
                          AutoTokenizer, pipeline)

def labels(path, texts, **kwargs): return pipeline('text-classification', path, device='cpu')(texts, **kwargs)

def answers(path, texts):
    model,tokenizer = AutoModelForQuestionAnswering.from_pretrained(path).eval(),AutoTokenizer.from_pretrained(path)
    for o in texts:
        enc = tokenizer(o['question'], o['context'], return_tensors='pt', return_offsets_mapping=True)
        offsets = enc.pop('offset_mapping')[0].tolist()
        outside = torch.tensor([i != 1 for i in enc.sequence_ids()])
        with torch.no_grad(): out = model(**enc)
        start,end = (l[0].masked_fill(outside, -1e4).softmax(0) for l in (out.start_logits, out.end_logits))
        i,j = divmod(int((start[:,None]*end[None]).triu().tril(14).argmax()), len(end))
        yield dict(answer=o['context'][offsets[i][0]:offsets[j][1]])

def chosen(path, texts):
    model,tokenizer = AutoModelForMultipleChoice.from_pretrained(path).eval(),AutoTokenizer.from_pretrained(path)
    for question,choices in texts:
        enc = tokenizer([question]*len(choices), choices, padding=True, return_tensors='pt')
        with torch.no_grad(): probs = model(**{k: v[None] for k,v in enc.items()}).logits[0].softmax(0).tolist()
        i = probs.index(max(probs))
        yield dict(choice=choices[i], index=i, score=probs[i], probs=probs)

def texts_written(path, texts):
    model,tokenizer = AutoModelForSeq2SeqLM.from_pretrained(path).eval(),AutoTokenizer.from_pretrained(path)
    for o in texts:
        ids = model.generate(**tokenizer(o, return_tensors='pt'))[0]
        yield tokenizer.decode(ids, skip_special_tokens=True)

def continued(path, texts):
    pipe = pipeline('text-generation', path, device='cpu')
    return [pipe(o, max_new_tokens=4, do_sample=False, return_full_text=False)[0]['generated_text'] for o in texts]

def entities(path, texts):
    return pipeline('token-classification', path, aggregation_strategy='first', device='cpu')(texts)

HOW = {'multi-label-classification': lambda p, t: labels(p, t, top_k=None), 'regression': labels,
       'sequence-classification': labels, 'token-classification': entities, 'question-answering': answers,
       'multiple-choice': chosen, 'causal-lm': continued,
       'masked-lm': lambda p, t: pipeline('fill-mask', p, device='cpu')(t)}
print(json.dumps({k: list(HOW.get(k, texts_written)(*o)) for k,o in json.load(sys.stdin).items()}, default=float))
"""


@pytest.fixture(scope='module')
def theirs(saved): return ask(WITHOUT_US, saved)


def comparable(task, ours, theirs):
    "The parts of two answers that mean the same"
    if task=='multi-label-classification': return sorted(ours['probs']),sorted(o['score'] for o in theirs)
    if task=='token-classification':
        return [tuple({k: o[k] for k in ('entity_group', 'score', 'start', 'end')} for o in x) for x in (ours, theirs)]
    if task=='masked-lm': return ours,theirs
    if task=='question-answering': return ours['answer'],theirs['answer'] # the scores of equal answers are added up
    if isinstance(theirs, str): return next(v for v in ours.values() if isinstance(v, str)),theirs
    return ours,{k: theirs[k] for k in ours} if set(ours) <= set(theirs) else theirs


@EVERY_TASK
def test_transformers_alone_predicts_the_same(task, saved, theirs):
    folder,texts,preds = saved[task]
    if task=='causal-lm': preds = load_hf_learner(folder).hf_generate(texts, max_new_tokens=4, do_sample=False)
    if task=='sequence-classification': preds = [{k: o[k] for k in ('label', 'score')} for o in preds]
    for a,b in zip(preds, theirs[task], strict=True): assert_same(*comparable(task, json.loads(json.dumps(a)), b))


@EVERY_TASK
def test_a_loaded_learner_shows_validates_and_trains_on(task, saved, capsys):
    learn = quiet(load_hf_learner(saved[task][0], device='cpu'))
    df = frame(task)
    dl = learn.dls.test_dl(df, with_labels=True)
    before = learn.validate(dl=dl)
    assert len(before) > 1
    learn.show_results(dl=dl, max_n=2)
    assert capsys.readouterr().out.strip()
    learn.dls = type(learn.dls)(dl.new(shuffle=True, bs=4, seed=0), dl)
    torch.manual_seed(0)
    learn.fit(12, 2e-3)
    assert learn.validate(dl=dl)[0] < before[0]


@EVERY_TASK
def test_without_blurlike_json_the_task_is_inferred_from_the_architecture(task, saved, tmp_path):
    folder,texts,preds = saved[task]
    shutil.copytree(folder, tmp_path/'model')
    (tmp_path/'model'/'blurlike.json').unlink()
    learn = load_hf_learner(tmp_path/'model')
    name = get_block(learn.dls).task.name
    assert name == ('text2text-generation' if task in ('summarization', 'translation') else task)
    if name==task: assert_same(learn.hf_predict(texts, many=True), preds)


def test_a_data_block_and_a_plain_learner_load_too(df, hf, tmp_path):
    block = DataBlock(blocks=(HFTextBlock(*hf, max_length=24), CategoryBlock), get_x=ColReader('text'),
                      get_y=ColReader('label'), splitter=ColSplitter())
    learn = Learner(block.dataloaders(df, bs=8), hf.model, loss_func=CrossEntropyLossFlat(), cbs=[HFCallback])
    again = load_hf_learner(learn.save_pretrained(tmp_path/'model'))
    assert get_block(again.dls).max_length == 24
    assert_same(again.hf_predict(df.text[0]), learn.hf_predict(df.text[0]))


def test_saving_what_was_loaded_changes_nothing(saved, tmp_path):
    for task,(folder,*_) in saved.items():
        again = load_hf_learner(folder).save_pretrained(tmp_path/task)
        for name in ('blurlike.json', 'model.safetensors'):
            assert (again/name).read_bytes() == (folder/name).read_bytes(), (task, name)
        assert {o.name for o in again.iterdir()} == {o.name for o in folder.iterdir()}


@pytest.mark.parametrize(('labels', 'vocab'),
                         [([0, 1], [0, 1]), ([True, False], [False, True]), (['b', 'a'], ['b', 'a'])])
def test_classes_keep_their_kind_and_order(labels, vocab, hf, tmp_path):
    df = pd.DataFrame(dict(text=['the film', 'the plot']*4, label=labels*4))
    dls = HFTextDataLoaders.from_df(df, hf, task='sequence-classification', bs=2, vocab=vocab)
    again = load_hf_learner(hf_learner(dls, hf.model).save_pretrained(tmp_path/'model'))
    assert list(again.dls.vocab) == vocab
    assert [type(o) for o in again.dls.vocab] == [type(o) for o in vocab]
    assert len(again.dls.test_dl(df, with_labels=True).one_batch()[1]) == 8


def test_columns_of_zeros_and_ones_come_back(hf, tmp_path):
    df = pd.DataFrame(dict(words=['the film', 'the plot', 'the cast', 'the score'], good=[1, 0, 1, 0],
                           bad=[0, 0, 1, 1]))
    hf = make_objects(problem_type='multi_label_classification')
    dls = HFTextDataLoaders.from_df(df, hf, task='multi-label-classification', text_col='words',
                                    label_col=['good', 'bad'], valid_pct=0.5, seed=0)
    again = load_hf_learner(hf_learner(dls, hf.model).save_pretrained(tmp_path/'model'), device='cpu')
    xb,yb = again.dls.test_dl(df[:2], with_labels=True).one_batch()
    assert sorted(yb.tolist()) == [[0, 0], [1, 0]]


def test_new_data_must_have_as_many_classes_as_the_model(df, saved):
    folder = saved['sequence-classification'][0]
    more = HFTextDataLoaders.from_df(df, folder, valid_col='is_valid', vocab=['bad', 'good', 'so-so'])
    with pytest.raises(ValueError, match=mentions('num_labels=2', 3)): load_hf_learner(folder, dls=more)


# --- The card

def card_of(folder): return ModelCard.load(folder/'README.md')


@EVERY_TASK
def test_the_card_of_every_task_is_read_by_the_hubs_library_and_its_code_runs(task, saved, tmp_path):
    folder = saved[task][0]
    card = card_of(folder)
    assert card.data.library_name == 'transformers'
    assert task in card.data.tags
    assert 'license' not in card.data.to_dict()
    assert {o.metric_type for o in card.data.eval_results} >= {'loss'}
    blocks = re.findall(r'```python\n(.*?)```', card.text, re.S)
    assert len(blocks) == 1 + (card.data.pipeline_tag in SUPPORTED_TASKS)
    for o in blocks: exec(o.replace('PATH', str(folder)), {})


def test_the_card_describes_the_training(df, hf, tmp_path):
    learn = quiet(hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8), hf.model))
    learn.lr_find(num_it=3, show_plot=False)
    learn.fine_tune(2, 1e-2)
    learn.validate()
    learn.get_preds()
    runs = learn.hf.runs
    assert [(o['epochs'], o['frozen']) for o in runs] == [(1, runs[0]['groups']-1), (2, 0)]
    loss,acc = learn.validate()
    result = {o.metric_type: o.metric_value for o in card_of(learn.save_pretrained(tmp_path/'model')).data.eval_results}
    assert result == {'loss': pytest.approx(loss, abs=1e-3), 'accuracy': pytest.approx(acc, abs=1e-4)}
    text = card_of(tmp_path/'model').text
    assert re.search(rf"\b{runs[0]['groups']}\b.*frozen|frozen.*\b{runs[0]['groups']}\b", text)
    assert len(re.findall(r'^\| [12] \| [12] \|', text, re.M)) == 3
    assert load_hf_learner(tmp_path/'model').hf.runs == runs


def test_a_card_has_the_metadata_that_is_passed(learn):
    data = learn.model_card(language=['en', 'de'], license='mit', datasets='imdb', model_name='Moods',
                            limits='Not for poems.').data
    assert (data.language, data.license, data.datasets, data.model_name) == (['en', 'de'], 'mit', 'imdb', 'Moods')
    assert 'Not for poems.' in learn.model_card(limits='Not for poems.').text


def test_the_base_model_is_named_if_it_has_a_name_on_the_hub(df, hf, tmp_path):
    def base(name):
        hf.config._name_or_path = name
        learn = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid'), hf.model)
        return learn.model_card().data.base_model
    assert base('google/tiny-bert') == 'google/tiny-bert'
    assert [base(o) for o in (str(tmp_path), '', '/gone/away/somewhere')] == [None, None, None]


def test_an_edited_card_is_kept(learn, tmp_path):
    folder = learn.save_pretrained(tmp_path/'model')
    card = folder/'README.md'
    learn.save_pretrained(folder, card=learn.model_card(model_name='Moods'))
    assert '# Moods' in card.read_text()
    learn.save_pretrained(folder)
    assert '# Moods' not in card.read_text()
    card.write_text('# My own\n')
    learn.save_pretrained(folder)
    assert card.read_text() == '# My own\n'


# --- Files in a folder

@pytest.fixture
def folder(saved, tmp_path): return Path(shutil.copytree(saved['sequence-classification'][0], tmp_path/'model'))


class Bomb:
    "Touch a file when it is unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)


PICKLES = ('pytorch_model.bin', 'pytorch_model-00001-of-00001.bin', 'model.pkl', 'export.pkl', 'training_args.bin',
           'optimizer.pt', 'scheduler.pt', 'rng_state.pth',
           'adapter_model.bin', 'model.pth', 'tokenizer.pkl', 'vocab.pkl', 'vocab.bin', 'flax_model.msgpack',
           'tf_model.h5', 'model.ckpt.index')


def test_the_bomb_runs_when_it_is_unpickled(tmp_path):
    (tmp_path/'model.pkl').write_bytes(pickle.dumps(Bomb(tmp_path/'it_ran')))
    with pytest.raises(Exception): load_learner(tmp_path/'model.pkl')  # noqa: B017, PT011 -- it has run by then
    assert (tmp_path/'it_ran').exists()


@pytest.mark.parametrize('whole', [True, False])
def test_no_pickle_is_opened(folder, tmp_path, whole):
    for name in PICKLES: (folder/name).write_bytes(pickle.dumps(Bomb(tmp_path/'it_ran')))
    if whole: load_hf_learner(folder).hf_predict('the film')
    else:
        (folder/'model.safetensors').unlink()
        with pytest.raises(FileNotFoundError, match=mentions(folder, 'model.safetensors', 'pytorch_model')):
            load_hf_learner(folder)
    assert not (tmp_path/'it_ran').exists()


CODE = "from pathlib import Path\nPath({!r}).touch()\n{}"
CLASSES = """
from transformers import BertConfig as Config, BertForSequenceClassification as Model, BertTokenizer as Tokenizer
def generate(*args, **kwargs): pass
"""


@pytest.mark.parametrize('known', [True, False])
def test_no_code_runs(folder, tmp_path, known):
    for name in ('custom.py', 'custom_generate/generate.py', '__init__.py', 'modeling.py', 'tokenization.py'):
        (folder/name).parent.mkdir(exist_ok=True)
        (folder/name).write_text(CODE.format(str(tmp_path/'it_ran'), CLASSES))
    for name,auto_map in {'config.json': {'AutoConfig': 'custom.Config',
                                          'AutoModelForSequenceClassification': 'custom.Model',
                                          'AutoModel': 'custom.Model'},
                          'tokenizer_config.json': {'AutoTokenizer': ['custom.Tokenizer', 'custom.Tokenizer']}}.items():
        config = json.loads((folder/name).read_text()) | dict(auto_map=auto_map)
        if not known and name=='config.json': config['model_type'] = 'my-own'
        (folder/name).write_text(json.dumps(config))
    if known: load_hf_learner(folder).hf_predict('the film')
    else:
        with pytest.raises(ValueError, match=mentions(folder, 'trust_remote_code=True')): load_hf_learner(folder)
    assert not (tmp_path/'it_ran').exists()


@pytest.mark.parametrize(('name', 'missing'),
                         [('config.json', 'config.json'), ('model.safetensors', 'model.safetensors'),
                          ('tokenizer*', 'tokenizer.json')])
def test_an_incomplete_folder_raises(folder, name, missing):
    for o in folder.glob(name): o.unlink()
    with pytest.raises(FileNotFoundError, match=mentions(folder, missing)): load_hf_learner(folder)


def test_a_missing_shard_raises(saved, tmp_path):
    learn = load_hf_learner(saved['sequence-classification'][0])
    folder = learn.save_pretrained(tmp_path/'model', max_shard_size='10KB')
    gone = sorted(folder.glob('model-*.safetensors'))[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=mentions(folder, gone.name)): load_hf_learner(folder)


@pytest.mark.parametrize('break_it', [lambda b: b[:-9], lambda b: b[:40], lambda b: b'', lambda b: b'\xff'*100])
def test_a_corrupt_weights_file_raises(folder, break_it):
    path = folder/'model.safetensors'
    path.write_bytes(break_it(path.read_bytes()))
    with pytest.raises(ValueError, match=mentions(folder, 'AutoModelForSequenceClassification')) as e:
        load_hf_learner(folder)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(('change', 'facts'), [
    (dict(schema=2, versions={'blurlike': '9.1.0'}), ['blurlike.json', 'schema', 2, 1, "'blurlike>=9.1.0'"]),
    (dict(schema=None), ['blurlike.json', "'schema'"]),
    (dict(task='dancing'), ["task='dancing'"]), (dict(task_options={'steps': 3}), ["'steps'"])])
def test_an_invalid_blurlike_json_raises(folder, change, facts):
    path = folder/'blurlike.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((ValueError, TypeError), match=mentions(*facts)): load_hf_learner(folder)


def test_a_truncated_blurlike_json_raises(folder):
    (folder/'blurlike.json').write_text('{"schema": 1, ')
    with pytest.raises(ValueError, match=mentions(folder/'blurlike.json')): load_hf_learner(folder)


def test_a_checkpoint_without_a_trained_head_raises(hf, tmp_path):
    AutoModel.from_config(hf.config).save_pretrained(tmp_path)
    hf.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=mentions(tmp_path, 'BertModel', 'task=')): load_hf_learner(tmp_path)
    with pytest.raises(ValueError, match=mentions(tmp_path, 'BertForSequenceClassification', 'classifier')):
        load_hf_learner(tmp_path, task='sequence-classification')


@pytest.mark.parametrize(('kwargs', 'name'),
                         [(dict(num_labels=3), 'sequence-classification'), (dict(num_labels=1), 'regression'),
(dict(num_labels=3, problem_type='regression'), 'regression'),
(dict(num_labels=3, problem_type='multi_label_classification'), 'multi-label-classification')])
def test_the_kind_of_classification_is_read_from_the_configuration(kwargs, name, tmp_path):
    hf = make_objects(**kwargs, auto_model=AutoModelForSequenceClassification)
    hf.model.save_pretrained(tmp_path)
    hf.tokenizer.save_pretrained(tmp_path)
    assert get_block(load_hf_learner(tmp_path).dls).task.name == name


@pytest.mark.parametrize(('path', 'error'),
                         [('no/such/folder', FileNotFoundError), ('a--b', FileNotFoundError), ('user/model', OSError)])
def test_an_unknown_path_raises(path, error):
    with pytest.raises(error, match=f'path={path!r}') as e: load_hf_learner(path)
    assert '\n' not in str(e.value)


def test_a_file_instead_of_a_folder_raises(folder):
    with pytest.raises(NotADirectoryError, match=mentions('path=', folder/'config.json')):
        load_hf_learner(folder/'config.json')


def test_a_missing_tokenizer_json_raises(folder):
    (folder/'tokenizer.json').unlink()
    with pytest.raises(FileNotFoundError, match=mentions(folder, 'tokenizer.json')): load_hf_learner(folder)


def test_a_tokenizer_without_files_loads(df, tmp_path):
    hf = make_objects('canine')
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, device='cpu'), hf.model)
    assert not (learn.save_pretrained(tmp_path/'model')/'tokenizer.json').exists()
    assert_same(load_hf_learner(tmp_path/'model', device='cpu').hf_predict('the film'), learn.hf_predict('the film'))


def test_data_with_other_classes_raises(df, saved):
    other = df.assign(label=df.label.map({'good': 'fine', 'bad': 'awful'}))
    folder = saved['sequence-classification'][0]
    dls = HFTextDataLoaders.from_df(other, folder, valid_col='is_valid', bs=8, device='cpu')
    with pytest.raises(ValueError, match=mentions("'bad', 'good'", "'awful', 'fine'")): load_hf_learner(folder, dls=dls)


def test_training_and_validation_without_rows_raise(saved):
    learn = quiet(load_hf_learner(saved['sequence-classification'][0], device='cpu'))
    with pytest.raises(ValueError, match=mentions('dls')): learn.fit(1)
    with pytest.raises(ValueError, match=mentions('dl=')): learn.validate()
    with learn.no_bar():
        assert learn.validate(dl=learn.dls.test_dl(frame('sequence-classification'), with_labels=True))[0] > 0


def test_a_missing_key_of_blurlike_json_raises(folder):
    info = json.loads((folder/'blurlike.json').read_text())
    (folder/'blurlike.json').write_text(json.dumps({k: v for k,v in info.items() if k != 'columns'}))
    with pytest.raises(ValueError, match=mentions(folder/'blurlike.json', "'columns'")): load_hf_learner(folder)
