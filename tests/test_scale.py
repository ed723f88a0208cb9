"Data sets of every kind are scored on both engines, completely or not at all, and a killed run is completed."
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_texts, mentions
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from test_load import ARCHS, quiet
from test_matrix import TASKS, assert_same, frame, make_learner

from blurlike import scale
from blurlike.cli import run
from blurlike.scale import MANIFEST, Chunks, score

ray = pytest.importorskip('ray')


@pytest.fixture(scope='module')
def engine():
    ray.init(num_cpus=2, include_dashboard=False, logging_level='warning')
    yield 'ray'
    ray.shutdown()


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "A function that returns a saved model for a task, and its learner"
    made = {}
    def of(task):
        if task not in made:
            learn = quiet(make_learner(ARCHS.get(task, 'bert'), task))
            made[task] = learn.save_pretrained(tmp_path_factory.mktemp('scale')/task),learn
        return made[task]
    return of


@pytest.fixture
def rows():
    "60 rows, three of which have no text"
    df = make_texts(60, seed=3)[['text']].assign(id=range(60))
    df.loc[[3, 30, 31], 'text'] = None
    return df


def read(out): return pd.read_parquet(out)


def assert_scores(out, df, learn, prefix=''):
    "Assert that `out` has the rows of `df`, with the predictions of `hf_predict`"
    found = read(out)
    assert found['text'].fillna('-').tolist() == df.text.fillna('-').tolist()
    texts = [None if pd.isna(o) else o for o in df.text]
    for (_,row),pred in zip(found.iterrows(), learn.hf_predict(texts, errors='return'), strict=True):
        if isinstance(pred, ValueError):
            assert row[f'{prefix}error'] == str(pred)
            assert pd.isna(row[f'{prefix}label'])
            continue
        assert pd.isna(row[f'{prefix}error'])
        probs = [row[f'{prefix}prob_{o}'] for o in learn.dls.vocab]
        names = ('label', 'index', 'score')
        assert_same(dict(zip(names, [row[f'{prefix}{o}'] for o in names], strict=True)) | dict(probs=probs), pred)


def parts(out): return sorted(o.name for o in Path(out).glob('*.parquet'))


# ---- engines and inputs

def write_csv(df, folder): df.to_csv(folder/'a.csv', index=False)
def write_tsv(df, folder): df.to_csv(folder/'a.tsv', index=False, sep='\t')
def write_parquet(df, folder): df.to_parquet(folder/'a.parquet')
def write_jsonl(df, folder): df.to_json(folder/'a.jsonl', orient='records', lines=True)
def write_folder(df, folder):
    df[:25].to_parquet(folder/'a.parquet')
    (folder/'b').mkdir()
    df[25:].to_parquet(folder/'b'/'c.parquet')
    (folder/'notes.txt').write_text('no rows')


@pytest.mark.parametrize('write', [write_csv, write_tsv, write_parquet, write_jsonl, write_folder])
def test_files_and_folders(models, rows, tmp_path, write):
    model,learn = models('sequence-classification')
    (tmp_path/'data').mkdir()
    write(rows, tmp_path/'data')
    out = score(tmp_path/'data', model, tmp_path/'out', rows=20)
    assert_scores(out, rows, learn)
    assert read(out)['id'].astype(int).tolist() == rows.id.tolist()
    assert len(parts(out)) == (4 if write is write_folder else 3)


def test_a_dataset(models, rows, tmp_path):
    model,learn = models('sequence-classification')
    assert_scores(score(Dataset.from_pandas(rows), model, tmp_path/'out', rows=25), rows, learn)


def test_both_engines_agree(models, rows, tmp_path, engine):
    model,learn = models('sequence-classification')
    rows.to_parquet(tmp_path/'a.parquet')
    outs = [score(tmp_path/'a.parquet', model, tmp_path/o, engine=o, rows=16) for o in ('local', engine)]
    for o in outs: assert_scores(o, rows, learn)
    assert parts(outs[0]) == parts(outs[1])
    pd.testing.assert_frame_equal(*map(read, outs))


@pytest.mark.parametrize('workers', [1, 3])
def test_a_ray_dataset_and_more_actors_than_processors(models, rows, tmp_path, engine, workers):
    model,learn = models('sequence-classification')
    data = ray.data.from_pandas([rows[:33], rows[33:]])
    assert_scores(score(data, model, tmp_path/'out', engine=engine, rows=16, workers=workers), rows, learn)


