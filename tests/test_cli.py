"The command line, as scripts use it."
import json
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import mentions
from test_load import quiet
from test_matrix import assert_same, frame, make_learner

from blurlike import cli
from blurlike.cli import _options, read_table, run

TEXTS = ['the film warm', 'the plot dull the cast sour', '', 'the score lovely']


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "Saved models, by task"
    res = {}
    for task,arch in (('sequence-classification', 'bert'), ('question-answering', 'bert'),
                      ('token-classification', 'bert'), ('multiple-choice', 'bert'), ('summarization', 't5'),
                      ('causal-lm', 'gpt2')):
        learn = quiet(make_learner(arch, task))
        res[task] = str(learn.save_pretrained(tmp_path_factory.mktemp('cli')/task)),learn
    return res


def blurlike(*args, given=None, **kwargs):
    "Run the command in another process"
    return subprocess.run([sys.executable, '-W', 'ignore', '-m', 'blurlike', *map(str, args)], input=given,
                          capture_output=True, text=True, encoding='utf-8', **kwargs)


def answers(out): return [json.loads(o) for o in out.splitlines()]


def test_predictions_are_printed_line_by_line_in_order(models):
    folder,learn = models['sequence-classification']
    texts = TEXTS*5 + ['zoë 東京 🎬']
    done = blurlike('predict', folder, '--chunk', 4, given='\n'.join(texts) + '\n')
    assert done.returncode == 0, done.stderr
    assert_same(answers(done.stdout), json.loads(json.dumps(learn.hf_predict(texts))))


def test_standard_output_has_only_predictions(models):
    folder,_ = models['sequence-classification']
    # ten batches and more, which have a progress bar
    done = blurlike('predict', folder, '--chunk', 1000, given=('the film ' + 'warm '*100 + '\n')*700)
    assert done.returncode == 0, done.stderr
    assert len(answers(done.stdout)) == 700


def test_lines_are_embedded(models, tmp_path, capsys):
    folder,learn = models['sequence-classification']
    (tmp_path/'a.txt').write_text('\n'.join(TEXTS) + '\n')
    args = ['embed', folder, '--file', str(tmp_path/'a.txt'), '--out', str(tmp_path/'a.npy')]
    assert run([*args, '--pooling', 'max', '--normalize']) == 0
    assert capsys.readouterr().out.count('\n') == 1
    expected = learn.hf_embed(TEXTS, 'max', normalize=True)
    np.testing.assert_allclose(np.load(tmp_path/'a.npy'), expected, rtol=0, atol=1e-6)
    for wrong in (['--pooling', 'most'], ['--out', 'a.csv']):
        assert run([*args, *wrong]) == 1
        assert re.search(mentions(wrong[0][2:], repr(wrong[1])), capsys.readouterr().err)


def test_a_table_is_not_read_as_lines(models, tmp_path, capsys):
    (tmp_path/'rows.csv').write_text('text,id\nthe film,1\n')
    assert run(['predict', models['sequence-classification'][0], '--file', str(tmp_path/'rows.csv')]) == 1
    assert re.search(mentions('rows.csv', '--input'), capsys.readouterr().err)


def test_predictions_are_printed_before_the_input_ends(models):
    process = subprocess.Popen([sys.executable, '-W', 'ignore', '-m', 'blurlike', 'predict',
                                models['sequence-classification'][0], '--chunk', '1'], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    watchdog = threading.Timer(600, process.kill)
    watchdog.start()
    for o in TEXTS[:2]:
        process.stdin.write(o + '\n')
        process.stdin.flush()
        assert json.loads(process.stdout.readline())['label'] in ('good', 'bad')
    process.stdin.close()
    assert process.wait() == 0
    watchdog.cancel()


def test_a_closed_pipe_is_not_an_error(models, tmp_path):
    (tmp_path/'texts.txt').write_text('the film\n'*400)
    folder = models['sequence-classification'][0]
    command = f"{sys.executable} -W ignore -m blurlike predict {folder} --chunk 1 --file {tmp_path/'texts.txt'}"
    done = subprocess.run(['bash', '-c', f'set -o pipefail; {command} | head -1'], capture_output=True, text=True)
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 1, '')


