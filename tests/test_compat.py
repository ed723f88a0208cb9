"The private names of other libraries exist and do what blurlike relies on."
import inspect
import logging
import pickle
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from conftest import make_config, make_objects
from fastai.callback.core import Callback, CancelStepException
from fastai.data.all import CategoryBlock, ColReader, DataBlock, DataLoader, Datasets, TfmdDL, TransformBlock
from fastai.interpret import Interpretation
from fastai.optimizer import OptimWrapper
from fastai.test_utils import synth_learner
from torch import nn
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    FillMaskPipeline,
    T5Config,
    TokenClassificationPipeline,
)
from transformers.pipelines.token_classification import AggregationStrategy
from transformers.utils import logging as hf_logging

from blurlike.core.compat import (
    autocast_depth,
    end_cleanup,
    entity_pipeline,
    epoch_indices,
    epoch_loop,
    fill_mask,
    has_int8_dot_products,
    has_model_class,
    has_native_arithmetic,
    has_shuffle_buffer,
    int8_linear,
    item_pipeline,
    keep_loaders,
    model_classes,
    quiet_load_report,
    remove_capture_hooks,
    run_epochs,
    set_input_count,
    take_step,
    type_transforms,
)


@pytest.fixture
def synth():
    return synth_learner()


def columns(df): return Datasets(df, [[ColReader('text'), str.upper], [ColReader('label')]])


# fastai

def test_end_cleanup_releases_the_batch(synth):
    for o in ('dl', 'pred', 'loss'): setattr(synth, o, 1)
    synth.xb = synth.yb = (1,)
    end_cleanup(synth)
    assert (synth.dl, synth.pred, synth.loss, synth.xb, synth.yb) == (None, None, None, (None,), (None,))


@pytest.mark.parametrize('cancels', [False, True])
def test_a_step_has_its_events_and_resets_gradients(synth, cancels):
    class Note(Callback):
        def before_step(self):
            self.events = ['before']
            if cancels: raise CancelStepException
        def after_step(self): self.events.append('after')
    synth.add_cb(Note())
    synth.create_opt()
    synth.model.a.grad,before = torch.ones(1),synth.model.a.item()
    take_step(synth)
    assert synth.note.events == ['before', 'after']
    assert (synth.model.a.item()==before) == cancels
    assert not synth.model.a.grad.any()


def test_the_loop_over_epochs_can_begin_later(synth):
    seen = []
    for o in ('before_epoch', 'after_epoch'): synth.add_cb(Callback(**{o: lambda self: seen.append(self.epoch)}))
    with epoch_loop(synth, lambda: run_epochs(synth, 1)), synth.no_bar(), synth.no_logging(): synth.fit(3)
    assert seen == [1, 1, 2, 2]
    with synth.no_bar(), synth.no_logging(): synth.fit(1)
    assert seen[4:] == [0, 0]


@pytest.mark.parametrize('shuffle', [False, True])
def test_the_state_of_a_stream_is_exact_without_a_shuffle_buffer(shuffle):
    stream = datasets.Dataset.from_dict(dict(a=list(range(20)))).to_iterable_dataset(num_shards=2)
    if shuffle: stream = stream.shuffle(seed=0, buffer_size=8)
    rows = iter(stream)
    for _ in range(5): next(rows)
    state,rest = stream.state_dict(),list(rows)
    stream.load_state_dict(state)
    assert list(stream)==rest or has_shuffle_buffer(stream)
    assert has_shuffle_buffer(stream.map(dict)) == shuffle


def test_an_item_passes_through_the_pipeline_of_its_column(df):
    tls = columns(df).tls
    assert [item_pipeline(o)(df.iloc[0]) for o in tls] == [df.text[0].upper(), df.label[0]]
    assert [o[0] for o in tls] == [item_pipeline(o)(df.iloc[0]) for o in tls]


