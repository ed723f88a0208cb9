"Causal language models: packed blocks keep every token, only answers have a loss, bidirectional models are refused."
import json
import math

import pandas as pd
import pytest
import torch
from conftest import ARCHITECTURES, make_objects, make_texts, mentions
from datasets import Dataset
from fastai.data.block import DataBlock
from fastai.data.core import Datasets
from fastai.data.transforms import ColReader, ColSplitter
from fastai.interpret import Interpretation
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, pipeline

from blurlike.all import (
    HFCallback,
    HFDataLoader,
    HFLoss,
    HFTextBlock,
    HFTextDataLoaders,
    TokenCrossEntropy,
    hf_learner,
    hf_splitter,
)
from blurlike.tasks.causal_lm import sees_ahead
from blurlike.tasks.corpus import Blocks, Tokens, block_cuts, table_of

DECODERS = ('gpt2', 'gpt_neox', 'llama', 'qwen3')
ENCODERS = ('bert', 'electra', 'roberta')
PAIRS = pd.DataFrame(dict(prompt=[f'the {n} was' for n in 'film plot cast score'.split()]*4,
                          completion=[' warm', ' dull']*8))
TEMPLATE = ("{% for m in messages %}<{{ m.role }}> {{ m.content }}<|endoftext|>{% endfor %}"
            "{% if add_generation_prompt %}<assistant> {% endif %}")
MARKED = ("{% for m in messages %}<{{ m.role }}> {% if m.role=='assistant' %}"
          "{% generation %}{{ m.content }}<|endoftext|>{% endgeneration %}"
          "{% else %}{{ m.content }}<|endoftext|>{% endif %}{% endfor %}"
          "{% if add_generation_prompt %}<assistant> {% endif %}")


def make_lm(arch='gpt2', **kwargs):
    "A tiny causal model of architecture `arch`, and its tokenizer"
    return make_objects(arch, auto_model=AutoModelForCausalLM, **kwargs)


def loaders(df, hf, **kwargs):
    return HFTextDataLoaders.from_df(df, hf, **{**dict(task='causal-lm', bs=4, seed=0, device='cpu'), **kwargs})


def pairs(hf, **kwargs): return loaders(PAIRS, hf, text_col='prompt', label_col='completion', **kwargs)


def quiet(learn):
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__=='ProgressCallback'])
    return learn


def chats(n=8):
    messages = lambda i: [dict(role='user', content='Good?'), dict(role='assistant', content=f'Very good {i}.'),
                          dict(role='user', content='Why?'), dict(role='assistant', content='It moves.')]
    return pd.DataFrame(dict(messages=[messages(i) for i in range(n)]))


@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=8), size=st.integers(3, 40))
@settings(max_examples=60, deadline=None)
def test_blocks_hold_every_token_of_every_text_in_order(texts, size):
    hf = test_blocks_hold_every_token_of_every_text_in_order.hf
    block = HFTextBlock(*hf, task='causal-lm', block_size=size)
    spoken = hf.tokenizer([o for o in texts if o])['input_ids'] if any(texts) else []
    whole = [i for o in spoken for i in [*o, hf.tokenizer.eos_token_id]]
    if not whole: return
    blocks = block.task.prepare([(o,) for o in texts], block, dict(answers=False))
    assert [i for o, in blocks for i in o.ids] == whole
    assert all(len(o) <= size for o, in blocks)
    assert min(len(o) for o, in blocks) >= min(2, len(whole))


test_blocks_hold_every_token_of_every_text_in_order.hf = make_lm()


@given(n=st.integers(0, 200), size=st.integers(3, 50), least=st.integers(1, 2))
def test_cuts_are_a_partition_whose_last_part_is_long_enough(n, size, least):
    cuts = block_cuts(n, size, least).tolist()
    parts = [b-a for a,b in zip(cuts, cuts[1:], strict=False)]
    assert sum(parts) == n
    assert all(0 < o <= size for o in parts)
    if n >= least: assert all(o >= least for o in parts)


def test_two_documents_in_a_block_are_kept_apart_by_the_end_of_text(df):
    hf = make_lm()
    dls = loaders(df[:4], hf, valid_pct=0.5, block_size=64)
    for ds in (dls.train_ds, dls.valid_ds):
        ids = [i for o, in ds for i in o.ids]
        assert ids.count(hf.tokenizer.eos_token_id) == 2
        assert ids[-1] == hf.tokenizer.eos_token_id


