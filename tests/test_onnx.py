"An ONNX export predicts as the model does, in onnxruntime and without PyTorch, for batches of any size."
import json
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_objects, make_texts, mentions
from test_load import quiet, texts_of
from test_matrix import make_learner

import blurlike.ship.onnx
from blurlike.all import (
    HFTextDataLoaders,
    get_block,
    hf_learner,
    load_hf_learner,
    load_movie_reviews,
    minilm_checkpoint,
)
from blurlike.ship.onnx import OnnxModel

TASKS = ['sequence-classification', 'multi-label-classification', 'regression', 'token-classification',
         'question-answering', 'masked-lm']


def scores(pred):
    "All numbers in a prediction, in order"
    if isinstance(pred, dict): return [x for k in sorted(pred) for x in scores(pred[k])]
    if isinstance(pred, (list, tuple)): return [x for o in pred for x in scores(o)]
    return [] if pred is None or isinstance(pred, str) else [float(pred)]


def assert_close(a, b, eps=1e-4): assert max(abs(x-y) for x,y in zip(scores(a), scores(b), strict=True)) < eps


@pytest.fixture(scope='module')
def reviews():
    "A learner of reviews with the real MiniLM, and 200 that it has not seen"
    df = load_movie_reviews(680)
    df['is_valid'] = df.index >= 480
    learn = quiet(hf_learner(HFTextDataLoaders.from_df(df, minilm_checkpoint(), valid_col='is_valid', seed=0)))
    learn.fit_one_cycle(2, slice(5e-5, 5e-4))
    return learn,df[df.is_valid]


@pytest.fixture(scope='module')
def exported(reviews, tmp_path_factory): return reviews[0].export_onnx(tmp_path_factory.mktemp('onnx')/'model')


def test_200_real_texts_get_the_same_probabilities(reviews, exported):
    learn,texts = reviews[0],reviews[1].text.tolist()
    theirs,ours = learn.hf_predict(texts),load_hf_learner(exported).hf_predict(texts)
    probs = [np.array([o['probs'] for o in preds]) for preds in (theirs, ours)]
    assert len(texts)==200
    assert np.ptp(probs[0][:,1]) > 0.2
    assert np.abs(probs[0] - probs[1]).max() < 1e-4


def test_batch_size_and_length_are_dynamic(exported):
    model = load_hf_learner(exported).model
    for o in (*model.session.get_inputs(), *model.session.get_outputs()): assert isinstance(o.shape[0], str)
    assert all(isinstance(o.shape[1], str) for o in model.session.get_inputs())


def test_a_program_needs_no_pytorch(reviews, exported):
    texts = reviews[1].text.tolist()[:4]
    code = """
import json, sys
import numpy as np, onnxruntime
from tokenizers import Tokenizer
folder,texts = json.load(sys.stdin)
tokenizer = Tokenizer.from_file(f'{folder}/tokenizer.json')
session = onnxruntime.InferenceSession(f'{folder}/onnx/model.onnx')
tokenizer.enable_padding()
rows = tokenizer.encode_batch(texts)
inputs = dict(input_ids=[o.ids for o in rows], token_type_ids=[o.type_ids for o in rows],
              attention_mask=[o.attention_mask for o in rows])
labels = json.load(open(f'{folder}/config.json'))['id2label']
assert not {'torch', 'transformers', 'blurlike'} & set(sys.modules)
print(json.dumps([labels[str(i)] for i in session.run(None, {k: np.array(v) for k,v in inputs.items()})[0].argmax(-1)]))
"""
    run = subprocess.run([sys.executable, '-c', code], input=json.dumps([str(exported), texts]), capture_output=True,
                         text=True)
    assert run.returncode==0, run.stderr
    assert json.loads(run.stdout) == [o['label'] for o in reviews[0].hf_predict(texts)]


def test_int8_has_a_quarter_of_the_size_and_nearly_the_accuracy(reviews, exported, tmp_path):
    learn = reviews[0]
    small = load_hf_learner(learn.export_onnx(tmp_path/'small', precision='int8'))
    assert small.model.file.stat().st_size < 0.3 * next(exported.glob('onnx/*')).stat().st_size
    with learn.no_bar(), learn.no_logging():
        (_,before),(_,after) = (o.validate(dl=learn.dls.valid) for o in (learn, quiet(small)))
    assert after > before - 0.05