def test_type_transforms_make_the_samples_of_the_block(df):
    block = DataBlock(blocks=(TransformBlock, CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'))
    mine,fastais = Datasets(df, type_transforms(block)),block.datasets(df)
    assert fastais.vocab == mine.vocab
    assert all(mine[int(i)] == fastais.train[n] for n,i in enumerate(fastais.splits[0]))


def test_epoch_indices_are_those_that_get_idxs_drew():
    drawn,seen = [],[]
    class Loader(DataLoader):
        def get_idxs(self):
            drawn.append(super().get_idxs())
            return drawn[-1]
        def sample(self):
            seen.append(list(epoch_indices(self)))
            return super().sample()
    dl = Loader(list(range(20)), bs=4, shuffle=True)
    for _ in range(2): list(dl)
    assert seen == drawn
    assert seen[0] != seen[1]


def test_an_input_count_saves_reading_a_batch():
    dl = TfmdDL([], bs=2, num_workers=0)
    set_input_count(dl, 2)
    assert dl.n_inp == 2
    assert dl.new([]).n_inp == 2


def test_the_loaders_signatures_name_the_methods_that_are_options():
    for cls in (DataLoader, TfmdDL): assert set(DataLoader._methods) <= set(inspect.signature(cls.__init__).parameters)


class Hooked(TfmdDL):
    "Note which of the hooks fastai calls"
    def __init__(self, *args, **kwargs):
        self.called = []
        super().__init__(*args, **kwargs)

    def _one_pass(self):
        self.called.append('_one_pass')
        super()._one_pass()

    def _decode_batch(self, b, max_n=9, full=True):
        self.called.append('_decode_batch')
        return super()._decode_batch(b, max_n, full)

    def _pre_show_batch(self, b, max_n=9):
        self.called.append('_pre_show_batch')
        return super()._pre_show_batch(b, max_n)


def test_fastai_calls_the_hooks_of_loaders():
    dl = Hooked([(torch.tensor([i]), torch.tensor(i)) for i in range(4)], bs=2, num_workers=0)
    def calls(f):
        dl.called.clear()
        f()
        return set(dl.called)
    assert calls(lambda: dl.n_inp) == {'_one_pass'}
    assert calls(lambda: dl.decode_batch(dl.one_batch())) == {'_decode_batch'}
    assert '_pre_show_batch' in calls(lambda: dl.show_batch(show=False))
    assert '_pre_show_batch' in calls(lambda: dl.show_results(dl.one_batch(), torch.zeros(2), show=False))
    assert '_pre_show_batch' in Interpretation.plot_top_losses.__code__.co_names


def test_fastai_calls_the_hook_of_optimizers():
    set_ = []
    class Wrapper(OptimWrapper):
        def _set_hyper(self, k, v): set_.append((k, list(v)))
    Wrapper([nn.Parameter(torch.ones(1))], torch.optim.SGD, lr=1.).set_hyper('lr', .1)
    assert set_ == [('lr', [.1])]


# transformers

def test_auto_classes_map_configurations_to_models():
    assert model_classes(AutoModelForSequenceClassification, BertConfig) == (BertForSequenceClassification,)
    assert model_classes(AutoModelForCausalLM, T5Config) == model_classes(None, BertConfig) == ()
    assert has_model_class(AutoModelForCausalLM, BertConfig)
    assert not has_model_class(AutoModelForCausalLM, T5Config)


def test_asking_for_a_model_class_imports_no_model():
    code = '''
import sys
from transformers import AutoModelForCausalLM, GPT2Config
from blurlike.core.compat import has_model_class
assert has_model_class(AutoModelForCausalLM, GPT2Config)
sys.exit("transformers.models.gpt2.modeling_gpt2" in sys.modules)'''
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)


def test_the_load_report_is_hidden_and_nothing_else(tmp_path, caplog, monkeypatch):
    make_objects('bert', auto_model=AutoModelForMaskedLM).model.save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger('transformers'), 'propagate', True) # which pytest listens to
    AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert 'LOAD REPORT' in caplog.text
    caplog.clear()
    with quiet_load_report():
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert not caplog.records
        logging.getLogger('transformers.modeling_utils').warning('another message')
    assert 'another message' in caplog.text
    assert not logging.getLogger('transformers.modeling_utils').filters


def test_loading_prints_neither_a_bar_nor_that_a_new_head_is_corrupted(tmp_path, caplog, capsys, monkeypatch):
    encoder = AutoModel.from_config(make_config('bert')[0])
    encoder.save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger('transformers'), 'propagate', True)
    monkeypatch.setattr(hf_logging, '_tqdm_active', True)
    capsys.readouterr()
    AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert 'corrupted' in caplog.text
    assert 'Loading weights' in capsys.readouterr().err
    caplog.clear()
    with quiet_load_report(): AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert caplog.text + capsys.readouterr().err == ''
    assert hf_logging.is_progress_bar_enabled()


def test_capture_hooks_are_removed_and_others_stay():
    model,ids = make_objects('bert').model,torch.ones(1, 3, dtype=torch.long)
    def hooks(): return [h for m in model.modules() for h in m._forward_hooks.values()]
    mine = model.register_forward_hook(lambda *_: None)
    model(input_ids=ids, output_hidden_states=True)
    assert len(hooks()) > 1
    with pytest.raises(Exception, match='pickle'): pickle.dumps(model.base_model)
    remove_capture_hooks(model)
    assert len(hooks()) == 1
    mine.remove()
    pickle.dumps(model)
    assert len(model(input_ids=ids, output_hidden_states=True).hidden_states) == model.config.num_hidden_layers + 1


