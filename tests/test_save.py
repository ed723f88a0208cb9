"Saved models are complete, replaced atomically, and readable without blurlike."
import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import make_config, make_objects, mentions
from test_padding import make_learner
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from blurlike.all import (
    HFObjects,
    HFTextBlock,
    HFTextDataLoaders,
    get_hf_objects,
    hf_learner,
    load_hf_learner,
    load_hf_model,
)
from blurlike.ship.save import atomic_folder

PREDICT = """
import json, os, sys
os.environ['HF_HUB_OFFLINE'] = '1'
sys.modules['blurlike'] = None
sys.modules['fastai'] = None
from transformers import pipeline
classify = pipeline('text-classification', model=sys.argv[1], device='cpu')
print(json.dumps(classify(json.loads(sys.argv[2]))))
"""
TEXTS = ['the film warm', 'the plot dull the cast sour']


def scores_of(rows): return [o['score'] for o in rows]


def test_another_process_predicts_the_same_without_blurlike(learn, tmp_path):
    learn.fit_one_cycle(2, 1e-2)
    learn.save_pretrained(tmp_path/'model')
    args = [sys.executable, '-c', PREDICT, str(tmp_path/'model'), json.dumps(TEXTS)]
    theirs = json.loads(subprocess.run(args, capture_output=True, text=True, check=True).stdout)
    for a,b in zip(theirs, learn.hf_predict(TEXTS), strict=True):
        assert a['label'] == b['label']
        assert a['score'] == pytest.approx(b['score'], abs=1e-5)


def test_a_saved_tokenizer_truncates_as_in_training(df, hf, tmp_path):
    from transformers import pipeline
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', max_length=8), hf.model)
    learn.save_pretrained(tmp_path/'model')
    text = 'the film warm '*30
    theirs = pipeline('text-classification', model=str(tmp_path/'model'), truncation=True)(text)[0]
    assert theirs['score'] == pytest.approx(learn.hf_predict(text)['score'], abs=1e-5)
    assert hf.tokenizer.model_max_length == 64


def test_blurlike_json_records_how_texts_were_prepared(learn, tmp_path):
    learn.save_pretrained(tmp_path/'model')
    info = json.loads((tmp_path/'model'/'blurlike.json').read_text())
    assert info['schema'] == 1
    assert info['task'] == 'sequence-classification'
    assert info['vocab'] == ['bad', 'good']
    assert set(info['versions']) == {'blurlike', 'fastai', 'transformers', 'torch'}
    assert info['tokenizer']['max_length'] == 64
    assert json.loads((tmp_path/'model'/'config.json').read_text())['id2label'] == {'0': 'bad', '1': 'good'}


def test_saving_again_replaces_the_model_and_keeps_other_files(learn, tmp_path):
    path = tmp_path/'model'
    learn.save_pretrained(path, max_shard_size='10KB')
    assert len(list(path.glob('model-*.safetensors'))) > 1
    (path/'notes').mkdir()
    (path/'notes'/'a.txt').write_text('mine')
    learn.save_pretrained(path)
    assert not list(path.glob('model-*.safetensors'))
    assert (path/'model.safetensors').exists()
    assert (path/'notes'/'a.txt').read_text() == 'mine'
    assert os.listdir(tmp_path) == ['model']


def test_a_folder_of_other_files_is_not_replaced(learn, tmp_path):
    (tmp_path/'letter.txt').write_text('Dear Mum')
    with pytest.raises(FileExistsError, match=mentions('path=', tmp_path, 'config.json')):
        learn.save_pretrained(tmp_path)
    with pytest.raises(FileExistsError, match=mentions('path=', tmp_path/'letter.txt')):
        learn.save_pretrained(tmp_path/'letter.txt')
    assert os.listdir(tmp_path) == ['letter.txt']


def test_a_relative_path_and_an_empty_folder_are_valid(learn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'here').mkdir()
    learn.save_pretrained('here')
    learn.save_pretrained('there/deep')
    assert (tmp_path/'here'/'config.json').exists()
    assert (tmp_path/'there'/'deep'/'config.json').exists()