@pytest.mark.parametrize('arch', DECODERS)
def test_the_models_own_loss_is_ours_and_fastais(arch, df):
    hf = make_lm(arch)
    for dls in (loaders(df, hf, block_size=16), loaders(df, hf, packing=False), pairs(hf)):
        batch = dls.valid.one_batch()
        losses = []
        for loss_func in (HFLoss(), None, CrossEntropyLossFlat()):
            learn = hf_learner(dls, hf.model, loss_func=loss_func, metrics=[])
            with learn.no_bar(): losses.append(learn.validate(dl=[batch])[0])
        assert losses[1] == pytest.approx(losses[0], abs=1e-5)
        assert losses[2] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize('arch', DECODERS)
def test_a_decoder_trains_scores_saves_and_reads_back(arch, df, tmp_path):
    hf = make_lm(arch)
    dls = loaders(df, hf, valid_col='is_valid', block_size=32, bs=8)
    learn = hf_learner(dls, hf.model, lr=1e-2)
    with learn.no_bar(), learn.no_logging():
        before = learn.validate()[1]
        learn.fit(1)
        assert learn.validate()[1] < before/2
    score = learn.hf_predict('the film warm the plot dull')
    learn.save_pretrained(tmp_path/'model')
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path/'model')
    ids = hf.tokenizer('the film warm the plot dull', return_tensors='pt')['input_ids']
    with torch.no_grad(): loss = theirs(input_ids=ids, labels=ids).loss.item()
    assert score == dict(loss=pytest.approx(loss, abs=1e-5), perplexity=pytest.approx(math.exp(loss), rel=1e-4),
                         tokens=ids.shape[1]-1)
    write = lambda model,tokenizer=None: pipeline('text-generation', model=model, tokenizer=tokenizer, device='cpu')(
        'the film', max_new_tokens=5, do_sample=False)[0]['generated_text']
    assert write(str(tmp_path/'model')) == write(learn.model, hf.tokenizer)


@pytest.mark.parametrize('arch', ENCODERS)
def test_an_encoder_is_refused(arch, df):
    with pytest.raises(ValueError, match=mentions(f"'{arch}'", 'is_decoder')): loaders(df, make_lm(arch))
    assert sees_ahead(make_lm(arch).model)


def test_an_encoder_that_is_a_decoder_trains(df):
    hf = make_lm('bert', is_decoder=True)
    assert not sees_ahead(hf.model)
    learn = hf_learner(loaders(df, hf, block_size=32), hf.model)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)


def test_a_model_that_sees_later_tokens_is_refused(df):
    hf = make_lm('xlnet')
    with pytest.raises(ValueError, match=mentions('XLNetLMHeadModel', 'is_decoder')):
        hf_learner(loaders(df, hf), hf.model)


def test_a_model_without_a_head_over_the_vocabulary_is_refused(df):
    gpt = make_lm()
    bert = make_objects(vocab_size=len(gpt.tokenizer), max_position_embeddings=64).model
    with pytest.raises(ValueError, match=mentions('BertForSequenceClassification', 'causal-lm')):
        hf_learner(loaders(df, gpt), bert)
    tokenizer,options = ARCHITECTURES['t5']
    with pytest.raises(ValueError, match="'t5'"):
        HFTextBlock('t5', AutoConfig.for_model('t5', **options), tokenizer(), task='causal-lm')


def test_perplexity_counts_tokens_and_not_batches(df):
    hf = make_lm()
    dls = loaders(df, hf, packing=False, bs=3)
    learn = quiet(hf_learner(dls, hf.model))
    with learn.no_logging(): _,perplexity,accuracy = learn.validate()
    total = n = right = 0
    for x,y in dls.valid:
        with torch.no_grad(): logits = hf.model(**x).logits[:,:-1]
        real = y[:,1:] >= 0
        total += torch.nn.functional.cross_entropy(logits[real], y[:,1:][real], reduction='sum').item()
        right += (logits.argmax(-1)==y[:,1:])[real].sum().item()
        n += real.sum().item()
    assert perplexity == pytest.approx(math.exp(total/n), rel=1e-4)
    assert accuracy == pytest.approx(right/n)


