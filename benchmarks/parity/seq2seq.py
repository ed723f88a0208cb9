"Compare Trainer and hf_learner on summarization and translation"
import torch
from common import VOCAB, compare, fresh, read_rows, train_blurlike, train_trainer, train_valid
from fastcore.meta import delegates
from fastcore.script import call_parse
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from blurlike.all import HFTextDataLoaders, hf_learner


def trainer_side(s, df):
    "Train with `Seq2SeqTrainer` and return the texts generated for the validation rows, the model and the tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(s.checkpoint)
    def encode(rows):
        return tokenizer(rows['source'], text_target=rows['target'], truncation=True, max_length=s.max_length)
    train,valid = (o.map(encode, batched=True, remove_columns=o.column_names) for o in train_valid(df))
    set_seed(s.seed)
    model = AutoModelForSeq2SeqLM.from_pretrained(s.checkpoint, dtype=torch.float32)
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    trainer = train_trainer(s, model, train, collator, Seq2SeqTrainer, Seq2SeqTrainingArguments,
                            predict_with_generate=True)
    ids = trainer.predict(valid, max_new_tokens=s.max_new_tokens, num_beams=1).predictions
    ids[ids==-100] = tokenizer.pad_token_id
    return tokenizer.batch_decode(ids, skip_special_tokens=True),trainer.model,tokenizer

def blurlike_side(s, df):
    "Train with `hf_learner` and return the same"
    dls = HFTextDataLoaders.from_df(df, s.checkpoint, text_col='source', label_col='target', task=s.task,
                                    valid_col='is_valid', bs=s.bs, max_length=s.max_length,
                                    max_target_length=s.max_length, seed=s.seed)
    set_seed(s.seed)
    learn = train_blurlike(s, hf_learner(dls, metrics=[]))
    written = learn.hf_generate(df[df.is_valid].source, max_new_tokens=s.max_new_tokens, num_beams=1)
    key = 'summary_text' if s.task=='summarization' else 'translation_text'
    return [o[key] for o in written],learn.model,dls.hf_block.hf_tokenizer

def loss_per_token(model, tokenizer, sources, targets):
    "Return the mean loss per token of `targets`"
    model.eval()
    total,n = 0.,0
    with torch.inference_mode():
        for pair in zip(sources, targets, strict=True):
            enc = tokenizer(pair[0], text_target=pair[1], truncation=True, max_length=512, return_tensors='pt')
            enc = enc.to(model.device)
            count = enc['labels'].numel()
            total,n = total + count*model(input_ids=enc['input_ids'], labels=enc['labels']).loss.item(),n + count
    return total/n

def scores(valid, result):
    "Return chrF, BLEU and ROUGE-L of the generated texts, and the loss per token of the targets"
    texts,model,tokenizer = result
    truth = valid.target.tolist()
    scorer = RougeScorer(['rougeL'])
    rouge = [scorer.score(t, p)['rougeL'].fmeasure for t,p in zip(truth, texts, strict=True)]
    return {'loss per token': loss_per_token(model, tokenizer, valid.source, truth),
            'chrF': corpus_chrf(texts, [truth]).score, 'BLEU': corpus_bleu(texts, [truth]).score,
            'ROUGE-L': 100*sum(rouge)/len(truth)}

@call_parse
@delegates(compare, but=['df', 'trainer', 'blurlike', 'scores'])
def main(
    csv:str, # Path of a CSV file
    text_col:str='text', # The column of source texts
    target_col:str='summary', # The column of target texts
    task:str='summarization', # "summarization" or "translation"
    max_new_tokens:int=48, # Maximum number of generated tokens
    checkpoint:str=None, # A name on the Hub or a local folder; a small BART with new weights if omitted
    **kwargs
):
    "Train summarization or translation with transformers.Seq2SeqTrainer and with blurlike"
    df = read_rows(csv, [text_col, target_col])
    df.columns = ['source', 'target']
    checkpoint = checkpoint or fresh([*df.source, *df.target], AutoModelForSeq2SeqLM, BartConfig(
        vocab_size=VOCAB, max_position_embeddings=512, d_model=128, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=512, decoder_ffn_dim=512), ends=True)
    compare(df, trainer_side, blurlike_side, scores, checkpoint=checkpoint, task=task, max_new_tokens=max_new_tokens,
            **kwargs)