def hold(n):
    "Hold `n` processors, as another job does"
    held = ray.util.placement_group([{'CPU': n}])
    ray.get(held.ready())
    return held


@pytest.fixture
def start(models, rows, tmp_path, engine):
    "A function that scores on two actors in a thread, and returns a function that waits for the scores"
    model,learn = models('sequence-classification')
    rows.to_parquet(tmp_path/'a.parquet')
    def call(): score(tmp_path/'a.parquet', model, tmp_path/'out', engine=engine, rows=10, workers=2)
    def start():
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        def finish():
            thread.join(200)
            assert not thread.is_alive()
            assert_scores(tmp_path/'out', rows, learn)
        return finish
    return start


def test_actors_that_find_room_do_the_work_of_those_that_do_not(start):
    other = hold(1)
    try: start()()
    finally: ray.util.remove_placement_group(other)


def test_a_line_says_that_no_actor_starts(start, monkeypatch, capsys):
    monkeypatch.setattr(scale, '_PATIENCE', .5)
    other,out = hold(2),''
    finish = start()
    for _ in range(300):
        if 'CPU' in (out := out + capsys.readouterr().out): break
        time.sleep(.1)
    ray.util.remove_placement_group(other)
    finish()
    lines = [o for o in out.splitlines() if 'CPU' in o]
    assert len(lines) == 1
    assert re.match(mentions('0 of 2 CPUs', '1 CPU'), lines[0])


# ---- columns

@pytest.mark.parametrize('task', sorted(TASKS))
def test_predictions_of_every_task_are_columns(models, tmp_path, task):
    model,learn = models(task)
    df = frame(task).drop(columns='is_valid')
    text_col = TASKS[task].text_col
    cols = [text_col] if isinstance(text_col, str) else list(text_col)
    df = df[cols]
    if task=='masked-lm': df[text_col] = df[text_col] + ' [MASK]'
    df.loc[len(df)] = None
    read_x = learn.dls.hf_block.task.get_x(text_col)
    preds = learn.hf_predict([read_x(o) for _,o in df[:-1].iterrows()], many=True)
    found = read(score(Dataset.from_pandas(df), model, tmp_path/'out', rows=4))
    assert found.error.isna().tolist() == [True]*8 + [False]
    for (_,row),pred in zip(found.iterrows(), preds, strict=False):
        if not isinstance(pred, dict): pred = dict(prediction=json.dumps(pred, ensure_ascii=False, default=float))
        for k,v in pred.items():
            if k=='prediction': assert_same(json.loads(row[k]), json.loads(v))
            elif k=='probs' and 'probs' not in row: assert_same([row[f'prob_{o}'] for o in learn.dls.vocab], v)
            else: assert_same(row[k].tolist() if isinstance(v, list) else row[k], v)


def test_options_and_generated_texts(models, tmp_path):
    model,learn = models('causal-lm')
    data,options = Dataset.from_dict(dict(text=['the film', 'the plot'])),dict(max_new_tokens=2, do_sample=False)
    found = read(score(data, model, tmp_path/'out', generate=True, **options))
    expected = learn.hf_generate(data['text'][:], **options)
    assert found.generated_text.tolist() == [o['generated_text'] for o in expected]
    with pytest.raises(TypeError, match=mentions('max_tokens')):
        score(data, model, tmp_path/'out2', generate=True, max_tokens=2)
    assert not (tmp_path/'out2').exists()


def test_columns_of_the_data_are_not_replaced(models, rows, tmp_path):
    model,learn = models('sequence-classification')
    data = Dataset.from_pandas(rows.assign(label='mine', error=0))
    with pytest.raises(ValueError, match=mentions('prefix', "'label'", "'error'")): score(data, model, tmp_path/'out')
    assert not (tmp_path/'out').exists()
    out = score(data, model, tmp_path/'out', prefix='pred_')
    assert_scores(out, rows, learn, 'pred_')
    assert set(read(out).label) == {'mine'}