@pytest.mark.parametrize(('task', 'lines', 'items'), [
    ('question-answering', [{'question': 'the film', 'context': 'the plot dull'}], None),
    ('token-classification', [['the', 'film']], None),
    ('sequence-classification', [['the film', 'the plot']], [('the film', 'the plot')]),
    ('multiple-choice', [['the film', ['warm', 'dull']], ['the film', 'warm', 'dull', 'sour'],
                         {'question': 'the film', 'choices': ['warm', 'dull']}], None),
    ('summarization', ['the film warm'], None)])
def test_lines_of_json_are_inputs_of_the_task(models, task, lines, items, capsys, tmp_path):
    folder,learn = models[task]
    (tmp_path/'lines.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in lines))
    assert run(['predict', folder, '--jsonl', '--file', str(tmp_path/'lines.jsonl')]) == 0
    assert_same(answers(capsys.readouterr().out), json.loads(json.dumps(learn.hf_predict(items or lines, many=True))))


def test_options_reach_the_predictions(models, capsys, tmp_path):
    (tmp_path/'lines.txt').write_text('the film\nthe plot\n')
    for task,option in (('causal-lm', 'max_new_tokens=3,do_sample=false'),
                        ('token-classification', 'aggregation_strategy=none')):
        folder,learn = models[task]
        assert run(['predict', folder, '--option', option, '--file', str(tmp_path/'lines.txt'),
                    *(['--generate'] if task=='causal-lm' else [])]) == 0
        texts = ['the film', 'the plot']
        if task=='causal-lm': preds = learn.hf_generate(texts, max_new_tokens=3, do_sample=False)
        else: preds = learn.hf_predict(texts, aggregation_strategy='none', many=True)
        assert_same(answers(capsys.readouterr().out), json.loads(json.dumps(preds)))


def test_a_model_is_trained_evaluated_and_read_by_transformers(df, hf, tmp_path):
    hf.model.save_pretrained(tmp_path/'ckpt')
    hf.tokenizer.save_pretrained(tmp_path/'ckpt')
    df.rename(columns={'text': 'review', 'label': 'mood'}).to_csv(tmp_path/'rows.csv', index=False)
    done = blurlike('train', 'rows.csv', '--checkpoint', 'ckpt', '--text-col', 'review', '--label-col', 'mood',
                    '--valid-col', 'is_valid', '--epochs', 6, '--lr', 0.01, '--precision', 'fp32',
                    '--out', 'out', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r'.*\bout\b.*\n', done.stdout)
    assert 'valid_loss' in done.stderr
    done = blurlike('evaluate', 'out', 'rows.csv', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    res = json.loads(done.stdout)
    assert res['rows'] == len(df)
    assert res['accuracy'] > 0.6
    from transformers import pipeline
    pipe = pipeline('text-classification', str(tmp_path/'out'), device='cpu')
    right = sum(o['label']==l for o,l in zip(pipe(df.text.tolist()), df.label, strict=True))
    assert right/len(df) == pytest.approx(res['accuracy'], abs=1e-6)


def test_columns_can_be_named(models, tmp_path, capsys):
    frame('sequence-classification').rename(columns={'text': 'review', 'label': 'mood'}).to_csv(tmp_path/'rows.csv')
    folder = models['sequence-classification'][0]
    assert run(['evaluate', folder, str(tmp_path/'rows.csv'), '--text-col', 'review', '--label-col', 'mood']) == 0
    assert json.loads(capsys.readouterr().out)['rows'] == 8
    assert run(['evaluate', folder, str(tmp_path/'rows.csv')]) == 1
    assert re.search(mentions("'text'", "'review'", "'mood'", '--text-col'), capsys.readouterr().err)


@pytest.mark.parametrize('suffix', ['csv', 'tsv', 'jsonl', 'parquet'])
def test_lists_are_read_from_every_kind_of_file(suffix, tmp_path):
    df = pd.DataFrame(dict(tokens=[['the', "film's", '[x]'], ['a']], labels=[['O', 'B-X', 'O'], []],
                           text=['[a] b', 'c']))
    path = tmp_path/f'rows.{suffix}'
    {'csv': lambda: df.to_csv(path, index=False), 'tsv': lambda: df.to_csv(path, sep='\t', index=False),
     'jsonl': lambda: df.to_json(path, orient='records', lines=True),
     'parquet': lambda: df.to_parquet(path)}[suffix]()
    again = read_table(path)
    assert [[list(o) for o in again[c]] for c in ('tokens', 'labels')] == [df.tokens.tolist(), df.labels.tolist()]
    assert again.text.tolist() == df.text.tolist()


@pytest.mark.parametrize(('args', 'code', 'facts'), [
    ((), 0, []), (('--help',), 0, []), (('train', '--help'), 0, []),
    (('dance',), 2, ["'dance'", 'train', 'predict', 'evaluate', 'push', 'serve']),
    (('train', 'gone.csv', '--checkpoint', 'x'), 1, ['blurlike train', "data='gone.csv'"]),
    (('train', 'rows.xls', '--checkpoint', 'x'), 1, ['blurlike train', "data='rows.xls'"]),
    (('train', 'rows.csv', '--checkpoint', 'x', '--out', '.'), 1, ['blurlike train', 'config.json']),
    (('train', 'rows.csv'), 1, ['blurlike train', '--checkpoint']),
    (('predict', 'no/such/folder'), 1, ['blurlike predict', "path='no/such/folder'"]),
    (('predict', 'MODEL', '--file', 'gone.txt'), 1, ['blurlike predict', "--file='gone.txt'"]),
    (('predict', 'MODEL', '--option', 'k'), 1, ['blurlike predict', "--option='k'", 'name=value']),
    (('predict', 'MODEL', '--option', 'dance=1', '--file', 'texts.txt'), 1,
     ['blurlike predict', "'dance'", 'batch_tokens', 'precision']),
    (('predict', 'MODEL', '--jsonl', '--file', 'texts.txt'), 1, ['blurlike predict', 'line 1', 'JSON']),
    (('push', 'MODEL', 'no--name'), 1, ['blurlike push', "repo_id='no--name'"]), (('evaluate', 'MODEL'), 2, ['data'])])
def test_exit_codes_and_one_line_errors(args, code, facts, models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'texts.txt').write_text('the film\n')
    (tmp_path/'rows.csv').write_text('text,label\na,b\n')
    try: got = run([models['sequence-classification'][0] if o=='MODEL' else o for o in args])
    except SystemExit as e: got = e.code
    out,err = capsys.readouterr()
    assert got == code
    assert re.search(mentions(*facts), err)
    if code==1: assert len(err.strip().splitlines()) == 1
    if code==0: assert 'blurlike' in out


@pytest.mark.parametrize('texts', [['[laughs] a [b]', '[x] y [z]'], ['[a', 'b]'], ["[__import__('os')]", '[1]']])
def test_texts_in_brackets_stay_texts(texts, tmp_path):
    pd.DataFrame(dict(text=texts)).to_csv(tmp_path/'rows.csv', index=False)
    assert read_table(tmp_path/'rows.csv').text.tolist() == texts


@pytest.mark.parametrize(('content', 'fact'), [(b'', 'rows.csv'), (b'text,label\n', 'rows.csv'),
                                               ('text,label\nzo\xeb,x\n'.encode('latin-1'), 'UTF-8'),
                                               (b'text,label\ndull, so bad,no\n', "'dull'")])
def test_files_that_cannot_be_read_are_named(content, fact, tmp_path):
    (tmp_path/'rows.csv').write_bytes(content)
    with pytest.raises(ValueError, match=mentions(f"data='{tmp_path/'rows.csv'}'", fact)):
        read_table(tmp_path/'rows.csv')


def test_a_parquet_file_may_have_any_index(tmp_path):
    pd.DataFrame(dict(text=['a', 'b', 'c'])).iloc[[2, 0, 1]].to_parquet(tmp_path/'rows.parquet')
    assert read_table(tmp_path/'rows.parquet').text.tolist() == ['c', 'a', 'b']


def test_help_has_an_example_and_does_not_wait_for_torch():
    done = subprocess.run([sys.executable, '-X', 'importtime', '-m', 'blurlike', 'predict', '--help'],
                          capture_output=True, text=True)
    assert 'blurlike predict my_model < texts.txt > out.jsonl\n' in done.stdout
    assert ' torch' not in done.stderr


# ---- Files and options as people write them

@pytest.mark.parametrize(('args', 'facts'), [
    (('--lr', '-1'), ['--lr=-1.0']), (('--lr', 'nan'), ['--lr=nan']), (('--epochs', '0'), ['--epochs=0']),
    (('--valid-col', 'is_valid', '--valid-pct', '0.3'), ['--valid-pct=0.3', "--valid-col='is_valid'"]),
    (('--text-col', 'review'), ["--text-col='review'"]), (('--encoding', 'utf-88'), ["--encoding='utf-88'"])])
def test_impossible_options_of_train(args, facts, models, df, tmp_path, capsys):
    df.to_csv(tmp_path/'rows.csv', index=False)
    model = models['sequence-classification'][0]
    assert run(['train', str(tmp_path/'rows.csv'), '--checkpoint', model, '--out', str(tmp_path/'out'), *args]) == 1
    assert re.search(mentions(*facts), capsys.readouterr().err)


@pytest.mark.parametrize(('option', 'meant'), [('--lable-col', '--label-col'), ('--chekpoint', '--checkpoint')])
def test_a_misspelled_option_is_suggested(option, meant, capsys):
    with pytest.raises(SystemExit) as e: run(['train', 'rows.csv', option, 'x'])
    assert e.value.code == 2
    assert re.search(mentions(repr(option), repr(meant)), capsys.readouterr().err)


@pytest.mark.parametrize(('file', 'option'), [('rows.csv', '--input'), ('texts.txt', '--file')])
def test_a_file_without_an_option_is_given_one(file, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/file).write_text('text\na\n')
    with pytest.raises(SystemExit): run(['predict', 'my_model', 'a text '*60]) # longer than the name of a file
    with pytest.raises(SystemExit) as e: run(['predict', 'my_model', file])
    assert e.value.code == 2
    assert re.search(mentions(repr(file), option), capsys.readouterr().err)


def test_the_version(capsys):
    import blurlike
    assert run(['--version']) == 0
    assert blurlike.__version__ in capsys.readouterr().out


@pytest.mark.parametrize('labels', [['007', '7'], ['True', 'False'], ['1.0', '2.0'], ['None', 'NA'], ['1', '2']])
def test_labels_of_a_file_are_known_to_evaluate(labels, df, hf, tmp_path, capsys):
    hf.model.save_pretrained(tmp_path/'ckpt')
    hf.tokenizer.save_pretrained(tmp_path/'ckpt')
    named = df.assign(label=[labels[i % 2] for i in range(len(df))])
    named.to_csv(tmp_path/'rows.csv', index=False)
    named[named.label==labels[1]].to_csv(tmp_path/'one.csv', index=False)
    flags = ['--no-na'] if 'NA' in labels else []
    assert run(['train', str(tmp_path/'rows.csv'), '--checkpoint', str(tmp_path/'ckpt'), '--task',
                'sequence-classification', '--epochs', '1', '--out', str(tmp_path/'out'), *flags]) == 0
    for file in ('rows', 'one'):
        capsys.readouterr()
        assert run(['evaluate', str(tmp_path/'out'), str(tmp_path/f'{file}.csv'), *flags]) == 0
        assert json.loads(capsys.readouterr().out)['rows'] in (60, 120)
    if flags:
        assert run(['evaluate', str(tmp_path/'out'), str(tmp_path/'rows.csv')]) == 1
        assert re.search(mentions("'None'", '--no-na'), capsys.readouterr().err)


def test_a_model_of_text_labels_reads_numbers_as_text(hf, df, tmp_path, capsys):
    from blurlike.all import HFTextDataLoaders, hf_learner
    named = df.assign(label=[['1', 'True'][i % 2] for i in range(len(df))])
    dls = HFTextDataLoaders.from_df(named, hf, valid_col='is_valid')
    folder = quiet(hf_learner(dls, hf.model)).save_pretrained(tmp_path/'model')
    for label in ('1', 'True'):
        named[named.label==label].to_csv(tmp_path/'rows.csv', index=False)
        assert run(['evaluate', str(folder), str(tmp_path/'rows.csv')]) == 0


def test_classes_can_be_named(models, df, hf, tmp_path, capsys):
    hf.model.save_pretrained(tmp_path/'ckpt')
    hf.tokenizer.save_pretrained(tmp_path/'ckpt')
    df.assign(label=(df.label=='good')*1).to_csv(tmp_path/'rows.csv', index=False)
    args = ['train', str(tmp_path/'rows.csv'), '--checkpoint', str(tmp_path/'ckpt'), '--epochs', '1',
            '--task', 'sequence-classification', '--out', str(tmp_path/'out')]
    assert run([*args, '--vocab', '1,0,7']) == 0
    assert json.loads((tmp_path/'out'/'blurlike.json').read_text())['vocab'] == [1, 0, 7]
    assert run([*args, '--vocab', '0,1,x']) == 1
    assert re.search(mentions('vocab=', 'x'), capsys.readouterr().err)
    assert run([*args, '--vocab', '1']) == 1
    assert re.search(mentions('vocab=[1]', 'lacks 0'), capsys.readouterr().err)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'latin-1', 'utf-16'])
