"Models are pushed to a Hub server on loopback and pulled from it by other processes, also over connections that break."
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import transformers
from conftest import mentions
from hub_server import serving
from test_load import quiet
from test_matrix import assert_same, make_learner

from blurlike.ship import hub as hub_module
from blurlike.ship.save import is_model_file

TEXTS = ['the film warm', 'the plot dull the cast sour']
WORKER = """
import json, sys, time, traceback
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.05)) # the client waits long before it tries again
from blurlike.all import *
from huggingface_hub import HfApi, ModelCard, from_pretrained_fastai, push_to_hub_fastai
out,sys.stdout = sys.stdout,sys.stderr
names = dict(globals())
for line in sys.stdin:
    try:
        code = json.loads(line)
        exec(code, names)
        res = dict(value=names.pop('res', None))
    except Exception as e: res = dict(error=str(e), type=type(e).__name__, trace=traceback.format_exc())
    print(json.dumps(res), file=out, flush=True)
"""


class Process:
    "Another Python process with a home and a cache of its own, whose Hub is ours"
    def __init__(self, hub, home, token='hf_ada'):
        env = {k: v for k,v in os.environ.items() if k not in ('HF_HUB_OFFLINE', 'HF_TOKEN')} | dict(
            HF_ENDPOINT=hub.url, HF_HOME=str(home), HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1',
            NO_PROXY='127.0.0.1', OMP_NUM_THREADS='1')
        if token: env['HF_TOKEN'] = token
        self.process = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', WORKER], env=env, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, code, **names):
        "What `code` leaves under the name `res`"
        self.process.stdin.write(json.dumps(''.join(f'{k} = {v!r}\n' for k,v in names.items()) + code) + '\n')
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if 'error' in answer:
            raise RuntimeError(f"{answer['type']}: {answer['error']}") from RuntimeError(answer['trace'])
        return answer['value']

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope='module')
def hub():
    with serving() as hub: yield hub


@pytest.fixture(autouse=True)
def calm(hub):
    hub.requests.clear()
    hub.faults.clear()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "A trained model in a folder, and its predictions"
    learn = quiet(make_learner('bert', 'sequence-classification'))
    learn.fit(1)
    return str(learn.save_pretrained(tmp_path_factory.mktemp('saved')/'model')),learn.hf_predict(TEXTS)


@pytest.fixture(scope='module')
def pusher(hub, saved, tmp_path_factory):
    process = Process(hub, tmp_path_factory.mktemp('pusher'))
    process('learn = load_hf_learner(folder, device="cpu")', folder=saved[0])
    yield process
    process.close()


@pytest.fixture(scope='module')
def puller(hub, tmp_path_factory):
    process = Process(hub, tmp_path_factory.mktemp('puller'), token=None)
    yield process
    process.close()


def with_bias(change, code):
    "Code that runs while the bias of the classifier is changed"
    def add(change): return f'with torch.no_grad(): learn.model.classifier.bias += {change}'
    return '\n'.join(['import torch', add(change), code, add(-change)])


def uploads(hub): return [p for m,p in hub.requests if m=='PUT']


def test_another_process_lists_and_pulls_what_was_pushed(hub, pusher, puller, saved):
    url = pusher('res = learn.push_to_hub("ada/moods", commit_message="Moods of films").commit_url')
    assert url.startswith(f'{hub.url}/ada/moods/commit/')
    repo = hub.repos['model', 'ada/moods']
    assert repo.log[-1] == ('main', 'Moods of films')
    assert len(repo.log) == 2
    files = set(pusher('res = HfApi().list_repo_files("ada/moods")'))
    assert files == set(os.listdir(saved[0])) >= {'config.json', 'model.safetensors', 'blurlike.json', 'README.md',
                                                  'tokenizer.json'}
    assert_same(puller('res = load_hf_learner("ada/moods", device="cpu").hf_predict(texts)', texts=TEXTS), saved[1])
    ask = ('from transformers import pipeline\n'
           'res = pipeline("text-classification", "ada/moods", device="cpu")(texts)[0]["label"]')
    assert puller(ask, texts=TEXTS) == saved[1][0]['label']


