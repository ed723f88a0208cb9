"The web page of a model predicts as the model does, in a browser and for programs, and handles any input."
import math
import re
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
import torch
from conftest import mentions
from gradio_client import Client
from hub_server import serving
from packaging.requirements import Requirement
from PIL import Image
from test_hub import Process
from test_load import ARCHS, quiet, saved, texts_of  # noqa: F401  a fixture
from test_matrix import TASKS, make_learner

import blurlike.ship.serve
from blurlike.all import HFObjects, HFTextDataLoaders, SequenceClassification, Task, load_hf_learner, serve
from blurlike.ship.serve import PAGES, Page, page_class, page_for, stream_generate
from blurlike.tasks.generation import Generates

sys.path.insert(0, str(Path(__file__).parent.parent/'tools'))
from screenshot import ask, browser_page, find_browser  # noqa: E402

WRITERS = 'summarization', 'translation', 'text2text-generation'
EVERY_TASK = pytest.mark.parametrize('task', sorted(TASKS))


@contextmanager
def open_page(model, **kwargs):
    app = serve(model, wait=False, **kwargs)
    try: yield app
    finally: app.close(verbose=False)


@contextmanager
def client_of(model, **kwargs):
    "A function that calls the page as a program does"
    with open_page(model, **kwargs) as app:
        client = Client(app.local_url, verbose=False)
        yield lambda *args: client.predict(*args, api_name='/predict')


def free_port():
    with closing(socket.socket()) as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def typed(task, text):
    "Return the values of the page's boxes for a text"
    if task=='causal-lm': return [text, 5, 0]
    if isinstance(text, dict): return list(text.values())
    if task=='multiple-choice': return [text[0], '\n'.join(text[1])]
    return [text, 0.4] if task=='multi-label-classification' else [text, 5] if task in WRITERS else [text]


def agrees(task, learn, text, shown):
    "Whether a page shows the predictions of the learner"
    if isinstance(learn.dls.hf_block.task, Generates):
        return shown == list(learn.hf_generate(text, max_new_tokens=5).values())[0]
    pred = learn.hf_predict(text)
    if task=='multiple-choice':
        return shown['choice']==pred['choice'] and shown['probs']==pytest.approx(pred['probs'], abs=1e-4)
    bars = lambda o: {c['label']: c['confidence'] for c in o['confidences']}
    close = lambda a,b: a.keys()==b.keys() and all(math.isclose(a[k], b[k], abs_tol=1e-4) for k in a)
    names = learn.model.config.id2label
    if task=='sequence-classification':
        return shown['label']==pred['label'] and close(bars(shown), {names[i]: p for i,p in enumerate(pred['probs'])})
    if task=='multi-label-classification':
        pred = learn.hf_predict(text, threshold=0.4)
        probs = {names[i]: p for i,p in enumerate(pred['probs'])}
        return shown[0]==(', '.join(pred['labels']) or '(none)') and close(bars(shown[1]), probs)
    if task=='regression': return shown['data'] == [[pred['label'], round(pred['score'], 4)]]
    if task=='masked-lm':
        words = [[o['token_str'].strip(), f"{o['score']:.3f}", o['sequence']] for o in pred]
        return [o[1:] for o in shown['data']] == words
    marks = [o['token'] for o in shown[0] if o['class_or_confidence']]
    if task=='question-answering':
        pred = learn.hf_predict([text], top_k=3)[0][0]
        context = ''.join(o['token'] for o in shown[0])
        return marks==[pred['answer']] and shown[1]['label']==pred['answer'] and context==text['context']
    found = learn.hf_predict([text], many=True)[0]
    return marks==[o['word'] for o in found] and [o[0] for o in shown[1]['data']]==[o['entity_group'] for o in found]


@EVERY_TASK
def test_a_page_shows_the_predictions_of_the_learner(task, saved):  # noqa: F811
    path,texts,_ = saved[task]
    learn = load_hf_learner(path)
    with client_of(path) as say:
        for text in texts[:2]: assert agrees(task, learn, text, say(*typed(task, text)))


