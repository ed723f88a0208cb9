"Two processes train as one with the larger batch, and validate as one."
import builtins
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch
from conftest import make_texts, mentions
from ranks import EXACT, LOADERS, ROWS
from transformers import AutoConfig

from blurlike.all import HFTextDataLoaders, padding_share
from blurlike.core.checks import print_once
from blurlike.core.ranks import _failure, share
from blurlike.train.distributed import ddp_options

HERE = Path(__file__).parent


def launch(folder, *names, timeout=400):
    "Run functions of tests/ranks.py on two processes"
    env = os.environ | dict(ACCELERATE_USE_CPU='true', OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false',
                            PYTHONPATH=os.pathsep.join([str(HERE.parent), str(HERE)]))
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    command = [*launcher, HERE/'ranks.py', folder, *names]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)


def results(folder, *names):
    "What each of two processes returned, and what they printed"
    run = launch(folder, *names)
    assert run.returncode==0, run.stderr[-5000:]
    found = [torch.load(folder/f'{o}.pt', weights_only=False) for o in range(2)]
    assert [o['ranks'] for o in found]==[(2, '0'), (2, '1')] # not two single processes
    return found,run.stdout


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "One start of two processes, which takes longer than most of what they do"
    return results(tmp_path_factory.mktemp('both'), 'exact_all', 'accumulated', 'all_unused', 'all_loaders', 'deciding',
                   'tracked', 'lr_find', 'saving', 'one_rank_alone', 'generating', 'batch_size', 'half_precision',
                   'lora', 'dropout', 'refused', 'splits', 'checkpointed')


@pytest.fixture(scope='module')
def both(run): return run[0]


def same(a, b, eps=1e-6):
    "Fail unless tensors and numbers are the same, in nested lists"
    if isinstance(a, torch.Tensor): torch.testing.assert_close(a, b, atol=eps, rtol=eps, check_dtype=False)
    elif isinstance(a, (list, tuple)) or hasattr(a, 'itemgot'):
        assert len(a)==len(b)
        for o in zip(a, b, strict=True): same(*o, eps)
    else: assert a==pytest.approx(b, rel=eps, abs=eps, nan_ok=True)


# ---- one process with the larger batch

def check_same(one, both):
    for two in both:
        assert len(one['gradients'])==len(two['gradients']) > 2
        same(one['gradients'], two['gradients'])
        same(one['seen'], two['seen'])
        same(one['weights'], two['weights'])
        same(one['before'], two['before'])
        same(one['values'], two['values'])
        for o in ('preds', 'again', 'after'): same(one[o], two[o])


@pytest.mark.parametrize(('task', 'own_loss'), EXACT)
def test_two_processes_are_one_with_the_larger_batch(task, own_loss, both):
    check_same(ranks.exact(task, own_loss, bs=6), [o['exact_all'][task, own_loss] for o in both])


def test_accumulated_gradients_are_those_of_all_processes(both):
    one,two = ranks.accumulated(bs=4),[o['accumulated'] for o in both]
    check_same(one, two)
    assert len(two[0]['gradients']) < 10
    assert [(o['run'].get('n_acc'), o['run'].get('processes')) for o in (one, *two)]==[(8, None), (8, 2), (8, 2)]


@pytest.mark.parametrize('name', ranks.UNUSED)
def test_parameters_without_use_do_not_matter(name, both):
    one = ranks.unused(name)
    for two in both: same(one, two['all_unused'][name])
    assert len(one[0])==6


# ---- loaders

@pytest.mark.parametrize('name', LOADERS)
def test_every_row_is_seen_once_an_epoch(name, both):
    (first,steps),(second,other) = (o['all_loaders'][name] for o in both)
    assert steps==other
    n = 18 if name!='dropped' else 18//6*6
    known = {' '.join(o.split()) for o in ROWS.text[:18]}
    for parts in zip(first, second, strict=True):
        seen = [o for part in parts for texts,_ in part for o in texts]
        assert len(seen)==n
        assert len(set(seen) & known)==len(set(seen))
        assert sorted(seen)==sorted(ROWS.text[:18]) or name=='dropped'
        assert all(len(part) <= steps[0] for part in parts)


@pytest.mark.parametrize('options', [dict(bs=8), dict(batch_tokens=256), dict(bs=8, precompute_lengths=False)])
@pytest.mark.parametrize('n_ranks', [2, 3])
def test_batches_of_a_rank_have_rows_of_similar_length(options, n_ranks, hf):
    def loader(**options):
        return HFTextDataLoaders.from_df(make_texts(400).assign(is_valid=[False]*390 + [True]*10), hf, device='cpu',
                                         valid_col='is_valid', seed=0, **options).train
    parts = [[*loader(**options).part(o, n_ranks)] for o in range(n_ranks)]
    assert len({*map(len, parts)})==1
    whole = loader(**options | (dict(bs=8*n_ranks) if 'bs' in options else {}))
    for part in parts: assert padding_share(part) < padding_share(whole) + .02 < .15


@pytest.mark.parametrize(('n', 'ranks'), [(0, 1), (1, 3), (7, 2), (9, 3), (10, 4)])
def test_shares_are_neighbors_and_complete(n, ranks):
    parts = [range(n)[share(n, o, ranks)] for o in range(ranks)]
    assert [i for o in parts for i in o]==list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# ---- around training

def test_callbacks_that_watch_the_validation_decide_alike(both):
    (values,weights,saved),other = (o['deciding'] for o in both)
    assert values==other[0]
    assert len(values) < 6
    same(weights, other[1], 0)
    assert saved