def test_only_changed_files_are_uploaded_again(hub, pusher):
    pusher('learn.push_to_hub("ada/twice")')
    hub.requests.clear()
    pusher('learn.push_to_hub("ada/twice", card=learn.model_card(model_name="Another name"))')
    assert uploads(hub) == []
    old,new = list(hub.repos['model', 'ada/twice'].commits.values())[-2:]
    assert [k for k in new if new[k].data != old[k].data] == ['README.md']
    pusher(with_bias(1, 'learn.push_to_hub("ada/twice")'))
    assert len(uploads(hub)) == 1


def test_a_pull_requests_no_pickle_and_no_code(hub, pusher, puller):
    pusher('learn.push_to_hub("ada/extras")\nfor n in ("pytorch_model.bin", "modeling.py", "model.pkl"): '
           'HfApi().upload_file(path_or_fileobj=b"x", path_in_repo=n, repo_id="ada/extras")')
    hub.requests.clear()
    puller('load_hf_learner("ada/extras", device="cpu")')
    asked = [p for _,p in hub.requests if '/resolve/' in p]
    assert any(p.endswith('model.safetensors') for p in asked)
    assert not any(p.endswith(('.bin', '.py', '.pkl')) for p in asked)


def test_an_onnx_export_is_pushed_and_pulled(hub, pusher, puller, saved, tmp_path):
    pusher('learn.export_onnx(path)\nsmall = load_hf_learner(path)\nsmall.push_to_hub("ada/exported")',
           path=str(tmp_path/'exported'))
    assert 'onnx/model.onnx' in pusher('res = HfApi().list_repo_files("ada/exported")')
    assert_same(puller('res = load_hf_learner("ada/exported").hf_predict(texts)', texts=TEXTS), saved[1])
    pusher('learn.push_to_hub("ada/both")')
    pusher('HfApi().upload_file(path_or_fileobj=path, path_in_repo="onnx/other.onnx", repo_id="ada/both")',
           path=str(tmp_path/'exported'/'onnx'/'model.onnx'))
    hub.requests.clear()
    assert_same(puller('res = load_hf_learner("ada/both", onnx="onnx/other.onnx").hf_predict(texts)', texts=TEXTS),
                saved[1])
    puller('load_hf_learner("ada/both", device="cpu")')


def test_a_push_deletes_the_onnx_files_of_an_older_model_and_keeps_others(hub, pusher, tmp_path):
    pusher('learn.export_onnx(path)\nload_hf_learner(path).push_to_hub("ada/newer")', path=str(tmp_path/'exported'))
    pusher('HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="onnx/other.onnx", repo_id="ada/newer")')
    pusher('learn.push_to_hub("ada/newer")')
    files = pusher('res = HfApi().list_repo_files("ada/newer")')
    assert 'onnx/model.onnx' not in files
    assert {'onnx/other.onnx', 'model.safetensors'} <= {*files}


def test_the_files_of_all_tokenizers_are_pushed_and_pulled():
    names = set()
    for k in dir(transformers):
        if not k.endswith('Tokenizer'): continue
        with suppress(ImportError): # it needs a package that is not installed
            names |= {*(getattr(getattr(transformers, k), 'vocab_files_names', None) or {}).values()}
    names -= {'emoji.json'}
    assert len(names) > 8
    assert [o for o in names if not any(Path(o).match(p) for p in hub_module._NEEDED)] == []
    assert [o for o in names if not is_model_file(o) and not o.endswith('.json')] == []


def test_a_second_pull_uses_the_cache(hub, pusher, puller):
    pusher('learn.push_to_hub("ada/cached")')
    puller('load_hf_learner("ada/cached", device="cpu")')
    hub.requests.clear()
    puller('load_hf_learner("ada/cached", device="cpu")')
    assert not any(m=='GET' and '/resolve/' in p for m,p in hub.requests)