def test_the_end_of_text_token_is_learned_though_it_pads_too(df):
    hf = make_lm()
    assert hf.tokenizer.pad_token_id == hf.tokenizer.eos_token_id
    x,y = loaders(df, hf, packing=False, bs=16).valid.one_batch()
    lengths = x['attention_mask'].sum(1)
    assert lengths.unique().numel() > 1
    for row,mask,n in zip(y, x['attention_mask'], lengths, strict=True):
        assert mask.tolist() == [1]*n + [0]*(len(mask)-n)
        assert row[n-1] == hf.tokenizer.eos_token_id or n == 64 # where the text is cut
        assert (row[n:] == -100).all()


def test_only_the_completion_and_the_end_of_text_count():
    hf = make_lm()
    dls = pairs(hf)
    for (o,),i in zip(dls.train_ds, dls.train_ds.tls[0].items.index, strict=True):
        assert hf.tokenizer.decode(o.ids[o.columns['counts']==1]) == PAIRS.completion[i] + '<|endoftext|>'
        assert hf.tokenizer.decode(o.ids[o.columns['counts']==0]) == PAIRS.prompt[i]


def test_a_completion_that_merges_with_its_prompt_is_encoded_by_itself():
    hf = make_lm()
    dls = loaders(pd.DataFrame(dict(prompt=['the fi']*4, completion=['lm']*4)), hf, text_col='prompt',
                  label_col='completion')
    o, = dls.train_ds[0]
    assert o.ids[o.columns['counts']==0].tolist() == hf.tokenizer('the fi')['input_ids']
    assert hf.tokenizer.decode(o.ids) == 'the film<|endoftext|>'


@pytest.mark.parametrize('template', [TEMPLATE, MARKED])
def test_every_answer_of_a_chat_counts_and_nothing_else(template):
    hf = make_lm()
    hf.tokenizer.chat_template = template
    for dls in (loaders(chats(), hf, text_col='messages'),
                HFTextDataLoaders.from_dataset(Dataset.from_pandas(chats()), hf, task='causal-lm', text_col='messages',
                                               device='cpu', seed=0)):
        row, = dls.train_ds[0] # truncated
        whole = [dls.hf_block.task.answer_rows((messages,), dls.hf_block)[0] for messages in chats().messages]
        o = next(o for o in whole if o[:len(row)]==row)
        assert hf.tokenizer.decode(o.ids[o.columns['counts']==1]).startswith('Very good ')
        assert hf.tokenizer.decode(o.ids[o.columns['counts']==1]).endswith('.<|endoftext|>It moves.<|endoftext|>')
        assert 'Why?' in hf.tokenizer.decode(o.ids[o.columns['counts']==0])
        x,y = dls.one_batch()
        assert (y[y >= 0] == x['input_ids'][y >= 0]).all()
    learn = hf_learner(dls, hf.model)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    score = learn.hf_predict(chats(2).messages[0])
    row = dls.hf_block.task.sample(chats(2).messages[0], dls.hf_block)
    assert score['tokens'] == row.columns['counts'][:64].sum()
    assert len(learn.hf_predict(chats(3).messages)) == 3


def test_prompts_go_through_the_template_when_asked():
    hf = make_lm()
    hf.tokenizer.chat_template = TEMPLATE
    assert '<user>' not in hf.tokenizer.decode(pairs(hf).train_ds[0][0].ids)
    o, = pairs(hf, chat=True).train_ds[0]
    assert hf.tokenizer.decode(o.ids).startswith('<user> the ')
    assert hf.tokenizer.decode(o.ids[o.columns['counts']==1]) in (' warm<|endoftext|>', ' dull<|endoftext|>')


def test_a_row_whose_answer_is_truncated_raises():
    hf = make_lm()
    long = PAIRS.assign(prompt=['the film '*40 if i==3 else o for i,o in enumerate(PAIRS.prompt)])
    with pytest.raises(ValueError, match=mentions('1 of 12', 'training', 'row 3', 'max_length=64')):
        loaders(long, hf, text_col='prompt', label_col='completion', splits=(range(12), range(12, 16)))
    hf.tokenizer.truncation_side = 'left'
    loaders(long, hf, text_col='prompt', label_col='completion', splits=(range(12), range(12, 16)))