@pytest.mark.parametrize('suffix', ['txt', 'jsonl'])
def test_texts_in_any_encoding(encoding, suffix, models, tmp_path, capsys):
    folder,learn = models['sequence-classification']
    texts = ['zoë film', 'the café']
    lines = [json.dumps(o, ensure_ascii=False) for o in texts] if suffix=='jsonl' else texts
    (tmp_path/f'a.{suffix}').write_text('\n'.join(lines), encoding=encoding)
    args = ['predict', folder, '--file', str(tmp_path/f'a.{suffix}'), *(['--jsonl'] if suffix=='jsonl' else [])]
    if encoding!='utf-8-sig':
        assert run(args) == 1
        assert re.search(mentions('file=', 'UTF-8', '--encoding'), capsys.readouterr().err)
        args += ['--encoding', encoding]
    assert run(args) == 0
    assert_same(answers(capsys.readouterr().out), json.loads(json.dumps(learn.hf_predict(texts))))


@pytest.mark.parametrize('suffix', ['csv', 'tsv', 'jsonl'])
@pytest.mark.parametrize('encoding', ['utf-8-sig', 'latin-1', 'utf-16'])
def test_rows_in_any_encoding(encoding, suffix, tmp_path):
    df,path = pd.DataFrame(dict(text=['zoë', 'b'], label=['é', '007'])),tmp_path/f'rows.{suffix}'
    if suffix=='jsonl': path.write_text(df.to_json(orient='records', lines=True, force_ascii=False), encoding=encoding)
    else: df.to_csv(path, index=False, sep='\t' if suffix=='tsv' else ',', encoding=encoding)
    options = {}
    if encoding!='utf-8-sig':
        with pytest.raises(ValueError, match=mentions(f"data='{path}'", 'UTF-8', '--encoding')): read_table(path)
        options = dict(encoding=encoding)
    pd.testing.assert_frame_equal(read_table(path, **options), df)


