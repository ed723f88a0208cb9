"Compare Trainer and hf_learner on classification of pairs of texts"
from classification import compare_classes
from common import compare
from fastcore.meta import delegates
from fastcore.script import call_parse


@call_parse
@delegates(compare, but=['df', 'trainer', 'blurlike', 'scores'])
def main(
    csv:str, # Path of a CSV file
    text_col:str='question', # The column of first texts
    pair_col:str='passage', # The column of second texts
    label_col:str='label', # The column of labels
    **kwargs
):
    "Classify pairs of texts with transformers.Trainer and with blurlike"
    compare_classes(csv, [text_col, pair_col], label_col, **kwargs)