SAVE_FOR_EVER = """
import sys
from pathlib import Path
from blurlike.ship.save import atomic_folder
n = 0
while True:
    n += 1
    with atomic_folder(sys.argv[1]) as new:
        for name in ('config.json', 'a', 'b', 'c'): (new/name).write_text(str(n))
    print(n, flush=True)
"""


@pytest.mark.parametrize('after_ms', [3, 17, 31, 53])
def test_a_killed_save_leaves_a_complete_folder(tmp_path, after_ms):
    path = tmp_path/'model'
    process = subprocess.Popen([sys.executable, '-c', SAVE_FOR_EVER, str(path)], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired): process.wait(after_ms/1000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = path if path.exists() else next(tmp_path.glob('model-*-old')) # killed between the two renames
    assert len({(whole/name).read_text() for name in ('config.json', 'a', 'b', 'c')}) == 1


def test_a_save_killed_between_the_renames_keeps_both_folders(tmp_path):
    path = tmp_path/'model'
    code = SAVE_FOR_EVER.replace('n = 0', """n = 0
import os
def rename(self, target, rename=Path.rename):
    if Path(target)==Path(sys.argv[1]) and n > 1: os._exit(9)
    return rename(self, target)
Path.rename = rename
""")
    assert subprocess.run([sys.executable, '-c', code, str(path)], capture_output=True).returncode==9
    assert not path.exists()
    old,new = next(tmp_path.glob('model-*-old')),next(tmp_path.glob('.model-*'))
    assert [{(o/name).read_text() for name in ('config.json', 'a', 'b', 'c')} for o in (old, new)] == [{'1'}, {'2'}]


def test_a_failed_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    path,rename = tmp_path/'model',Path.rename
    def save(text):
        with atomic_folder(path) as new: (new/'config.json').write_text(text)
    def fail(self, target):
        if Path(target)==path and not self.name.endswith('-old'): raise PermissionError(13, 'in use')
        return rename(self, target)
    save('old')
    monkeypatch.setattr(Path, 'rename', fail)
    with pytest.raises(PermissionError, match='in use'): save('new')
    assert (path/'config.json').read_text()=='old'
    assert os.listdir(tmp_path) == ['model']


def test_saving_to_a_link_replaces_its_target(learn, tmp_path):
    (tmp_path/'real').mkdir()
    (tmp_path/'link').symlink_to('real')
    learn.save_pretrained(tmp_path/'link')
    learn.save_pretrained(tmp_path/'link')
    assert (tmp_path/'link').is_symlink()
    assert (tmp_path/'real'/'model.safetensors').exists()
    assert sorted(os.listdir(tmp_path)) == ['link', 'real']


def test_a_full_disk_keeps_the_old_model(learn, tmp_path, monkeypatch):
    path = tmp_path/'model'
    learn.save_pretrained(path)
    before = {o.name: o.read_bytes() for o in path.iterdir()}
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(type(learn.dls.hf_block.hf_tokenizer), 'save_pretrained', full)
    with pytest.raises(OSError, match='No space left'): learn.save_pretrained(path)
    assert {o.name: o.read_bytes() for o in path.iterdir()} == before
    assert os.listdir(tmp_path) == ['model']


def test_the_demo_takes_a_checkpoint_and_a_csv(tmp_path, df, hf):
    hf.model.save_pretrained(tmp_path/'ckpt'); hf.tokenizer.save_pretrained(tmp_path/'ckpt')
    df.rename(columns={'text': 'review', 'label': 'mood'}).to_csv(tmp_path/'my.csv', index=False)
    args = '--checkpoint ckpt --data my.csv --text-col review --label-col mood --out out --max-length 48 --epochs 1'
    args = [sys.executable, '-m', 'blurlike.demo', *args.split()]
    run = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.search(r'\bout\b.*\b0\.\d{3}\b', run.stdout)
    lines = [o for o in run.stdout.splitlines() if o.startswith(('good (', 'bad ('))]
    assert len(lines) == 6
    assert lines[:3] == lines[3:]
    last = textwrap.dedent(run.stdout[run.stdout.index('    from transformers'):])
    subprocess.run([sys.executable, '-c', last], cwd=tmp_path, check=True)


def write_gguf(path, config):
    "A file with random weights for a llama, 4 bits each"
    writer,rng = gguf.GGUFWriter(path, 'llama'),np.random.default_rng(0)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    hidden,inner = config.hidden_size,config.intermediate_size
    shapes = dict(attn_q=(hidden, hidden), attn_k=(hidden, hidden), attn_v=(hidden, hidden),
                  attn_output=(hidden, hidden),
                  ffn_up=(inner, hidden), ffn_gate=(inner, hidden), ffn_down=(hidden, inner))
    matrices = {'token_embd': (config.vocab_size, hidden)} | {f'blk.{i}.{k}': v for i in range(config.num_hidden_layers)
                                                              for k,v in shapes.items()}
    q4 = gguf.GGMLQuantizationType.Q4_0
    for k,v in matrices.items():
        writer.add_tensor(f'{k}.weight', gguf.quants.quantize(rng.normal(0, 0.05, v).astype('float32'), q4),
                          raw_dtype=q4)
    for k in ['output_norm', *(f'blk.{i}.{o}_norm' for i in range(config.num_hidden_layers) for o in ('attn', 'ffn'))]:
        writer.add_tensor(f'{k}.weight', np.ones(hidden, 'float32'))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_model_from_a_gguf_file_trains_and_is_saved(df, tmp_path):
    config,tokenizer = make_config('llama', tie_word_embeddings=True, num_key_value_heads=2, intermediate_size=64)
    write_gguf(tmp_path/'tiny.gguf', config)
    model = load_hf_model(tmp_path, AutoModelForCausalLM, config, dict(gguf_file='tiny.gguf'))
    before = model.lm_head.weight.clone()
    assert before.dtype == torch.float32
    assert 0.02 < before.std() < 0.08
    dls = HFTextDataLoaders.from_df(df, HFObjects('llama', config, tokenizer, model), task='causal-lm',
                                    valid_col='is_valid', block_size=32, bs=8)
    learn = hf_learner(dls, model)
    learn.fit(1, 1e-3)
    assert not torch.equal(model.lm_head.weight.cpu(), before)
    saved = AutoModelForCausalLM.from_pretrained(learn.save_pretrained(tmp_path/'model'))
    assert torch.equal(saved.lm_head.weight, model.lm_head.weight.cpu())


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('arch', ['mistral', 'llama', 'gpt2'])
def test_the_sides_of_the_tokenizer_are_saved(arch, side, df, tmp_path):
    "`AutoTokenizer` may choose another class for the architecture, with other sides"
    hf = make_objects(arch, auto_model=AutoModelForCausalLM)
    hf.tokenizer.padding_side,hf.tokenizer.truncation_side = side,'left'
    dls = HFTextDataLoaders.from_df(df, hf, task='causal-lm', valid_col='is_valid', bs=8, device='cpu')
    learn = hf_learner(dls, hf.model)
    loaded = AutoTokenizer.from_pretrained(learn.save_pretrained(tmp_path/'model'))
    assert (loaded.padding_side, loaded.truncation_side) == (side, 'left')


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize(('arch', 'task'), [
    *((o, 'sequence-classification') for o in ('bert', 'roberta', 'gpt2', 'biogpt', 'opt', 'llama')),
    ('bert', 'token-classification'), ('gpt2', 'token-classification'), ('bert', 'multi-label-classification'),
    ('bert', 'masked-lm')])
def test_a_saved_model_predicts_the_same_in_batches(arch, task, side, tmp_path):
    learn = make_learner(arch, task, side)
    block = learn.dls.hf_block
    texts = ['the film warm', 'the plot dull the cast sour the score lovely', 'the ending', 'the story hollow the film']
    if task=='masked-lm': texts = [f'{o} {block.hf_tokenizer.mask_token}' for o in texts]
    tag = block.task.pipeline_tag or task
    options = dict(top_k=None) if tag=='text-classification' else {}
    pipe = pipeline(tag, model=str(learn.save_pretrained(tmp_path/'model')), device='cpu', **options)
    alone,together = ([scores_of(o) for o in pipe(texts, batch_size=n)] for n in (1, 4))
    for a,b in zip(alone, together, strict=True): assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize(('arch', 'side'), [('bert', 'right'), ('xlnet', 'left')])
def test_the_side_that_was_used_is_saved(arch, side, df, tmp_path):
    hf = make_objects(arch)
    hf.tokenizer.padding_side = 'right' if side=='left' else 'left'
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', bs=8, device='cpu'), hf.model)
    assert AutoTokenizer.from_pretrained(learn.save_pretrained(tmp_path/'model')).padding_side==side


@pytest.mark.parametrize(('arch', 'before'), [('bert', 64), ('bert', 40), ('llama', None), ('t5', 50)])
def test_new_data_on_a_saved_model_starts_from_the_limit_before_training(arch, before, df, tmp_path, capsys):
    hf = make_objects(arch)
    if before: hf.tokenizer.model_max_length = before
    folder = tmp_path/'model'
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, valid_col='is_valid', max_length=12, device='cpu'), hf.model)
    text = ' '.join(df.text)
    for _ in range(2): # a loaded model is saved as it was
        learn.save_pretrained(folder)
        loaded = AutoTokenizer.from_pretrained(folder)
        assert loaded.model_max_length == 12
        assert len(loaded(text, truncation=True)['input_ids']) == 12
        capsys.readouterr()
        assert HFTextDataLoaders.from_df(df, folder, valid_col='is_valid').hf_block.max_length == before
        assert 'model_max_length' not in capsys.readouterr().err
        theirs = pipeline('text-classification', model=str(folder), truncation=True)(text)[0]
        assert learn.hf_predict(text)['score'] == pytest.approx(theirs['score'], abs=1e-5)
        learn = load_hf_learner(folder, device='cpu')
        assert learn.dls.hf_block.max_length == 12
    for kwargs in (dict(tokenizer_kwargs=dict(model_max_length=20)), {}): # a limit that a user sets counts
        hf = get_hf_objects(folder, **kwargs)
        if not kwargs: hf.tokenizer.model_max_length = 20
        assert HFTextBlock(*hf).max_length == 20