def test_a_json_object_with_a_chat_is_no_text_to_train_on():
    df = chats()
    df['messages'] = [json.dumps(dict(messages=o, source='web')) for o in df.messages]
    with pytest.raises(ValueError, match=mentions('first row', "'messages'")):
        loaders(df, make_lm(), text_col='messages', splits=(range(4), range(4, 6)))


@pytest.mark.parametrize(('cell', 'facts'), [
    ([dict(role='user', content='Good?')], ["'assistant'"]),
    ([dict(role='assistant', content='Good.')], ['assistant', 'generation']),
    ('a text', []),
    ([], ['[]'])])
def test_invalid_chats_raise(cell, facts):
    hf = make_lm()
    hf.tokenizer.chat_template = TEMPLATE
    df = chats()
    df.at[2, 'messages'] = cell
    with pytest.raises(ValueError, match=mentions('1 of 6', 'row 2', *facts)):
        loaders(df, hf, text_col='messages', splits=(range(6), [6, 7]))


def test_a_chat_that_its_template_cannot_write_does_not_stop_the_others(df):
    hf = make_lm()
    hf.tokenizer.chat_template = "{% for o in messages %}{{ 'said: ' + o['content'] }}{% endfor %}"
    learn = quiet(hf_learner(loaders(df, hf), hf.model))
    good,odd = ([dict(role='user', content=o)] for o in ('the film', [dict(type='text', text='the film')]))
    with pytest.raises(ValueError, match=mentions('1 of 2', 'texts[1]')): learn.hf_generate([good, odd])
    res = learn.hf_generate([good, odd], errors='return', max_new_tokens=2)
    assert 'generated_text' in res[0]
    assert isinstance(res[1], Exception)


def test_two_text_columns_are_a_prompt_and_its_completion():
    hf = make_lm()
    two,both = loaders(PAIRS, hf, text_col=['prompt', 'completion']),pairs(hf)
    assert len(two.train_ds) == len(both.train_ds)
    for a,b in zip(two.train_ds, both.train_ds, strict=True):
        assert a[0].ids.tolist() == b[0].ids.tolist()
        assert a[0].columns['counts'].tolist() == b[0].columns['counts'].tolist()


def test_a_missing_chat_template_text_or_completion_raises(df):
    hf = make_lm()
    with pytest.raises(ValueError, match=mentions('row 0', 'chat_template')): loaders(chats(), hf, text_col='messages')
    with pytest.raises(ValueError, match=mentions('row 1', 'nan')):
        loaders(df.assign(text=[math.nan if i==1 else o for i,o in enumerate(df.text)]), hf,
                splits=(range(80), range(80, 120)))
    with pytest.raises(ValueError, match=mentions('row 1', 'completion', 3)):
        loaders(PAIRS.assign(completion=[3 if i==1 else o for i,o in enumerate(PAIRS.completion)]), hf,
                text_col='prompt', label_col='completion',
                splits=(range(8), range(8, 16)))


@pytest.mark.parametrize(('options', 'facts'), [
    (dict(block_size=2), ['block_size=2', 3]), (dict(block_size=65), ['block_size=65', 'max_length=64']),
    (dict(windows=True), ['windows=True', 'causal-lm']),
    (dict(blocksize=8), ["'blocksize'", "'block_size'"])])
def test_invalid_options_raise(options, facts, df):
    with pytest.raises((TypeError, ValueError), match=mentions(*facts)): loaders(df, make_lm(), **options)


def test_texts_without_tokens_keep_the_weights_finite(df):
    hf = make_lm()
    empty = df.assign(text=['' if i < 60 else o for i,o in enumerate(df.text)])
    for loss_func in (None, HFLoss()):
        learn = hf_learner(loaders(empty, hf, packing=False, valid_col='is_valid'), hf.model, loss_func=loss_func)
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        assert all(torch.isfinite(p).all() for p in hf.model.parameters())
    with pytest.raises(ValueError, match=mentions(96)): loaders(df.assign(text=''), hf)


