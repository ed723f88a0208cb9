"Python code of a checkpoint runs if the user says so, never otherwise, whatever comes on standard input."
import json
import subprocess
import sys

import pytest
from conftest import make_objects, make_texts, mentions

from blurlike.all import (
    AutoModelForSequenceClassification,
    HFTextDataLoaders,
    get_hf_objects,
    hf_learner,
    load_hf_config,
    load_hf_learner,
    load_hf_model,
    load_hf_tokenizer,
)

CODE = """
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

Path({marker!r}).touch()

class OwnConfig(BertConfig): model_type = 'my-own'
class OwnModel(BertForSequenceClassification): config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast): pass
"""


@pytest.fixture
def own(tmp_path):
    "A folder with a model that its own code defines, and a file that exists once this code has run"
    hf,folder,marker = make_objects(),tmp_path/'model',tmp_path/'it_ran'
    hf.model.save_pretrained(folder)
    hf.tokenizer.save_pretrained(folder)
    (folder/'own.py').write_text(CODE.format(marker=str(marker)))
    for name,change in {'config.json': dict(model_type='my-own', auto_map={
                            'AutoConfig': 'own.OwnConfig', 'AutoModelForSequenceClassification': 'own.OwnModel'}),
                        'tokenizer_config.json': dict(tokenizer_class='OwnTokenizer', auto_map={
                            'AutoTokenizer': [None, 'own.OwnTokenizer']})}.items():
        (folder/name).write_text(json.dumps(json.loads((folder/name).read_text()) | change))
    return folder,marker


def data(folder, **kwargs):
    return HFTextDataLoaders.from_df(make_texts(24), folder, bs=8, max_length=32, seed=0, device='cpu', **kwargs)


CALLS = dict(
    config='load_hf_config(folder)', all='get_hf_objects(folder)', learner='load_hf_learner(folder)',
    tokenizer='load_hf_tokenizer(folder, BertConfig())', model='load_hf_model(folder)',
    dls="HFTextDataLoaders.from_df(pd.DataFrame(dict(text=['a', 'b']*8, label=['x', 'y']*8)), folder)")


@pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)
def test_an_answer_on_standard_input_is_not_asked_for(call, own):
    folder,marker = own
    code = f"""
import sys
from transformers import BertConfig
from fastai.text.all import *
from blurlike.all import *
folder = sys.argv[1]
try: {call}
except ValueError as e: print(e)
else: print('loaded')
"""
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(folder)], input='y\ny\ny\n',
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert 'trust_remote_code=True' in run.stdout
    assert not marker.exists()


def test_trusted_code_runs_in_every_step(own, tmp_path):
    folder,marker = own
    trust = dict(trust_remote_code=True)
    assert type(get_hf_objects(folder, **trust).model).__name__ == 'OwnModel'
    assert marker.exists()
    learn = hf_learner(data(folder, **trust))
    assert type(learn.model).__name__ == 'OwnModel'
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    saved = learn.save_pretrained(tmp_path/'saved')
    again = load_hf_learner(saved, **trust)
    assert type(again.model).__name__ == 'OwnModel'
    assert again.hf_predict('the film')['probs'] == pytest.approx(learn.hf_predict('the film')['probs'], abs=1e-6)


def test_the_parts_take_it_by_name(own):
    folder,_ = own
    config = load_hf_config(folder, trust_remote_code=True)
    assert type(load_hf_tokenizer(folder, config, trust_remote_code=True)).__name__ == 'OwnTokenizer'
    model = load_hf_model(folder, AutoModelForSequenceClassification, config, trust_remote_code=True)
    assert type(model).__name__ == 'OwnModel'


def test_the_message_names_the_checkpoint_and_the_argument(own):
    folder,marker = own
    with pytest.raises(ValueError, match=mentions(folder, 'trust_remote_code=True')): data(folder)
    assert not marker.exists()