def refuse(monkeypatch, name, path, number):
    "Let a method of `Path` fail for `path`, as for the folder of a volume in a container"
    whole = getattr(Path, name)
    def fail(self, *args, **kwargs):
        if self==path or name=='mkdir' and self.parent==path: raise OSError(number, os.strerror(number), str(self))
        return whole(self, *args, **kwargs)
    monkeypatch.setattr(Path, name, fail)


@pytest.mark.parametrize('fault', ['rename', 'mkdir', 'inside'])
def test_a_folder_that_cannot_be_renamed_is_filled(fault, learn, tmp_path, monkeypatch):
    folder = tmp_path/'volume'
    folder.mkdir()
    for bias in (0., 1.):
        with torch.no_grad(): learn.model.classifier.bias.fill_(bias)
        with monkeypatch.context() as m:
            if fault=='rename': refuse(m, 'rename', folder, errno.EBUSY)
            elif fault=='mkdir': refuse(m, 'mkdir', tmp_path, errno.EACCES)
            else: m.chdir(folder)
            learn.save_pretrained('.' if fault=='inside' else folder)
            assert fault!='inside' or Path.cwd().samefile(folder)
        assert load_hf_learner(folder, device='cpu').model.classifier.bias.tolist() == [bias]*2
        (folder/'notes.txt').write_text('mine')
    assert [o.name for o in tmp_path.iterdir()] == ['volume']
    assert not [o for o in folder.iterdir() if o.name.startswith('.')]
    learn.save_pretrained(folder)
    assert (folder/'notes.txt').read_text() == 'mine'