def test_predictions_of_different_lengths_have_the_right_classes(df):
    hf = make_lm()
    dls = loaders(df, hf, packing=False)
    learn = hf_learner(dls, hf.model)
    with learn.no_bar():
        probs,targs,decoded,losses = learn.get_preds(with_decoded=True, with_loss=True)
        assert len(probs) == len(targs) == len(decoded) == len(losses) == len(dls.valid_ds)
        for i in (0, len(probs)-1):
            o, = dls.valid_ds[i]
            real = targs[i] >= 0
            assert targs[i][real].tolist() == o.ids[1:].tolist()
            assert decoded[i].tolist() == probs[i].argmax(-1).tolist()
            score = -probs[i][real].gather(1, targs[i][real][:,None]).log().mean()
            assert losses[i].item() == pytest.approx(score.item(), abs=1e-4)


@pytest.mark.parametrize('options', [dict(block_size=16), dict(packing=False)])
def test_tables_and_interpretation_work(options, df, capsys):
    hf = make_lm()
    dls = loaders(df, hf, **options)
    learn = hf_learner(dls, hf.model)
    with learn.no_bar(), learn.no_logging():
        dls.show_batch(max_n=2)
        learn.show_results(max_n=2)
        interp = Interpretation.from_learner(learn)
        interp.plot_top_losses(3)
        losses,idxs = interp.top_losses(1)
        o, = dls.valid_ds[idxs.item()]
        ids = torch.from_numpy(o.ids.astype('int64'))[None]
        with torch.no_grad():
            assert hf.model(input_ids=ids, labels=ids).loss.item() == pytest.approx(losses.item(), abs=1e-4)
    out = capsys.readouterr().out
    assert 'prediction' in out
    assert 'loss' in out


def test_tables_of_answers_show_prompt_and_completion(capsys):
    hf = make_lm()
    dls = pairs(hf)
    dls.show_batch(max_n=1)
    assert 'target' in capsys.readouterr().out
    learn = hf_learner(dls, hf.model)
    with learn.no_bar(): learn.show_results(max_n=1)
    assert 'prediction' in capsys.readouterr().out


def test_new_rows_are_processed_like_training_rows(df, tmp_path):
    hf = make_lm()
    learn = hf_learner(loaders(df, hf, valid_col='is_valid', block_size=16), hf.model)
    new = make_texts(6, seed=3)
    for texts in (new, new.text.tolist()):
        dl = learn.dls.test_dl(texts)
        assert [i for o, in dl.dataset for i in o.ids] == [i for t in new.text
                                                           for i in [*hf.tokenizer(t)['input_ids'], 0]]
    with learn.no_bar(): loss = learn.validate(dl=dl)[0]
    learn.export(tmp_path/'learn.pkl')
    again = load_learner(tmp_path/'learn.pkl')
    with again.no_bar(): assert again.validate(dl=again.dls.test_dl(new))[0] == pytest.approx(loss, abs=1e-6)
    assert again.hf_predict('the film') == learn.hf_predict('the film')


def test_new_prompts_need_their_completions():
    hf = make_lm()
    learn = hf_learner(pairs(hf), hf.model)
    with pytest.raises(ValueError, match=mentions('row 0', 'completion')): learn.dls.test_dl(PAIRS)
    with learn.no_bar(): assert learn.validate(dl=learn.dls.test_dl(PAIRS, with_labels=True))[0] > 0
    score = learn.hf_predict(('the film was', ' warm'))
    assert score['tokens'] == len(hf.tokenizer(' warm')['input_ids']) + 1


def test_scores_do_not_depend_on_the_other_texts(df):
    hf = make_lm()
    learn = hf_learner(loaders(df, hf), hf.model)
    texts = df.text[:10].tolist()
    for one,text in zip(learn.hf_predict(texts), texts, strict=True):
        assert one['loss'] == pytest.approx(learn.hf_predict(text)['loss'], abs=1e-5)
    with pytest.raises(ValueError, match=mentions('1 of 2', "''")): learn.hf_predict(['the film', ''])