def test_a_revision_is_a_branch_or_a_commit(hub, pusher, puller):
    first = pusher('res = learn.push_to_hub("ada/revisions", card=learn.model_card(model_name="First")).oid')
    pusher('learn.push_to_hub("ada/revisions", max_shard_size="10KB")')
    ask = ('from blurlike.ship.hub import find_model\n'
           'res = sorted(o.name for o in find_model("ada/revisions", revision=revision).glob("*.safetensors"))')
    assert puller(ask, revision=first) == ['model.safetensors']
    shards = puller(ask, revision='main')
    assert len(shards) > 1
    assert 'model.safetensors' not in shards
    with pytest.raises(RuntimeError, match=mentions('OSError', "path='ada/revisions'", 404)):
        puller('load_hf_learner("ada/revisions", revision="gone")')


def test_a_pull_request_leaves_the_branch_unchanged(hub, pusher):
    pusher('learn.push_to_hub("ada/asked")')
    before = hub.repos['model', 'ada/asked'].refs['main']
    push = 'res = learn.push_to_hub("ada/asked", create_pr=True, card=learn.model_card(model_name="Better")).pr_url'
    assert pusher(push) == f'{hub.url}/ada/asked/discussions/1'
    assert hub.repos['model', 'ada/asked'].refs['main'] == before


def test_a_private_model_needs_a_token(hub, pusher, puller, saved):
    pusher('learn.push_to_hub("ada/secret", private=True)')
    assert hub.repos['model', 'ada/secret'].private
    for token,status in ((None, 401), ('hf_bob', 404), ('hf_wrong', 401)):
        with pytest.raises(RuntimeError, match=mentions('OSError', "path='ada/secret'", status)) as e:
            puller('load_hf_learner("ada/secret", token=token)', token=token)
        assert '\n' not in str(e.value)
    assert_same(puller('res = load_hf_learner("ada/secret", token="hf_ada", device="cpu").hf_predict(texts)',
                       texts=TEXTS), saved[1])


@pytest.mark.parametrize(('args', 'facts'), [
    ('"ada/x", token="hf_wrong"', ['OSError', "repo_id='ada/x'", 'token', 401]),
    ('"ada/x", token="hf_reader"', ['OSError', "repo_id='ada/x'", 'token', 403]),
    ('"bob/x"', ['OSError', "repo_id='bob/x'", 'token', 403]),
    ('"no--name"', ['ValueError', "repo_id='no--name'", "'user/model'"]),
    ('"a/b/c"', ['ValueError', "repo_id='a/b/c'", "'user/model'"])])
def test_a_push_that_is_not_allowed_raises(pusher, args, facts):
    with pytest.raises(RuntimeError, match=mentions(*facts)) as e: pusher(f'learn.push_to_hub({args})')
    assert '\n' not in str(e.value)


def test_without_a_token_nothing_is_pushed(hub, puller, saved):
    with pytest.raises(RuntimeError, match=mentions('OSError', "repo_id='ada/x'", 'token', 401)):
        puller('load_hf_learner(folder, device="cpu").push_to_hub("ada/x")', folder=saved[0])
    assert ('model', 'ada/x') not in hub.repos


@pytest.mark.parametrize('fault', [('/lfs/', 'cut', 'PUT'), ('/commit/', 'cut', 'POST'), ('/commit/', 409, 'POST'),
                                   ('/commit/', 500, 'POST'), ('/preupload/', 403, 'POST')])
def test_a_failed_push_leaves_the_repository_and_a_retry_completes(hub, pusher, fault):
    name = f"ada/broken{hash(fault) % 10**6}"
    pusher('learn.push_to_hub(name)', name=name)
    repo = hub.repos['model', name]
    before = dict(repo.refs)
    hub.faults += [fault]*20
    change = 'import torch\nwith torch.no_grad(): learn.model.classifier.bias += torch.rand(2)\n'
    with pytest.raises(RuntimeError, match=mentions('OSError', f"repo_id='{name}'")) as e:
        pusher(change + 'learn.push_to_hub(name)', name=name)
    assert '\n' not in str(e.value)
    assert repo.refs == before
    hub.faults.clear()
    pusher('learn.push_to_hub(name)', name=name)
    assert repo.refs != before