def test_strings_in_json_stay_strings(tmp_path):
    rows = [dict(text='1984', label='007', date='2020-01-01', n=2**60), dict(text='True', label='7', date='x', n=1)]
    (tmp_path/'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    assert read_table(tmp_path/'a.jsonl').to_dict('records') == rows


def test_a_wrong_line_of_json_is_named(tmp_path):
    (tmp_path/'a.jsonl').write_text('{"text": "a"}\n\n{"text": \n')
    with pytest.raises(ValueError, match=mentions('data=', 'line 3', 'JSON')): read_table(tmp_path/'a.jsonl')


def test_a_text_that_cannot_be_used_is_named_by_its_line(models, tmp_path, capsys):
    (tmp_path/'a.jsonl').write_text('"a"\n"b"\n"c"\n5\n')
    assert run(['predict', models['sequence-classification'][0], '--jsonl', '--chunk', '2', '--file',
                str(tmp_path/'a.jsonl')]) == 1
    assert re.search(mentions('line 4', 5), capsys.readouterr().err)


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'utf-8'])
def test_output_is_json_in_every_encoding(encoding, df, hf, tmp_path):
    import os

    from blurlike.all import HFTextDataLoaders, hf_learner
    named = df.assign(label=df.label.map(dict(good='zoë 東京', bad='b')))
    dls = HFTextDataLoaders.from_df(named, hf, valid_col='is_valid')
    folder = quiet(hf_learner(dls, hf.model)).save_pretrained(tmp_path/'zoë 東京')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'blurlike', 'predict', str(folder)], check=False,
                          input=('a\n'*9).encode(), capture_output=True,
                          env=os.environ | dict(PYTHONIOENCODING=encoding, PYTHONUTF8='0'))
    assert done.returncode == 0, done.stderr
    labels = {json.loads(o)['label'] for o in done.stdout.decode(encoding).splitlines()}
    assert labels <= {'zoë 東京', 'b'}