@pytest.mark.skipif(find_browser() is None, reason='needs Chromium: apt-get install chromium')
def test_every_task_works_in_a_browser(saved, tmp_path):  # noqa: F811
    from playwright.sync_api import expect
    with browser_page() as page:
        asked = []
        page.on('request', lambda o: asked.append(o.url))

        # The command, in a process of its own
        path,texts,preds = saved['sequence-classification']
        port = free_port()
        process = subprocess.Popen([sys.executable, '-W', 'ignore', '-m', 'blurlike', 'serve', str(path), '--port',
                                    str(port), '--title', 'Good or bad'],
                                   stdout=subprocess.PIPE, text=True)
        try:
            assert f'127.0.0.1:{port}' in process.stdout.readline()
            ask(page, f'http://127.0.0.1:{port}', {'text': texts[0]})
            assert page.title()=='Good or bad'
            expect(page.get_by_test_id('label-output-value')).to_have_text(preds[0]['label'])
            label,score = preds[0]['label'],preds[0]['score']
            expect(page.get_by_test_id(f"{label}-confidence-set")).to_contain_text(f"{100*score:.0f}%")
            page.screenshot(path=tmp_path/'page.png')
            # a page, and not an empty one
            assert len(Image.open(tmp_path/'page.png').convert('RGB').getcolors(1<<24)) > 20
        finally:
            process.terminate()
            process.wait()

        path,texts,_ = saved['token-classification']
        found = load_hf_learner(path).hf_predict([texts[0]], many=True)[0]
        with open_page(path) as app:
            ask(page, app.local_url, {'text': texts[0]})
            for i,o in enumerate(found): expect(page.get_by_test_id(f'cell-{i}-1')).to_have_text(o['word'])
            shown = page.get_by_test_id('highlighted-text').inner_text()
            assert re.sub(r'\s+', '', shown).endswith(re.sub(r'\s+', '', texts[0]))

        path,texts,preds = saved['question-answering']
        with open_page(path) as app:
            ask(page, app.local_url, texts[0])
            expect(page.get_by_test_id('label-output-value')).to_have_text(preds[0]['answer'])
            expect(page.get_by_test_id('highlighted-text')).to_contain_text(preds[0]['answer'])

        path,texts,_ = saved['multi-label-classification']
        with open_page(path) as app:
            ask(page, app.local_url, {'text': texts[0]})
            for o in load_hf_learner(path).model.config.label2id:
                expect(page.get_by_test_id(f'{o}-confidence-set')).to_be_visible()

        path,texts,preds = saved['regression']
        with open_page(path) as app:
            ask(page, app.local_url, {'text': texts[0]})
            expect(page.get_by_test_id('cell-0-1')).to_have_text(str(round(preds[0]['score'], 4)))

        for task,box in (('causal-lm', 'prompt'), *((o, 'text') for o in WRITERS)):
            path,texts,_ = saved[task]
            learn = load_hf_learner(path)
            with open_page(path) as app:
                ask(page, app.local_url, {box: texts[0]}, 'Generate')
                most = int(page.get_by_label('max_new_tokens').first.input_value() or 0) or 64
                generated = list(learn.hf_generate(texts[0], max_new_tokens=most).values())[0]
                expect(page.get_by_label('generated text')).to_have_value(generated)

        # Errors are shown on the page
        path,texts,preds = saved['masked-lm']
        with open_page(path) as app:
            ask(page, app.local_url, {'text': texts[0]})
            expect(page.get_by_test_id('cell-0-1')).to_have_text(preds[0][0]['token_str'].strip())
            for wrong,fact in (('no gap in it', '[MASK]'), ('   ', 'text')):
                ask(page, app.local_url, {'text': wrong})
                expect(page.get_by_test_id('toast-text').first).to_contain_text(fact)
                assert 'Traceback' not in page.content()
                assert '.py' not in page.get_by_test_id('toast-text').first.inner_text()
        assert [o for o in asked if not o.startswith(('http://127.0.0.1:', 'data:', 'blob:'))] == []


def test_pairs_have_two_boxes(tmp_path):
    from conftest import make_objects, make_texts

    from blurlike.all import HFTextDataLoaders, hf_learner
    df = make_texts(16).assign(other='the plot')
    hf = make_objects()
    learn = hf_learner(HFTextDataLoaders.from_df(df, hf, text_col=['text', 'other'], label_col='label', bs=4,
                                                 device='cpu'), hf.model)
    pair = 'the film warm','the plot dull'
    with client_of(learn) as say: assert say(*pair)['label'] == learn.hf_predict(pair)['label']