@pytest.mark.parametrize('strategy', AggregationStrategy)
def test_entities_are_those_of_the_pipeline(strategy, df):
    config,tokenizer = make_config('bert', num_labels=3)
    model = AutoModelForTokenClassification.from_config(config)
    text = df.text[0]
    enc = tokenizer(text, return_offsets_mapping=True, return_tensors='pt')
    scores = model.eval()(**{k: v for k,v in enc.items() if k!='offset_mapping'}).logits[0].softmax(-1).detach().numpy()
    special,pipe = np.array(enc.encodings[0].special_tokens_mask),entity_pipeline(tokenizer, config)
    pre = pipe.gather_pre_entities(text, enc['input_ids'][0], scores, enc['offset_mapping'][0], special, strategy)
    theirs = TokenClassificationPipeline(model=model, tokenizer=tokenizer, aggregation_strategy=strategy,
                                         ignore_labels=[])
    keys = ('entity', 'entity_group', 'word', 'start', 'end')
    def facts(entities): return [[o.get(k) for k in keys] for o in entities]
    assert facts(pipe.aggregate(pre, strategy)) == facts(theirs(text))


@pytest.mark.parametrize('targets', [None, ['film', 'plot', 'warm']])
def test_masks_are_filled_as_by_the_pipeline(targets):
    hf = make_objects('bert', auto_model=AutoModelForMaskedLM)
    texts = ['the [MASK] film', 'a [MASK] and a [MASK]']
    enc = hf.tokenizer(texts, padding=True, return_tensors='pt')
    filled = fill_mask(hf.tokenizer, enc['input_ids'], hf.model.eval()(**enc).logits.detach(), 2, targets)
    expected = FillMaskPipeline(model=hf.model, tokenizer=hf.tokenizer)(texts, top_k=2, targets=targets)
    for mine,theirs in zip([filled[0], *filled[1]], [expected[0], *expected[1]], strict=True):
        assert [o | dict(score=0) for o in mine] == [o | dict(score=0) for o in theirs]
        assert [o['score'] for o in mine] == pytest.approx([o['score'] for o in theirs])


# torch

def test_hardware_answers_with_a_boolean():
    assert isinstance(has_native_arithmetic(torch.device('cpu')), bool)
    assert isinstance(has_int8_dot_products(), bool)
    assert has_native_arithmetic(torch.device('meta')) is False


def test_an_emulated_bf16_does_not_count(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: including_emulation)
    assert not has_native_arithmetic(torch.device('cuda'))
    assert has_native_arithmetic(torch.device('cuda'), torch.float16)


@pytest.mark.parametrize(('vnni', 'reduced'), [(True, False), (False, True)])
def test_an_int8_layer_uses_all_bits_that_the_cpu_can(vnni, reduced, monkeypatch):
    monkeypatch.setattr(torch.cpu, '_is_vnni_supported', lambda: vnni)
    assert int8_linear.__wrapped__().reduce_range is reduced


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_an_int8_layer_computes_what_the_layer_did(dtype):
    torch.manual_seed(0)
    layer,x = nn.Sequential(nn.Linear(64, 8)),torch.randn(4, 64)
    rounded = quantize_dynamic(layer, {nn.Linear: per_channel_dynamic_qconfig}, mapping={nn.Linear: int8_linear()})
    assert type(rounded[0]) is int8_linear()
    assert rounded(x.to(dtype)).dtype == dtype
    assert (rounded(x.to(dtype)).float() - layer(x)).abs().max() < 0.1


def test_autocast_depth_counts_open_contexts():
    assert autocast_depth() == 0
    with torch.autocast('cpu', torch.bfloat16):
        assert autocast_depth() == 1
        with torch.autocast('cpu', enabled=False): assert autocast_depth() == 2
    assert autocast_depth() == 0


def test_loaders_can_be_kept_from_the_distributed_trainer(monkeypatch):
    from fastai.distributed import DistributedDL, DistributedTrainer
    trainer,dl = DistributedTrainer.__new__(DistributedTrainer),TfmdDL(list(range(4)), bs=2)
    trainer.learn = synth_learner()
    trainer.learn.model.device = 'cpu'
    keep_loaders(trainer, Marked)
    assert isinstance(trainer._wrap_dl(dl), DistributedDL)
    kept = Marked(list(range(4)), bs=2)
    assert trainer._wrap_dl(kept) is kept


class Marked(TfmdDL): pass