def test_the_first_process_logs(both):
    (numbers,tables,steps,first),(nothing,no_tables,_,second) = (o['tracked'] for o in both)
    assert [s for s,o in numbers if 'train_loss' in o]==[*range(1, steps+1)]
    assert (tables, nothing, no_tables)==([5], [], [])
    same(first, second, 0)


def test_lr_find_ends_and_restores_the_weights(both):
    for _,steps,last,change in (o['lr_find'] for o in both):
        assert steps==12
        assert last==pytest.approx(10, rel=.9)
        assert change==0


def test_one_process_writes_and_the_others_wait(both):
    for preds,score,message in (o['saving'] for o in both):
        assert preds==[pytest.approx(score, abs=1e-6)]*4
        assert re.match(mentions('path', 'is a file'), message)


def test_a_single_process_may_predict_and_show_results(both):
    (first,),(inside,after) = (o['one_rank_alone'] for o in both)
    for a,b in zip(inside, after, strict=True): assert a['score']==b['score']
    assert [o['score'] for o in first]==[o['score'] for o in after]
    (_,text),(inside,after) = (o['generating'] for o in both)
    assert text==inside==after


def test_find_batch_size_returns_the_smallest_of_all(both):
    (outside,inside),other = (o['batch_size'] for o in both)
    assert 'takes' in outside or outside==other[0]
    assert isinstance(outside, str)==isinstance(other[0], str)
    assert inside==other[1]


def test_half_precision_trains(both, run):
    (weights,cast,dtype),other = (o['half_precision'] for o in both)
    assert dtype is torch.float32
    same([weights, cast], other[:2], 0)
    assert run[1].count('Converted BertForSequenceClassification')==1


def test_adapters_train(both):
    (trained,values),other = (o['lora'] for o in both)
    assert any('lora' in o for o in trained)
    assert all('lora' in o or 'classifier' in o for o in trained)
    assert trained.keys()==other[0].keys()
    for k,v in trained.items(): same(v, other[0][k], 0)
    assert values==other[1]


def test_ranks_draw_different_dropout(both):
    first,second = (o['dropout'] for o in both)
    assert len(first)==len(second)
    assert not set(first) & set(second)


def test_what_does_not_work_is_refused(both):
    for accumulation,sharded,rows,loss,few in (o['refused'] for o in both):
        assert re.match(mentions('gradient_accumulation_steps=2', 'GradientAccumulation'), accumulation)
        assert re.match(mentions("distributed_type='FSDP'"), sharded)
        assert re.match(mentions('dls', 'seed=', 'valid_col='), rows)
        assert re.match(mentions('loss_func=LabelSmoothingCrossEntropyFlat', 'label_smoothing='), loss)
        assert re.match(mentions('ranks=2', 'the 1 rows'), few)


def test_rows_that_are_chosen_at_random_are_the_same_in_each_rank(both):
    first,second = (o['splits'] for o in both)
    assert first==second


@pytest.mark.parametrize('name', ['failing', 'failing_in_validation'])
def test_a_failing_rank_ends_the_run_with_its_error(name, tmp_path):
    run = launch(tmp_path, name, timeout=120)
    assert run.returncode!=0
    assert 'a rank failed' in run.stderr


class WrongFolder(FileExistsError): pass


@pytest.mark.parametrize('error', [
    UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'invalid byte'), UnicodeEncodeError('ascii', 'é', 0, 1, 'not in range'),
    ExceptionGroup('two', [ValueError('a'), TypeError('b')]), FileNotFoundError(2, 'No such file', 'a.txt'),
    WrongFolder('a'), ValueError('a'), OSError()], ids=lambda o: type(o).__name__)
def test_an_error_of_the_first_rank_can_be_raised_in_the_others(error):
    kind,message = _failure(error)
    again = getattr(builtins, kind)(message)
    assert str(again) == str(error)
    assert isinstance(error, type(again))
    assert type(again) is not Exception or isinstance(error, ExceptionGroup)


@pytest.mark.parametrize('part', ['encoder', 'decoder'])
def test_what_changes_in_a_part_of_a_model_is_looked_for(part):
    options = dict(encoder=dict(model_type='bert'), decoder=dict(model_type='bert'))
    assert ddp_options(AutoConfig.for_model('encoder-decoder', **options)) == dict(static_graph=True)
    changing = options | {part: dict(model_type='mixtral')}
    assert ddp_options(AutoConfig.for_model('encoder-decoder', **changing)) == dict(find_unused_parameters=True)


def test_the_first_process_prints(monkeypatch, capsys):
    monkeypatch.setenv('RANK', '1')
    print_once('A line.')
    assert capsys.readouterr().out==''


def test_a_single_process_may_use_the_context(learn, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '1')
    with learn.distrib_ctx(in_notebook=False): learn.fit(1)
    monkeypatch.delenv('WORLD_SIZE')
    assert len(learn.validate())==2


# ---- checkpoints

def test_ranks_with_checkpoints_stay_alike(both):
    one,two = (o['checkpointed'] for o in both)
    for o in ('rows', 'half', 'pools'):
        same(one[o][:2], two[o][:2], 0)
        assert one[o][2] != two[o][2] # each rank has random numbers of its own


def test_a_run_of_two_processes_that_is_killed_continues_exactly(both, tmp_path):
    for i,name in enumerate(('killed_with_16_bits', 'killed_between_epochs', 'killed_in_an_epoch')):
        killed = launch(tmp_path, name)
        assert killed.returncode != 0
        assert ('Continuing from' in killed.stdout)==(i > 0)
        assert not list(tmp_path.glob('*.pt'))
    resumed,printed = results(tmp_path, 'checkpointed')
    assert 'Continuing from' in printed
    for one,other in zip(resumed, both, strict=True):
        for o in ('rows', 'half', 'pools'): same(one['checkpointed'][o], other['checkpointed'][o], 0)