@pytest.mark.parametrize('task', ['causal-lm', 'translation'])
def test_a_text_appears_while_it_is_generated(task, saved):  # noqa: F811
    learn,text = load_hf_learner(saved[task][0]),saved[task][1][0]
    # so that there is something to watch
    learn.model.generation_config.update(eos_token_id=None, forced_eos_token_id=None)
    options = dict(max_new_tokens=30, do_sample=True, suppress_tokens=learn.dls.hf_block.hf_tokenizer.all_special_ids)
    def seeded(f, **kwargs):
        torch.manual_seed(0)
        return f(learn, text, **kwargs)
    parts = seeded(lambda *args, **kwargs: list(stream_generate(*args, **kwargs)), **options)
    assert len(set(parts)) > 1
    assert parts[-1] == list(seeded(type(learn).hf_generate, **options).values())[0]
    for a,b in zip(parts[:-1], parts[1:-1], strict=False): assert b.startswith(a)
    beams = list(stream_generate(learn, text, max_new_tokens=10, num_beams=2))
    assert beams == [list(learn.hf_generate(text, max_new_tokens=10, num_beams=2).values())[0]]
    with pytest.raises(ValueError, match=mentions('text', 3)): list(stream_generate(learn, 3, max_new_tokens=3))


def test_programs_pass_values_by_name(saved):  # noqa: F811
    path,texts,preds = saved['question-answering']
    with open_page(path) as app: shown = Client(app.local_url, verbose=False).predict(**texts[0], api_name='/predict')
    assert shown[1]['label'] == preds[0]['answer']


def test_generation_stops_when_the_page_is_closed():
    learn = quiet(make_learner('llama', 'causal-lm')) # whose positions have no end
    learn.model.generation_config.eos_token_id = None
    calls = []
    learn.model.register_forward_pre_hook(lambda *_: calls.append(time.monotonic()))
    writing = stream_generate(learn, 'the film', max_new_tokens=100_000, do_sample=False)
    next(writing)
    writing.close()
    time.sleep(0.5)
    before = len(calls)
    time.sleep(0.5)
    assert len(calls)==before < 100_000


def test_invalid_input_is_answered_by_an_error(saved):  # noqa: F811
    path,texts,_ = saved['masked-lm']
    with client_of(path, max_chars=100) as say:
        for text,facts in (('', ['text']), ('long '*30, ['text', 150, 100]), ('no gap', ['gap', '[MASK]'])):
            with pytest.raises(Exception, match=mentions(*facts)): say(text)
        assert say(texts[0])['data'] # and the next one is answered


def test_internal_errors_are_not_shown(learn, monkeypatch):
    def fail(*args, **kwargs): raise RuntimeError('the password is 1234')
    monkeypatch.setattr(learn, 'hf_predict', fail)
    with client_of(learn) as say, pytest.raises(Exception) as e: say('the film')  # noqa: PT011
    assert '1234' not in str(e.value)


def test_large_requests_are_refused(learn):
    with open_page(learn, max_chars=1000) as app:
        url = f'{app.local_url}gradio_api/call/predict'
        answer = httpx.post(url, content=b'x'*1_000_000)
        assert answer.status_code == 413
        assert '116,000' in answer.text
        def chunks():
            for _ in range(1000): yield b'x'*1000
        try: assert httpx.post(url, content=chunks()).status_code >= 400
        except httpx.HTTPError: pass # cut off
        assert httpx.post(url, json=dict(data=['the film'])).status_code==200


def test_only_this_machine_has_access(learn):
    with open_page(learn) as app:
        port = app.server_port
        with socket.create_connection(('127.0.0.1', port), 5): pass
        with pytest.raises(ConnectionRefusedError): socket.create_connection(('127.0.0.2', port), 5)
    with open_page(learn, host='0.0.0.0') as app, socket.create_connection(('127.0.0.2', app.server_port), 5): pass


def test_invalid_arguments_of_serve_raise(learn, monkeypatch):
    with closing(socket.socket()) as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(OSError, match=mentions(f'port={port}')): serve(learn, port=port, wait=False)
    with pytest.raises(FileNotFoundError, match=mentions('/no/such/model')): serve('/no/such/model', wait=False)
    for port in (99999, 0, '80'):
        with pytest.raises(ValueError, match=mentions(f'port={port!r}', 65535)): serve(learn, port=port, wait=False)
    with pytest.raises(OSError, match="host='192.0.2.1'"): serve(learn, host='192.0.2.1', wait=False)
    with pytest.raises(TypeError, match=mentions('revision')): serve(learn, revision='main', wait=False)
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(ImportError, match=mentions('gradio', 'blurlike[serve]')): serve(learn)


