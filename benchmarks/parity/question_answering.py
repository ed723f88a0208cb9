"Compare Trainer and hf_learner on extractive question answering"
import re
import string
from collections import Counter

import numpy as np
from common import compare, read_rows, train_blurlike, train_trainer, train_valid
from fastcore.meta import delegates
from fastcore.script import call_parse
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, DataCollatorWithPadding, set_seed

from blurlike.all import HFTextDataLoaders, hf_learner


def windows(tokenizer, rows, s):
    "Tokenize questions and contexts, splitting long contexts into windows"
    return tokenizer(rows['question'], rows['context'], truncation='only_second', max_length=s.max_length,
                     stride=s.stride, return_overflowing_tokens=True, return_offsets_mapping=True)

def span(offsets, sequence_ids, start, end):
    "Return the tokens of the characters from `start` to `end`, or (0, 0) if the window does not contain them"
    inside = [i for i,o in enumerate(sequence_ids) if o==1]
    first,last = inside[0],inside[-1]
    if offsets[first][0] > start or offsets[last][1] < end: return 0,0
    while first <= last and offsets[first][0] <= start: first += 1
    while offsets[last][1] >= end and last >= 0: last -= 1
    return first-1,last+1

def training_windows(tokenizer, rows, s):
    "Return windows with the positions of the answers"
    enc = windows(tokenizer, rows, s)
    places = []
    for i,row in enumerate(enc['overflow_to_sample_mapping']):
        start = rows['answer_start'][row]
        places.append(span(enc['offset_mapping'][i], enc.sequence_ids(i), start, start + len(rows['answer_text'][row])))
    enc = {k: v for k,v in enc.items() if k not in ('overflow_to_sample_mapping', 'offset_mapping')}
    return enc | dict(start_positions=[a for a,_ in places], end_positions=[b for _,b in places])

MAX_ANSWER = 30 # Maximum number of tokens in an answer, on both sides

def best_span(start, end, offsets, sequence_ids, n_best=20):
    "Return the score and the character span of the best answer in a window, or None if it has none"
    best = None
    for a in np.argsort(-start)[:n_best]:
        for b in np.argsort(-end)[:n_best]:
            if sequence_ids[a]!=1 or sequence_ids[b]!=1 or not a <= b < a + MAX_ANSWER: continue
            if best is None or start[a] + end[b] > best[0]: best = start[a] + end[b],offsets[a][0],offsets[b][1]
    return best

def answers(enc, starts, ends, contexts):
    "Return the best answer to each question over all windows of its context"
    best = {}
    for i,row in enumerate(enc['overflow_to_sample_mapping']):
        n = len(enc.sequence_ids(i)) # `Trainer` pads its predictions to the longest window of all batches
        found = best_span(starts[i][:n], ends[i][:n], enc['offset_mapping'][i], enc.sequence_ids(i))
        if found and (row not in best or found[0] > best[row][0]): best[row] = found
    return [contexts[i][best[i][1]:best[i][2]] if i in best else '' for i in range(len(contexts))]

def trainer_side(s, df):
    "Train with `Trainer` and return the answers of the validation rows"
    tokenizer = AutoTokenizer.from_pretrained(s.checkpoint)
    train,valid = train_valid(df)
    train = train.map(lambda rows: training_windows(tokenizer, rows, s), batched=True,
                      remove_columns=train.column_names)
    enc = windows(tokenizer, valid[:], s)
    s.bs = round(s.bs*len(train)/(~df.is_valid).sum()) # windows per batch, for as many steps as blurlike takes
    set_seed(s.seed) # for the same new weights on both sides
    model = AutoModelForQuestionAnswering.from_pretrained(s.checkpoint)
    trainer = train_trainer(s, model, train, DataCollatorWithPadding(tokenizer))
    inputs = [{k: enc[k][i] for k in tokenizer.model_input_names} for i in range(len(enc['input_ids']))]
    starts,ends = trainer.predict(inputs).predictions
    return answers(enc, starts, ends, valid['context'])

def blurlike_side(s, df):
    "Train with `hf_learner` and return the same"
    dls = HFTextDataLoaders.from_df(df, s.checkpoint, text_col=('question', 'context'),
                                    label_col=('answer_text', 'answer_start'), task='question-answering',
                                    valid_col='is_valid', bs=s.bs, max_length=s.max_length, stride=s.stride,
                                    max_answer_len=MAX_ANSWER, seed=s.seed)
    set_seed(s.seed)
    learn = train_blurlike(s, hf_learner(dls, metrics=[]))
    valid = df[df.is_valid]
    return [o['answer'] for o in learn.hf_predict(list(zip(valid.question, valid.context, strict=True)))]

def normal(text):
    "Return the words of `text` in lower case, without punctuation and articles, as SQuAD's scorer does"
    text = ''.join(o for o in text.lower() if o not in string.punctuation)
    return re.sub(r'\b(a|an|the)\b', ' ', text).split()

def overlap(truth, pred):
    "Return the F1 of the words of two answers"
    truth,pred = normal(truth),normal(pred)
    common = sum((Counter(truth) & Counter(pred)).values())
    return 2*common/(len(truth) + len(pred)) if common else float(truth==pred)

def scores(valid, preds):
    "Return SQuAD's F1 and exact match, in percent"
    pairs = list(zip(valid.answer_text, preds, strict=True))
    return {'F1': 100*np.mean([overlap(*o) for o in pairs]),
            'exact match': 100*np.mean([normal(t)==normal(p) for t,p in pairs])}

@call_parse
@delegates(compare, but=['df', 'trainer', 'blurlike', 'scores'])
def main(
    csv:str, # Path of a CSV file
    question_col:str='question', # The column of questions
    context_col:str='context', # The column of contexts
    answer_col:str='answer_text', # The column of answers
    start_col:str='answer_start', # The column with the index of the answer's first character in the context
    stride:int=64, # Number of tokens that consecutive windows share
    **kwargs
):
    "Train extractive question answering with transformers.Trainer and with blurlike"
    df = read_rows(csv, [question_col, context_col, answer_col, start_col])
    df.columns = ['question', 'context', 'answer_text', 'answer_start']
    compare(df, trainer_side, blurlike_side, scores, stride=stride, **kwargs)