def test_outputs_have_no_nan(models, df, tmp_path, capsys):
    def no_constant(o): raise AssertionError(o)
    frame('sequence-classification')[:1].to_csv(tmp_path/'rows.csv', index=False)
    from blurlike.cli import _print_json
    _print_json([float('nan'), dict(a=(float('inf'), 1.5))])
    assert json.loads(capsys.readouterr().out, parse_constant=no_constant) == [None, dict(a=[None, 1.5])]


@pytest.mark.parametrize(('option', 'parsed'), [
    ('top_k=3', dict(top_k=3)), ('a=1,b=x y', dict(a=1, b='x y')), ('t=[0.3,0.5],b=2', dict(t=[.3, .5], b=2)),
    ('targets=["a","b"]', dict(targets=['a', 'b'])), (None, {})])
def test_values_of_options_may_have_commas(option, parsed): assert _options(option) == parsed


def test_texts_that_cannot_be_used_are_answered_with_the_reason(models, tmp_path, capsys):
    (tmp_path/'a.jsonl').write_text('"the film"\n5\n')
    args = ['predict', models['sequence-classification'][0], '--jsonl', '--file', str(tmp_path/'a.jsonl')]
    assert run([*args, '--option', 'errors=return']) == 0
    first,second = answers(capsys.readouterr().out)
    assert 'label' in first
    assert '5' in second['error']