@pytest.mark.parametrize('task', TASKS)
def test_every_task_that_scores_can_be_exported(task, tmp_path):
    learn = quiet(make_learner('bert', task))
    learn.fit(1)
    texts = texts_of(task, learn.dls.hf_block.hf_tokenizer)
    loaded = load_hf_learner(learn.export_onnx(tmp_path/'model'))
    for some in (texts[:1], texts): assert_close(learn.hf_predict(some, many=True), loaded.hf_predict(some, many=True))
    dl = loaded.dls.test_dl(learn.dls.valid.items, with_labels=True)
    with learn.no_bar(), learn.no_logging():
        assert torch.isfinite(torch.tensor(float(quiet(loaded).validate(dl=dl)[0])))


# The last two are for PyTorch's older exporter
@pytest.mark.parametrize('arch', ['distilbert', 'roberta', 'deberta-v2', 'modernbert', 'gpt2', 'mixtral', 'bart',
                                  'xlnet', 't5'])
def test_architectures_are_exported(arch, df, tmp_path):
    hf = make_objects(arch)
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, seed=0, device='cpu'), hf.model)
    loaded = load_hf_learner(learn.export_onnx(tmp_path/'model'))
    texts = make_texts(20, seed=3).text.tolist()
    for some in (texts[:1], texts): assert_close(learn.hf_predict(some, many=True), loaded.hf_predict(some, many=True))


def test_a_failed_export_leaves_no_folder(df, tmp_path, capfd):
    hf = make_objects('longformer')
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, device='cpu'), hf.model)
    with pytest.raises(ValueError, match=mentions('LongformerForSequenceClassification', 'ONNX')):
        learn.export_onnx(tmp_path/'model')
    assert not list(tmp_path.iterdir())
    assert len(capfd.readouterr().out) < 1000 # and not the graph that an exporter prints


def test_an_export_with_other_outputs_raises(learn, tmp_path, monkeypatch):
    forward = OnnxModel.forward
    def other(self, **inputs):
        res = forward(self, **inputs)
        for k in res: res[k] = res[k] + (0.01 if len(inputs['input_ids'])==3 else 0)
        return res
    monkeypatch.setattr(OnnxModel, 'forward', other)
    with pytest.raises(ValueError, match=mentions(type(learn.model).__name__, 'logits')):
        learn.export_onnx(tmp_path/'model')


def test_the_learner_is_unchanged(learn, tmp_path):
    model,training = learn.model,learn.model.training
    learn.export_onnx(tmp_path/'model')
    assert learn.model is model
    assert learn.model.training==training
    learn.fit(1)


def test_a_learner_loaded_from_onnx_can_be_saved(exported, reviews, tmp_path):
    loaded = load_hf_learner(exported)
    again = load_hf_learner(loaded.save_pretrained(tmp_path/'again'))
    assert again.hf_predict('A film to see twice.') == loaded.hf_predict('A film to see twice.')
    card = (tmp_path/'again'/'README.md').read_text()
    assert 'library_name: onnx' in card
    assert 'from transformers' not in card
    assert 'load_hf_learner' in card
    assert loaded.hf.runs == reviews[0].hf.runs
    assert loaded.hf.runs


def test_windows_are_restored(tmp_path):
    learn = make_learner('bert', 'question-answering')
    loaded = load_hf_learner(learn.export_onnx(tmp_path/'model'))
    mine,theirs = get_block(loaded.dls),get_block(learn.dls)
    assert (mine.max_length, mine.stride, mine.windows) == (theirs.max_length, theirs.stride, theirs.windows)
    long = dict(question='Who saw it?', context=' '.join(make_texts(30).text))
    assert_close(learn.hf_predict(long), loaded.hf_predict(long))


def test_the_onnx_file_can_be_chosen(learn, tmp_path):
    folder = learn.export_onnx(tmp_path/'model')
    learn.save_pretrained(tmp_path/'both')
    (folder/'onnx').rename(tmp_path/'both'/'onnx')
    assert not isinstance(load_hf_learner(tmp_path/'both').model, OnnxModel)
    assert isinstance(load_hf_learner(tmp_path/'both', onnx='onnx/model.onnx').model, OnnxModel)
    with pytest.raises(FileNotFoundError, match=mentions("onnx='model.onnx'", tmp_path/'both', "'onnx/model.onnx'")):
        load_hf_learner(tmp_path/'both', onnx='model.onnx')
    learn.save_pretrained(tmp_path/'both') # new weights remove the export of the old ones
    assert not (tmp_path/'both'/'onnx').exists()