def test_the_columns_of_json_lines_may_differ(models, tmp_path):
    model,_ = models('sequence-classification')
    lines = [dict(text='the film'), dict(text='the plot', n=1), dict(n=2.5, text=None, more=['a'])]
    (tmp_path/'a.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    found = read(score(tmp_path/'a.jsonl', model, tmp_path/'out', rows=1))
    assert found.n.tolist()[1:] == [1, 2.5]
    assert found.error.isna().tolist() == [True, True, False]


# ---- values of several types

VALUES = [5, 'the film', [1, 'a'], None, True, dict(a=1), 'the plot', 2.5, 2**70, {}, [], 'the cast']


@pytest.mark.parametrize('rows', [1, 2, 50])
def test_a_row_of_the_wrong_type_has_a_reason_and_the_others_are_scored(models, tmp_path, rows):
    model,learn = models('sequence-classification')
    lines = [dict(id=i, text=o, other=VALUES[-i]) for i,o in enumerate(VALUES)]
    (tmp_path/'a.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    found = read(score(tmp_path/'a.jsonl', model, tmp_path/'out', rows=rows))
    good = [i for i,o in enumerate(VALUES) if isinstance(o, str)]
    assert found.id.tolist() == list(range(len(VALUES)))
    assert found.index[found.error.isna()].tolist() == good
    assert_same(found.score[good].tolist(), [o['score'] for o in learn.hf_predict([VALUES[i] for i in good])])
    for o,cells in zip(lines, pq.read_table(tmp_path/'out').to_pylist(), strict=True):
        for k in ('text', 'other'): assert cells[k] == (o[k] if isinstance(o[k], str | None) else json.dumps(o[k]))


def test_files_whose_columns_have_several_types(models, tmp_path):
    model,_ = models('sequence-classification')
    (tmp_path/'data').mkdir()
    pd.DataFrame(dict(text=['the film'], n=[1], tags=[['a']])).to_parquet(tmp_path/'data'/'a.parquet')
    pd.DataFrame(dict(text=[5], n=['x'])).to_parquet(tmp_path/'data'/'b.parquet')
    (tmp_path/'data'/'c.csv').write_text('text,n,tags\nthe plot,2,b\n')
    (tmp_path/'data'/'d.jsonl').write_text('{"text": "the cast"}\n{"text": 7}')
    found = read(score(tmp_path/'data', model, tmp_path/'out'))
    assert found.text.tolist() == ['the film', '5', 'the plot', 'the cast', '7']
    assert found.error.isna().tolist() == [True, False, True, True, False]
    assert found.n.fillna('-').tolist() == ['1', 'x', '2', '-', '-']
    assert found.tags.fillna('-').tolist() == ['["a"]', '-', 'b', '-', '-']


def test_values_other_than_json_are_written_as_text(tmp_path):
    for name,unit in (('a', pa.timestamp('ns')), ('b', pa.timestamp('us', 'UTC'))):
        pq.write_table(pa.table(dict(text=['the film'], day=pa.array([0], unit))), tmp_path/f'{name}.parquet')
    chunks = Chunks(tmp_path)
    days = pa.concat_tables(map(chunks.table, chunks))['day'].to_pylist()
    assert [o.split()[0] for o in days] == ['1970-01-01']*2


def test_a_file_is_named_once_in_an_error(tmp_path):
    (tmp_path/'a.csv').write_text('id,text\n1,good,x\n')
    with pytest.raises(ValueError, match=mentions('data=', 'separator')) as e: Chunks(tmp_path/'a.csv')
    assert str(e.value).count('data=') == 1


def test_text_and_large_text_have_a_common_type(tmp_path):
    pq.write_table(pa.table(dict(text=pa.array(['the film'], pa.large_string()))), tmp_path/'a.parquet')
    pq.write_table(pa.table(dict(text=pa.array([b'the plot'], pa.binary()))), tmp_path/'b.parquet')
    (tmp_path/'c.jsonl').write_text('{"text": "the cast"}\n{"text": 7}')
    chunks = Chunks(tmp_path)
    assert pa.concat_tables(map(chunks.table, chunks))['text'].to_pylist()[::3] == ['the film', '7']


numbers = st.booleans() | st.integers() | st.just(2**60 + 1) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | numbers | st.text(max_size=5),
    lambda o: st.lists(o, max_size=3) | st.dictionaries(st.text(max_size=3), o, max_size=3), max_leaves=6)
json_rows = st.lists(st.dictionaries(st.sampled_from('abc'), json_values, min_size=1), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(items=json_rows, rows=st.integers(1, 4))
def test_json_lines_of_any_types_are_written_with_one_schema(tmp_path_factory, items, rows):
    folder = tmp_path_factory.mktemp('json')
    (folder/'a.jsonl').write_text('\n'.join(map(json.dumps, items)))
    chunks = Chunks(folder/'a.jsonl', rows)
    tables = list(map(chunks.table, chunks))
    assert chunks.n_rows == len(items)
    assert {o.schema for o in tables} == {chunks.schema}
    pq.write_table(pa.concat_tables(tables), folder/'a.parquet')
    found = pq.read_table(folder/'a.parquet').to_pydict()
    for name in chunks.schema.names:
        if not pa.types.is_string(chunks.schema.field(name).type): continue
        for item,cell in zip(items, found[name], strict=True):
            value = item.get(name)
            if isinstance(value, str): assert cell == value
            elif value is None: assert cell is None
            else: assert json.loads(cell) == value


@pytest.mark.parametrize('task', ['multiple-choice', 'token-classification'])
@pytest.mark.parametrize('write', [json.dumps, str], ids=['json', 'python'])
def test_lists_in_the_cells_of_a_csv_file(models, tmp_path, task, write):
    model,_ = models(task)
    df = frame(task).drop(columns='is_valid')
    cols = TASKS[task].text_col
    df = df[[cols] if isinstance(cols, str) else list(cols)]
    lists = df.columns[-1]
    df[lists] = df[lists].map(list)
    expected = read(score(Dataset.from_pandas(df), model, tmp_path/'expected'))
    assert expected.error.isna().all()
    cells = df.assign(**{lists: df[lists].map(write)})
    cells.loc[len(cells)] = None
    cells.to_csv(tmp_path/'a.csv', index=False)
    found = read(score(tmp_path/'a.csv', model, tmp_path/'out', rows=3))
    assert found.error.isna().tolist() == [True]*len(df) + [False]
    preds = expected.columns.drop(df.columns)
    pd.testing.assert_frame_equal(found[preds][:-1], expected[preds], check_dtype=False)


def test_a_text_that_looks_like_a_list_is_a_text(models, tmp_path):
    model,learn = models('sequence-classification')
    df = pd.DataFrame(dict(text=['["the film"]', '[1]']))
    df.to_csv(tmp_path/'a.csv', index=False)
    assert_scores(score(tmp_path/'a.csv', model, tmp_path/'out'), df, learn)


# ---- refused

def test_bad_arguments(models, rows, tmp_path):
    model,_ = models('sequence-classification')
    data,out = Dataset.from_pandas(rows),tmp_path/'out'
    for name,value in dict(engine='spark', text_col='review', rows=0, workers=-1).items():
        with pytest.raises(ValueError, match=mentions(name, repr(value))): score(data, model, out, **{name: value})
    with pytest.raises(TypeError, match=mentions('data', 'DataFrame')): score(rows, model, out)
    with pytest.raises(FileNotFoundError, match=mentions('data', 'nowhere')): score('nowhere', model, out)
    with pytest.raises(ValueError, match=mentions('out', 'a.parquet')): score(data, model, tmp_path/'a.parquet')
    (tmp_path/'bad.jsonl').write_text('{"text": "a"}\n{')
    with pytest.raises(ValueError, match=mentions('data', 'bad.jsonl', 'line 2')):
        score(tmp_path/'bad.jsonl', model, out)
    assert not out.exists()


def test_the_scores_of_another_run_are_kept(models, rows, tmp_path):
    model,learn = models('sequence-classification')
    data,out = Dataset.from_pandas(rows),tmp_path/'out'
    score(data, model, out, rows=20)
    before = {o.name: o.read_bytes() for o in out.iterdir()}
    other = quiet(make_learner('distilbert', 'sequence-classification')).save_pretrained(tmp_path/'other')
    changed = Dataset.from_pandas(rows.assign(id=rows.id.where(rows.id != 59, 100)))
    for what,kwargs in dict(model=dict(model=other), data=dict(data=changed), rows=dict(rows=10),
                            options=dict(precision='bf16'), prefix=dict(prefix='a')).items():
        with pytest.raises(ValueError, match=mentions('out', what)):
            score(**dict(data=data, model=model, out=out, rows=20) | kwargs)
    assert {o.name: o.read_bytes() for o in out.iterdir()} == before
    (tmp_path/'notes').mkdir()
    (tmp_path/'notes'/'mine.txt').write_text('mine')
    with pytest.raises(FileExistsError, match=mentions('out', 'notes')): score(data, model, tmp_path/'notes')


def test_a_missing_package_is_named(models, rows, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ImportError, match=mentions('blurlike[scale]')):
        score(Dataset.from_pandas(rows), 'model', tmp_path/'out', engine='ray')


def test_a_second_start_does_only_what_is_missing(models, rows, tmp_path):
    model,learn = models('sequence-classification')
    rows.to_csv(tmp_path/'a.csv', index=False)
    args = tmp_path/'a.csv',model,tmp_path/'out'
    out = score(*args, rows=20)
    whole = {o: (out/o).stat().st_mtime_ns for o in parts(out)}
    (out/'part-000001.parquet').unlink()
    (out/'.part-000001.parquet.abcd').write_bytes(b'half')
    score(*args, rows=20)
    assert_scores(out, rows, learn)
    again = {o: (out/o).stat().st_mtime_ns for o in parts(out)}
    assert [o for o in whole if whole[o]!=again[o]] == ['part-000001.parquet']
    assert sorted(o.name for o in out.iterdir()) == [MANIFEST, *whole]


def test_the_rows_of_a_parquet_file_are_read_once(models, rows, tmp_path, monkeypatch):
    rows.to_parquet(tmp_path/'a.parquet')
    calls,original = [],pq.ParquetFile.iter_batches
    def iter_batches(self, *args, **kwargs):
        calls.append(self)
        return original(self, *args, **kwargs)
    monkeypatch.setattr(pq.ParquetFile, 'iter_batches', iter_batches)
    assert Chunks(tmp_path/'a.parquet', 7).n_rows == len(rows)
    assert not calls
    score(tmp_path/'a.parquet', models('sequence-classification')[0], tmp_path/'out', rows=7)
    assert len(calls) == 1


def test_a_changed_file_is_other_data(models, rows, tmp_path):
    model,_ = models('sequence-classification')
    rows.to_parquet(tmp_path/'a.parquet')
    os.utime(tmp_path/'a.parquet', ns=(1, 1))
    score(tmp_path/'a.parquet', model, tmp_path/'out')
    (tmp_path/'moved').mkdir()
    (tmp_path/'a.parquet').rename(tmp_path/'moved'/'a.parquet')
    score(tmp_path/'moved'/'a.parquet', model, tmp_path/'out')
    rows.assign(id=rows.id[::-1].tolist()).to_parquet(tmp_path/'moved'/'a.parquet')
    with pytest.raises(ValueError, match=mentions('out', 'data')):
        score(tmp_path/'moved'/'a.parquet', model, tmp_path/'out')


@pytest.mark.parametrize('inner', ['.', 'scores', 'a/scores', 'link/scores'])
def test_scores_inside_the_data_are_refused(models, rows, tmp_path, inner):
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'link').symlink_to(tmp_path/'data')
    write_csv(rows, tmp_path/'data')
    out = tmp_path/'data'/inner
    with pytest.raises(ValueError, match=mentions('out', repr(str(out)), 'data', repr(str(tmp_path/'data')))):
        score(tmp_path/'data', models('sequence-classification')[0], out)
    assert {o.name for o in (tmp_path/'data').iterdir()} == {'a.csv', 'link'}


# ---- killed

KILLED = """
import os, signal, sys
import pyarrow.parquet as pq
from blurlike.scale import score
write,n = pq.write_table,[0]
def die(table, path):
    n[0] += 1
    if n[0]==3: # in the middle of the third file
        write(table.slice(0, 5), path)
        os.kill(os.getpid(), signal.SIGKILL)
    write(table, path)
pq.write_table = die
score(*sys.argv[1:4], rows=10, engine=sys.argv[4])
"""


@pytest.mark.parametrize('engine', ['local', 'ray'])
def test_a_run_that_is_killed_leaves_whole_files_and_is_completed(models, rows, tmp_path, engine):
    model,learn = models('sequence-classification')
    rows.to_parquet(tmp_path/'a.parquet')
    args = [str(o) for o in (tmp_path/'a.parquet', model, tmp_path/'out')]
    command = [sys.executable, '-W', 'ignore', '-c', KILLED, *args, engine]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert parts(args[2]) == ['part-000000.parquet', 'part-000001.parquet']
    assert len(read(args[2])) == 20
    assert len(list(Path(args[2]).glob('.part-*'))) == 1
    times = [(tmp_path/'out'/o).stat().st_mtime_ns for o in parts(args[2])]
    score(*args, rows=10)
    assert_scores(args[2], rows, learn)
    assert [(tmp_path/'out'/o).stat().st_mtime_ns for o in parts(args[2])][:2] == times
    assert not list(Path(args[2]).glob('.part-*'))


WAITING = """
import sys, time
import pyarrow.parquet as pq
from blurlike.scale import score
write = pq.write_table
def wait(table, path):
    write(table, path)
    if '.part-000001' in str(path): time.sleep(600)
pq.write_table = wait
score(*sys.argv[1:4], rows=10)
"""


def test_a_folder_that_a_living_run_writes_is_refused(models, rows, tmp_path):
    model,learn = models('sequence-classification')
    rows.to_parquet(tmp_path/'a.parquet')
    args = [str(o) for o in (tmp_path/'a.parquet', model, tmp_path/'out')]
    first = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', WAITING, *args], stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            if half := list(Path(args[2]).glob('.part-000001*')): break
            time.sleep(.1)
        with pytest.raises(ValueError, match=mentions('out', repr(args[2]))): score(*args, rows=10)
        assert first.poll() is None
        assert half[0].exists()
    finally:
        first.kill()
        first.wait()
    score(*args, rows=10)
    assert_scores(args[2], rows, learn)
    assert not list(Path(args[2]).glob('.part-*'))


def actors():
    "The processes of Ray's actors that score"
    found = []
    for o in psutil.process_iter(['cmdline']):
        if any('Scorer' in p for p in o.info['cmdline'] or ()): found.append(o)
    return found


def test_an_actor_that_is_killed_loses_nothing(models, tmp_path, engine):
    model,learn = models('sequence-classification')
    df = make_texts(3000, seed=4)[['text']]
    df.to_parquet(tmp_path/'a.parquet')
    killed = []
    def kill():
        for _ in range(3000):
            if len(parts(tmp_path/'out')) >= 2 and (found := actors()):
                killed.append(found[0].pid)
                return os.kill(found[0].pid, signal.SIGKILL)
            time.sleep(.01)
    thread = threading.Thread(target=kill)
    thread.start()
    out = score(tmp_path/'a.parquet', model, tmp_path/'out', engine=engine, rows=100)
    thread.join()
    assert killed
    found = read(out)
    assert found.text.tolist() == df.text.tolist()
    assert_same(found.score.tolist(), [o['score'] for o in learn.hf_predict(df.text.tolist())])


# ---- the command line

def test_the_command_line(models, rows, tmp_path, capsys):
    model,learn = models('sequence-classification')
    rows.to_csv(tmp_path/'a.csv', index=False)
    args = ['predict', str(model), '--input', str(tmp_path/'a.csv'), '--output', str(tmp_path/'out')]
    for line in (['60 rows', 'which 3', "'error'"], ['0 rows', 'the other 60']):
        assert run([*args, '--option', 'batch_tokens=512']) == 0
        assert re.search(mentions(*line), capsys.readouterr().err)
    assert_scores(tmp_path/'out', rows, learn)
    assert run([*args, '--text-col', 'review']) == 1
    assert "--text-col='review'" in capsys.readouterr().err
    assert run([*args[:4]]) == 1
    assert '--output' in capsys.readouterr().err
    assert run([*args, '--file', 'lines.txt']) == 1
    assert '--file' in capsys.readouterr().err


def test_numbers_that_would_be_rounded_are_written_as_text(tmp_path, capsys):
    big = 1234567890123456789
    pq.write_table(pa.table(dict(text=['the film'], id=[big], n=[1], u=pa.array([2**63], pa.uint64()))),
                   tmp_path/'a.parquet')
    pq.write_table(pa.table(dict(text=['the plot'], id=[.5], n=[.5], u=pa.array([-1], pa.int64()))),
                   tmp_path/'b.parquet')
    chunks = Chunks(tmp_path)
    found = pa.concat_tables(map(chunks.table, chunks)).to_pydict()
    assert found['id'] == [str(big), '0.5']
    assert found['u'] == [str(2**63), '-1']
    assert found['n'] == [1., .5]
    assert re.search(mentions('id', 'u', 'text'), capsys.readouterr().out)


@pytest.mark.parametrize('content', ['{', '[1]'])
def test_a_damaged_manifest_is_named(models, rows, tmp_path, content):
    folder,_ = models('sequence-classification')
    score(Dataset.from_pandas(rows), folder, tmp_path/'out')
    (tmp_path/'out'/MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=mentions(MANIFEST)): score(Dataset.from_pandas(rows), folder, tmp_path/'out')