def test_the_mid_and_low_level_give_the_same_batches(df):
    hf = make_lm()
    block = HFTextBlock(*hf, task='causal-lm', block_size=16)
    dblock = DataBlock(blocks=(block,), get_x=ColReader('text'), splitter=ColSplitter())
    dls = dblock.dataloaders(df, bs=8, device='cpu')
    high = loaders(df, hf, valid_col='is_valid', block_size=16, bs=8)
    assert dls.valid.one_batch()[0]['input_ids'].tolist() == high.valid.one_batch()[0]['input_ids'].tolist()
    learn = Learner(dls, hf.model, loss_func=TokenCrossEntropy(), metrics=block.task.metrics(), cbs=[HFCallback],
                    splitter=hf_splitter)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        learn.freeze()
        learn.summary()
    rows = HFDataLoader([(o,) for o in df.text], hf_block=block, bs=8)
    assert rows.one_batch()[0]['input_ids'].shape == (8, 16)


def test_blocks_are_datasets():
    blocks = Blocks([('a',)], table_of([Tokens([1, 2, 3])]))
    assert isinstance(blocks, Datasets)
    assert blocks[0] == (Tokens([1, 2, 3]),)
    assert len(blocks.new_empty()) == 0
    with pytest.raises(IndexError): blocks[1]


# templates

THINKING = ("{% for m in messages %}<{{ m.role }}> {% if m.role=='assistant' and not loop.last %}"
            "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|endoftext|>{% endfor %}"
            "{% if add_generation_prompt %}<assistant> <think>{% endif %}") # leaves out earlier thoughts, opens one
NO_SYSTEM = ("{% if messages[0].role=='system' %}{{ raise_exception('System role not supported') }}{% endif %}"
             + TEMPLATE)
TOOLS = "{% for t in tools or [] %}<tool> {{ t.function.name }}<|endoftext|>{% endfor %}" + TEMPLATE
USER,GOOD,WHY,MOVES = chats(1).messages[0]


def with_template(template):
    hf = make_lm(n_positions=512)
    hf.tokenizer.chat_template = template
    return hf


def learned(tokens, hf): return hf.tokenizer.decode(tokens.ids[tokens.columns['counts']==1])
def rows_of(sample, hf, **options):
    block = HFTextBlock(*hf, task='causal-lm', **options)
    return block.task.answer_rows(sample, block)


@pytest.mark.parametrize('template', [TEMPLATE, MARKED])
def test_a_prompt_and_a_completion_are_lists_of_messages(template):
    hf = with_template(template)
    df = chats().assign(prompt=lambda d: d.messages.str[:3], completion=lambda d: d.messages.str[3:])
    for data in (df, Dataset.from_pandas(df[['prompt', 'completion']])):
        make = HFTextDataLoaders.from_df if data is df else HFTextDataLoaders.from_dataset
        dls = make(data, hf, task='causal-lm', text_col='prompt', label_col='completion', device='cpu', seed=0,
                   packing=True)
        assert {learned(o, hf) for o, in dls.train_ds} == {'It moves.<|endoftext|>'}
        x,y = dls.one_batch()
        assert (y >= 0).any()
    for sample in [(df.prompt[0], 'It moves.'), ((df.prompt[0], df.completion[0]),)]:
        assert rows_of(sample, hf) == rows_of((df.prompt[0], df.completion[0]), hf)
    assert rows_of(('Good?', [GOOD]), hf) == rows_of(([USER], [GOOD]), hf)
    with pytest.raises(ValueError, match=mentions("'assistant'")): rows_of(([USER, GOOD], [WHY]), hf)
    with pytest.raises(ValueError, match=mentions('label_col=None')): rows_of(([USER, GOOD], 'a label'), hf)


def test_a_template_that_rewrites_earlier_answers_needs_a_row_for_each():
    hf = with_template(THINKING)
    df = pd.DataFrame(dict(messages=[[USER, dict(role='assistant', content='<think>So</think>Very good.'), WHY,
                                      dict(role='assistant', content='<think>Hm</think>It moves.')]]*4))
    with pytest.raises(ValueError, match=mentions('row', 'message 1', 'split_chats=True')):
        loaders(df, hf, text_col='messages')
    dls = loaders(df, hf, text_col='messages', split_chats=True, valid_pct=.25)
    assert len(dls.train_ds) == 6
    assert [learned(o, hf) for o, in dls.train_ds][:2] == ['So</think>Very good.<|endoftext|>',
                                                          'Hm</think>It moves.<|endoftext|>']
    assert 'So' not in hf.tokenizer.decode(dls.train_ds[1][0].ids)
    learn = hf_learner(dls, hf.model)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.hf_predict(df.messages[0])['tokens'] == (dls.train_ds[1][0].columns['counts']==1).sum()
    assert len(learn.hf_predict(df.messages)) == 4