def test_invalid_arguments_raise(learn, tmp_path, monkeypatch):
    learn.save_pretrained(tmp_path/'model')
    with pytest.raises(FileExistsError, match=mentions(tmp_path/'model')): learn.export_onnx(tmp_path/'model')
    with pytest.raises(ValueError, match=mentions("precision='int4'", "'fp32'", "'int8'")):
        learn.export_onnx(tmp_path/'new', precision='int4')
    with pytest.raises(ValueError, match="task='causal-lm'"):
        make_learner('gpt2', 'causal-lm').export_onnx(tmp_path/'new')
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ImportError, match=mentions('onnxscript', 'blurlike[onnx]')): learn.export_onnx(tmp_path/'new')
    assert not (tmp_path/'new').exists()


def test_an_exported_model_cannot_be_trained_or_exported_again(exported):
    with pytest.raises(ValueError, match='OnnxModel'): quiet(load_hf_learner(exported)).fit(1)
    with pytest.raises(ValueError, match=mentions('ONNX')):
        load_hf_learner(exported).export_onnx(exported.parent/'again')


def test_a_file_with_other_inputs_is_named(exported):
    learn = load_hf_learner(exported)
    learn.model.input_names.append('position_ids')
    with pytest.raises(ValueError, match=mentions('model.onnx', "'position_ids'")): learn.hf_predict('the film')


@pytest.mark.parametrize(('name', 'precision'), [('model', 'fp32'), ('model_quantized', 'int8'), ('model_int8', 'int8'),
                                                 ('model_uint8', 'int8'), ('model_fp16', None), ('model_q4', None)])
def test_the_precision_of_a_file_is_that_of_its_name(name, precision, exported, tmp_path):
    shutil.copy(exported/'onnx'/'model.onnx', tmp_path/f'{name}.onnx')
    assert OnnxModel(tmp_path/f'{name}.onnx', None).precision == precision


def test_a_corrupt_file_raises(exported, tmp_path):
    assert blurlike.ship.save.ONNX_FILES[0]=='onnx/model.onnx'
    folder = load_hf_learner(exported).save_pretrained(tmp_path/'model')
    (folder/'onnx'/'model.onnx').write_bytes(b'half')
    with pytest.raises(OSError, match=mentions(folder/'onnx'/'model.onnx')): load_hf_learner(folder)


def test_an_export_does_not_replace_weights(exported, learn, tmp_path):
    learn.save_pretrained(tmp_path/'model')
    with pytest.raises(FileExistsError, match=mentions(tmp_path/'model')):
        load_hf_learner(exported).save_pretrained(tmp_path/'model')
    (tmp_path/'model'/'model.safetensors').rename(tmp_path/'model'/'pytorch_model.bin')
    with pytest.raises(FileExistsError, match=mentions(tmp_path/'model')): learn.export_onnx(tmp_path/'model')
    assert (tmp_path/'model'/'pytorch_model.bin').exists()


def test_an_onnx_folder_with_other_files_is_kept(learn, tmp_path):
    folder = learn.save_pretrained(tmp_path/'model')
    (folder/'onnx').mkdir()
    (folder/'onnx'/'model.onnx').write_text('of the old weights')
    learn.save_pretrained(folder)
    assert not (folder/'onnx').exists()
    (folder/'onnx').mkdir()
    (folder/'onnx'/'notes.md').write_text('mine')
    learn.save_pretrained(folder)
    assert (folder/'onnx'/'notes.md').read_text()=='mine'


def test_a_misspelled_option_raises(learn, tmp_path):
    with pytest.raises(TypeError, match=mentions('opset_versoin')):
        learn.export_onnx(tmp_path/'model', opset_versoin=18)


def test_the_code_of_cards_runs_and_int8_weights_claim_no_results(reviews, exported, tmp_path):
    small = reviews[0].export_onnx(tmp_path/'small', precision='int8')
    cards = [(o/'README.md').read_text() for o in (exported, small)]
    assert 'model-index' in cards[0]
    assert 'model-index' not in cards[1]
    assert re.search(r'\bint8\b|\b8 bits\b', cards[1])
    assert not re.search(r'\bint8\b|\b8 bits\b', cards[0])
    for folder,card in zip((exported, small), cards, strict=True):
        for code in re.findall('```python\n(.*?)```', card, re.DOTALL): exec(code.replace('PATH', str(folder)), {})


def test_an_onnx_model_is_pickled_by_the_path_of_its_file(exported, tmp_path):
    loaded = load_hf_learner(exported)
    model = pickle.loads(pickle.dumps(loaded.model))
    assert str(exported/'onnx'/'model.onnx') in repr(model)
    loaded.model = model
    expected = load_hf_learner(exported).hf_predict('A film.')['probs']
    assert loaded.hf_predict('A film.')['probs'] == pytest.approx(expected, abs=1e-6)