def test_a_custom_task_can_have_a_custom_page(learn, monkeypatch):
    class Mine(SequenceClassification): name = None
    class Heir(Mine): name = None
    monkeypatch.setattr(learn.dls.hf_block, 'task', Heir())
    # The page of its parent
    with client_of(learn) as say: assert say('the film')['label'] == learn.hf_predict('the film')['label']
    monkeypatch.setattr(blurlike.ship.serve, 'PAGES', {**PAGES})
    @page_for(Mine)
    class Shout(Page):
        def outputs(self): return [self.gr.Textbox(label='loud')]
        def answer(self, text): return self.predict([text])['label'].upper()
    with client_of(learn) as say: assert say('the film') == learn.hf_predict('the film')['label'].upper()


def test_a_task_without_a_page_shows_json(learn, monkeypatch):
    monkeypatch.setattr(blurlike.ship.serve, 'PAGES', {Task: Page})
    with client_of(learn) as say: assert say('the film') == learn.hf_predict('the film')


def test_a_space_contains_the_page_and_the_model(saved, tmp_path):  # noqa: F811
    path,texts,preds = saved['sequence-classification']
    push = (f"learn = load_hf_learner({str(path)!r})\n"
            "res = learn.push_to_space('ada/moods', title='Moods').commit_url\n"
            "there = HfApi().list_repo_files('ada/moods', repo_type='space')")
    with serving() as hub:
        worker = Process(hub, tmp_path/'home')
        worker(push)
        files = worker('res = there')
        assert {'app.py', 'requirements.txt', 'README.md', 'model/config.json', 'model/model.safetensors',
                'model/tokenizer.json'} <= set(files)
        hub.requests.clear()
        worker(push) # again: nothing is uploaded
        assert not [o for o in hub.requests if o[0]=='PUT']
        pull = ("from huggingface_hub import snapshot_download\n"
                "res = snapshot_download('ada/moods', repo_type='space', local_dir=to)")
        folder = Path(worker(pull, to=str(tmp_path/'space')))
        reader = Process(hub, tmp_path/'home2', token='hf_reader')
        with pytest.raises(RuntimeError, match=mentions("repo_id='ada/other'", 'token', 403)):
            reader(push.replace('ada/moods', 'ada/other'))
        for o in (worker, reader): o.close()
    assert 'sdk: gradio' in (folder/'README.md').read_text()
    assert 'title: Moods' in (folder/'README.md').read_text()
    wanted = [Requirement(o) for o in (folder/'requirements.txt').read_text().splitlines()]
    assert 'blurlike' not in {o.name for o in wanted} # it is on no index
    assert {'fastai', 'transformers', 'torch', 'gradio'} <= {o.name for o in wanted}
    for o in wanted: assert o.specifier.contains(version(o.name)) # the installed packages, which serve the page below
    package = Path(blurlike.__file__).parent
    sources = [o.relative_to(package) for o in package.rglob('*.py')]
    for o in sources: assert (folder/'blurlike'/o).read_bytes() == (package/o).read_bytes()
    port = free_port()
    app = (folder/'app.py').read_text()
    assert 'port=7860' in app # where the Hub looks
    # the page is made by the uploaded package
    own = "import blurlike\nassert blurlike.__file__.startswith(str(__import__('pathlib').Path(__file__).parent))\n"
    (folder/'app.py').write_text(own + app.replace('port=7860', f'port={port}'))
    process = subprocess.Popen([sys.executable, '-W', 'ignore', 'app.py'], cwd=folder, stdout=subprocess.PIPE,
                               text=True)
    try:
        assert f':{port}' in process.stdout.readline()
        client = Client(f'http://127.0.0.1:{port}', verbose=False)
        assert client.predict(texts[0], api_name='/predict')['label']==preds[0]['label']
    finally:
        process.terminate()
        process.wait()


def test_a_page_for_pairs_has_a_box_for_each_text():
    learn = quiet(make_learner('t5', 'text2text-generation'))
    df = learn.dls.train_ds.items[:8].assign(other='the plot')
    dls = HFTextDataLoaders.from_df(df.reset_index(drop=True), HFObjects('t5', learn.model.config,
        learn.dls.hf_block.hf_tokenizer, None), task='text2text-generation', text_col=('text', 'other'),
        label_col=df.columns[1], bs=2, device='cpu')
    learn.dls = dls
    page = page_class(learn.dls.hf_block.task)(learn)
    assert [o.label for o in page.inputs()] == ['text', 'other', 'max_new_tokens']
    assert [*page.answer('the film', 'the plot', 4)][-1] == learn.hf_generate(('the film', 'the plot'),
                                                                             max_new_tokens=4)['generated_text']