@given(contents=st.lists(st.text('ab <think>', min_size=1, max_size=8), min_size=2, max_size=5), prompted=st.booleans())
@settings(deadline=None, max_examples=50)
def test_an_answer_begins_after_its_header_whatever_the_prompt_opens(contents, prompted):
    hf = test_an_answer_begins_after_its_header_whatever_the_prompt_opens.hf
    hf.tokenizer.chat_template = TEMPLATE.replace('<assistant> {%', '<assistant> <think>{%') if prompted else TEMPLATE
    messages = [dict(role='assistant' if i%2 else 'user', content=o) for i,o in enumerate(contents)]
    row, = rows_of((messages,), hf)
    opened = lambda o: o.removeprefix('<think>') if prompted else o
    assert learned(row, hf) == ''.join(opened(o)+'<|endoftext|>' for o in contents[1::2])


test_an_answer_begins_after_its_header_whatever_the_prompt_opens.hf = make_lm()


def test_a_system_message_is_folded_into_the_first_user_message_on_request():
    hf = with_template(NO_SYSTEM)
    system = dict(role='system', content='Be brief.')
    df = chats().assign(messages=lambda d: [[system, *o] for o in d.messages])
    with pytest.raises(ValueError, match=mentions('row', 'System role not supported', 'fold_system=True')):
        loaders(df, hf, text_col='messages')
    dls = loaders(df, hf, text_col='messages', fold_system=True)
    text = hf.tokenizer.decode(dls.train_ds[0][0].ids)
    assert text.startswith('<user> Be brief.\n\nGood?<|endoftext|>')
    learn = hf_learner(dls, hf.model)
    assert len(learn.hf_generate([system, USER], max_new_tokens=2)) == 1
    same = rows_of(([system, USER, GOOD],), with_template(TEMPLATE), fold_system=True)[0]
    assert hf.tokenizer.decode(same.ids).startswith('<system> Be brief.') # this template takes it
    with pytest.raises(ValueError, match=mentions('no user message')): rows_of(([system, GOOD],), hf, fold_system=True)


@pytest.mark.parametrize('as_json', [False, True])
def test_a_column_of_tools_goes_through_the_template(as_json):
    hf = with_template(TOOLS)
    tools = [dict(type='function', function=dict(name='rating', description='of a film'))]
    df = chats(6).assign(tools=[json.dumps(tools) if as_json else tools]*5 + [None])
    for data,make in [(df, HFTextDataLoaders.from_df), (Dataset.from_pandas(df), HFTextDataLoaders.from_dataset)]:
        dls = make(data, hf, task='causal-lm', text_col=['messages', 'tools'], splits=(range(1, 6), [0]), device='cpu')
        texts = [hf.tokenizer.decode(o.ids) for o, in dls.train_ds]
        assert [o.startswith('<tool> rating<|endoftext|><user> Good?') for o in texts] == [True]*4 + [False]
        assert 'rating' not in learned(dls.train_ds[0][0], hf)
    learn = hf_learner(dls, hf.model)
    dl = learn.dls.test_dl(df)
    assert len(dl.dataset) == 6
    assert learn.hf_predict((df.messages[0], tools))['tokens'] > 0
    assert len(learn.hf_generate((df.messages[0][:1], tools), max_new_tokens=2)) == 1
    prompt = dls.hf_block.task.prompt((df.messages[0][:1], tools), dls.hf_block)
    assert hf.tokenizer.decode(prompt.ids).startswith('<tool> rating')
    both = df.assign(prompt=df.messages.str[:1], completion='Very good.')
    dls = loaders(both, hf, text_col=['prompt', 'tools'], label_col='completion', splits=([0, 1], [5]))
    assert hf.tokenizer.decode(dls.train_ds[0][0].ids).startswith('<tool> rating')
    with pytest.raises(ValueError, match=mentions("'Good?'", 'tools')): rows_of((('Good?', tools), 'Yes.'), hf)