def test_the_folder_of_vectors_is_checked_first(models, tmp_path, capsys):
    args = ['embed', models['sequence-classification'][0], '--out', str(tmp_path/'none'/'a.npy')]
    assert run(args) == 1
    assert re.search(mentions('--out=', 'none'), capsys.readouterr().err)


def test_a_full_device_is_one_line(monkeypatch, capsys):
    def fail(file): raise RuntimeError('CUDA out of memory. Tried to allocate 20.00 MiB.\nmore')
    monkeypatch.setitem(cli._COMMANDS, 'env', fail)
    monkeypatch.setattr(cli, '_parse_args', lambda *_: SimpleNamespace(file='a'))
    assert run(['env']) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert 'CUDA out of memory' in error
    def break_down(file): raise RuntimeError('a bug')
    monkeypatch.setitem(cli._COMMANDS, 'env', break_down)
    with pytest.raises(RuntimeError, match='a bug'): run(['env'])


def test_each_line_can_be_a_chat(models, capsys, tmp_path):
    folder,learn = models['causal-lm']
    chats = [[dict(role='user', content=o)] for o in ('the film', 'the plot')]
    learn.dls.hf_block.hf_tokenizer.chat_template = "{% for o in messages %}{{ o['content'] + ' ' }}{% endfor %}"
    folder = learn.save_pretrained(tmp_path/'chat')
    (tmp_path/'chats.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in chats))
    assert run(['predict', str(folder), '--generate', '--jsonl', '--option', 'max_new_tokens=3,do_sample=false',
                '--file', str(tmp_path/'chats.jsonl')]) == 0
    expected = [learn.hf_generate(o, max_new_tokens=3, do_sample=False) for o in chats]
    assert_same(answers(capsys.readouterr().out), json.loads(json.dumps(expected)))


@pytest.mark.parametrize('option', ['many', 'prefix', 'chunk'])
def test_options_of_the_command_are_no_options_of_the_prediction(models, capsys, option):
    assert run(['predict', models['sequence-classification'][0], '--option', f'{option}=1']) == 1
    assert re.match(mentions('--option=', repr(option)), capsys.readouterr().err)