def test_a_push_survives_one_broken_connection(hub, pusher):
    hub.faults += [('/lfs/', 'cut', 'PUT')]
    pusher(with_bias(3, 'learn.push_to_hub("ada/once")'))
    assert 'model.safetensors' in hub.repos['model', 'ada/once'].commits[hub.repos['model', 'ada/once'].refs['main']]


def test_an_unreachable_hub_raises(saved, hub, tmp_path):
    with serving() as other: pass
    process = Process(other, tmp_path)
    for code,name in (('load_hf_learner("ada/moods")', 'path'),
                      ('load_hf_learner(folder, device="cpu").push_to_hub("ada/moods")', 'repo_id')):
        with pytest.raises(RuntimeError, match=mentions('OSError', f"{name}='ada/moods'", 'refused')) as e:
            process(code, folder=saved[0])
        assert '\n' not in str(e.value)
    process.close()


def test_a_card_edited_on_the_hub_is_kept(hub, pusher):
    push = 'learn.push_to_hub("ada/carded")'
    edit = 'HfApi().upload_file(path_or_fileobj=b"# My own", path_in_repo="README.md", repo_id="ada/carded")'
    pusher(f'{push}\n{edit}\n{push}')
    repo = hub.repos['model', 'ada/carded']
    assert repo.commits[repo.refs['main']]['README.md'].data == b'# My own'


def test_the_hub_accepts_the_metadata_of_the_card(pusher):
    pusher('card = learn.model_card(language="en", license="mit", datasets="imdb")\ncard.validate()')
    with pytest.raises(RuntimeError, match=mentions('ValueError', 'pipeline_tag')):
        pusher('card.data.pipeline_tag = ["a"]\ncard.validate()')


def test_push_to_hub_fastai_works_too(hub, pusher, puller, saved):
    pusher('push_to_hub_fastai(load_hf_learner(folder, device="cpu"), repo_id="ada/pickled")', folder=saved[0])
    assert 'model.pkl' in hub.repos['model', 'ada/pickled'].commits[hub.repos['model', 'ada/pickled'].refs['main']]
    preds = puller('res = from_pretrained_fastai("ada/pickled").hf_predict(texts)', texts=TEXTS)
    assert [o['label'] for o in preds] == [o['label'] for o in saved[1]]


def test_a_new_branch_is_created_and_keeps_its_own_card(hub, pusher):
    pusher('learn.push_to_hub("ada/branches")')
    edited = "---\\nlicense: mit\\n---\\nMy words"
    pusher(f'learn.push_to_hub("ada/branches", revision="dev", card=ModelCard("{edited}"))')
    pusher('learn.push_to_hub("ada/branches", revision="dev")') # its card is not that of the main branch
    repo = hub.repos['model', 'ada/branches']
    cards = {o: repo.commits[repo.refs[o]]['README.md'].data for o in ('main', 'dev')}
    assert b'My words' in cards['dev']
    assert b'My words' not in cards['main']


def test_the_command_keeps_a_card_that_was_edited_on_the_hub(hub, pusher, saved):
    from_shell = 'from blurlike.cli import run\nres = run(["push", folder, "ada/shell"])'
    assert pusher(from_shell, folder=saved[0]) == 0
    edited = "---\\nlicense: mit\\n---\\nMy words"
    pusher(f'ModelCard("{edited}").push_to_hub("ada/shell")')
    assert pusher(from_shell, folder=saved[0]) == 0
    repo = hub.repos['model', 'ada/shell']
    assert b'My words' in repo.commits[repo.refs['main']]['README.md'].data


def test_code_is_downloaded_only_if_it_is_trusted(hub, pusher, puller):
    pusher('learn.push_to_hub("ada/code")\n'
           'HfApi().upload_file(path_or_fileobj=b"print(1)", path_in_repo="own.py", repo_id="ada/code")')
    ask = ('from blurlike.ship.load import find_files\n'
           'res = (find_files("ada/code", None, None, None, trust)[0]/"own.py").exists()')
    assert not puller(ask, trust=False)
    assert puller(ask, trust=True)
