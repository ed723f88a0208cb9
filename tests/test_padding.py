"A prediction depends on its text alone: not on the texts beside it, and not on the side on which a tokenizer pads."
import pytest
import torch
from conftest import ARCHITECTURES, make_config
from test_matrix import ASKS, CONFIGS, ROWS, TASKS, make_dls

from blurlike.all import HFObjects, HFTextBlock, hf_learner
from blurlike.architectures import LIMITS, has_model

# Models whose convolutions, pooling or landmarks read the padding too, so that only texts of one length go together
READ_PADDING = {'canine', 'convbert', 'nystromformer'}
# Every architecture as a classifier, and every other task once or twice
CELLS = [(a, 'sequence-classification') for a in ARCHITECTURES] + [
    ('bert', 'token-classification'), ('gpt2', 'token-classification'), ('bert', 'question-answering'),
    ('gpt2', 'question-answering'), ('bert', 'multiple-choice'), ('xlnet', 'multiple-choice'), ('bert', 'masked-lm'),
    ('gpt2', 'causal-lm'), ('bart', 'summarization'), ('t5', 'translation')]
CELLS = [o for o in CELLS if has_model(o[0], TASKS[o[1]]) and o not in LIMITS]


def make_learner(arch, task, side):
    "A learner of a model with large weights, whose predictions show small changes, and whose tokenizer pads on `side`"
    config,tokenizer = make_config(arch, **CONFIGS.get((arch, task), CONFIGS.get(task, {})))
    tokenizer.model_max_length,tokenizer.padding_side = 64,side
    dls = make_dls(task, HFObjects(arch, config, tokenizer, None))
    for k,v in dls.hf_block.task.config_kwargs(dls).items(): setattr(config, k, v)
    torch.manual_seed(0)
    model = dls.hf_block.task.auto_model.from_config(config)
    for p in model.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=.1)
    for m in model.modules(): # MobileBERT relies on it
        if isinstance(m, torch.nn.Embedding) and m.padding_idx is not None:
            torch.nn.init.zeros_(m.weight[m.padding_idx])
    return hf_learner(dls, model, metrics=[])


def same(a, b):
    "Whether predictions are equal, up to rounding"
    if isinstance(a, float): return a == pytest.approx(b, abs=1e-6, rel=1e-5)
    if isinstance(a, dict): return a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list): return len(a)==len(b) and all(map(same, a, b))
    return a==b


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize(('arch', 'task'), CELLS, ids=map('-'.join, CELLS))
def test_a_prediction_depends_on_its_text_alone(arch, task, side):
    learn = make_learner(arch, task, side)
    block = learn.dls.hf_block
    texts = ASKS.get(task, lambda xs, tokenizer: xs)(ROWS[task][0], block.hf_tokenizer)
    with learn.no_bar():
        alone = [learn.hf_predict(o) for o in texts[:4]]
        assert same(learn.hf_predict(texts[:4]), alone) == (arch not in READ_PADDING)


@pytest.mark.parametrize('option', ['tokenizer', 'tok_kwargs'])
@pytest.mark.parametrize(('arch', 'side'), [('bert', 'left'), ('gpt2', 'left'), ('xlnet', 'right')])
def test_a_side_that_is_not_used_is_said_once(arch, side, option, capsys):
    config,tokenizer = make_config(arch)
    kwargs = dict(tok_kwargs=dict(padding_side=side)) if option=='tok_kwargs' else {}
    if not kwargs: tokenizer.padding_side = side
    blocks = [HFTextBlock(arch, config, tokenizer, task='sequence-classification', **kwargs) for _ in range(2)]
    assert blocks[0].padding_side == blocks[1].padding_side != side
    assert capsys.readouterr().out.count(f'padding_side={side!r}') == 1


def test_the_usual_side_of_a_tokenizer_is_not_mentioned(capsys):
    for arch in ('bert', 'llama', 'xlnet'):
        config,tokenizer = make_config(arch)
        HFTextBlock(arch, config, tokenizer, task='sequence-classification')
    assert not capsys.readouterr().out
